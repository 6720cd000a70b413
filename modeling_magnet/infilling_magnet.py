"""infill(): gaps in a text are filled from both sides (sections 3.1 and 4.3), on stock `generate()`.

No hybrid mask is needed. Context tokens never attend to a span, so their keys and values are computed once, by one
bidirectional forward, each at its true position; a span token attends to all of them and to its own past, which is
what a cached causal step does. The first span token is predicted by the context token left of the gap: that token is
hidden in the cache and fed once more, as the last token of generate()'s prompt. This equals the full hybrid forward.
"""

import copy
from typing import Literal

import torch
from transformers.cache_utils import DynamicCache

from .gaps_magnet import (
    Document,
    Gap,
    InfilledGap,
    InfillOutput,
    check_positive,
    context_ids,
    read_document,
    seam_text,
)

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


class InfillingMixin:
    """`infill()` for [`MagnetLlamaForCausalLM`]."""

    Gap = (
        Gap  # `model.Gap(length=8)`, for those who loaded the model by remote code and have nothing to import it from
    )

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
                from one shared prefill for each length of gap; fills do not see each other, as in training.
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
        if not isinstance(inputs, (str, list, tuple)):
            raise ValueError(f"inputs={inputs!r}: must be a string, a list of strings and Gaps, or a list of these.")
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
            of_one_length = _by_length(targets)
            fills = [fill for rows in of_one_length for fill in self._fill(rows, tokenizer, generate_kwargs)]
            for document, gap, fill in fills:  # only now, so that the gaps of one round do not see each other's fills
                document.fills[gap] = fill
        return answers

    def _fill(self, targets, tokenizer, generate_kwargs) -> list[tuple[Document, int, InfilledGap]]:
        """One `generate()` call: row r fills gap `targets[r][1]` in each of the equal documents `targets[r][0]`."""
        contexts, row_of = [], []  # a document with several gaps is encoded once
        for group, _ in targets:
            if not contexts or contexts[-1] is not group[0]:
                contexts.append(group[0])
            row_of.append(len(contexts) - 1)
        layouts = [document.layout(self._free_offset) for document in contexts]
        gap = targets[0][0][0].gaps[targets[0][1]]
        alternatives = len(targets[0][0])
        config = generate_kwargs.get("generation_config") or self.generation_config
        beams = generate_kwargs.get("num_beams", config.num_beams) or 1

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
        answers = []
        for number, fill in enumerate(fills):
            group, gap_number = targets[number // alternatives]
            document = group[number % alternatives]
            answers.append((document, gap_number, self._filled_gap(fill, document, gap_number, tokenizer)))
        return answers

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
        never = self._control_ids(tokenizer) - {end} | set(generate_kwargs.get("suppress_tokens") or [])
        arguments = {
            "max_new_tokens": gap.max_new_tokens if free else gap.length,
            "suppress_tokens": sorted(never),
            # generate() pads finished rows (a stopping criterion may end some before others) only if there is an end
            # token; [BOS] is suppressed, so it ends nothing and, as padding, cannot be taken for the end token
            "eos_token_id": end if free else tokenizer.bos_token_id,
            "pad_token_id": tokenizer.bos_token_id,
            "return_dict_in_generate": False,
            "tokenizer": tokenizer,  # for stop_strings
            "use_cache": True,  # a model fresh from training may have it off, which would feed the context twice
        }
        return generate_kwargs | arguments

    def _filled_gap(self, fill, document, gap_number, tokenizer) -> InfilledGap:
        gap = document.gaps[gap_number]
        control = self._control_ids(tokenizer)
        stop = next((i for i, token in enumerate(fill) if token in control), len(fill))
        ended = stop < len(fill) and gap.length == "auto" and fill[stop] == self.config.infill_end_token_id
        kept = fill[:stop]
        if ended:
            reason = "end_token"
        elif len(kept) == gap.length:
            reason = "exact_length"
        else:
            reason = "max_tokens" if gap.length == "auto" and len(kept) == gap.max_new_tokens else "stop"
        return InfilledGap(seam_text(kept, document, gap_number, tokenizer), kept, reason)

    def _control_ids(self, tokenizer) -> set[int]:
        return (set(tokenizer.all_special_ids) | {self.config.infill_end_token_id}) - {None}

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
            raise ValueError(
                f"gap_token={gap_token!r}: must not be empty; for no marker, pass parts with Gap objects."
            )
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
