"""infill() and score_infill(): fill gaps in a text from both sides (sections 3.1 and 4.3).

Three parts: gaps and how the text around them is parsed; how the text and a fill join; how stock `generate()` writes
fills. `scoring_magnet.py` scores given tokens.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, StaticCache

from .encoding_magnet import check_positive, check_text, check_tokenizer, padded, start_ids, text_ids
from .scoring_magnet import continuation_logprobs, span_logprobs

# ------------------------------------------------------------------------------------------------- gaps and documents


@dataclass
class Gap:
    """
    A gap in a list of parts, `["Tom was hungry.", Gap(length=8), " He was full."]`. Unset fields default to the call's
    arguments.

    Args:
        length (`int`, `(int, int)` or `"auto"`, *optional*): Exact number of tokens; minimum and maximum; or `"auto"`:
            the model ends the gap itself.
        max_new_tokens (`int`, *optional*): Maximum number of tokens with `length="auto"`.
        min_new_tokens (`int`, *optional*): Minimum number of tokens with `length="auto"`; 0 allows an empty fill.
        name (`str`, *optional*): Key in the result; in a string, `<|gap:name|>`.
        prefix (`str`, *optional*): The fill starts with this; `stop` and trimming leave it intact.
        stop (`str` or list of `str`, *optional*): Ends the fill after its first `"sentence"` or `"line"`, or before
            the first of these strings.
        candidates (list of `str`, *optional*): The fill is the best of these; nothing is generated, stopped or
            trimmed.
    """

    length: int | tuple[int, int] | Literal["auto"] | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    name: str | None = None
    prefix: str | None = None
    stop: str | list[str] | None = None
    candidates: list[str] | None = None

    @property
    def is_free(self) -> bool:
        """Whether the model decides where the fill ends."""
        return not isinstance(self.length, int)

    def limits(self) -> tuple[int, int]:
        """Minimum and maximum length."""
        if isinstance(self.length, int):
            return self.length, self.length
        return (self.min_new_tokens, self.max_new_tokens) if self.length == "auto" else tuple(self.length)

    def completed(self, other: "Gap") -> "Gap":
        """This gap, with unset fields taken from another."""
        return replace(self, **{key: value for key, value in vars(other).items() if getattr(self, key) is None})


@dataclass
class InfilledGap:
    """
    One filled gap.

    Attributes:
        text (`str`): The fill, as it appears in the whole text.
        token_ids (`list[int]`): Its tokens, without the end token.
        finish_reason (`str`): `"exact_length"`, `"end_token"`, `"stop"`, `"candidate"`, or `"max_tokens"`: the budget ran
            out, and the fill may break off mid-sentence.
        name (`str`, *optional*): The gap's name.
        span (`tuple[int, int]`): Character offsets of the fill in the whole text.
        token_logprobs (`list[float]`, *optional*): Log-probability of each token under the model, in nats, before any
            sampling setting. The end token is no candidate for the first one, unless the fill may be empty.
        end_logprob (`float`, *optional*): That of the end token after the fill.
        join_score (`float`, *optional*): How well the text continues after the fill: mean log-probability of its next
            `join_tokens` tokens under the base model, in nats.
        joint_score (`float`, *optional*): Log-probability of the fill and those tokens under the base model.
        trimmed (`str`): Text cut from the end of the fill because the text after it repeats it.
        score (`float`, *optional*): Ranks the alternatives.
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
    """The whole text, with the caller's characters verbatim, and its gaps from left to right."""

    text: str
    gaps: list[InfilledGap]

    def __getitem__(self, name: str) -> InfilledGap:
        """The gap with that name."""
        for gap in self.gaps:
            if gap.name == name:
                return gap
        raise KeyError(f"no gap is named {name!r}; there are {[gap.name for gap in self.gaps if gap.name]}")


@dataclass
class Document:
    """A text with gaps: `texts[i]`, `gaps[i]`, `texts[i + 1]`, ...; `fills[i]` is None until gap i is filled."""

    texts: list[str]
    gaps: list[Gap]
    ids: list[list[int]] = field(default_factory=list)  # tokens of each text; the first includes the start token
    fills: list[InfilledGap | None] = field(default_factory=list)
    end_ids: list[int] = field(default_factory=list)  # encode()'s [EOS]: context, but no text that a fill could join

    def layout(self, offsets: list[int]) -> tuple[list[int], list[int], dict[int, int]]:
        """Tokens and positions of the context, and the token index of each open gap. A gap of exact length takes up
        that many positions; a free one reserves the smallest trained offset that holds it."""
        ids, positions, index_of, position = [], [], {}, 0
        for i, text_ids_ in enumerate(self.ids):
            known = (self.fills[i - 1].token_ids if i > 0 and self.fills[i - 1] else []) + text_ids_
            ids += known
            positions += range(position, position + len(known))
            position += len(known)
            if i < len(self.gaps) and self.fills[i] is None:
                index_of[i] = len(ids)
                gap, (_, most) = self.gaps[i], self.gaps[i].limits()
                position += next((offset for offset in offsets if offset >= most), most) if gap.is_free else most
        end = range(position, position + len(self.end_ids))
        return ids + self.end_ids, [*positions, *end], index_of

    def left_ids(self, gap: int) -> list[int]:
        """All tokens left of a gap; open gaps are skipped."""
        ids = list(self.ids[0])
        for fill, text in zip(self.fills[:gap], self.ids[1 : gap + 1]):
            ids += (fill.token_ids if fill else []) + text
        return ids

    def with_fill(self, gap: int, fill: InfilledGap) -> "Document":
        return replace(self, fills=[*self.fills[:gap], replace(fill), *self.fills[gap + 1 :]])

    def with_length(self, gap: int, length: int) -> "Document":
        """The document with a gap of exact length in place of a free one."""
        return replace(self, gaps=[*self.gaps[:gap], replace(self.gaps[gap], length=length), *self.gaps[gap + 1 :]])

    def output(self) -> InfillOutput:
        text = self.texts[0]
        for gap, fill, right in zip(self.gaps, self.fills, self.texts[1:]):
            fill.name, fill.span = gap.name, (len(text), len(text) + len(fill.text))
            text += fill.text + right
        return InfillOutput(text, self.fills)


