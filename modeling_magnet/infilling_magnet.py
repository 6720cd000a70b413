"""infill(), infill_stream() and score_infill(): gaps in a text are filled from both sides (sections 3.1 and 4.3).

`gaps_magnet.py` and `seams_magnet.py` read and join texts, `decoding_magnet.py` writes fills, `scoring_magnet.py` and
`selection_magnet.py` rank them, `streaming_magnet.py` tells of them while they are written.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch

from .decoding_magnet import Decoder, Job, Written
from .gaps_magnet import Document, Gap, InfilledGap, check_positive, read_document
from .scoring_magnet import span_logprobs
from .seams_magnet import close_seam, context_ids, cut_at, fill_ids, fill_text, overlap
from .selection_magnet import SELECTIONS, Choice, rank, score_joins
from .streaming_magnet import InfillEvent, InfillStreamer, stream_events

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
    "prefill_chunk_size",
    "return_dict_in_generate",
    "span_ids",
    "use_cache",
}
GRID = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)


class InfillingMixin:
    """`infill()` for [`MagnetLlamaForCausalLM`]."""

    Gap = Gap  # `model.Gap(length=8)`, for those who loaded the model by remote code and cannot import it

    @torch.no_grad()
    def infill(
        self,
        inputs: str | list,
        tokenizer,
        *,
        length: int | tuple[int, int] | Literal["auto"] = "auto",
        max_new_tokens: int = 64,
        min_new_tokens: int | None = None,
        stop: str | list[str] | Callable[[str], int | None] | None = None,
        gaps: Mapping[str, Gap] | None = None,
        order: Literal["sequential", "parallel"] = "sequential",
        selection: str | Callable[[InfilledGap], float] = "auto",
        num_candidates: int | None = None,
        num_return_sequences: int = 1,
        join_tokens: int = 16,
        avoid_copy: int | None = None,
        chunk_size: int | None = None,
        batch_size: int = 32,
        gap_token: str = "<|gap|>",
        return_dict: bool = False,
        streamer: InfillStreamer | None = None,
        **generate_kwargs,
    ):
        r"""
        Fills the gaps of a text, each from the text on both sides of it.

        Args:
            inputs (`str`, `list[str | Gap]`, or a list of either):
                A string with markers, the parts of a text with [`Gap`] objects between them, or a batch. Control tokens
                spelt out in a text stay text; `\<|gap|>` is the marker as text, `<|gap:name|>` a gap with a name.
            tokenizer ([`PreTrainedTokenizerBase`]): The checkpoint's tokenizer (a fast one).
            length (`int`, `(int, int)` or `"auto"`, *optional*, defaults to `"auto"`):
                Exact number of tokens (the paper's layout: the right context stands right behind the gap), fewest and
                most, or until the model predicts the end token, which a checkpoint trained with `gap_layout: mixed` has
                learnt. One that has not searches: it fills gaps of several lengths and selects.
            max_new_tokens (`int`, *optional*, defaults to 64):
                Most tokens with `length="auto"`. More than the trained offsets hold are written in chunks.
            min_new_tokens (`int`, *optional*): Fewest tokens with `length="auto"`.
            stop (`str`, list of `str` or callable, *optional*): Where to end fills, as in [`Gap`].
            gaps (mapping of `str` to [`Gap`], *optional*): What is said of named gaps.
            order (`str`, *optional*, defaults to `"sequential"`):
                `"sequential"`: from left to right, each fill being context of the next. `"parallel"`: all gaps at once
                from one prefill; fills do not see each other, as in training.
            selection (`str` or callable, *optional*, defaults to `"auto"`):
                How fills of a gap are ranked: `"join"`, by how well the text goes on behind them under the base model;
                `"joint"`, by that and their own likelihood under it; `"end"`, by the probability of ending there;
                `"mean_logprob"`; or a function of an [`InfilledGap`]. `"auto"`: the order of beam search, else `"join"`,
                and `"joint"` among given candidates.
            num_candidates (`int`, *optional*): Fills to write and rank (sampling or beams); defaults to
                `num_return_sequences`.
            num_return_sequences (`int`, *optional*, defaults to 1): Alternatives per text, the best first.
            join_tokens (`int`, *optional*, defaults to 16): Tokens of the text behind that count in a join score.
            avoid_copy (`int`, *optional*): Length of n-grams of the text behind that a fill must not contain.
            chunk_size (`int`, *optional*): Write fills in chunks of this many tokens, each becoming context of the next.
            batch_size (`int`, *optional*, defaults to 32): Rows of one `generate()` call, sorted by length. Each row
                holds a copy of its context's keys and values.
            gap_token (`str`, *optional*, defaults to `"<|gap|>"`): The marker.
            return_dict (`bool`, *optional*, defaults to `False`): Return [`InfillOutput`] instead of `str`.
            streamer ([`InfillStreamer`], *optional*): Told of each token; [`infill_stream`] is the easy way.
            generate_kwargs: Anything else `generate()` takes (`do_sample`, `num_beams`, `stopping_criteria`, ...).

        Returns:
            A `str` (or [`InfillOutput`]) for a single text, a list of them with `num_return_sequences` above 1; a list
            of these for a batch.

        Raises:
            `ValueError`: no gap, touching gaps, no text around a gap, a length that is not positive or finds no room
            in `max_position_embeddings`.

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
        defaults = Gap(length, max_new_tokens, min_new_tokens, stop=stop)
        choice = Choice(selection, num_candidates, num_return_sequences, join_tokens, return_dict)
        self._check_call(tokenizer, defaults, choice, order, gap_token, generate_kwargs)
        for name, value in (("chunk_size", chunk_size), ("avoid_copy", avoid_copy), ("batch_size", batch_size)):
            if value is not None:
                check_positive(name, value)
        documents, single = self._read_inputs(inputs, tokenizer, defaults, gaps or {}, gap_token)
        logprobs = return_dict or selection in ("end", "mean_logprob") or callable(selection)
        decoder = Decoder(self, tokenizer, generate_kwargs, chunk_size, avoid_copy, batch_size, logprobs, streamer)
        for number, document in enumerate(documents):
            self._check_room(document, number, decoder)
        answers = self._fill_all(documents, order, decoder, choice)
        outputs = [[document.output() for document in many] for many in answers]
        results = [[output if return_dict else output.text for output in many] for many in outputs]
        results = results if num_return_sequences > 1 else [many[0] for many in results]
        return results[0] if single else results

    def infill_stream(self, inputs: str | list, tokenizer, **arguments) -> Iterator[InfillEvent]:
        """
        Fills gaps and tells what is written while it is written.

        Args:
            inputs, tokenizer, arguments: As in [`infill`], without `return_dict` and `num_return_sequences`.

        Returns:
            An iterator of [`InfillEvent`]. The texts of a gap's events, joined, are its fill: nothing that is later
            trimmed or cut is ever shown. With beams, candidates or a length search a gap's only event is its last.

        Example:

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_magnet import MagnetLlamaForCausalLM
        >>> model = MagnetLlamaForCausalLM.from_pretrained("examples/assets/magnet-tiny")
        >>> tokenizer = AutoTokenizer.from_pretrained("examples/assets/magnet-tiny", trust_remote_code=True)
        >>> events = list(model.infill_stream("Tom was hungry. <|gap|> He was full.", tokenizer, length=8))
        >>> events[-1].finish_reason, len(events) > 1
        ('exact_length', True)

        ```
        """
        for name in ("return_dict", "num_return_sequences"):
            if name in arguments:
                raise ValueError(f"{name}: infill_stream() tells one fill of each gap; leave it out.")
        return stream_events(self, inputs, tokenizer, arguments)

    @torch.no_grad()
    def score_infill(
        self,
        inputs: str | list,
        fills: list,
        tokenizer,
        *,
        layout: Literal["exact", "free"] = "exact",
        order: Literal["sequential", "parallel"] = "sequential",
        join_tokens: int = 16,
        gap_token: str = "<|gap|>",
    ):
        """
        Scores given fills instead of writing some: the likelihood of each token, of the end, of the text behind.

        Args:
            inputs, tokenizer, order, join_tokens, gap_token: As in [`infill`].
            fills (`list[str]`, or a list of these for a batch): One text a gap.
            layout (`str`, *optional*, defaults to `"exact"`):
                `"exact"`: the model is told each fill's length, as in the paper; `"free"`: it is not, and pays for ending.

        Returns:
            [`InfillOutput`], or a list of them for a batch; `finish_reason` is `"candidate"`.

        Example:

        ```python
        >>> from transformers import AutoTokenizer
        >>> from modeling_magnet import MagnetLlamaForCausalLM
        >>> model = MagnetLlamaForCausalLM.from_pretrained("examples/assets/magnet-tiny")
        >>> tokenizer = AutoTokenizer.from_pretrained("examples/assets/magnet-tiny", trust_remote_code=True)
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
        choice = Choice("auto", None, 1, join_tokens, True)
        offset = max(self.config.infill_free_offsets)
        self._check_call(tokenizer, Gap("auto", offset), choice, order, gap_token, {})
        documents, single = self._read_inputs(inputs, tokenizer, Gap("auto", offset), {}, gap_token)
        fills = [fills] if single else fills
        decoder = Decoder(self, tokenizer, {})
        for number, (document, texts) in enumerate(zip(documents, fills, strict=True)):
            self._score_document(document, texts, number, layout, order, decoder, choice)
        outputs = [document.output() for document in documents]
        return outputs[0] if single else outputs

    # ------------------------------------------------------------------------------------------- rounds and candidates

    def _fill_all(self, documents, order, decoder: Decoder, choice: Choice) -> list[list[Document]]:
        """Fills every gap of every document; returns each document's alternatives."""
        answers = [[document] for document in documents]
        rounds = [[gap] for gap in range(max((len(d.gaps) for d in documents), default=0))]
        if order == "parallel":
            rounds = [[gap for (gap,) in rounds]]
        for number, gaps in enumerate(rounds):
            # alternatives share their first round; from then on each is a document of its own
            wanted = choice.num_return_sequences if number == 0 else 1
            targets = [(d, gap) for many in answers for d in many for gap in gaps if gap < len(d.gaps)]
            fills = dict(zip(((id(d), gap) for d, gap in targets), self._fill(targets, wanted, decoder, choice)))
            answers = [
                [
                    _with_fills(d, {gap: fills[id(d), gap][n] for gap in gaps if gap < len(d.gaps)})
                    for d in many
                    for n in range(wanted)
                ]
                for many in answers
            ]
        return answers

    def _fill(self, targets, wanted: int, decoder: Decoder, choice: Choice) -> list[list[InfilledGap]]:
        """For each target, a document and a gap in it, the `wanted` best fills."""
        jobs, found = [], [[] for _ in targets]
        for number, (document, gap) in enumerate(targets):
            if document.gaps[gap].candidates is not None:
                found[number] = self._given(document, gap, decoder, choice)
            else:
                jobs += self._jobs(document, gap, number, wanted, decoder, choice)
        for written in decoder.write(jobs):
            found[written.job.target].append(self._filled(written, decoder.tokenizer))
        ranked = []
        for (document, gap), fills in zip(targets, found):
            if len(fills) < wanted:
                raise ValueError(f"num_return_sequences={wanted}: gap {gap} has only {len(fills)} candidates.")
            ranked.append(rank(self, document, gap, fills, choice, decoder.beams)[:wanted])
            if decoder.streamer:
                decoder.streamer.filled(document, gap, ranked[-1][0])
        return ranked

    def _jobs(self, document, gap, number, wanted, decoder, choice) -> list[Job]:
        """What is to be written for a gap: as many copies as candidates, or one for each length of a search."""
        copies = max(choice.num_candidates or 1, wanted)
        if not document.gaps[gap].is_free or self.config.infill_end_token_id is not None:
            return [Job(document, gap, copies, number)]
        fewest, most = document.gaps[gap].limits()
        lengths = [n for n in GRID if max(fewest, 1) < n < most] + [most]
        lengths = [max(fewest, 1), *lengths] if fewest < most else lengths
        variants = []
        for length in dict.fromkeys(lengths):
            gaps = list(document.gaps)
            gaps[gap] = replace(gaps[gap], length=length)
            variants.append(replace(document, gaps=gaps))
        return [Job(variant, gap, choice.num_candidates or 1, number, shows=False) for variant in variants]

    def _given(self, document, gap, decoder, choice) -> list[InfilledGap]:
        texts = document.gaps[gap].candidates
        rows = [fill_ids(text, document, gap, decoder.tokenizer) for text in texts]
        fills = [InfilledGap(text, row, "candidate") for text, row in zip(texts, rows)]
        if decoder.logprobs or not document.ids[gap + 1]:  # without a text behind only their own likelihood is left
            for fill in fills:
                exact = replace(document.gaps[gap], length=max(len(fill.token_ids), 1))
                fill.token_logprobs, _ = span_logprobs(
                    self, document, gap, exact, fill.token_ids, decoder.budget, None
                )
        return fills

    def _filled(self, written: Written, tokenizer) -> InfilledGap:
        """The fill as it stands in the text: cut where the gap's rule says, without what the text behind repeats."""
        document, gap = written.job.document, written.job.gap
        right, options = document.texts[gap + 1], document.gaps[gap]
        text = fill_text(written.token_ids, document, gap, tokenizer)
        reason, trimmed, tokens, logprobs = written.reason, "", written.token_ids, written.logprobs
        cut = cut_at(text, options)
        if cut is not None:
            text, reason = text[:cut], "stop"
        if reason != "exact_length" and (repeated := overlap(text, right)):
            text, trimmed = text[:-repeated], text[-repeated:]
        if cut is not None or trimmed:
            tokens, logprobs = self._tokens_of(text, written, tokenizer)
        end_logprob = None if trimmed or cut is not None else written.end_logprob
        logprobs = None if logprobs and logprobs[0] is None else logprobs
        text = close_seam(text, right)
        return InfilledGap(text, tokens, reason, token_logprobs=logprobs, end_logprob=end_logprob, trimmed=trimmed)

    def _tokens_of(self, text, written, tokenizer):
        """The tokens of a fill that was cut: the first ones written, or its own where the cut goes through a token."""
        document, gap = written.job.document, written.job.gap
        for count in range(len(written.token_ids) + 1):
            so_far = fill_text(written.token_ids[:count], document, gap, tokenizer)
            if so_far == text:
                return written.token_ids[:count], written.logprobs[:count]
            if len(so_far) > len(text):
                break
        return fill_ids(text, document, gap, tokenizer), None

    # ------------------------------------------------------------------------------------------------- given fills

    def _score_document(self, document, texts, number, layout, order, decoder, choice) -> None:
        if isinstance(texts, str) or len(texts) != len(document.gaps):
            raise ValueError(f"fills[{number}]={texts!r}: must be a list of {len(document.gaps)} strings, one a gap.")
        ids = [fill_ids(text, document, gap, decoder.tokenizer) for gap, text in enumerate(texts)]
        if layout == "exact":
            document.gaps = [replace(g, length=max(len(row), 1)) for g, row in zip(document.gaps, ids)]
        self._check_room(document, number, decoder)
        end = self.config.infill_end_token_id if layout == "free" else None
        fills = []
        for gap, (text, row) in enumerate(zip(texts, ids)):
            fill = InfilledGap(text, row, "candidate")
            fill.token_logprobs, fill.end_logprob = span_logprobs(
                self, document, gap, document.gaps[gap], row, decoder.budget, end
            )
            score_joins(self, document, gap, [fill], choice.join_tokens)
            fills.append(fill)
            if order == "sequential":
                document.fills[gap] = fill
        document.fills = fills

    # ------------------------------------------------------------------------------------------------------- checks

    def _read_inputs(self, inputs, tokenizer, defaults, named, gap_token) -> tuple[list[Document], bool]:
        if not isinstance(inputs, (str, list, tuple)):
            raise ValueError(f"inputs={inputs!r}: must be a string, a list of strings and Gaps, or a list of these.")
        single = isinstance(inputs, str) or any(isinstance(part, Gap) for part in inputs)
        batch = [inputs] if single else list(inputs)
        documents = [read_document(item, gap_token, defaults, named, n) for n, item in enumerate(batch)]
        known = {gap.name for document in documents for gap in document.gaps}
        if documents and set(named) - known:
            raise ValueError(
                f"gaps: no gap is named {sorted(set(named) - known)}; there are {sorted(known - {None})}."
            )
        for document in documents:
            document.ids = context_ids(document, tokenizer)
        return documents, single

    def _check_call(self, tokenizer, defaults, choice, order, gap_token, generate_kwargs) -> None:
        if order not in ("sequential", "parallel"):
            raise ValueError(f"order={order!r}: must be 'sequential' or 'parallel'.")
        if not callable(choice.selection) and choice.selection not in SELECTIONS:
            raise ValueError(f"selection={choice.selection!r}: must be one of {', '.join(SELECTIONS)}, or a function.")
        check_positive("num_return_sequences", choice.num_return_sequences)
        check_positive("join_tokens", choice.join_tokens)
        check_positive("max_new_tokens", defaults.max_new_tokens)
        if choice.num_candidates is not None:
            check_positive("num_candidates", choice.num_candidates)
            if choice.num_candidates < choice.num_return_sequences:
                raise ValueError(
                    f"num_candidates={choice.num_candidates}: must not be below num_return_sequences="
                    f"{choice.num_return_sequences}."
                )
        if not gap_token:
            raise ValueError(
                f"gap_token={gap_token!r}: must not be empty; for no marker, pass parts with Gap objects."
            )
        if own := OWN_ARGUMENTS & set(generate_kwargs):
            raise ValueError(f"{sorted(own)}: infill() sets these itself; leave them out.")
        _check_sampling(generate_kwargs)
        if tokenizer.bos_token_id is None or not tokenizer.is_fast:
            raise ValueError("tokenizer: infill() needs a fast tokenizer with a bos_token.")

    def _check_room(self, document, number, decoder: Decoder) -> None:
        ids, _, _ = document.layout(decoder.budget)
        budgets = [max(decoder.budget(gap), gap.limits()[1]) for gap in document.gaps]
        limit = self.config.max_position_embeddings
        if len(ids) + sum(budgets) > limit:
            raise ValueError(
                f"inputs[{number}]: {len(ids)} tokens of text and gaps of {budgets} positions exceed "
                f"max_position_embeddings={limit}; {max(limit - len(ids), 0)} positions are left for the gaps. Shorten the "
                "text, or pass a smaller length."
            )


def _with_fills(document: Document, fills: dict[int, InfilledGap]) -> Document:
    filled = list(document.fills)
    for gap, fill in fills.items():
        filled[gap] = replace(fill)
    return replace(document, fills=filled)


def _check_sampling(generate_kwargs) -> None:
    """generate() takes some of these silently."""
    temperature, top_p, top_k = (generate_kwargs.get(name) for name in ("temperature", "top_p", "top_k"))
    if generate_kwargs.get("do_sample") and temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature}: must be positive to sample; leave do_sample out for greedy fills."
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: must lie above 0 and not above 1.")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0):
        raise ValueError(f"top_k={top_k}: must be an integer of 0 or more.")
    if generate_kwargs.get("num_beams") is not None:
        check_positive("num_beams", generate_kwargs["num_beams"])
