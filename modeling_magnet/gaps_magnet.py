"""Texts with gaps: what a caller may say about a gap, what comes back, and how the input is read.

The caller's own characters are never decoded from tokens: they come back verbatim.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

STOPS = ("sentence", "line", "word")


@dataclass
class Gap:
    """
    A gap in a list of parts, `["Tom was hungry.", Gap(length=8), " He was full."]`. What is left out is the call's.

    Args:
        length (`int`, `(int, int)` or `"auto"`, *optional*): Exact number of tokens; fewest and most; or until the model
            ends the gap by itself.
        max_new_tokens (`int`, *optional*): Most tokens of a gap with `length="auto"`.
        min_new_tokens (`int`, *optional*): Fewest tokens of a gap with `length="auto"`.
        name (`str`, *optional*): Found again in the result; in a string, `<|gap:name|>`.
        prefix (`str`, *optional*): The fill starts with this; neither `stop` nor trimming takes any of it.
        stop (`str`, list of `str` or callable, *optional*): Where to end a fill: behind the first `"sentence"`, `"line"`
            or `"word"`; before the first of these strings; or where a function of the text so far says (an index, or
            `None` to go on).
        candidates (list of `str`, *optional*): The fill is the best of these; nothing is generated, nothing stopped or
            trimmed.
    """

    length: int | tuple[int, int] | Literal["auto"] | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    name: str | None = None
    prefix: str | None = None
    stop: str | list[str] | Callable[[str], int | None] | None = None
    candidates: list[str] | None = None

    @property
    def is_free(self) -> bool:
        """Whether the model decides where the fill ends."""
        return not isinstance(self.length, int)

    def limits(self) -> tuple[int, int]:
        """Fewest and most tokens."""
        if isinstance(self.length, int):
            return self.length, self.length
        return self.length if isinstance(self.length, tuple) else (self.min_new_tokens or 0, self.max_new_tokens)


@dataclass
class InfilledGap:
    """
    One filled gap.

    Attributes:
        text (`str`): The fill, as it stands in the whole text.
        token_ids (`list[int]`): Its tokens, without the end token.
        finish_reason (`str`): `"exact_length"`, `"end_token"`, `"stop"`, `"candidate"`, or `"max_tokens"`: the budget ran
            out, and the fill may break off in mid-sentence.
        name (`str`, *optional*): The gap's name.
        span (`tuple[int, int]`): Where the fill stands in the whole text, in characters.
        token_logprobs (`list[float]`, *optional*): Log-probability of each token under the model, in nats, before any
            sampling setting.
        end_logprob (`float`, *optional*): That of the end token behind the fill.
        join_score (`float`, *optional*): How well the text goes on behind the fill: mean log-probability of the next
            `join_tokens` tokens of the text under the base model, in nats.
        joint_score (`float`, *optional*): Log-probability of fill and those tokens together under the base model.
        trimmed (`str`): What was taken off the fill's end because the text behind it says the same.
        score (`float`, *optional*): What alternatives are sorted by.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    name: str | None = None
    span: tuple[int, int] = (0, 0)
    token_logprobs: list[float] | None = field(default=None, compare=False)
    end_logprob: float | None = field(default=None, compare=False)
    join_score: float | None = field(default=None, compare=False)
    joint_score: float | None = field(default=None, compare=False)
    trimmed: str = ""
    score: float | None = field(default=None, compare=False)


@dataclass
class InfillOutput:
    """A whole text, the caller's own characters verbatim, and its gaps from left to right."""

    text: str
    gaps: list[InfilledGap]

    def __getitem__(self, name: str) -> InfilledGap:
        """The gap of that name."""
        for gap in self.gaps:
            if gap.name == name:
                return gap
        raise KeyError(f"no gap is named {name!r}; there are {[gap.name for gap in self.gaps if gap.name]}")


@dataclass
class Document:
    """
    A text with gaps: `texts[i]`, `gaps[i]`, `texts[i + 1]`, ...; `fills[i]` is None until gap i is filled. `begun[i]` are
    tokens of a long fill that have become context already.
    """

    texts: list[str]
    gaps: list[Gap]
    ids: list[list[int]] = field(default_factory=list)  # tokens of each text; [BOS] opens the first
    fills: list[InfilledGap | None] = field(default_factory=list)
    begun: list[list[int]] = field(default_factory=list)
    number: int = 0  # of the batch

    def layout(self, budget) -> tuple[list[int], list[int], dict[int, int]]:
        """Tokens and positions of the context, and for each open gap the index of the token to its left. `budget(gap,
        begun)` says how many positions an open gap takes."""
        ids, positions, left_of, position = [], [], {}, 0
        for i, text_ids in enumerate(self.ids):
            known = list(text_ids)
            if i > 0 and self.fills[i - 1] is not None:  # a filled gap is context
                known = self.fills[i - 1].token_ids + known
            if i < len(self.gaps) and self.fills[i] is None:
                known = known + self.begun[i]
            ids += known
            positions += range(position, position + len(known))
            position += len(known)
            if i < len(self.gaps) and self.fills[i] is None:
                left_of[i] = len(ids) - 1
                position += budget(self.gaps[i], len(self.begun[i]))
        return ids, positions, left_of

    def left_ids(self, gap: int) -> list[int]:
        """All tokens left of a gap; gaps that are still open are passed over."""
        ids = list(self.ids[0])
        for fill, text_ids in zip(self.fills[:gap], self.ids[1 : gap + 1]):
            ids += (fill.token_ids if fill else []) + text_ids
        return ids

    def output(self) -> InfillOutput:
        text = self.texts[0]
        for gap, fill, right in zip(self.gaps, self.fills, self.texts[1:]):
            fill.name, fill.span = gap.name, (len(text), len(text) + len(fill.text))
            text += fill.text + right
        return InfillOutput(text, self.fills)