def split_at_gaps(text: str, gap_token: str) -> list[str | Gap]:
    r"""
    Splits a string at its gap markers. A backslash before a marker escapes it; two give one backslash and a gap. A
    marker that ends in `|>` may name its gap, `<|gap:name|>`; names are Python identifiers.
    """
    marker = re.escape(gap_token)
    if gap_token.endswith("|>"):
        marker = re.escape(gap_token[:-2]) + r"(?::(?P<name>[^|<>]*))?" + re.escape("|>")
    parts, written, end = [], "", 0
    for match in re.finditer(r"(?P<slashes>\\*)(?P<marker>" + marker + ")", text):
        backslashes, name = len(match["slashes"]), match.groupdict().get("name")
        written += text[end : match.start()] + "\\" * (backslashes // 2)
        end = match.end()
        if backslashes % 2:
            written += match["marker"]
            continue
        if name is not None and not name.isidentifier():
            raise ValueError(
                f"{match['marker']}: a gap's name must be of letters, digits and underscores. Rename it, or put a "
                "backslash before the marker to have it as text."
            )
        parts += [written, Gap(name=name)]
        written = ""
    return [*parts, written + text[end:]]


def read_document(
    where: str, parts: str | list, gap_token: str | None, defaults: Gap, named: Mapping[str, Gap]
) -> Document:
    """
    Builds a document from a string with markers or a list of strings and gaps; raises if it has no clear gap. Without a
    marker (`None`), a string is text, and a document needs no gap.
    """
    if isinstance(parts, str):
        parts = split_at_gaps(parts, gap_token) if gap_token else [parts]
    if not isinstance(parts, (list, tuple)):
        raise ValueError(f"{where}: {parts!r:.80} is neither a string nor a list of strings and Gaps.")
    texts, gaps = [""], []
    for part in parts:
        if isinstance(part, Gap):
            gaps.append(part.completed(named.get(part.name, Gap())).completed(defaults))
            texts.append("")
        else:
            check_text(where, part)
            texts[-1] += part
    names = [gap.name for gap in gaps if gap.name is not None]
    if not gaps and gap_token:
        raise ValueError(f"{where}: no gap. Mark one with {gap_token!r}, or use generate() to continue a text.")
    if not all(texts[1:-1]):
        raise ValueError(
            f"{where}: two gaps touch, so nothing says where one ends. Make them one, or put text between."
        )
    if gaps and not any(texts):
        raise ValueError(f"{where}: no text around the gap. Use generate() to write from nothing.")
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: the gaps are named {names}: a name may be there once.")
    for gap in gaps:
        check_gap(where, gap)
    return Document(texts, gaps, fills=[None] * len(gaps))


def check_gap(where: str, gap: Gap) -> None:
    """Raises `ValueError` for an invalid length, stop, prefix or candidates."""
    if gap.length != "auto" and not isinstance(gap.length, (tuple, list)):
        check_positive(f"{where}: length", gap.length)
    limits = gap.limits()
    integers = len(limits) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in limits)
    if not integers or not 0 <= limits[0] <= limits[1] or limits[1] < 1:
        raise ValueError(
            f"{where}: fewest and most tokens are {limits!r} (length, or min_new_tokens and max_new_tokens): must be two "
            "integers, 0 <= fewest <= most and 1 <= most."
        )
    strings = isinstance(gap.stop, (list, tuple)) and gap.stop and all(isinstance(s, str) and s for s in gap.stop)
    if gap.stop not in (None, "sentence", "line") and not strings:
        raise ValueError(f"{where}: stop={gap.stop!r}: must be 'sentence', 'line' or a list of non-empty strings.")
    if gap.candidates is not None and (not isinstance(gap.candidates, (list, tuple)) or not gap.candidates):
        raise ValueError(f"{where}: candidates={gap.candidates!r}: must be a list of strings that is not empty.")
    if gap.candidates and gap.prefix:
        raise ValueError(f"{where}: prefix={gap.prefix!r}: the candidates are whole fills. Leave the prefix out.")
    for text in (*(gap.candidates or ()), gap.prefix or ""):
        check_text(f"{where}: candidates or prefix", text)


# -------------------------------------------------------------------------------- seams: how the text and a fill join

SENTINELS = ("\n", ".", "a")  # prepended to a text that continues another, see continuation_ids
SENTENCE_END = re.compile(r"""[.!?…؟।]+["'”’)\]]*(?=\s)|[。！？]+[”’」』]*""")
LINE_END = re.compile(r"(?<=[^\r\n])[\r\n]")
OVERLAP_CHARACTERS, OVERLAP_WORDS = 12, 3  # a shorter repetition of the right context may be intended
HALF_CHARACTER = "\ufffd"  # what incomplete characters are decoded to
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a byte token of SentencePiece; its "<" is not text


def healed(text: str) -> str:
    """The text left of a gap without its one trailing space: tokens include the space before a word, so the model
    never saw a word after a lone space."""
    return text[:-1] if text.endswith(" ") and len(text) > 1 else text


def context_ids(document: Document, config, tokenizer, instruction: str | None = None) -> list[list[int]]:
    """Token ids of each text; special tokens in them count as plain text. An `instruction` precedes the first."""
    texts = [f"{instruction} {document.texts[0]}" if instruction else document.texts[0], *document.texts[1:]]
    pieces = [healed(text) for text in texts[:-1]] + texts[-1:]
    first = start_ids(config, tokenizer) + text_ids(pieces[0], tokenizer)
    return [first] + [continuation_ids(piece, tokenizer) for piece in pieces[1:]]


