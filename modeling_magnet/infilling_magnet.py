"""infill(): gaps in a text are filled from both sides (sections 3.1 and 4.3), on stock `generate()`.

No hybrid mask is needed. Context tokens never attend to a span, so their keys and values are computed once, by one
bidirectional forward, each at its true position; a span token attends to all of them and to its own past, which is
what a cached causal step does. The first span token is predicted by the context token left of the gap: that token is
hidden in the cache and fed once more, as the last token of generate()'s prompt. This equals the full hybrid forward.
"""

import copy
import re
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers.cache_utils import DynamicCache

SENTINELS = ("\n", ".", "a")  # put before a piece of text that continues a document, see _continuation_ids
OWN_ARGUMENTS = {
    "attention_mask",
    "attention_mode",
    "cache_implementation",
    "eos_token_id",
    "input_ids",
    "inputs_embeds",
    "max_length",
    "output_logits",
    "output_scores",
    "past_key_values",
    "position_ids",
    "return_dict_in_generate",
    "span_ids",
    "use_cache",
}


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


# ------------------------------------------------------------------------------------------------ reading the input


def split_at_gaps(text: str, gap_token: str) -> list[str | Gap]:
    r"""
    Splits a string at its gap markers. A backslash before a marker makes it text; two make one backslash and a gap.

    Example:

    ```python
    >>> from modeling_magnet.infilling_magnet import split_at_gaps
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
    texts, gaps = [""], []
    for part in parts:
        if isinstance(part, str):
            texts[-1] += part
        elif isinstance(part, Gap):
            gaps.append(Gap(part.length or length, part.max_new_tokens or max_new_tokens))
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


def check_positive(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a positive integer.")


# -------------------------------------------------------------------------------------------------------- the seams


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
        encoded = tokenizer(
            sentinel + text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        ends = [end for _, end in encoded["offset_mapping"]]
        starts = [start for start, _ in encoded["offset_mapping"]]
        first = sum(end <= len(sentinel) for end in ends)
        if all(start >= len(sentinel) for start in starts[first:]):
            return encoded["input_ids"][first:]
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


# ----------------------------------------------------------------------------------------------------------- infill


class InfillingMixin:
    """`infill()` for [`MagnetLlamaForCausalLM`]."""

    @torch.no_grad()
    def infill(
        self,
        inputs: str | list,
        tokenizer,
        *,
        length: int | Literal["auto"] = "auto",
        max_new_tokens: int = 64,
        order: Literal["sequential", "parallel"] = "sequential",
        gap_token: str = "<|gap|>",
        num_return_sequences: int = 1,
        return_dict: bool = False,
        **generate_kwargs,
    ):
        r"""
        Fills the gaps of a text, each from the text on both sides of it.

        Args:
            inputs (`str`, `list[str | Gap]`, or a list of either):
                A string with markers, the parts of a text with [`Gap`] objects between them, or a batch. Control tokens
                spelt out in a text stay text; `\<|gap|>` is the marker as text.
            tokenizer ([`PreTrainedTokenizerBase`]): The checkpoint's tokenizer (a fast one).
            length (`int` or `"auto"`, *optional*, defaults to `"auto"`):
                Exact number of tokens (the paper's layout: the right context stands right behind the gap), or until the
                model predicts the end token, which a checkpoint trained with `gap_layout: mixed` has learnt.
            max_new_tokens (`int`, *optional*, defaults to 64): Most tokens of a gap of free length.
            order (`str`, *optional*, defaults to `"sequential"`):
                `"sequential"`: from left to right, each fill being context of the next. `"parallel"`: all gaps at once
                from one shared prefill; fills do not see each other, as in training.
            gap_token (`str`, *optional*, defaults to `"<|gap|>"`): The marker.
            num_return_sequences (`int`, *optional*, defaults to 1): Alternatives per text; needs sampling or beams.
            return_dict (`bool`, *optional*, defaults to `False`): Return [`InfillOutput`] instead of `str`.
            generate_kwargs: Anything else `generate()` takes (`do_sample`, `num_beams`, `stopping_criteria`, ...).

        Returns:
            A `str` (or [`InfillOutput`]) for a single text, a list of them with `num_return_sequences` above 1; a list
            of these for a batch.

        Raises:
            `ValueError`: no gap, touching gaps, no text around a gap, a length that is not positive or finds no room
            in `max_position_embeddings`, `"auto"` where no end token was trained.

        Example:

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_magnet import Gap, MagnetLlamaForCausalLM
        >>> model = MagnetLlamaForCausalLM.from_pretrained("examples/assets/magnet-tiny")
        >>> tokenizer = AutoTokenizer.from_pretrained("examples/assets/magnet-tiny", trust_remote_code=True)
        >>> output = model.infill(["Tom was hungry.", Gap(length=6), " He was full."], tokenizer, return_dict=True)
        >>> len(output.gaps[0].token_ids), output.gaps[0].finish_reason
        (6, 'exact_length')

        ```
        """
        self._check_call(tokenizer, order, num_return_sequences, max_new_tokens, gap_token, generate_kwargs)
        single = isinstance(inputs, str) or any(isinstance(part, Gap) for part in inputs)
        batch = [inputs] if single else list(inputs)
        documents = [read_document(item, gap_token, length, max_new_tokens, n) for n, item in enumerate(batch)]
        for number, document in enumerate(documents):
            self._check_gaps(document, number)
            document.ids = context_ids(document, tokenizer)
            self._check_room(document, number)
        answers = self._fill_all(documents, order, num_return_sequences, tokenizer, generate_kwargs)
        results = [[InfillOutput(d.text(), d.fills) if return_dict else d.text() for d in many] for many in answers]
        results = results if num_return_sequences > 1 else [many[0] for many in results]
        return results[0] if single else results

    def _fill_all(self, documents, order, alternatives, tokenizer, generate_kwargs) -> list[list[Document]]:
        """Fills every gap of every document; returns each document's alternatives."""
        answers = [[copy.deepcopy(document) for _ in range(alternatives)] for document in documents]
        rounds = [[gap] for gap in range(max((len(d.gaps) for d in documents), default=0))]
        if order == "parallel":
            rounds = [[gap for (gap,) in rounds]]
        for number, gaps in enumerate(rounds):
            # alternatives share their first round's prompt; from then on each is a document of its own
            groups = answers if number == 0 else [[document] for many in answers for document in many]
            targets = [(group, gap) for group in groups for gap in gaps if gap < len(group[0].gaps)]
            for of_one_length in _by_length(targets):
                self._fill(of_one_length, tokenizer, generate_kwargs)
        return answers

    def _fill(self, targets, tokenizer, generate_kwargs) -> None:
        """One `generate()` call: row r fills gap `targets[r][1]` in each of the equal documents `targets[r][0]`."""
        contexts, row_of = [], []  # a document with several gaps is encoded once
        for group, _ in targets:
            if not contexts or contexts[-1] is not group[0]:
                contexts.append(group[0])
            row_of.append(len(contexts) - 1)
        layouts = [document.layout(self._free_offset) for document in contexts]
        gap = targets[0][0][0].gaps[targets[0][1]]
        alternatives = len(targets[0][0])
        beams = generate_kwargs.get("num_beams", self.generation_config.num_beams or 1)

        ids, positions, mask, cache = self._encode_contexts(layouts)
        rows = torch.tensor(row_of, device=self.device)
        left = torch.tensor([layouts[r][2][g] for r, (_, g) in zip(row_of, targets)], device=self.device)[:, None]
        cache.batch_select_indices(rows)
        cache.batch_repeat_interleave(max(beams, alternatives))  # generate() expands its inputs, not a given cache
        ids, positions, mask = ids[rows], positions[rows], mask[rows]  # (R, C)
        hidden = mask.scatter(1, left, 0)
        sequences = self.generate(
            input_ids=torch.cat([ids, ids.gather(1, left)], dim=1),  # (R, C + 1)
            position_ids=torch.cat([positions, positions.gather(1, left)], dim=1),
            attention_mask=torch.cat([hidden, torch.ones_like(left)], dim=1),
            past_key_values=cache,
            attention_mode="hybrid",
            num_return_sequences=alternatives,
            **self._generate_arguments(gap, tokenizer, generate_kwargs),
        )
        fills = sequences[:, ids.shape[1] + 1 :].tolist()
        for number, fill in enumerate(fills):
            group, gap_number = targets[number // alternatives]
            self._keep(fill, group[number % alternatives], gap_number, tokenizer)

    def _encode_contexts(self, layouts):
        """Encodes the contexts, (D, C) padded on the right, bidirectionally into a cache."""
        length = max(len(ids) for ids, _, _ in layouts)
        ids = torch.zeros(len(layouts), length, dtype=torch.long)
        positions, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (row_ids, row_positions, _) in enumerate(layouts):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            positions[row, : len(row_ids)] = torch.tensor(row_positions)
            mask[row, : len(row_ids)] = 1
        ids, positions, mask = ids.to(self.device), positions.to(self.device), mask.to(self.device)
        cache = DynamicCache(config=self.config)
        self.model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, attention_mode="bidirectional"
        )
        return ids, positions, mask, cache

    def _generate_arguments(self, gap, tokenizer, generate_kwargs) -> dict:
        """Control tokens are never written into a text; the end token alone may be predicted, in a free gap."""
        free = gap.length == "auto"
        end = self.config.infill_end_token_id if free else None
        never = set(tokenizer.all_special_ids) | set(generate_kwargs.get("suppress_tokens") or [])
        arguments = {
            "max_new_tokens": gap.max_new_tokens if free else gap.length,
            "suppress_tokens": sorted(never - {end}),
            "eos_token_id": end,
            # marks what follows a finished row; [BOS] cannot be taken for the end token
            "pad_token_id": tokenizer.bos_token_id,
        }
        return generate_kwargs | arguments

    def _keep(self, fill, document, gap_number, tokenizer) -> None:
        gap = document.gaps[gap_number]
        special = set(tokenizer.all_special_ids)
        stop = next((i for i, token in enumerate(fill) if token in special), len(fill))
        ended = stop < len(fill) and gap.length == "auto" and fill[stop] == self.config.infill_end_token_id
        kept = fill[:stop]
        if ended:
            reason = "end_token"
        elif len(kept) == gap.length:
            reason = "exact_length"
        else:
            reason = "max_tokens" if gap.length == "auto" and len(kept) == gap.max_new_tokens else "stop"
        document.fills[gap_number] = InfilledGap(seam_text(kept, document, gap_number, tokenizer), kept, reason)

    def _free_offset(self, gap) -> int:
        """The smallest trained offset that holds the gap's budget."""
        return next(offset for offset in self.config.infill_free_offsets if offset >= gap.max_new_tokens)

    # ------------------------------------------------------------------------------------------------------- checks

    def _check_call(self, tokenizer, order, num_return_sequences, max_new_tokens, gap_token, generate_kwargs) -> None:
        if order not in ("sequential", "parallel"):
            raise ValueError(f"order={order!r}: must be 'sequential' or 'parallel'.")
        check_positive("num_return_sequences", num_return_sequences)
        check_positive("max_new_tokens", max_new_tokens)
        if not gap_token:
            raise ValueError("gap_token='': must not be empty; to use no marker, pass parts with Gap objects.")
        if own := OWN_ARGUMENTS & set(generate_kwargs):
            raise ValueError(f"{sorted(own)}: infill() sets these itself; leave them out.")
        if tokenizer.bos_token_id is None or not tokenizer.is_fast:
            raise ValueError("tokenizer: infill() needs a fast tokenizer with a bos_token.")

    def _check_gaps(self, document, number) -> None:
        for gap in document.gaps:
            if gap.length != "auto":
                check_positive(f"inputs[{number}]: length", gap.length)
                continue
            check_positive(f"inputs[{number}]: max_new_tokens", gap.max_new_tokens)
            if self.config.infill_end_token_id is None:
                raise ValueError(
                    "length='auto': this checkpoint was not trained to end a gap (config.infill_end_token_id is None). "
                    "Pass length=<number of tokens>."
                )
            if gap.max_new_tokens > max(self.config.infill_free_offsets):
                raise ValueError(
                    f"max_new_tokens={gap.max_new_tokens}: a gap of free length holds at most "
                    f"{max(self.config.infill_free_offsets)} tokens (config.infill_free_offsets). Pass length=<number>."
                )

    def _check_room(self, document, number) -> None:
        ids, _, _ = document.layout(self._free_offset)
        budgets = [gap.length if gap.length != "auto" else self._free_offset(gap) for gap in document.gaps]
        limit = self.config.max_position_embeddings
        if len(ids) + sum(budgets) > limit:
            raise ValueError(
                f"inputs[{number}]: {len(ids)} tokens of text and gaps of {budgets} positions exceed "
                f"max_position_embeddings={limit}; {max(limit - len(ids), 0)} positions are left for the gaps. Shorten the "
                "text, or pass a smaller length."
            )


def _by_length(targets) -> list[list]:
    """Groups rows that end by the same rule, which is what one `generate()` call can hold."""
    groups = {}
    for group, gap in targets:
        options = group[0].gaps[gap]
        key = (options.length, options.max_new_tokens if options.length == "auto" else None)
        groups.setdefault(key, []).append((group, gap))
    return list(groups.values())
