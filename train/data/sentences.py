"""Where sentences begin and end."""

import itertools
import re
from collections.abc import Iterator

import sentencex

from .reading import Document

LANGUAGE = "en"  # for sentencex's abbreviations; it also knows the full stops of other scripts
WIDE_SPACE = re.compile(r"[^\S\t\n\v\f\r ]")  # white space beyond ASCII, on which sentencex 1.0.32 can panic


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


def fold(text: str) -> str:
    """Removes case and spacing for comparison."""
    return " ".join(text.casefold().split())