def context_inputs(layouts: list[tuple], device) -> dict[str, torch.LongTensor]:
    """The decoder's arguments for contexts, given [`Document.layout`] of each: (D, C), padded on the right."""
    ids, mask = padded([ids for ids, _, _ in layouts], device)
    positions, _ = padded([positions for _, positions, _ in layouts], device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def continuation_ids(text: str, tokenizer) -> list[int]:
    """
    Ids of a text that continues another. A SentencePiece tokenizer would prepend a space to the text alone, so it is
    tokenized after a sentinel (the first that does not merge with it), whose tokens are then dropped.
    """
    for sentinel in SENTINELS if text else ():
        alone, both = text_ids(sentinel, tokenizer), text_ids(sentinel + text, tokenizer)
        if both[: len(alone)] == alone:
            return both[len(alone) :]
    return text_ids(text, tokenizer)


def fill_ids(text: str, document: Document, gap: int, tokenizer) -> list[int]:
    """Ids of a given fill as the model would write it, with the space that `healed` removed on its left."""
    left = document.texts[gap]
    if not text or not left:
        return text_ids(text, tokenizer)
    return continuation_ids(" " + text if healed(left) != left else text, tokenizer)


def fill_text(ids: list[int], document: Document, gap: int, tokenizer) -> str:
    """Decodes the fill's complete characters; its first space is neither lost nor doubled."""
    left, prefix = document.texts[gap], document.gaps[gap].prefix or ""

    def decoded(part: list[int], opens: bool) -> str:  # SentencePiece decoders strip the first space of a text
        behind = [] if opens else text_ids("a", tokenizer)
        text = tokenizer.decode(behind + part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if opens else text.removeprefix("a")

    text, begun = decoded(ids, not left), 0
    if HALF_CHARACTER in text:  # it spoils a whole run of bytes, so characters are taken as they complete
        text = ""
        for end in range(1, len(ids) + 1):
            piece = decoded(ids[begun:end], not left and begun == 0)
            if not piece.endswith(HALF_CHARACTER):
                text, begun = text + piece, end
    spaced = (not left or left.endswith(" ")) and not prefix.startswith(" ")
    return text.removeprefix(" ") if spaced or healed(left) != left else text


def cut_at(text: str, gap: Gap) -> int | None:
    """The index at which `gap.stop` ends a text, or None; always after the prefix, which is kept."""
    first = len(gap.prefix or "")
    if gap.stop is None or len(text) < first:
        return None
    if gap.stop == "line":
        match = LINE_END.search(text, first)
        return match and match.start()
    if gap.stop == "sentence":
        return next((match.end() for match in SENTENCE_END.finditer(text) if match.end() > first), None)
    return min((at for at in (text.find(string, first) for string in gap.stop) if at >= 0), default=None)


def overlap(text: str, right: str) -> int:
    """
    Number of characters at the end of a fill that repeat the start of the right context. Models that see the right
    context tend to repeat it; one or two words may be chance.
    """
    for length in range(min(len(text), len(right)), 0, -1):
        repeated = right[:length]
        inside_left = length < len(text) and text[-length].isalnum() and text[-length - 1].isalnum()
        inside_right = repeated[-1].isalnum() and right[length : length + 1].isalnum()
        if text.endswith(repeated) and not inside_left and not inside_right:
            return length if length >= OVERLAP_CHARACTERS or len(repeated.split()) >= OVERLAP_WORDS else 0
    return 0


def start_tokens(ids: list[int], tokenizer) -> list[set[int]]:
    """The first tokens allowed for a fill that starts with a text: the text's own, but any token that extends the last
    one may replace it ("run" may become "running")."""
    last = tokenizer.convert_ids_to_tokens(ids[-1])
    longer = {
        id for token, id in tokenizer.get_vocab().items() if token.startswith(last) and not BYTE.fullmatch(token)
    }
    return [{id} for id in ids[:-1]] + [longer - set(tokenizer.all_special_ids) | {ids[-1]}]


# ------------------------------------------------------------------------------------------------ how fills are written

STATIC_STEP = 64  # static cache sizes are multiples of this, so that few are compiled
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)


@dataclass
class Job:
    """One gap to fill `copies` times, for target number `target`. The other fields constrain its rows: number of
    tokens, whether END is allowed, and the first tokens."""

    document: Document
    gap: int
    copies: int
    target: int
    shortest: int = 0
    longest: int = 0
    ends: bool = False
    start: list[set[int]] = field(default_factory=list)


class GapRules(LogitsProcessor):
    """Applies each job's constraints to its rows of a `generate()` call; its beams and alternatives are adjacent."""

    def __init__(self, jobs: list[Job], prompt_length: int, end: int, never: set[int]):
        self.jobs, self.prompt_length, self.end = jobs, prompt_length, end
        self.never = torch.tensor(sorted(never), dtype=torch.long)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written, copies = input_ids.shape[1] - self.prompt_length, len(input_ids) // len(self.jobs)
        scores = scores.index_fill(1, self.never.to(scores.device), -torch.inf)  # a copy: generate() may keep its own
        for row in range(len(scores)):
            job = self.jobs[row // copies]
            if written < len(job.start):
                allowed = sorted(job.start[written])
                kept = scores[row, allowed]
                scores[row] = -torch.inf
                scores[row, allowed] = kept
            if not job.ends or written < job.shortest:
                scores[row, self.end] = -torch.inf
        return scores


class GapStops(StoppingCriteria):
    """Ends each row at its job's maximum length or at the gap's `stop`."""

    def __init__(self, jobs: list[Job], prompt_length: int, tokenizer):
        self.jobs, self.prompt_length, self.tokenizer = jobs, prompt_length, tokenizer

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        fills, copies = input_ids[:, self.prompt_length :], len(input_ids) // len(self.jobs)
        return torch.tensor(
            [self._is_done(self.jobs[row // copies], fill) for row, fill in enumerate(fills)], device=input_ids.device
        )

    def _is_done(self, job: Job, fill: torch.Tensor) -> bool:
        gap = job.document.gaps[job.gap]
        if len(fill) >= job.longest or gap.stop is None:
            return len(fill) >= job.longest
        return cut_at(fill_text(fill.tolist(), job.document, job.gap, self.tokenizer), gap) is not None


class Writer:
    """
    Fills gaps with stock `generate()`: each row of a call is a gap with its own constraints.

    No hybrid mask is needed. Context tokens never attend to a span, so one bidirectional forward computes their keys
    and values, each at its true position. A span token attends to all of them and to the earlier tokens of its span,
    as in a cached causal step. The context token left of the gap predicts the first span token, so it is removed from
    the cache and fed again as the last token of generate()'s prompt. This equals the full hybrid forward.

    Args:
        model (`Magnet*ForCausalLM`): In eval mode.
        tokenizer ([`PreTrainedTokenizerBase`]): A fast one.
        generate_kwargs (`dict`): The caller's arguments for `generate()`.
        batch_size (`int`): Rows per call.
        join_tokens (`int`): Right-context tokens that count in a join score.
        details (`bool`): Whether to compute all scores, which needs the logits of every step.
    """

    def __init__(self, model, tokenizer, generate_kwargs, batch_size=32, join_tokens=16, details=True):
        config = generate_kwargs.get("generation_config") or model.generation_config
        self.model, self.tokenizer, self.generate_kwargs = model, tokenizer, generate_kwargs
        self.batch_size, self.join_tokens, self.details = batch_size, join_tokens, details
        self.encoded, self.cache = {}, None  # rows of documents that encode() read, by id(), in its cache
        beams = generate_kwargs.get("num_beams", config.num_beams)
        self.beams = 1 if beams is None else beams
        self.is_static = generate_kwargs.get("cache_implementation", config.cache_implementation) == "static"
        self.offsets = sorted(model.config.infill_free_offsets)
        self.can_end = model.config.infill_end_token_id is not None
        self.end = model.config.infill_end_token_id if self.can_end else tokenizer.eos_token_id
        self.control = set(tokenizer.all_special_ids) | {self.end}
        self.pad = min(self.control - {self.end}, default=self.end)  # not END, or a stopped row seems to have ended

    def fill(self, targets: list[tuple[Document, int]], copies: int, wanted: int) -> list[list[InfilledGap]]:
        """For each document and gap, the `wanted` best of its candidates or of at least `copies` generated fills."""
        jobs, found = [], [[] for _ in targets]
        for number, (document, gap) in enumerate(targets):
            if document.gaps[gap].candidates is not None:
                found[number] = self._given(document, gap)
            elif self.can_end or not document.gaps[gap].is_free:
                jobs.append(Job(document, gap, max(copies, wanted), number))
            else:  # no end token was trained: try several lengths and keep the best
                fewest, most = document.gaps[gap].limits()
                prefix = fill_ids(document.gaps[gap].prefix or "", document, gap, self.tokenizer)
                fewest = max(fewest, len(prefix), 1)
                lengths = {fewest, most, *(n for n in LENGTHS if fewest < n < most)}
                jobs += [Job(document.with_length(gap, n), gap, copies, number) for n in sorted(lengths)]
        for job, fill in self._write(jobs):
            found[job.target].append(fill)
        ranked = []
        for (document, gap), fills in zip(targets, found):
            if len(fills) < wanted:
                raise ValueError(f"num_return_sequences={wanted}: gap {gap} has only {len(fills)} candidates.")
            ranked.append(self._ranked(document, gap, fills)[:wanted])
        return ranked

    # ------------------------------------------------------------------------------------------------------ ranking

    def _ranked(self, document: Document, gap: int, fills: list[InfilledGap]) -> list[InfilledGap]:
        """
        Sorts fills, best first. Fills of different lengths cannot be compared by their own likelihood: the sum favours
        short fills, the mean generic ones. The right context is the same for all, so its likelihood under the base
        model is used: the join score. Given candidates are ranked by the joint score; beams keep their own order.
        """
        given, is_free = document.gaps[gap].candidates is not None, document.gaps[gap].is_free
        in_order = self.beams > 1 and not given and (self.can_end or not is_free)
        if not self.details and (in_order or len(fills) == 1):
            return fills
        self.score_joins(document, gap, fills)
        if in_order:
            return fills
        for fill in fills:
            if fill.join_score is None:  # no right context: only their own likelihood remains
                fill.score = fill.joint_score / len(fill.token_ids) if fill.token_ids else -float("inf")
            else:
                fill.score = fill.joint_score if given else fill.join_score
        return sorted(fills, key=lambda fill: -fill.score)

    def score_joins(self, document: Document, gap: int, fills: list[InfilledGap]) -> None:
        """Sets `join_score` and `joint_score` of each fill; the left context is processed once."""
        right = document.ids[gap + 1][: self.join_tokens]
        rows = [fill.token_ids + right for fill in fills]
        for fill, each in zip(fills, continuation_logprobs(self.model, document.left_ids(gap), rows, self.batch_size)):
            behind = each[len(fill.token_ids) :]
            fill.join_score = sum(behind) / len(behind) if behind else None
            fill.joint_score = sum(each)

    def logprobs(self, document: Document, gap: int, tokens: list[int]):
        """Log-probabilities of a given fill's tokens, and of END after it, in the gap's current layout."""
        ids, positions, index_of = document.layout(self.offsets)
        free = document.gaps[gap].is_free and self.can_end
        return span_logprobs(self.model, ids, positions, index_of[gap], tokens, free)

    def _given(self, document: Document, gap: int) -> list[InfilledGap]:
        rows = [(text, fill_ids(text, document, gap, self.tokenizer)) for text in document.gaps[gap].candidates]
        fills = [InfilledGap(text, ids, "candidate") for text, ids in rows]
        for fill in fills if self.details else ():
            exact = document.with_length(gap, max(len(fill.token_ids), 1))
            fill.token_logprobs, _ = self.logprobs(exact, gap, fill.token_ids)
        return fills

    # ---------------------------------------------------------------------------------------------- generate() calls

    def _write(self, jobs: list[Job]):
        """Yields (job, fill) for each copy of each job. Compatible jobs are batched, longest contexts first."""
        groups = {}
        for job in jobs:
            gap = job.document.gaps[job.gap]
            job.shortest, job.longest = gap.limits()
            job.ends, job.start = gap.is_free, self._start(job, gap)
            job.shortest = max(job.shortest, len(job.start) if gap.prefix else 0)
            # beams need one maximum length
            groups.setdefault((job.copies, job.longest if self.beams > 1 else None), []).append(job)
        for group in groups.values():
            group.sort(key=lambda job: -sum(map(len, job.document.ids)))
            rows = max(1, self.batch_size // max(group[0].copies, self.beams))
            for first in range(0, len(group), rows):
                yield from self._generate(group[first : first + rows])

    def _start(self, job: Job, gap: Gap) -> list[set[int]]:
        """The allowed first tokens: the prefix, or the space that `healed` removed, so that the fill begins a word."""
        left = job.document.texts[job.gap]
        if gap.prefix:
            return start_tokens(fill_ids(gap.prefix, job.document, job.gap, self.tokenizer), self.tokenizer)
        if healed(left) == left:
            return []
        (space,) = start_tokens(continuation_ids(" ", self.tokenizer)[:1], self.tokenizer)
        return [space | {self.end}]  # END: the fill may be empty

    def _generate(self, jobs: list[Job]):
        """One `generate()` call; yields (job, fill) for each copy of each job."""
        # a document with several gaps is prefilled once
        documents = list({id(job.document): job.document for job in jobs}.values())
        layouts = [document.layout(self.offsets) for document in documents]
        inputs = context_inputs(layouts, self.model.device)  # (D, C)
        if inputs["input_ids"].shape[1] == 1:  # one token is fed again, and the cache must not be empty
            inputs = {name: torch.nn.functional.pad(values, (0, 1)) for name, values in inputs.items()}
        ids, mask, positions = inputs.values()
        cache = self._prefilled(documents, inputs)

        number_of = {id(document): number for number, document in enumerate(documents)}
        rows = torch.tensor([number_of[id(job.document)] for job in jobs], device=ids.device)  # (R,)
        left = torch.tensor([[layouts[row][2][job.gap] - 1] for row, job in zip(rows, jobs)], device=ids.device)
        others = torch.arange(ids.shape[1] - 1, device=ids.device).expand(len(jobs), -1)
        others = others + (others >= left)  # (R, C - 1): all but the left neighbour
        order = torch.cat([others, left], dim=1)
        ids, positions, mask = (values[rows].gather(1, order) for values in (ids, positions, mask))  # (R, C)
        copies = max(self.beams, jobs[0].copies)
        arguments = self._arguments(jobs, ids.shape[1])
        if self.model.model.window is not None:
            arguments["context_position_ids"] = positions[:, :-1]
        outputs = self.model.generate(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            cache=self._expanded(cache, rows, others, copies, max(job.longest for job in jobs)),
            attention_mode="hybrid",
            num_return_sequences=jobs[0].copies,
            **arguments,
        )
        fills = outputs.sequences[:, ids.shape[1] :].tolist()
        each = [None] * len(fills)
        if self.details:  # under the model itself, before processors and temperature
            beams = getattr(outputs, "beam_indices", None)  # beam search only
            # normalize_logits=True sums over a dimension other than the last, losing 5e-4 over 262k tokens
            if self.can_end:  # barred as in training
                for written, step in enumerate(outputs.logits):
                    barred = torch.tensor([not job.ends or written < min(job.shortest, 1) for job in jobs])
                    step[barred.repeat_interleave(len(step) // len(jobs)).to(step.device), self.end] = -torch.inf
            steps = tuple(step - step.logsumexp(-1, keepdim=True) for step in outputs.logits)
            each = self.model.compute_transition_scores(outputs.sequences, steps, beams).tolist()
        for number, (tokens, logprobs) in enumerate(zip(fills, each)):
            job = jobs[number // jobs[0].copies]
            yield job, self._finished(job, tokens, logprobs)

    def _prefilled(self, documents: list[Document], inputs: dict) -> DynamicCache:
        """Keys and values of contexts: a copy of what encode() returned, or from one bidirectional forward."""
        cache = DynamicCache()  # DynamicCache(config=...) would drop tokens outside a sliding window
        rows = [self.encoded.get(id(document)) for document in documents]
        if None in rows:
            self.model.model(**inputs, cache=cache, attention_mode="bidirectional")
        else:
            for number, layer in enumerate(self.cache.layers):
                cache.update(layer.keys[rows], layer.values[rows], number)
        return cache

    def _expanded(self, cache: DynamicCache, rows, others, copies: int, longest: int):
        """
        The cache for `generate()`'s rows, with the context slots each attends to: `others`, (R, C - 1). generate()
        expands its inputs, but not a given cache. A static cache is filled from the dynamic one, because a context
        prefilled into it would attend to empty slots.
        """
        rows, others = rows.repeat_interleave(copies), others.repeat_interleave(copies, dim=0)
        room = -(-(others.shape[1] + longest) // STATIC_STEP) * STATIC_STEP
        room = max(room, self.generate_kwargs.get("max_cache_len") or 0)
        static = StaticCache(self.model.config, max_cache_len=room) if self.is_static else None
        for number, layer in enumerate(cache.layers):
            states = (states[rows[:, None], :, others].transpose(1, 2) for states in (layer.keys, layer.values))
            if static is None:
                layer.keys, layer.values = states
            else:
                static.update(*states, number)
        return cache if static is None else static

    def _arguments(self, jobs: list[Job], prompt_length: int) -> dict:
        """Arguments of `generate()`. Control tokens are never written, except the end token in a free gap."""
        never = self.control - ({self.end} if any(job.ends for job in jobs) else set())
        given = self.generate_kwargs
        return given | {
            "max_new_tokens": max(job.longest for job in jobs),
            "eos_token_id": self.end,
            "pad_token_id": self.pad,
            "return_dict_in_generate": True,
            "output_logits": self.details,
            "tokenizer": self.tokenizer,  # for stop_strings
            "use_cache": True,  # may be off after training, which would feed the context twice
            "cache_implementation": None,  # generate() is given the cache
            "max_cache_len": None,
            "logits_processor": LogitsProcessorList(
                [*(given.get("logits_processor") or []), GapRules(jobs, prompt_length, self.end, never)]
            ),
            "stopping_criteria": StoppingCriteriaList(
                [*(given.get("stopping_criteria") or []), GapStops(jobs, prompt_length, self.tokenizer)]
            ),
        }

    # ------------------------------------------------------------------------------------------- from tokens to a fill

    def _finished(self, job: Job, tokens: list[int], logprobs: list[float] | None) -> InfilledGap:
        """The fill as it appears in the text: cut at the gap's `stop`, without what the right context repeats."""
        document, gap, options = job.document, job.gap, job.document.gaps[job.gap]
        count = next((i for i, token in enumerate(tokens) if token in self.control), len(tokens))
        has_ended = count < len(tokens) and tokens[count] == self.end
        whole = text = fill_text(tokens[:count], document, gap, self.tokenizer)
        prefix, right, cut, trimmed = options.prefix or "", document.texts[gap + 1], cut_at(whole, options), ""
        if cut is not None:
            text, reason = text[:cut], "stop"
        elif count == job.longest:
            reason = "max_tokens" if options.is_free else "exact_length"
        else:  # or the caller's stopping criterion ended it
            reason = "end_token" if has_ended else "stop"
        if reason != "exact_length" and (repeated := overlap(text[len(prefix) :], right)):
            text, trimmed = text[:-repeated], text[-repeated:]
        is_cut = text != whole
        if right[:1].isspace():  # the right context has its own space; the prefix stays whole
            text = prefix + text[len(prefix) :].rstrip()
        fill = InfilledGap(text, tokens[:count], reason, trimmed=trimmed)
        if logprobs is not None:
            fill.token_logprobs = logprobs[:count]
            fill.end_logprob = logprobs[count] if reason == "end_token" else None
        if is_cut:
            self._retokenize(fill, document, gap)
        return fill

    def _retokenize(self, fill: InfilledGap, document: Document, gap: int) -> None:
        """Sets the tokens of a cut fill: the first ones generated or, if a token was cut, those of its text."""
        written = fill.token_ids
        for kept in range(len(written), -1, -1):
            if fill_text(written[:kept], document, gap, self.tokenizer) == fill.text:
                fill.token_ids = written[:kept]
                fill.token_logprobs = fill.token_logprobs and fill.token_logprobs[:kept]
                break
        else:
            fill.token_ids = fill_ids(fill.text, document, gap, self.tokenizer)
            if fill.token_logprobs is not None:
                fill.token_logprobs, _ = self.logprobs(document, gap, fill.token_ids)
        fill.end_logprob = None


# ------------------------------------------------------------------------------------------------------ public methods

# generate() arguments that infill() sets itself, and those that need a left-to-right prompt, which it lacks
OWN_ARGUMENTS = set(
    "attention_mask attention_mode cache context_position_ids eos_token_id input_ids inputs_embeds max_length output_logits "
    "output_scores past_key_values position_ids prefill_chunk_size return_dict_in_generate span_ids span_mask "
    "use_cache".split()
)
PROMPT_READERS = set(
    "assistant_early_exit assistant_model custom_generate guidance_scale negative_prompt_ids prompt_lookup_num_tokens".split()
)


class InfillingMixin:
    """`infill()` and `score_infill()` for every `Magnet*ForCausalLM`."""

    Gap = Gap  # `model.Gap(length=8)`, for models loaded with remote code, where Gap cannot be imported

    @torch.no_grad()
    def infill(
        self,
        inputs: str | list,
        tokenizer,
        *,
        length: int | tuple[int, int] | Literal["auto"] = "auto",
        max_new_tokens: int | None = None,
        min_new_tokens: int = 1,
        stop: str | list[str] | None = None,
        gaps: Mapping[str, Gap] | None = None,
        order: Literal["sequential", "parallel"] = "sequential",
        num_candidates: int | None = None,
        num_return_sequences: int = 1,
        join_tokens: int = 16,
        batch_size: int = 32,
        gap_token: str = "<|gap|>",
        return_dict: bool = False,
        streamer=None,
        context: dict | None = None,
        **generate_kwargs,
    ):
        r"""
        Fills the gaps of a text, each from the context on both sides.

        Args:
            inputs (`str`, `list[str | Gap]`, or a list of either):
                A string with markers, a list of strings with [`Gap`] objects between them, or a batch of either.
                Special tokens in a text count as plain text; `\<|gap|>` escapes the marker, `<|gap:name|>` names the
                gap.
            tokenizer ([`PreTrainedTokenizerBase`]): The checkpoint's tokenizer (a fast one).
            length (`int`, `(int, int)` or `"auto"`, *optional*, defaults to `"auto"`):
                Exact number of tokens (the paper's layout: the right context starts right after the gap); minimum and
                maximum; or `"auto"`: until the model predicts the end token, which requires training with
                `gap_layout: mixed`. Other checkpoints fill gaps of several lengths and keep the best.
            max_new_tokens (`int`, *optional*):
                Maximum length with `length="auto"`, at most the largest of `config.infill_free_offsets`; defaults to
                that offset or 64, whichever is less.
            min_new_tokens (`int`, *optional*, defaults to 1): Minimum length with `length="auto"`; 0 allows an empty
                fill, of which training has no example.
            stop (`str` or list of `str`, *optional*): Where to end fills, as in [`Gap`].
            gaps (mapping of `str` to [`Gap`], *optional*): Settings of named gaps.
            order (`str`, *optional*, defaults to `"sequential"`):
                `"sequential"`: from left to right; each fill becomes context for the next. `"parallel"`: all gaps at
                once from one prefill; fills do not see each other, as in training.
            num_candidates (`int`, *optional*): Fills to generate by sampling or beam search, of which the best are
                kept; defaults to `num_return_sequences`. They are ranked by how well the text continues after them
                under the base model (`join_score`); beams keep their order, and given candidates use `joint_score`.
            num_return_sequences (`int`, *optional*, defaults to 1): Alternatives per text, best first. In sequential
                order they are ranked by the first gap, and each continues with one fill per later gap.
            join_tokens (`int`, *optional*, defaults to 16): Right-context tokens that count in a join score.
            batch_size (`int`, *optional*, defaults to 32): Rows per `generate()` call, sorted by length. Each row
                holds a copy of its context's keys and values.
            gap_token (`str`, *optional*, defaults to `"<|gap|>"`): The marker.
            return_dict (`bool`, *optional*, defaults to `False`): Return [`InfillOutput`] instead of `str`.
            streamer (`BaseStreamer`, *optional*): As in `generate()`, for one text with one gap; with `TextStreamer`, pass
                `skip_prompt=True`: the prompt is the reordered context.
            context (`dict`, *optional*):
                What `encode(inputs, tokenizer, return_cache=True)` returned for these texts: they are not read again
                (except, in sequential order, for gaps after the first). A fill then sees what the vectors saw, the
                instruction and [EOS] included. It is not modified and serves any number of calls.
            generate_kwargs: Other arguments of `generate()` (`do_sample`, `num_beams`, `stopping_criteria`, ...). With
                `cache_implementation="static"` it may compile the model, as generate() does on a GPU.

        Returns:
            A `str` (or [`InfillOutput`]) for a single text, a list of them with `num_return_sequences` above 1; a list
            of these for a batch.

        Raises:
            `ValueError`: no gap, touching gaps, no text around a gap, a length that is not positive or does not fit
            into `max_position_embeddings` or a trained offset; a `context` of other texts or lengths.

        Example:

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_magnet import Gap, MagnetLlamaForCausalLM
        >>> model = MagnetLlamaForCausalLM.from_pretrained("tests/assets/magnet-tiny")
        >>> tokenizer = AutoTokenizer.from_pretrained("tests/assets/magnet-tiny", trust_remote_code=True)
        >>> output = model.infill(["Tom was hungry.", Gap(length=6), " He was full."], tokenizer, return_dict=True)
        >>> len(output.gaps[0].token_ids), output.gaps[0].finish_reason
        (6, 'exact_length')

        ```
        """
        _check_call(self, order, gap_token, generate_kwargs, batch_size=batch_size, join_tokens=join_tokens)
        defaults = Gap(length, self._budget(max_new_tokens), min_new_tokens, stop=stop)
        instruction = None if context is None else context["instruction"]
        documents, single = self._read_inputs(inputs, tokenizer, defaults, gaps or {}, gap_token, instruction)
        writer = Writer(self, tokenizer, generate_kwargs, batch_size, join_tokens, return_dict)
        if context is not None:
            _check_context(context, documents, writer.offsets)
            writer.encoded = {id(document): row for row, document in enumerate(documents)}
            writer.cache = context["cache"]
        copies = _checked_copies(writer, num_candidates, num_return_sequences)
        if streamer is not None:
            all_gaps = [gap for document in documents for gap in document.gaps]
            searches = any(gap.is_free and not writer.can_end or gap.candidates is not None for gap in all_gaps)
            if len(all_gaps) != 1 or copies > 1 or searches:
                raise ValueError("streamer: one text with one gap can be streamed, and one fill of it.")
            generate_kwargs["streamer"] = streamer
        rounds = [[gap] for gap in range(max((len(d.gaps) for d in documents), default=0))]
        if order == "parallel":
            rounds = [[gap for (gap,) in rounds]]
        answers = [[document] for document in documents]
        for number, round_gaps in enumerate(rounds):
            # alternatives branch in the first round; afterwards each is its own document
            wanted = num_return_sequences if number == 0 else 1
            targets = [(d, gap) for many in answers for d in many for gap in round_gaps if gap < len(d.gaps)]
            fills = iter(writer.fill(targets, num_candidates or 1, wanted))
            answers = [[each for d in many for each in _filled(d, round_gaps, fills, wanted)] for many in answers]
        outputs = [[document.output() for document in many] for many in answers]
        results = [[output if return_dict else output.text for output in many] for many in outputs]
        results = results if num_return_sequences > 1 else [many[0] for many in results]
        return results[0] if single else results

    @torch.no_grad()
    def score_infill(
        self,
        inputs: str | list,
        fills: list,
        tokenizer,
        *,
        layout: Literal["exact", "free"] = "exact",
        max_new_tokens: int | None = None,
        order: Literal["sequential", "parallel"] = "sequential",
        join_tokens: int = 16,
        gap_token: str = "<|gap|>",
    ):
        """
        Scores given fills: the likelihood of each token, the end token and the right context.

        Args:
            inputs, tokenizer, order, join_tokens, gap_token: As in [`infill`].
            fills (`list[str]`, or a list of these for a batch): One text per gap.
            layout (`str`, *optional*, defaults to `"exact"`):
                `"exact"`: the model knows each fill's length, as in the paper; `"free"`: it does not, and the end
                token is scored.
            max_new_tokens (`int`, *optional*):
                The budget of a gap with `layout="free"`, as in [`infill`]; a longer fill gets its own length.

        Returns:
            [`InfillOutput`], or a list of them for a batch; `finish_reason` is `"candidate"`.

        Example:

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_magnet import MagnetLlamaForCausalLM
        >>> model = MagnetLlamaForCausalLM.from_pretrained("tests/assets/magnet-tiny")
        >>> tokenizer = AutoTokenizer.from_pretrained("tests/assets/magnet-tiny", trust_remote_code=True)
        >>> text = "Tom was hungry. <|gap|> He was full."
        >>> good, bad = (model.score_infill(text, [fill], tokenizer).gaps[0] for fill in ("He ate.", "It rained."))
        >>> sum(good.token_logprobs) > sum(bad.token_logprobs)
        True

        ```
        """
        if layout not in ("exact", "free"):
            raise ValueError(f"layout={layout!r}: must be 'exact' or 'free'.")
        if layout == "free" and self.config.infill_end_token_id is None:
            raise ValueError("layout='free': this checkpoint was not trained to end a gap. Use layout='exact'.")
        budget = self._budget(max_new_tokens)
        _check_call(self, order, gap_token, {}, join_tokens=join_tokens, max_new_tokens=budget)
        documents, single = self._read_inputs(inputs, tokenizer, Gap(1), {}, gap_token)
        fills = [fills] if single else fills
        if not isinstance(fills, (list, tuple)) or len(fills) != len(documents):
            raise ValueError(f"fills={fills!r:.80}: must be a list of {len(documents)} lists, one an input.")
        writer, outputs = Writer(self, tokenizer, {}, join_tokens=join_tokens), []
        for number, (document, texts) in enumerate(zip(documents, fills)):
            rows = _rows_of_fills(f"fills[{number}]", document, texts, tokenizer)
            for gap, row in zip(document.gaps, rows):
                gap.length = max(len(row), 1) if layout == "exact" else (0, max(len(row), budget))
            self._check_room(f"inputs[{number}]", document)
            scored = document
            for gap, (text, row) in enumerate(zip(texts, rows)):
                fill, seen = InfilledGap(text, row, "candidate"), scored if order == "sequential" else document
                fill.token_logprobs, fill.end_logprob = writer.logprobs(seen, gap, row)
                writer.score_joins(seen, gap, [fill])
                scored = scored.with_fill(gap, fill)
            outputs.append(scored.output())
        return outputs[0] if single else outputs

    def _encode_contexts(self, texts, tokenizer, instruction, batch_size) -> tuple[torch.Tensor, dict, bool]:
        """For encode(): last hidden states (N, L, d), their context, and whether it was a single text."""
        check_positive("batch_size", batch_size)
        defaults = Gap("auto", self._budget(None), 1)
        documents, single = self._read_inputs(texts, tokenizer, defaults, {}, None, instruction)
        if not 0 < len(documents) <= batch_size:
            raise ValueError(
                f"return_cache=True reads all texts at once, from 1 to batch_size={batch_size}, not {len(documents)}: "
                "their keys and values stay in memory. Pass fewer texts, or a larger batch_size."
            )
        offsets = sorted(self.config.infill_free_offsets)
        context = context_inputs([document.layout(offsets) for document in documents], self.device)
        context["cache"] = DynamicCache()
        hidden = self.model(**context, attention_mode="bidirectional").last_hidden_state
        return hidden, context | {"instruction": instruction}, single

    def _read_inputs(
        self, inputs, tokenizer, defaults, named, gap_token, instruction=None
    ) -> tuple[list[Document], bool]:
        check_tokenizer(tokenizer, self.config)
        argument = "inputs" if gap_token else "texts"
        if not isinstance(inputs, (str, list, tuple)):
            raise ValueError(
                f"{argument}={inputs!r:.80}: must be a string, a list of strings and Gaps, or a list of these."
            )
        if not isinstance(named, Mapping) or not all(isinstance(gap, Gap) for gap in named.values()):
            raise ValueError(f"gaps={named!r}: must map the names of gaps to Gap objects.")
        single = isinstance(inputs, str) or any(isinstance(part, Gap) for part in inputs)
        batch = [inputs] if single else list(inputs)
        documents = [
            read_document(f"{argument}[{n}]", item, gap_token, defaults, named) for n, item in enumerate(batch)
        ]
        known = {gap.name for document in documents for gap in document.gaps}
        if documents and set(named) - known:
            raise ValueError(f"gaps: no gap is named {[*set(named) - known]}; there are {sorted(known - {None})}.")
        for number, document in enumerate(documents):
            document.ids = context_ids(document, self.config, tokenizer, instruction)
            document.end_ids = [] if instruction is None else [tokenizer.eos_token_id]
            where = f"{argument}[{number}]"
            if not document.ids[0]:
                raise ValueError(
                    f"{where}: begins with a gap, and this tokenizer puts no token before a text that could predict its "
                    "first one. Put text before the gap, or set config.text_start_token_id as in training."
                )
            for gap, options in enumerate(document.gaps):
                if options.candidates is not None:  # room for the longest
                    rows = [fill_ids(text, document, gap, tokenizer) for text in options.candidates]
                    options.length = max(1, *map(len, rows))
            self._check_room(where, document)
            for gap, options in enumerate(document.gaps):
                _check_prefix(where, document, gap, options, tokenizer)
        return documents, single

    def _budget(self, max_new_tokens: int | None) -> int:
        return min(64, max(self.config.infill_free_offsets)) if max_new_tokens is None else max_new_tokens

    def _check_room(self, where: str, document: Document) -> None:
        offsets, limit = self.config.infill_free_offsets, self.config.max_position_embeddings
        trained = offsets if self.config.infill_end_token_id is not None else [limit]
        for gap in document.gaps:
            if gap.is_free and gap.limits()[1] > max(trained):
                raise ValueError(
                    f"{where}: a gap of up to {gap.limits()[1]} tokens (max_new_tokens, length): this checkpoint was trained "
                    f"to end gaps of at most {max(trained)} (config.infill_free_offsets). Pass less, or an exact length."
                )
        known = sum(map(len, document.ids)) + len(document.end_ids)
        rooms = [
            min((o for o in offsets if o >= g.limits()[1] and g.is_free), default=g.limits()[1]) for g in document.gaps
        ]
        if known + sum(rooms) > limit:
            raise ValueError(
                f"{where}: {known} tokens of text and gaps of {rooms} positions exceed max_position_embeddings={limit}; "
                f"{max(limit - known, 0)} positions are left for the gaps. Shorten the text, or pass a smaller length."
            )


def _filled(document: Document, gaps: list[int], fills, wanted: int) -> list[Document]:
    """The alternatives of a document after a round; `fills` yields the ranked fills of its gaps in turn."""
    alternatives = [document] * wanted
    for gap in gaps:
        if gap < len(document.gaps):
            alternatives = [each.with_fill(gap, fill) for each, fill in zip(alternatives, next(fills))]
    return alternatives


def _rows_of_fills(where: str, document: Document, texts: list[str], tokenizer) -> list[list[int]]:
    if not isinstance(texts, (list, tuple)) or len(texts) != len(document.gaps):
        raise ValueError(f"{where}={texts!r:.80}: must be a list of {len(document.gaps)} strings, one a gap.")
    for text in texts:
        check_text(where, text)
    return [fill_ids(text, document, gap, tokenizer) for gap, text in enumerate(texts)]


def _checked_copies(writer: Writer, num_candidates: int | None, num_return_sequences: int) -> int:
    """Number of fills to generate per gap. Raises `ValueError` if the decoding method cannot generate so many."""
    check_positive("num_return_sequences", num_return_sequences)
    check_positive("num_beams", writer.beams)
    copies = num_return_sequences if num_candidates is None else num_candidates
    check_positive("num_candidates", copies)
    if copies < num_return_sequences:
        raise ValueError(f"num_candidates={copies}: must not be below num_return_sequences={num_return_sequences}.")
    most = writer.model.config.vocab_size
    for name, value in (("num_beams", writer.beams), ("num_candidates or num_return_sequences", copies)):
        if value > most:
            raise ValueError(f"{name}={value}: more than there are tokens to begin with (vocab_size={most}).")
    return copies


def _check_call(model, order: str, gap_token: str, generate_kwargs: dict, **positive) -> None:
    for name, value in positive.items():
        check_positive(name, value)
    if order not in ("sequential", "parallel"):
        raise ValueError(f"order={order!r}: must be 'sequential' or 'parallel'.")
    if not gap_token:
        raise ValueError(f"gap_token={gap_token!r}: must not be empty; for no marker, pass parts with Gap objects.")
    if model.training and model.model.gradient_checkpointing:
        raise ValueError(
            "infill() needs a cache, which gradient checkpointing switches off in training mode. Call model.eval() first."
        )
    if own := OWN_ARGUMENTS & set(generate_kwargs):
        raise ValueError(f"{sorted(own)}: infill() sets these itself; leave them out.")
    if readers := PROMPT_READERS & set(generate_kwargs):
        raise ValueError(f"{sorted(readers)}: infill() has no prompt to be read from left to right; leave them out.")
    cache = generate_kwargs.get("cache_implementation")
    if cache not in (None, "dynamic", "static"):
        raise ValueError(f"cache_implementation={cache!r}: must be 'dynamic' or 'static'.")
    if cache == "static" and model.model.window is not None:
        raise ValueError("cache_implementation='static': a sliding window needs the default; leave it out.")


def _check_context(context: dict, documents: list[Document], offsets: list[int]) -> None:
    """Raises `ValueError` unless encode() read just these documents: another context would give other fills."""
    masks = context["attention_mask"].bool()
    given = [
        context[name][row][mask].tolist() for row, mask in enumerate(masks) for name in ("input_ids", "position_ids")
    ]
    wanted = [values for document in documents for values in document.layout(offsets)[:2]]
    if given != wanted:
        same = [a == b for a, b in zip(given, wanted)]
        number = (same.index(False) if False in same else len(same)) // 2
        raise ValueError(
            f"context: its row {number} is not inputs[{number}]. Pass encode() and infill() the same texts in the same order, "
            "with gaps of the same lengths and as Gap objects (to encode() a marker is text), or leave the context out."
        )


def _check_prefix(where: str, document: Document, gap: int, options: Gap, tokenizer) -> None:
    prefix, (_, most) = options.prefix, options.limits()
    ids = fill_ids(prefix, document, gap, tokenizer) if prefix else []
    if len(ids) > most:
        raise ValueError(
            f"{where}: prefix={prefix!r}: its {len(ids)} tokens exceed the gap's {most}. Let it be longer."
        )
    if prefix and fill_text(ids, document, gap, tokenizer) != prefix:
        raise ValueError(f"{where}: prefix={prefix!r}: the tokenizer has no tokens for it. Leave out what is unusual.")
