"""Which of several fills is best.

Fills of different lengths cannot be compared by their own likelihood: its sum prefers short fills, its mean generic ones.
What stands behind the gap is the same for all of them, so its likelihood under the base model can: the join score.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .gaps_magnet import Document, InfilledGap
from .scoring_magnet import continuation_logprobs

SELECTIONS = ("auto", "end", "join", "joint", "mean_logprob")


@dataclass
class Choice:
    """How many fills are written for a gap, and which are kept."""

    selection: str | Callable
    num_candidates: int | None
    num_return_sequences: int
    join_tokens: int
    details: bool  # whether all scores are wanted, or only what the selection needs
    batch_size: int = 32  # fills whose likelihood is computed at once


def rank(
    model, document: Document, gap: int, fills: list[InfilledGap], choice: Choice, beams: int
) -> list[InfilledGap]:
    """The best first. Beam search has an order of its own."""
    rule = choice.selection
    given, free = document.gaps[gap].candidates is not None, document.gaps[gap].is_free
    ends = free and not given and model.config.infill_end_token_id is not None
    if rule == "auto" or (rule == "end" and not ends):
        searched = free and model.config.infill_end_token_id is None
        rule = "joint" if given else "join" if searched or beams == 1 else "beams"
    if choice.details or callable(rule) or (rule in ("join", "joint") and len(fills) > 1):
        score_joins(model, document, gap, fills, choice)
    if rule == "beams" or (len(fills) == 1 and not choice.details):
        return fills
    for fill in fills:
        fill.score = score_of(fill, rule)
    return sorted(fills, key=lambda fill: -fill.score)


def score_joins(model, document: Document, gap: int, fills: list[InfilledGap], choice: Choice) -> None:
    """Sets `join_score` and `joint_score` of each fill; the text left of the gap is read once for all."""
    right = document.ids[gap + 1][: choice.join_tokens]
    rows = [fill.token_ids + right for fill in fills]
    scored = continuation_logprobs(model, document.left_ids(gap), rows, choice.batch_size)
    for fill, logprobs in zip(fills, scored):
        behind = logprobs[len(fill.token_ids) :]
        fill.join_score = sum(behind) / len(behind) if behind else None
        fill.joint_score = sum(logprobs)


def score_of(fill: InfilledGap, rule: str | Callable) -> float:
    """What alternatives are sorted by; without a text behind the gap, only a fill's own likelihood is left."""
    if callable(rule):
        return float(rule(fill))
    end = -math.inf if fill.end_logprob is None else fill.end_logprob
    if rule == "end":
        return end
    if rule == "mean_logprob":
        return sum(fill.token_logprobs) / len(fill.token_ids) if fill.token_ids else end
    if fill.join_score is not None:
        return fill.join_score if rule == "join" else fill.joint_score
    return fill.joint_score / len(fill.token_ids) if fill.token_ids else -math.inf
