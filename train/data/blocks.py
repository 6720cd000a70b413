"""Tokenizes documents into blocks and sentences into token ids; text that spells a control token stays text."""

import logging
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from .reading import Document
from .sentences import split_sentences

logger = logging.getLogger(__name__)

SHORTEST_ROW = 8  # tokens; a shorter remainder has no room for a span and its context


@dataclass(slots=True)
class Text:
    """A block of a text: token ids without the opening token, and where sentences start; both of shape (n,)."""

    ids: np.ndarray
    sentence_starts: np.ndarray
    origin: str = ""


def tokenize_texts(documents: list[Document], tokenizer, max_length: int) -> list[Text]:
    """Tokenizes texts with special-token parsing off and cuts long ones into blocks of `max_length` - 1 tokens."""
    blocks = []
    for first in tqdm(range(0, len(documents), 1000), desc="tokenize", unit="k texts", leave=False, disable=None):
        for cut in tokenize_documents(documents[first : first + 1000], tokenizer, max_length):
            blocks += cut
    if not blocks:
        raise ValueError(f"{documents[0].origin}: neither this text nor one after it has {SHORTEST_ROW} tokens.")
    return blocks


def tokenize_documents(documents: list[Document], tokenizer, max_length: int) -> list[list[Text]]:
    """The blocks of each document; an empty list if too short."""
    if not documents:
        return []
    encoded = tokenizer(
        [document.text for document in documents],
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    return [
        _cut(np.array(ids, dtype=np.int32), _sentence_starts(document.text, offsets), document.origin, max_length - 1)
        for document, ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"])
    ]


def _sentence_starts(text, offsets) -> np.ndarray:
    lengths = [len(sentence) for sentence in split_sentences(text)]
    starts = np.cumsum([0, *lengths[:-1]])
    ends = np.array([end for _, end in offsets])
    marks = np.zeros(len(offsets), bool)
    first = np.searchsorted(ends, starts, side="right")  # the token that holds the sentence's first character
    marks[first[first < len(offsets)]] = True
    return marks


def _cut(ids, sentence_starts, origin, size) -> list[Text]:
    pieces = [Text(ids[i : i + size], sentence_starts[i : i + size], origin) for i in range(0, len(ids), size)]
    return [piece for piece in pieces if len(piece.ids) >= SHORTEST_ROW]


def tokenize_sentences(
    sentences: list[str], tokenizer, prompt: str, max_length: int, start: list[int]
) -> list[list[int]]:
    """
    Builds `start prompt sentence [EOS]`, as `encode()` does; `start` is [BOS] or empty. Sentences that are too long
    lose their end, never the [EOS], and are counted.
    """
    found, room = [], max_length - len(start) - 1
    for first in tqdm(range(0, len(sentences), 1000), desc="tokenize", unit="k sentences", leave=False, disable=None):
        batch = [f"{prompt} {text}" if prompt else text for text in sentences[first : first + 1000]]
        found += tokenizer(batch, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    if too_long := sum(len(ids) > room for ids in found):
        logger.warning("%d of %d sentences exceed pair_max_length=%d and were cut.", too_long, len(found), max_length)
    return [[*start, *ids[:room], tokenizer.eos_token_id] for ids in found]
