"""Sentence pairs for SSCL: from two columns, or each sentence with itself (dropout positives)."""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from .reading import BadRows, Record, problem_of, read_records


@dataclass(slots=True)
class Pair:
    """A sentence, its positive, and its location."""

    text: str
    positive: str
    origin: str


def load_pairs(source, columns: list[str], on_bad: str = "raise", name: str | None = None) -> list[Pair]:
    """
    Sentence pairs of a source of [`read_records`]; two columns of lists are paired item by item. With one column each
    sentence is its own positive.

    Raises:
        `ValueError` naming file and line if one side is missing or empty.
    """
    bad, pairs = BadRows(on_bad), []
    for record in tqdm(read_records(source, columns, name), desc="read", unit=" rows", leave=False, disable=None):
        if record.problem:
            bad.add(record.origin, record.problem)
        elif record.values:  # a blank line has none
            pairs += _pairs_of(record, columns, bad)
    source = name or source
    bad.report(source)
    if not pairs:
        raise ValueError(f"{source}: no sentence pair in columns {columns}. {bad.first} Give another source.")
    return pairs


def _pairs_of(record: Record, columns, bad: BadRows) -> list[Pair]:
    sides = [record.values[column] for column in columns]
    lists = all(isinstance(side, list) for side in sides)
    sides = sides if lists else [[side] for side in sides]
    if len({len(side) for side in sides}) > 1:
        bad.add(record.origin, f"{columns[0]!r} has {len(sides[0])} items and {columns[1]!r} {len(sides[1])}")
        return []
    for column, side in zip(columns, sides):
        for sentence in side:
            if problem := problem_of(sentence) or ("" if sentence.strip() else "is empty"):
                bad.add(record.origin, f"{column!r} {problem}")
                return []
    items = [f"{record.origin} (item {item})" if lists else record.origin for item in range(1, len(sides[0]) + 1)]
    return [Pair(text, positive, item) for text, positive, item in zip(sides[0], sides[-1], items)]


def group_pairs(pairs: list[tuple]) -> list[int]:
    """
    The group of each pair. Pairs that share a text on either side, directly or through others, are not negatives of
    each other and form one group.

    >>> group_pairs([("a", "A"), ("b", "B"), ("c", "a"), ("d", "D")])
    [0, 1, 0, 2]
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(itertools.chain.from_iterable(pairs)))}
    edges = np.array([[numbers[text] for text in pair] for pair in pairs], dtype=int).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(numbers), len(numbers)))
    return connected_components(graph, directed=False)[1][edges[:, 0]].tolist() if pairs else []


@dataclass(slots=True)
class TokenPair:
    """A dealt pair: its number, its group ([`group_pairs`]), and the token ids of both sides."""

    row: int
    group: int
    anchor: list[int]
    positive: list[int]


class PairDeck:
    """Tokenized pairs, dealt anew in each turn, in an order that depends only on (seed, turn)."""

    def __init__(self, pairs: list[tuple[list[int], list[int]]], seed: int, origins: list[str] = ()):
        self.pairs, self.seed, self.origins = pairs, seed, origins
        self._groups = group_pairs([(tuple(anchor), tuple(positive)) for anchor, positive in pairs])
        self._turn = None

    def __len__(self) -> int:
        return len(self.pairs)

    def deal(self, turn: int, place: int) -> TokenPair:
        if self._turn != turn:
            self._turn, self._order = turn, np.random.default_rng((self.seed, turn)).permutation(len(self.pairs))
        row = int(self._order[place % len(self.pairs)])
        return TokenPair(row, self._groups[row], *self.pairs[row])

    def origin(self, row: int) -> str:
        """A pair's location: "pairs.jsonl:17"."""
        return self.origins[row] if self.origins else f"pair {row}"
