"""Seams: where the caller's text and a fill meet, no space is doubled or lost, no word repeated, no character changed."""

import re
import unicodedata

from .gaps_magnet import Document, Gap

SENTINELS = ("\n", ".", "a")  # put before a piece of text that continues a document, see continuation_ids
SENTENCE_END = re.compile(r"""[.!?…؟।]+["'”’)\]]*(?=\s)|[。！？]+[”’」』]*""")
LINE_END = re.compile(r"(?<=[^\r\n])[\r\n]")
OVERLAP_CHARACTERS, OVERLAP_WORDS = 12, 3  # a shorter repetition of the text behind may be meant
HALF_CHARACTER = "\ufffd"  # what bytes that are no whole character are decoded to


# ------------------------------------------------------------------------------------------------------ text to tokens


def text_ids(text: str, tokenizer) -> list[int]:
    """Ids of a text, control tokens spelt out in it being text."""
    return encoded_text(text, tokenizer)["input_ids"]


def encoded_text(text: str, tokenizer, **options):
    """
    A text's encoding without control tokens, those spelt out in it being text; `options` go to the tokenizer.

    That setting lies in the tokenizer itself, and another thread's call may undo it between here and the tokenization:
    then it is done again.
    """
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    while True:
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, **options)
        if control.isdisjoint(encoded["input_ids"]):
            return encoded


def context_ids(document: Document, tokenizer) -> list[list[int]]:
    """
    Token ids of each text, with special-token parsing off. One space left of a gap is not encoded: a word carries the
    space before it, so a lone space would be followed by a token the model never saw there.
    """
    pieces = [heal(text) for text in document.texts[:-1]] + document.texts[-1:]
    first = text_ids(pieces[0], tokenizer)
    return [[tokenizer.bos_token_id, *first]] + [continuation_ids(piece, tokenizer) for piece in pieces[1:]]


def heal(text: str) -> str:
    """The text without its one trailing space, unless it is nothing but that space."""
    return text[:-1] if text.endswith(" ") and len(text) > 1 else text


def continuation_ids(text: str, tokenizer) -> list[int]:
    """
    Ids of a text that goes on after something else. Alone, a SentencePiece tokenizer would put a space before it; so a
    sentinel is put before it and its tokens dropped, the first sentinel that does not merge with the text.
    """
    if not text:
        return []
    for sentinel in SENTINELS:
        alone, both = text_ids(sentinel, tokenizer), text_ids(sentinel + text, tokenizer)
        if both[: len(alone)] == alone:
            return both[len(alone) :]
    return text_ids(text, tokenizer)


def fill_ids(text: str, document: Document, gap: int, tokenizer) -> list[int]:
    """Ids of a given fill, as the model would have written it: with the space that was healed off its left."""
    left = document.texts[gap]
    if not text or not left:
        return text_ids(text, tokenizer)
    return continuation_ids(" " + text if heal(left) != left else text, tokenizer)


# ------------------------------------------------------------------------------------------------------ tokens to text


def fill_text(ids: list[int], document: Document, gap: int, tokenizer) -> str:
    """The fill's characters; its first space is neither lost nor doubled."""
    left, prefix = document.texts[gap], document.gaps[gap].prefix or ""
    text = _decode(ids, tokenizer, opens=not left)
    spaced = (not left or left.endswith(" ")) and not prefix.startswith(" ")
    return text.removeprefix(" ") if spaced or heal(left) != left else text


def _decode(ids, tokenizer, opens):
    """
    The characters of tokens that open a text, or go on behind one.

    A SentencePiece decoder turns a run of bytes that does not end in a whole character into half characters from its first
    byte on. So where there are any, whole characters are taken off the front as they are completed: what more tokens
    bring never changes what was there.
    """
    keep = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    behind = text_ids("a", tokenizer)

    def decoded(part, opens):
        return tokenizer.decode(part, **keep) if opens else tokenizer.decode(behind + part, **keep)[1:]

    whole = decoded(ids, opens)
    if HALF_CHARACTER not in whole:
        return whole
    text, begun = "", 0
    for end in range(1, len(ids) + 1):
        piece = decoded(ids[begun:end], opens and begun == 0)
        if end == len(ids) or not piece.endswith(HALF_CHARACTER):
            text, begun = text + piece, end
    return text


def close_seam(text: str, right: str, prefix: str = "") -> str:
    """The fill without spaces at its end where the text behind has its own; a prefix that was asked for stays whole."""
    if not right[:1].isspace():
        return text
    return text[: len(prefix)] + text[len(prefix) :].rstrip()


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
    """Where `gap.stop` ends a text that is being written, or None; behind the prefix, which always stays."""
    stop, first = gap.stop, len(gap.prefix or "")
    text = text.rstrip(HALF_CHARACTER)
    if stop is None or len(text) < first:
        return None
    if callable(stop):
        return _called(stop, text, first)
    if stop == "line":
        match = LINE_END.search(text, first)
        return match and match.start()
    if stop == "sentence":
        return next((match.end() for match in SENTENCE_END.finditer(text) if match.end() > first), None)
    if stop == "word":
        return _word_end(text, first)
    return min((at for at in (text.find(string, first) for string in stop) if at >= 0), default=None)


def _called(stop, text, first):
    cut = stop(text)
    if cut is None:
        return None
    if isinstance(cut, bool) or not isinstance(cut, int) or not 0 <= cut <= len(text):
        raise ValueError(
            f"stop={stop!r}: returned {cut!r} for a text of {len(text)} characters; return the number of characters to "
            "keep, or None to go on."
        )
    return max(cut, first)


def _word_end(text, first):
    """Behind the first word that ends after `first` characters; accents and vowel signs belong to their letters."""
    in_word = False
    for at, character in enumerate(text):
        if character.isalnum():
            in_word = True
        elif not (character in "_'’-\u200c\u200d" or unicodedata.category(character)[0] == "M"):
            if in_word and at > first:
                return at
            in_word = False
    return None


def shown_safely(text: str, gap: Gap, right: str) -> str:
    """The part of an unfinished fill that nothing can take back: what may yet be trimmed or cut is held back."""
    if callable(gap.stop):
        return ""
    text = text[: cut_at(text, gap)]
    text = text.rstrip(HALF_CHARACTER).rstrip()  # spaces that the text behind may have of its own
    ends = [right, *(gap.stop if isinstance(gap.stop, (list, tuple)) else ())]
    held = max(_begun(text, end) for end in ends)
    return text[: len(text) - held].rstrip()


def _begun(text, end):
    """How much of `end` a text ends with already."""
    return max((n for n in range(1, min(len(text), len(end)) + 1) if text.endswith(end[:n])), default=0)
