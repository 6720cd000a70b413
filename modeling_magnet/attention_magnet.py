"""The attention rule of MAGNET, and the span ids it reads (section 3.1, Figure 2)."""

import torch


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
