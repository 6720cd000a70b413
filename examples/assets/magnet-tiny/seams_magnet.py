"""Seams: where the caller's text and a fill meet, no space is doubled or lost, no word repeated, no character changed."""

import re

from .gaps_magnet import Document, Gap

SENTINELS = ("\n", ".", "a")  # put before a piece of text that continues a document, see continuation_ids
SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|[。！？]+[”’」』]*""")
WORD_END = re.compile(r"\s*[\w'’-]+(?=[^\w'’-])")
OVERLAP_CHARACTERS, OVERLAP_WORDS = 12, 3  # a shorter repetition of the text behind may be meant


# ------------------------------------------------------------------------------------------------------ text to tokens


def context_ids(document: Document, tokenizer) -> list[list[int]]:
    """
    Token ids of each text, with special-token parsing off. One space left of a gap is not encoded: a word carries the
    space before it, so a lone space would be followed by a token the model never saw there.
    """
    pieces = [heal(text) for text in document.texts[:-1]] + document.texts[-1:]
    first = tokenizer(pieces[0], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [[tokenizer.bos_token_id, *first]] + [continuation_ids(piece, tokenizer) for piece in pieces[1:]]


def heal(text: str) -> str:
    """The text without its one trailing space, unless it is nothing but that space."""
    return text[:-1] if text.endswith(" ") and text[-2:-1].strip() else text


def continuation_ids(text: str, tokenizer) -> list[int]:
    """
    Ids of a text that goes on after something else. Alone, a SentencePiece tokenizer would put a space before it; so a
    sentinel is put before it and its tokens dropped, the first sentinel that does not merge with the text.
    """
    if not text:
        return []
    for sentinel in SENTINELS:
        alone = tokenizer(sentinel, add_special_tokens=False)["input_ids"]
        both = tokenizer(sentinel + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if both[: len(alone)] == alone:
            return both[len(alone) :]
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def fill_ids(text: str, document: Document, gap: int, tokenizer) -> list[int]:
    """Ids of a given fill, as the model would have written it: with the space that was healed off its left."""
    left = document.texts[gap]
    healed = heal(left) != left
    if not left and not document.begun[gap]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return continuation_ids(" " + text if healed else text, tokenizer)


# ------------------------------------------------------------------------------------------------------ tokens to text


def fill_text(ids: list[int], document: Document, gap: int, tokenizer) -> str:
    """The fill's characters, decoded behind the tokens to its left, so that its first space is neither lost nor doubled."""
    tail = document.ids[gap][-8:]
    tail = tail[1:] if tail[:1] == [tokenizer.bos_token_id] else tail
    keep = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    text = tokenizer.decode(tail + ids, **keep)[len(tokenizer.decode(tail, **keep)) :]
    left = document.texts[gap]
    if not left or heal(left) != left:  # the space is already there
        text = text.removeprefix(" ")
    return text


def close_seam(text: str, right: str) -> str:
    """The fill without spaces at its end where the text behind has its own."""
    return text.rstrip() if right[:1].isspace() else text


def overlap(text: str, right: str) -> int:
    """
    How many characters at the end of a fill say what the text behind it says again. Models that see the right context
    like to repeat it; one or two words may be chance.

    Example:

    ```python
    >>> from modeling_magnet.seams_magnet import overlap
    >>> overlap("He ran home. Then he was full.", " Then he was full. He slept.")
    18
    >>> overlap("He saw the", " the end.")
    0

    ```
    """
    for length in range(min(len(text), len(right)), 0, -1):
        if text.endswith(right[:length]) and _whole_words(text, right, length):
            long = length >= OVERLAP_CHARACTERS or len(right[:length].split()) >= OVERLAP_WORDS
            return length if long else 0
    return 0


def _whole_words(text, right, length):
    """Whether the repetition begins and ends between words."""
    begins = length == len(text) or not (text[-length].isalnum() and text[-length - 1].isalnum())
    return begins and not (right[length - 1].isalnum() and right[length : length + 1].isalnum())


def cut_at(text: str, gap: Gap) -> int | None:
    """Where `gap.stop` ends a text that is being written, or None."""
    stop = gap.stop
    if stop is None:
        return None
    if callable(stop):
        return stop(text)
    if stop == "line":
        return text.find("\n", len(text) - len(text.lstrip("\n"))) if "\n" in text.lstrip("\n") else None
    if stop in ("sentence", "word"):
        match = (SENTENCE_END if stop == "sentence" else WORD_END).search(text)
        return match and match.end()
    found = [text.find(string) for string in stop if string in text]
    return min(found) if found else None


def shown_safely(text: str, gap: Gap, right: str) -> str:
    """The part of an unfinished fill that nothing can take back: what may yet be trimmed or cut is held back."""
    if callable(gap.stop):
        return ""
    text = text.rstrip("\ufffd").rstrip()  # half a character; spaces that the text behind may have of its own
    held = max((n for n in range(1, min(len(text), len(right)) + 1) if text.endswith(right[:n])), default=0)
    for string in gap.stop if isinstance(gap.stop, (list, tuple)) else ():
        held = max([held] + [n for n in range(1, min(len(text), len(string)) + 1) if text.endswith(string[:n])])
    return text[: len(text) - held].rstrip()
