"""Texts with gaps: reading the caller's input, turning it into tokens, and joining fills to it without a visible seam.

The caller's own characters are never decoded from tokens: they come back verbatim.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

SENTINELS = ("\n", ".", "a")  # put before a piece of text that continues a document, see _continuation_ids


@dataclass
class Gap:
    """
    A gap in a list of parts, `["Tom was hungry.", Gap(length=8), " He was full."]`.

    Args:
        length (`int` or `"auto"`, *optional*): Exact number of tokens, or until the model ends the gap by itself.
            Defaults to the call's `length`.
        max_new_tokens (`int`, *optional*): Most tokens of a gap of free length. Defaults to the call's.
    """

    length: int | Literal["auto"] | None = None
    max_new_tokens: int | None = None


@dataclass
class InfilledGap:
    """
    One filled gap.

    Attributes:
        text (`str`): The fill, as it stands in the whole text.
        token_ids (`list[int]`): The tokens generated, without the end token.
        finish_reason (`str`): `"exact_length"`, `"end_token"`, `"max_tokens"` (the budget ran out: the fill may break
            off in mid-sentence) or `"stop"` (a stopping criterion of the caller's).
    """

    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass
class InfillOutput:
    """A whole text, the caller's own characters verbatim, and its gaps from left to right."""

    text: str
    gaps: list[InfilledGap]


@dataclass
class Document:
    """A text with gaps: `texts[i]`, `gaps[i]`, `texts[i + 1]`, ...; `fills[i]` is None until gap i is filled."""

    texts: list[str]
    gaps: list[Gap]
    ids: list[list[int]] = field(default_factory=list)  # tokens of each text; [BOS] opens the first
    fills: list[InfilledGap | None] = field(default_factory=list)

    def layout(self, free_offset) -> tuple[list[int], list[int], dict[int, int]]:
        """Tokens and positions of the context, and for each open gap the index of the token to its left."""
        ids, positions, left_of, position = [], [], {}, 0
        for i, text_ids in enumerate(self.ids):
            known = list(text_ids)
            if i > 0 and self.fills[i - 1] is not None:  # a filled gap is context
                known = self.fills[i - 1].token_ids + known
            ids += known
            positions += range(position, position + len(known))
            position += len(known)
            if i < len(self.gaps) and self.fills[i] is None:
                left_of[i] = len(ids) - 1
                position += self.gaps[i].length if self.gaps[i].length != "auto" else free_offset(self.gaps[i])
        return ids, positions, left_of

    def text(self) -> str:
        pieces = [self.texts[0]]
        for fill, text in zip(self.fills, self.texts[1:]):
            pieces += [fill.text, text]
        return "".join(pieces)


def split_at_gaps(text: str, gap_token: str) -> list[str | Gap]:
    r"""
    Splits a string at its gap markers. A backslash before a marker makes it text; two make one backslash and a gap.

    Example:

    ```python
    >>> from modeling_magnet.gaps_magnet import split_at_gaps
    >>> split_at_gaps("a <|gap|> b \\<|gap|>", "<|gap|>")
    ['a ', Gap(length=None, max_new_tokens=None), ' b <|gap|>']

    ```
    """
    parts, written, end = [], "", 0
    for match in re.finditer(r"(\\*)" + re.escape(gap_token), text):
        backslashes = len(match[1])
        written += text[end : match.start()] + "\\" * (backslashes // 2)
        end = match.end()
        if backslashes % 2:
            written += gap_token
        else:
            parts += [written, Gap()]
            written = ""
    return [*parts, written + text[end:]]


def read_document(parts: str | list, gap_token: str, length, max_new_tokens, number: int) -> Document:
    """Makes a document of a string with markers or of a list of strings and gaps; raises where it has no clear gap."""
    where = f"inputs[{number}]"
    if isinstance(parts, str):
        parts = split_at_gaps(parts, gap_token)
    if not isinstance(parts, (list, tuple)):
        raise ValueError(f"{where}: {parts!r} is neither a string nor a list of strings and Gaps.")
    texts, gaps = [""], []
    for part in parts:
        if isinstance(part, str):
            check_text(where, part)
            texts[-1] += part
        elif isinstance(part, Gap):
            gaps.append(
                Gap(
                    length if part.length is None else part.length,
                    max_new_tokens if part.max_new_tokens is None else part.max_new_tokens,
                )
            )
            texts.append("")
        else:
            raise ValueError(f"{where}: {part!r} is neither a string nor a Gap.")
    if not gaps:
        raise ValueError(f"{where}: no gap. Mark one with {gap_token!r}, or use generate() to continue a text.")
    if not all(texts[1:-1]):
        raise ValueError(
            f"{where}: two gaps touch, so nothing says where one ends. Make them one, or put text between."
        )
    if not any(texts):
        raise ValueError(f"{where}: no text around the gap. Use generate() to write from nothing.")
    return Document(texts, gaps, fills=[None] * len(gaps))


def check_text(where: str, text: str) -> None:
    """Half of a surrogate pair, as broken UTF-16 leaves it, is no text; the tokenizer's own error does not say so."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the character at {error.start} is half of a surrogate pair; clean the text with "
            "text.encode('utf-8', 'replace').decode()."
        ) from None


def check_positive(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a positive integer.")


def context_ids(document: Document, tokenizer) -> list[list[int]]:
    """
    Token ids of each text, with special-token parsing off. One space left of a gap is not encoded: a word carries the
    space before it, so a lone space would be followed by a token the model never saw there.
    """
    pieces = [_heal(text) for text in document.texts[:-1]] + document.texts[-1:]
    first = tokenizer(pieces[0], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [[tokenizer.bos_token_id, *first]] + [_continuation_ids(piece, tokenizer) for piece in pieces[1:]]


def _heal(text: str) -> str:
    """The text without its one trailing space, unless it is nothing but that space."""
    return text[:-1] if text.endswith(" ") and text[-2:-1].strip() else text


def _continuation_ids(text: str, tokenizer) -> list[int]:
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


def seam_text(fill_ids: list[int], document: Document, gap: int, tokenizer) -> str:
    """The fill's characters, decoded behind the tokens to its left, so that its first space is neither lost nor doubled."""
    tail = document.ids[gap][-8:]
    tail = tail[1:] if tail[:1] == [tokenizer.bos_token_id] else tail
    keep = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    text = tokenizer.decode(tail + fill_ids, **keep)[len(tokenizer.decode(tail, **keep)) :]
    left, right = document.texts[gap], document.texts[gap + 1]
    if not left or _heal(left) != left:  # the space is already there
        text = text.removeprefix(" ")
    return text.rstrip() if right[:1].isspace() else text
