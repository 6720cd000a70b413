"""Likelihoods of given tokens: of a fill under the model, of fill and text behind under the base model in causal mode."""

import copy

import torch
from transformers.cache_utils import DynamicCache

from .adapter_magnet import adapter_gate


@torch.no_grad()
def continuation_logprobs(
    model, left: list[int], rows: list[list[int]], batch_size: int | None = None
) -> list[list[float]]:
    """
    Log-probabilities of texts that go on from one left context, under the base model; the context is read once.

    Args:
        model ([`MagnetLlamaForCausalLM`]): Its adapter is off for this.
        left (`list[int]`): Token ids, [BOS] first; at least one.
        rows (`list[list[int]]`): The continuations' token ids.
        batch_size (`int`, *optional*): Rows of one forward; it gives logits for each token of each.

    Returns:
        For each row the log-probability of each of its tokens, in nats.
    """
    length = max(map(len, rows), default=0)
    if length == 0:
        return [[] for _ in rows]
    left, size, logprobs = fitting(model, left, length), batch_size or len(rows), []
    with adapter_gate(False):
        first, cache = _read(model, left, 1)
        for start in range(0, len(rows), size):
            logprobs += _continue(model, first, cache, rows[start : start + size])
    return logprobs


def _continue(model, first, cache, rows):
    """Log-probabilities of rows behind a cached text, which stays as it is; `first`, (1, 1, V), predicts their first token."""
    width = max(1, *map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=model.device)  # (R, T)
    real = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        real[number, : len(row)] = 1
    cache = copy.deepcopy(cache)
    mask = torch.cat([real.new_ones(len(rows), cache.get_seq_length()), real], dim=1)
    cache.batch_repeat_interleave(len(rows))
    rest = model(ids, attention_mask=mask, past_key_values=cache, attention_mode="causal").logits  # (R, T, V)
    logits = torch.cat([first.expand(len(rows), -1, -1), rest[:, :-1]], dim=1)  # predicts (R, T)
    each = _log_softmax(logits).gather(-1, ids[..., None])[..., 0].tolist()
    return [values[: len(row)] for values, row in zip(each, rows)]


@torch.no_grad()
def cut_join_logprobs(model, left: list[int], fill: list[int], right: list[int]) -> list[float]:
    """
    Log-probability of the right context behind *every* prefix of a fill, by one forward of the text and one of all cuts.

    The cuts are branches of a tree over a shared cache: the branch of cut t sees the left context, the first t tokens of
    the fill, and its own past. For T tokens and k of the right context that costs T k positions, instead of T forwards.

    Args:
        model, left: As in [`continuation_logprobs`].
        fill (`list[int]`): T tokens.
        right (`list[int]`): The k tokens behind the gap; at least one.

    Returns:
        T + 1 sums of log-probabilities, for the fill cut to 0, 1, ..., T tokens.
    """
    cuts, k = len(fill) + 1, len(right)
    left = fitting(model, left, len(fill) + k)
    with adapter_gate(False):
        first, cache = _read(model, left + fill, cuts)  # (1, cuts, V): what follows each cut
        joins = _log_softmax(first[0])[:, right[0]]  # (cuts,)
        if k > 1:
            joins = joins + _branches(model, cache, len(left), cuts, right)
    return joins.tolist()


def _branches(model, cache, n_left, cuts, right):
    """Sum over right[1:] of log p given a cut and what of the right context stands before, (cuts,)."""
    device, steps = model.device, len(right) - 1
    seen = n_left + torch.arange(cuts, device=device)  # tokens each branch sees of the cached text
    step = torch.arange(steps, device=device)
    branch = torch.arange(cuts, device=device).repeat_interleave(steps)  # (cuts x steps,)
    depth = step.repeat(cuts)
    cached = torch.arange(n_left + cuts - 1, device=device)[None] < seen[branch][:, None]
    own = (branch[:, None] == branch[None]) & (depth[None] <= depth[:, None])
    allowed = torch.cat([cached, own], dim=1)[None, None]  # (1, 1, cuts x steps, text + cuts x steps)
    mask = torch.zeros(allowed.shape, dtype=model.dtype, device=device)
    mask = mask.masked_fill(~allowed, torch.finfo(model.dtype).min)
    ids = torch.tensor(right[:-1], device=device).repeat(cuts)[None]
    positions = (seen[branch] + depth)[None]
    inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    logits = model(ids, **inputs, attention_mode="causal").logits[0]  # (cuts x steps, V)
    targets = torch.tensor(right[1:], device=device).repeat(cuts)
    return _log_softmax(logits).gather(-1, targets[:, None]).view(cuts, steps).sum(1)


def _log_softmax(logits):
    """In float32 at least."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _read(model, ids, last):
    """Logits at the last positions of a text, and its cache."""
    cache = DynamicCache(config=model.config)
    row = torch.tensor([ids], device=model.device)
    outputs = model(row, past_key_values=cache, attention_mode="causal", logits_to_keep=last)
    return outputs.logits, cache


def fitting(model, left: list[int], length: int) -> list[int]:
    """The left context without its beginning where the whole would not fit; what is near the gap counts most."""
    room = model.config.max_position_embeddings - length
    return left if len(left) <= room else [left[0], *left[len(left) - max(room - 1, 0) :]]


@torch.no_grad()
def span_logprobs(model, document, gap, tokens, budget, end) -> tuple[list[float], float | None]:
    """
    Log-probability of each token of a given fill, and of the end token behind it, by one hybrid forward.

    Args:
        model ([`MagnetLlamaForCausalLM`]): The adapter acts.
        document, gap: Where the fill stands; other open gaps keep their budgets.
        tokens (`list[int]`): The fill, or what comes behind `document.begun[gap]`.
        budget (callable): As in [`Document.layout`].
        end (`int`, *optional*): The end token, where it is to be scored.
    """
    ids, positions, left_of = document.layout(budget)
    at = left_of[gap] + 1
    row = ids[:at] + tokens + ids[at:]
    spans = [0] * at + [1] * len(tokens) + [0] * (len(ids) - at)
    places = positions[:at] + [positions[at - 1] + 1 + n for n in range(len(tokens))] + positions[at:]
    row, spans, places = (torch.tensor([values], device=model.device) for values in (row, spans, places))
    mode = {"attention_mode": "hybrid", "span_ids": spans, "use_cache": False}
    logits = model(row, position_ids=places, **mode).logits[0, at - 1 : at + len(tokens)]  # each token, then the end
    logprobs = _log_softmax(logits)  # (T + 1, V)
    each = logprobs[range(len(tokens)), tokens].tolist() if tokens else []
    return each, None if end is None else float(logprobs[len(tokens), end])
