"""The attention rule of section 3.1 as a brute-force double loop. It defines what is correct, for every family and backend."""

import torch


def allowed_pairs(span_ids, real, window: int | None = None, positions=None) -> torch.Tensor:
    """
    `allowed[b, q, k]`: may query q attend to key k?

    Args:
        span_ids: (batch, length) integers, 0 for context and g > 0 for the g-th span.
        real: (batch, length) booleans, False at padding.
        window: How far a layer sees, to either side, in positions; None for all the way.
        positions: (batch, length) integers; defaults to 0, 1, ...
    """
    batch, length = len(span_ids), len(span_ids[0])
    allowed = torch.zeros(batch, length, length, dtype=torch.bool)
    for b in range(batch):
        place = list(range(length)) if positions is None else positions[b]
        for q in range(length):
            for k in range(length):
                if not real[b][k]:
                    continue  # nobody attends to padding
                if window is not None and abs(place[q] - place[k]) >= window:
                    continue  # too far
                if span_ids[b][k] == 0:
                    allowed[b, q, k] = True  # everybody attends to context
                elif span_ids[b][k] == span_ids[b][q] and k <= q:
                    allowed[b, q, k] = True  # a span token attends to itself and to its own past
    return allowed


def spans_of_mode(mode: str, span_ids: torch.Tensor) -> torch.Tensor:
    """The pure modes are the rule with one kind of token: no span is bidirectional, one whole span is causal."""
    return {"causal": torch.ones_like(span_ids), "bidirectional": torch.zeros_like(span_ids), "hybrid": span_ids}[mode]


def additive_mask(span_ids, padding_mask, window=None, positions=None) -> torch.Tensor:
    """The rule as the 4D float mask, (batch, 1, length, length), that a stock eager decoder takes as it is."""
    positions = positions if positions is None else positions.tolist()
    allowed = allowed_pairs(span_ids.tolist(), padding_mask.bool().tolist(), window, positions)
    mask = torch.full(allowed.shape, torch.finfo(torch.float32).min)
    return mask.masked_fill(allowed, 0.0)[:, None]


def padding_mask(lengths: list[int], width: int, side: str) -> torch.Tensor:
    """(batch, width) of 1 at real tokens and 0 at padding, which stands on `side`: left, right or both."""
    before = {"left": lambda n: width - n, "right": lambda n: 0, "both": lambda n: (width - n) // 2}[side]
    rows = [[0] * before(n) + [1] * n + [0] * (width - n - before(n)) for n in lengths]
    return torch.tensor(rows)
