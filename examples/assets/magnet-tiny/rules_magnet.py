"""What each row of one `generate()` call may write and where it ends: gaps of different kinds are filled side by side."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor, StoppingCriteria

BYTE = re.compile("<0x[0-9A-F]{2}>")  # how SentencePiece spells a byte; it begins no text that begins with "<"


@dataclass
class RowRule:
    """
    The rule of one row.

    Args:
        shortest, longest (`int`): Fewest and most tokens.
        end (`int`, *optional*): The end token, where the row may write it.
        start (list of sets of `int`): What the first tokens must be; where there is a choice, of which.
        barred (`dict`): From the first n-1 tokens of an n-gram to the tokens that must not follow.
        begun (list of `int`): Tokens of the fill that stand before these.
        stops (callable, *optional*): Of the tokens so far: whether the row is done.
    """

    shortest: int
    longest: int
    end: int | None = None
    start: list[set[int]] = field(default_factory=list)
    barred: dict[tuple[int, ...], set[int]] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)
    stops: Callable[[list[int]], bool] | None = None


class GapRules(LogitsProcessor):
    """
    Keeps every row to its rule.

    Args:
        rules (list of [`RowRule`]): One a row of the prompt; beams and alternatives of a row lie side by side.
        prompt_length (`int`): Tokens in front of the fills.
        end (`int`, *optional*): The end token of the call, which rows of exact length must not write.
        never (set of `int`): Tokens that no row may write.
    """

    def __init__(self, rules: list[RowRule], prompt_length: int, end: int | None, never: set[int]):
        self.rules, self.prompt_length, self.end = rules, prompt_length, end
        self.never = torch.tensor(sorted(never), dtype=torch.long)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written = input_ids.shape[1] - self.prompt_length
        copies = len(input_ids) // len(self.rules)
        self.never = self.never.to(scores.device)
        scores = scores.index_fill(1, self.never, -torch.inf)  # a copy: generate() may keep what it gave
        if not any(self._acts(rule, written) for rule in self.rules):
            return scores
        for row in range(len(scores)):
            self._keep(self.rules[row // copies], scores[row], written, input_ids[row])
        return scores

    def _acts(self, rule: RowRule, written: int) -> bool:
        """Whether a rule changes anything at this step; most steps of most rows are free."""
        return written < len(rule.start) or self._must_go_on(rule, written) or bool(rule.barred)

    def _must_go_on(self, rule: RowRule, written: int) -> bool:
        return self.end is not None and (rule.end is None or written < rule.shortest)

    def _keep(self, rule: RowRule, scores: torch.Tensor, written: int, ids: torch.Tensor) -> None:
        """Sets to -inf what a row, (V,), must not write."""
        barred = _barred(rule, ids[self.prompt_length :].tolist()) if rule.barred else set()
        if written < len(rule.start):
            allowed = sorted(rule.start[written] - barred or rule.start[written])  # what was asked for goes first
            kept = scores[allowed]
            scores.fill_(-torch.inf)
            scores[allowed] = kept
        elif barred:
            scores[sorted(barred)] = -torch.inf
        if self._must_go_on(rule, written):
            scores[self.end] = -torch.inf


def _barred(rule, written) -> set[int]:
    before = len(next(iter(rule.barred)))  # n - 1
    fill = rule.begun + written
    return rule.barred.get(tuple(fill[len(fill) - before :]), set()) if len(fill) >= before else set()


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


def barred_ngrams(texts: list[list[int]], n: int | None) -> dict[tuple[int, ...], set[int]]:
    """The n-grams of texts, as `RowRule.barred` wants them."""
    barred = {}
    for ids in texts if n else ():
        for first in range(len(ids) - n + 1):
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
    longer = {
        id for token, id in tokenizer.get_vocab().items() if token.startswith(last) and not BYTE.fullmatch(token)
    }
    return [{id} for id in ids[:-1]] + [longer - set(tokenizer.all_special_ids) | {ids[-1]}]