def split_at_gaps(text: str, gap_token: str) -> list[str | Gap]:
    r"""
    Splits a string at its gap markers. A backslash before a marker makes it text; two make one backslash and a gap. A
    marker that ends in `|>` may name its gap, `<|gap:name|>`; a name is a Python identifier.

    Example:

    ```python
    >>> from modeling_magnet.gaps_magnet import split_at_gaps
    >>> [getattr(part, "name", part) for part in split_at_gaps("a <|gap:x|> b \\<|gap|>", "<|gap|>")]
    ['a ', 'x', ' b <|gap|>']

    ```
    """
    marker = re.escape(gap_token)
    if gap_token.endswith("|>"):
        marker = re.escape(gap_token[:-2]) + r"(?::(?P<name>[^|<>]*))?" + re.escape("|>")
    parts, written, end = [], "", 0
    for match in re.finditer(r"(?P<slashes>\\*)(?P<marker>" + marker + ")", text):
        backslashes = len(match["slashes"])
        written += text[end : match.start()] + "\\" * (backslashes // 2)
        end = match.end()
        if backslashes % 2:
            written += match["marker"]
        else:
            parts += [written, Gap(name=_checked_name(match))]
            written = ""
    return [*parts, written + text[end:]]


def _checked_name(match) -> str | None:
    name = match.groupdict().get("name")
    if name is not None and not name.isidentifier():
        raise ValueError(
            f"{match['marker']}: a gap's name must be of letters, digits and underscores. Rename it, or put a backslash "
            "before the marker to have it as text."
        )
    return name


def read_document(parts: str | list, gap_token: str, defaults: Gap, named: dict[str, Gap], number: int) -> Document:
    """Makes a document of a string with markers or of a list of strings and gaps; raises where it has no clear gap."""
    where = f"inputs[{number}]"
    if isinstance(parts, str):
        try:
            parts = split_at_gaps(parts, gap_token)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not isinstance(parts, (list, tuple)):
        raise ValueError(f"{where}: {parts!r} is neither a string nor a list of strings and Gaps.")
    texts, gaps = [""], []
    for part in parts:
        if isinstance(part, str):
            check_text(where, part)
            texts[-1] += part
        elif isinstance(part, Gap):
            gaps.append(complete(complete(part, named.get(part.name, Gap())), defaults))
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
    names = [gap.name for gap in gaps if gap.name is not None]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: the gaps are named {names}: a name may be there once.")
    for gap in gaps:
        check_gap(where, gap)
    return Document(texts, gaps, fills=[None] * len(gaps), begun=[[] for _ in gaps], number=number)


def complete(gap: Gap, other: Gap) -> Gap:
    """A gap with what it leaves open taken from another."""
    return replace(gap, **{key: value for key, value in vars(other).items() if getattr(gap, key) is None})


def check_gap(where: str, gap: Gap) -> None:
    length = gap.length
    if isinstance(length, (tuple, list)):
        if len(length) != 2 or any(isinstance(n, bool) or not isinstance(n, int) for n in length):
            raise ValueError(f"{where}: length={length!r}: a range is two integers, fewest and most tokens.")
        if not 0 <= length[0] <= length[1] or length[1] < 1:
            raise ValueError(f"{where}: length={length!r}: the fewest tokens must not be more than the most.")
        gap.length = tuple(length)
    elif length != "auto":
        check_positive(f"{where}: length", length)
    else:
        check_positive(f"{where}: max_new_tokens", gap.max_new_tokens)
        fewest = 0 if gap.min_new_tokens is None else gap.min_new_tokens
        if isinstance(fewest, bool) or not isinstance(fewest, int) or not 0 <= fewest <= gap.max_new_tokens:
            raise ValueError(
                f"{where}: min_new_tokens={fewest!r}: must lie between 0 and max_new_tokens={gap.max_new_tokens}."
            )
    _check_strings(where, gap)


def _check_strings(where, gap):
    named = gap.stop is None or (isinstance(gap.stop, str) and gap.stop in STOPS)
    if not (named or callable(gap.stop) or isinstance(gap.stop, (list, tuple))):
        raise ValueError(
            f"{where}: stop={gap.stop!r}: must be one of {', '.join(STOPS)}, a list of strings, or a function."
        )
    if isinstance(gap.stop, (list, tuple)) and not (gap.stop and all(isinstance(s, str) and s for s in gap.stop)):
        raise ValueError(f"{where}: stop={gap.stop!r}: must hold strings that are not empty.")
    if gap.prefix is not None:
        if not isinstance(gap.prefix, str):
            raise ValueError(f"{where}: prefix={gap.prefix!r}: must be a string.")
        check_text(where, gap.prefix)
    if gap.candidates is not None:
        if not isinstance(gap.candidates, (list, tuple)) or not gap.candidates:
            raise ValueError(f"{where}: candidates={gap.candidates!r}: must be a list of strings that is not empty.")
        if gap.prefix:
            raise ValueError(f"{where}: prefix={gap.prefix!r}: the candidates are whole fills. Leave the prefix out.")
        for candidate in gap.candidates:
            if not isinstance(candidate, str):
                raise ValueError(f"{where}: candidates holds {candidate!r}, which is no string.")
            check_text(where, candidate)


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
