"""What each row of one `generate()` call may write and where it ends: gaps of different kinds are filled side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor, StoppingCriteria


@dataclass
class RowRule:
    """
    The rule of one row.

    Args:
        shortest, longest (`int`): Fewest and most tokens.
        end (`int`, *optional*): The end token, where the row may write it.
        start (list of `int` or of sets): What the first tokens must be; a set is a choice.
        barred (`dict`): From the first n-1 tokens of an n-gram to the tokens that must not follow.
        stops (callable, *optional*): Of the tokens so far: whether the row is done.
    """

    shortest: int
    longest: int
    end: int | None = None
    start: list[set[int]] = field(default_factory=list)
    barred: dict[tuple[int, ...], set[int]] = field(default_factory=dict)
    stops: Callable[[list[int]], bool] | None = None


class GapRules(LogitsProcessor):
    """
    Keeps every row to its rule.

    Args:
        rules (list of [`RowRule`]): One a row of the prompt; beams and alternatives of a row lie side by side.
        prompt_length (`int`): Tokens in front of the fills.
        end (`int`, *optional*): The end token of the call, which rows of exact length must not write.
    """

    def __init__(self, rules: list[RowRule], prompt_length: int, end: int | None):
        self.rules, self.prompt_length, self.end = rules, prompt_length, end

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written = input_ids.shape[1] - self.prompt_length
        copies = len(input_ids) // len(self.rules)
        scores = scores.clone()
        for row in range(len(scores)):
            rule = self.rules[row // copies]
            if written < len(rule.start):
                allowed = sorted(rule.start[written])
                kept = scores[row, allowed]
                scores[row] = -torch.inf
                scores[row, allowed] = kept
            if self.end is not None and (rule.end is None or written < rule.shortest):
                scores[row, self.end] = -torch.inf
            if rule.barred:
                scores[row, self._barred(rule, input_ids[row, self.prompt_length :].tolist())] = -torch.inf
        return scores

    def _barred(self, rule, fill) -> list[int]:
        n = len(next(iter(rule.barred)))
        return sorted(rule.barred.get(tuple(fill[len(fill) - n :]), ())) if len(fill) >= n else []


class GapStops(StoppingCriteria):
    """
    Ends each row where its rule says so.

    Args:
        rules, prompt_length: As in [`GapRules`].
        watch (callable, *optional*): Called with the fills of all rows after each token; `True` ends all rows.
    """

    def __init__(
        self, rules: list[RowRule], prompt_length: int, watch: Callable[[list[list[int]]], bool] | None = None
    ):
        self.rules, self.prompt_length, self.watch = rules, prompt_length, watch

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        written = input_ids.shape[1] - self.prompt_length
        copies = len(input_ids) // len(self.rules)
        rules = [self.rules[row // copies] for row in range(len(input_ids))]
        done = [written >= rule.longest for rule in rules]
        if self.watch is not None or any(rule.stops for rule in rules):
            fills = input_ids[:, self.prompt_length :].tolist()
            done = [now or bool(rule.stops and rule.stops(fill)) for now, rule, fill in zip(done, rules, fills)]
            if self.watch is not None and self.watch(fills):
                done = [True] * len(done)
        return torch.tensor(done, device=input_ids.device)


def barred_ngrams(ids: list[int], n: int | None) -> dict[tuple[int, ...], set[int]]:
    """The n-grams of a text, as `RowRule.barred` wants them."""
    barred = {}
    for first in range(len(ids) - n + 1) if n else ():
        barred.setdefault(tuple(ids[first : first + n - 1]), set()).add(ids[first + n - 1])
    return barred


def start_tokens(ids: list[int], tokenizer) -> list[set[int]]:
    """
    What a fill's first tokens may be so that it starts with a text: its own tokens, and in place of the last one any token
    that goes on from there ("run" may become "running").

    Args:
        ids (`list[int]`): The text's tokens, as a continuation; at least one.
    """
    last = tokenizer.convert_ids_to_tokens(ids[-1])
    longer = {id for token, id in tokenizer.get_vocab().items() if token.startswith(last)}
    return [{id} for id in ids[:-1]] + [longer - set(tokenizer.all_special_ids)]
