"""The attention rule of MAGNET, the span ids it reads, and the modes of a call (section 3.1, Figure 2)."""

import difflib
import functools

import torch

from .configuration_magnet import ATTENTION_MODES


def span_attention_rule(span_ids: torch.Tensor):
    """
    The one attention rule of MAGNET (section 3.1, Figure 2): every token attends to the whole context; a span token
    attends besides to itself and to the earlier tokens of its own span.

    Args:
        span_ids (`torch.LongTensor` of shape `(batch, length)`):
            0 for a context token, g > 0 for a token of the g-th span. All 0 is bidirectional, all 1 is causal.

    Returns:
        A predicate `allowed(batch, head, query, key) -> bool tensor`, in the form transformers' mask functions take.
    """

    def allowed(batch, head, query, key):
        in_context = span_ids[batch, key] == 0
        in_own_past = (span_ids[batch, key] == span_ids[batch, query]) & (key <= query)
        return in_context | in_own_past

    return allowed


def span_ids_from_mask(span_mask: torch.Tensor) -> torch.Tensor:
    """
    Numbers the runs of a boolean span mask: 0 outside, 1, 2, ... for the runs from left to right.

    Two spans that touch are one run in a mask; use `span_ids` to keep them apart.

    Args:
        span_mask (`torch.BoolTensor` of shape `(batch, length)`): `True` at span tokens.

    Returns:
        `torch.LongTensor` of shape `(batch, length)`.

    Example:

    ```python
    >>> import torch
    >>> from modeling_magnet import span_ids_from_mask
    >>> span_ids_from_mask(torch.tensor([[False, True, True, False, True]]))
    tensor([[0, 1, 1, 0, 2]])

    ```
    """
    before = torch.nn.functional.pad(span_mask, (1, 0))[:, :-1]  # (B, L), the mask one to the right
    return (span_mask & ~before).cumsum(dim=1) * span_mask


def check_span_ids(span_ids: torch.Tensor, shape: tuple[int, int]) -> None:
    """Raises `ValueError` unless `span_ids` is an integer tensor of `shape` whose spans are each one unbroken run."""
    if span_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise ValueError(
            f"span_ids has dtype {span_ids.dtype}: must be an integer tensor (use span_mask= for booleans)."
        )
    if tuple(span_ids.shape) != tuple(shape):
        raise ValueError(f"span_ids has shape {tuple(span_ids.shape)}: must be (batch, length) = {tuple(shape)}.")
    if torch.compiler.is_compiling():  # the checks below read values, which would break the graph
        return
    if (span_ids < 0).any():
        raise ValueError("span_ids holds negative values: use 0 for context tokens and 1, 2, ... for spans.")
    before = torch.nn.functional.pad(span_ids, (1, 0))[:, :-1]
    runs = ((span_ids != before) & (span_ids > 0)).sum(1)  # (B,)
    ordered = span_ids.sort(dim=1).values
    kinds = ((ordered != torch.nn.functional.pad(ordered, (1, 0))[:, :-1]) & (ordered > 0)).sum(1)  # (B,)
    if (runs != kinds).any():
        row = int((runs != kinds).nonzero()[0])
        raise ValueError(
            f"span_ids, row {row}: a span is not contiguous ({span_ids[row].tolist()}). Give each unbroken run of span "
            "tokens an id of its own."
        )


def resolve_mode(config, attention_mode, span_ids, span_mask, past_key_values) -> str:
    """
    The mode of this call: `attention_mode`, or else `config.attention_mode`.

    Raises:
        `ValueError` for an unknown mode, and for spans or a cache that the mode cannot honour: nothing is ever attended
        to in another way than the call says.
    """
    mode = config.attention_mode if attention_mode is None else attention_mode
    if mode not in ATTENTION_MODES:
        raise ValueError(f"attention_mode={mode!r}: must be one of {list(ATTENTION_MODES)}.")
    cached = past_key_values is not None and _is_filled(past_key_values, mode)
    if span_ids is not None and span_mask is not None:
        raise ValueError("Pass either span_ids or span_mask, not both.")
    if span_mask is not None and span_mask.dtype != torch.bool:
        raise ValueError(f"span_mask has dtype {span_mask.dtype}: must be torch.bool (use span_ids= for integers).")
    has_spans = span_ids is not None or span_mask is not None
    if mode == "hybrid":
        _check_hybrid(config, has_spans, past_key_values, cached)
    elif has_spans:
        raise ValueError(f"span_ids and span_mask mean nothing in attention_mode={mode!r}: use 'hybrid'.")
    if mode == "bidirectional" and cached:
        raise ValueError(
            "past_key_values is not empty: attention_mode='bidirectional' would have to change the cached states. Use "
            "'hybrid' to continue a cached context, or pass the whole text without a cache."
        )
    return mode


def _is_filled(cache, mode) -> bool:
    length = cache.get_seq_length()
    if isinstance(length, torch.Tensor) and torch.compiler.is_compiling():
        return mode == "hybrid"  # a static cache's length is a tensor: reading it would break the graph
    return bool(length > 0)


def _check_hybrid(config, has_spans, past_key_values, cached) -> None:
    if past_key_values is not None:
        if not cached or has_spans:
            raise ValueError(
                "attention_mode='hybrid' with past_key_values continues one span over a cached context: fill the cache "
                "with attention_mode='bidirectional' first and pass no span_ids, or use infill()."
            )
        return
    if not has_spans:
        raise ValueError("attention_mode='hybrid' needs span_ids (batch, length), or use attention_mode='causal'.")
    if "flash" in config._attn_implementation:
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} ignores attention_mode='hybrid'. Use 'sdpa', 'eager' or "
            "'flex_attention'."
        )


def refuse_other_mode_arguments(kwargs: dict) -> None:
    """Llama's forward takes any keyword in silence, so a misspelt `attention_mode` would leave the model causal."""
    if "is_causal" in kwargs:  # transformers would set it on the config, which threads share
        raise ValueError(f"is_causal={kwargs['is_causal']!r}: pass attention_mode= instead.")
    if torch.compiler.is_compiling():
        return
    for key in kwargs:
        if close := _meant(key):
            raise ValueError(f"{key}={kwargs[key]!r}: unknown argument. Did you mean {close!r}?")


@functools.cache  # each decoded token asks again
def _meant(key: str) -> str | None:
    close = difflib.get_close_matches(key, ("attention_mode", "span_ids", "span_mask"), n=1, cutoff=0.85)
    return close[0] if close else None
