"""Sentences, and sentence pairs for SSCL: from two columns, or each sentence with itself (dropout positives)."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sentencex
from tqdm.auto import tqdm

from .reading import BadRows, Document, Record, problem_of, read_records

LANGUAGE = "en"  # for sentencex's abbreviations; it also knows the full stops of other scripts
WIDE_SPACE = re.compile(r"[^\S\t\n\v\f\r ]")  # white space beyond ASCII, on which sentencex 1.0.32 can panic


@dataclass(slots=True)
class Pair:
    """A sentence, its positive, and its location."""

    text: str
    positive: str
    origin: str


def split_sentences(text: str) -> list[str]:
    """
    The sentences of a text with the white space between them, so that joining them restores the text.

    >>> split_sentences("Mr. Okoro has a stove. It runs on gas!")
    ['Mr. Okoro has a stove. ', 'It runs on gas!']
    """
    lengths = (len(piece) for piece in sentencex.segment(LANGUAGE, WIDE_SPACE.sub(" ", text)))
    ends = [0, *itertools.accumulate(lengths)]
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def long_sentences(documents: list[Document], min_words: int) -> Iterator[Document]:
    """The sentences of more than `min_words` words (Appendix A: lines longer than 20 words)."""
    for source in documents:
        for sentence in split_sentences(source.text):
            if len(sentence.split()) > min_words:
                yield Document(sentence.strip(), source.origin)


def load_pairs(source, columns: list[str], on_bad: str = "raise", name: str | None = None) -> list[Pair]:
    """
    Sentence pairs of a source of [`read_records`]; two columns of lists are paired item by item. With one column each
    sentence is its own positive.

    Raises:
        `ValueError` naming file and line if one side is missing or empty.
    """
    bad, pairs = BadRows(on_bad), []
    for record in tqdm(read_records(source, columns, name=name), desc="read", unit=" rows", leave=False):
        if record.problem:
            bad.add(record.origin, record.problem)
        elif record.values:  # a blank line has none
            pairs += _pairs_of(record, columns, bad)
    source = name or source
    bad.report(source)
    if not pairs:
        first = f" The first bad rows: {' '.join(bad.first)}" if bad.first else ""
        raise ValueError(f"{source}: no sentence pair in columns {columns}.{first} Give another source.")
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


# ----------------------------------------------------------------------------------------------------- pair statistics


def fold(text: str) -> str:
    """Removes case and spacing for comparison."""
    return " ".join(text.casefold().split())


def likeness(one: str, other: str) -> float:
    """Jaccard similarity of the words of two folded texts."""
    words, others = set(one.split()), set(other.split())
    return len(words & others) / max(len(words | others), 1)


def count_pairs(pairs: list[Pair]) -> dict[str, int]:
    """
    Counts pairs, identical and near-identical ones, and repeated sentences.

    >>> pairs = [Pair("It rained.", "it  rained.", "a:1"), Pair("It rained.", "Water fell.", "a:2")]
    >>> count_pairs(pairs)
    {'pairs': 2, 'identical pairs': 1, 'near-identical pairs': 0, 'repeated sentences': 1}
    """
    folded = [(fold(pair.text), fold(pair.positive)) for pair in pairs]
    unlike = tqdm((sides for sides in folded if sides[0] != sides[1]), desc="compare", unit=" pairs", leave=False)
    near = sum(likeness(one, other) >= 0.9 for one, other in unlike)
    return {
        "pairs": len(pairs),
        "identical pairs": sum(one == other for one, other in folded),
        "near-identical pairs": near,
        "repeated sentences": len(pairs) - len({one for one, _ in folded}),
    }


def identical_pairs(pairs: list[Pair]) -> Iterator[Pair]:
    """Pairs whose sides differ at most in case and spacing."""
    return (pair for pair in pairs if fold(pair.text) == fold(pair.positive))


def group_pairs(pairs: list[tuple]) -> list[int]:
    """
    The group of each pair: its first member's number. Pairs that share a text on either side are not negatives of each
    other and form one group (union-find over equal texts).

    >>> group_pairs([("a", "A"), ("b", "B"), ("c", "a"), ("d", "D")])
    [0, 1, 0, 3]
    """
    parent, first_with = list(range(len(pairs))), {}

    def root(number):
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for number, pair in enumerate(pairs):
        for text in pair:
            one, other = sorted((root(number), root(first_with.setdefault(text, number))))
            parent[other] = one
    return [root(number) for number in range(len(pairs))]


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
