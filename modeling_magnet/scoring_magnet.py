"""Likelihoods of given tokens: a fill under the model; a fill and the text after it under the causal base model."""

import copy

import torch
from transformers.cache_utils import DynamicCache

from .encoding_magnet import padded


def token_logprobs(logits: torch.Tensor, tokens: torch.LongTensor) -> torch.Tensor:
    """
    Log-probability of each token under the logits that predict it, in nats, computed at least in float32.

    Args:
        logits (`torch.Tensor` of shape `(..., vocab_size)`): Predictions for each token.
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
    Log-probabilities of continuations of one left context under the base model; the context is processed once.

    Args:
        model (`Magnet*ForCausalLM`): Its adapter is disabled.
        left (`list[int]`): Token ids, truncated at the start to fit into `max_position_embeddings`.
        rows (`list[list[int]]`): The continuations' token ids.
        batch_size (`int`, *optional*): Rows per forward, which computes logits for every token.

    Returns:
        For each row, the log-probability of each token, in nats. If `left` is empty, nothing predicts a row's first
        token, which then counts 0.
    """
    length = max(map(len, rows), default=0)
    room = model.config.max_position_embeddings - length
    left, size, logprobs = left[max(0, len(left) - room) :], batch_size or len(rows) or 1, []
    with model.adapter_disabled():
        cache, first = DynamicCache(config=model.config), None
        if left:
            ids = torch.tensor([left], device=model.device)
            inputs = {"cache": cache, "attention_mode": "causal", "use_cache": True}
            first = model(ids, **inputs, logits_to_keep=1).logits  # (1, 1, V): predicts each row's first token
        for start in range(0, len(rows), size):
            logprobs += _continued(model, cache, first, rows[start : start + size])
    return logprobs


def _continued(model, cache, first, rows):
    """Log-probabilities of rows after a cached text; the cache is not modified."""
    if not any(rows):
        return [[] for _ in rows]
    ids, mask = padded(rows, model.device)  # (R, T)
    cache, seen = copy.deepcopy(cache), cache.get_seq_length()
    if seen:
        cache.batch_repeat_interleave(len(rows))
    mask = torch.cat([mask.new_ones(len(rows), seen), mask], dim=1)  # (R, seen + T)
    inputs = {"attention_mask": mask, "cache": cache, "attention_mode": "causal", "use_cache": True}
    each = token_logprobs(model(ids, **inputs).logits[:, :-1], ids[:, 1:])  # (R, T - 1)
    opening = (
        each.new_zeros(len(rows), 1) if first is None else token_logprobs(first.expand(len(rows), 1, -1), ids[:, :1])
    )
    each = torch.cat([opening, each], dim=1).tolist()
    return [values[: len(row)] for values, row in zip(each, rows)]


@torch.no_grad()
def span_logprobs(
    model, ids: list[int], positions: list[int], at: int, tokens: list[int], free: bool = False
) -> tuple[list[float], float | None]:
    """
    Log-probability of each token of a given fill, and of the end token after it, from one hybrid forward. As in training
    and in `infill()`, the end token is barred as the first one, and throughout a gap of known length.

    Args:
        model (`Magnet*ForCausalLM`): Its adapter is active.
        ids, positions (`list[int]`): The context's tokens and their positions, which jump at gaps. `ids[at - 1]` is
            the token left of the gap.
        at (`int`): Index of the gap, 1 or more.
        tokens (`list[int]`): The fill.
        free (`bool`, *optional*, defaults to `False`): Whether the gap has the free layout, and so an end token.

    Returns:
        The tokens' log-probabilities, and the end token's or `None`, in nats.
    """
    end = model.config.infill_end_token_id
    targets = tokens + ([end] if free else [])
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
    if end is not None and tokens:
        logits[: 1 if free else None, end] = -torch.inf
    each = token_logprobs(logits, torch.tensor(targets, device=model.device)).tolist()
    return each[: len(tokens)], each[-1] if free else None
