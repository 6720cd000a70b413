"""Likelihoods of given tokens: of a fill under the model, of fill and text behind it under the base in causal mode."""

import copy

import torch
from transformers.cache_utils import DynamicCache

from .encoding_magnet import padded


def token_logprobs(logits: torch.Tensor, tokens: torch.LongTensor) -> torch.Tensor:
    """
    Log-probability of each token under the logits that predict it, in nats, in float32 at least.

    Args:
        logits (`torch.Tensor` of shape `(..., vocab_size)`): What predicts each token.
        tokens (`torch.LongTensor` of shape `(...)`): Token ids.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


@torch.no_grad()
def continuation_logprobs(
    model, left: list[int], rows: list[list[int]], batch_size: int | None = None
) -> list[list[float]]:
    """
    Log-probabilities of texts that go on from one left context, under the base model; the context is read once.

    Args:
        model (`Magnet*ForCausalLM`): Its adapter is off for this.
        left (`list[int]`): Token ids; a beginning that finds no room in `max_position_embeddings` is left out.
        rows (`list[list[int]]`): The continuations' token ids.
        batch_size (`int`, *optional*): Rows of one forward; it gives logits for each token of each.

    Returns:
        For each row the log-probability of each of its tokens, in nats. Where `left` is empty, nothing predicts a row's
        first token, which then counts 0.
    """
    length = max(map(len, rows), default=0)
    room = model.config.max_position_embeddings - length
    left, size, logprobs = left[max(0, len(left) - room) :], batch_size or len(rows) or 1, []
    with model.adapter_disabled():
        cache, first = DynamicCache(config=model.config), None
        if left:
            ids = torch.tensor([left], device=model.device)
            inputs = {"past_key_values": cache, "attention_mode": "causal", "use_cache": True}
            first = model(ids, **inputs, logits_to_keep=1).logits  # (1, 1, V): predicts each row's first token
        for start in range(0, len(rows), size):
            logprobs += _continued(model, cache, first, rows[start : start + size])
    return logprobs


def _continued(model, cache, first, rows):
    """Log-probabilities of rows behind a cached text, which stays as it is."""
    if not any(rows):
        return [[] for _ in rows]
    ids, mask = padded(rows, model.device)  # (R, T)
    cache, seen = copy.deepcopy(cache), cache.get_seq_length()
    if seen:
        cache.batch_repeat_interleave(len(rows))
    mask = torch.cat([mask.new_ones(len(rows), seen), mask], dim=1)  # (R, seen + T)
    inputs = {"attention_mask": mask, "past_key_values": cache, "attention_mode": "causal", "use_cache": True}
    each = token_logprobs(model(ids, **inputs).logits[:, :-1], ids[:, 1:])  # (R, T - 1)
    opening = (
        each.new_zeros(len(rows), 1) if first is None else token_logprobs(first.expand(len(rows), 1, -1), ids[:, :1])
    )
    each = torch.cat([opening, each], dim=1).tolist()
    return [values[: len(row)] for values, row in zip(each, rows)]


@torch.no_grad()
def span_logprobs(
    model, ids: list[int], positions: list[int], at: int, tokens: list[int], end: int | None = None
) -> tuple[list[float], float | None]:
    """
    Log-probability of each token of a given fill, and of the end token behind it, by one hybrid forward.

    Args:
        model (`Magnet*ForCausalLM`): The adapter acts.
        ids, positions (`list[int]`): Tokens of the context, of which `ids[at - 1]` stands left of the gap, and where each
            of them stands. Positions jump at gaps.
        at (`int`): Where the gap is, 1 or more.
        tokens (`list[int]`): The fill.
        end (`int`, *optional*): The end token, where it is to be scored.

    Returns:
        The tokens' log-probabilities, and the end token's or `None`, in nats.
    """
    targets = tokens + ([] if end is None else [end])
    if not targets:
        return [], None
    first = positions[at - 1] + 1
    rows = (
        ids[:at] + tokens + ids[at:],
        [0] * at + [1] * len(tokens) + [0] * (len(ids) - at),
        positions[:at] + list(range(first, first + len(tokens))) + positions[at:],
    )
    row, spans, places = torch.tensor(rows, device=model.device)[:, None]  # (1, L) each
    wanted = torch.zeros_like(row, dtype=torch.bool)
    wanted[:, at - 1 : at - 1 + len(targets)] = True  # each is predicted by the token to its left
    mode = {"attention_mode": "hybrid", "span_ids": spans, "use_cache": False}
    logits = model(row, position_ids=places, **mode, logits_to_keep=wanted).logits  # (T, V)
    each = token_logprobs(logits, torch.tensor(targets, device=model.device)).tolist()
    return each[: len(tokens)], None if end is None else each[-1]
