"""infill(), infill_stream() and score_infill(): gaps in a text are filled from both sides (sections 3.1 and 4.3).

`gaps_magnet.py` and `seams_magnet.py` read and join texts, `filling_magnet.py` goes through their gaps,
`decoding_magnet.py` and `rules_magnet.py` write fills, `scoring_magnet.py` and `selection_magnet.py` rank them,
`streaming_magnet.py` tells of them while they are written.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch

from .decoding_magnet import Decoder
from .filling_magnet import Filler
from .gaps_magnet import Document, Gap, InfilledGap, check_positive, check_text, read_document
from .seams_magnet import context_ids, fill_ids, fill_text
from .selection_magnet import SELECTIONS, Choice
from .streaming_magnet import InfillEvent, InfillStreamer, stream_events

OWN_ARGUMENTS = {
    "attention_mask",
    "attention_mode",
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
    "span_mask",
    "use_cache",
}
PROMPT_READERS = {
    "assistant_early_exit",
    "assistant_model",
    "custom_generate",
    "guidance_scale",
    "negative_prompt_ids",
    "prompt_lookup_num_tokens",
}


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
                and `"joint"` among given candidates; so for `"end"` where no end is predicted. Without a text behind,
                `"join"` and `"joint"` are the mean log-probability under the base model, and an empty fill comes last.
            num_candidates (`int`, *optional*): Fills to write and rank (sampling or beams); defaults to
                `num_return_sequences`.
            num_return_sequences (`int`, *optional*, defaults to 1): Alternatives per text, the best first; in sequential
                order by their first gap, whose alternatives are each continued with one fill of every later gap.
            join_tokens (`int`, *optional*, defaults to 16): Tokens of the text behind that count in a join score.
            avoid_copy (`int`, *optional*): Length of n-grams of tokens right of a gap that its fill must not contain.
            chunk_size (`int`, *optional*): Write fills in chunks of this many tokens, each becoming context of the next;
                of fewer where a trained offset holds no more.
            batch_size (`int`, *optional*, defaults to 32): Rows of one `generate()` call, sorted by length. Each row
                holds a copy of its context's keys and values.
            gap_token (`str`, *optional*, defaults to `"<|gap|>"`): The marker.
            return_dict (`bool`, *optional*, defaults to `False`): Return [`InfillOutput`] instead of `str`.
            streamer ([`InfillStreamer`], *optional*): Told of each token; [`infill_stream`] is the easy way.
            generate_kwargs: Anything else `generate()` takes (`do_sample`, `num_beams`, `stopping_criteria`, ...). With
                `cache_implementation="static"` it may compile the model, as generate() does on a GPU.

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
        for name, value in (("chunk_size", chunk_size), ("avoid_copy", avoid_copy)):
            if value is not None:
                check_positive(name, value)
        check_positive("batch_size", batch_size)
        if not (streamer is None or isinstance(streamer, InfillStreamer)):
            raise ValueError(
                f"streamer={streamer!r}: must be an InfillStreamer; infill_stream() yields what is written."
            )
        choice = Choice(selection, num_candidates, num_return_sequences, join_tokens, return_dict, batch_size)
        self._check_call(tokenizer, defaults, choice, order, gap_token, generate_kwargs)
        documents, single = self._read_inputs(inputs, tokenizer, defaults, gaps or {}, gap_token)
        logprobs = return_dict or selection in ("end", "mean_logprob") or callable(selection)
        decoder = Decoder(self, tokenizer, generate_kwargs, chunk_size, avoid_copy, batch_size, logprobs, streamer)
        for document in documents:
            self._check_room(document, decoder)
        answers = Filler(self, decoder, choice).fill_all(documents, order)
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
        for name in ("return_dict", "num_return_sequences", "streamer"):
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
        max_new_tokens: int = 64,
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
            max_new_tokens (`int`, *optional*, defaults to 64):
                The budget of a gap with `layout="free"`, as in [`infill`]; a longer fill gets its own length.

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
        choice, defaults = Choice("auto", None, 1, join_tokens, True), Gap("auto", max_new_tokens)
        self._check_call(tokenizer, defaults, choice, order, gap_token, {})
        documents, single = self._read_inputs(inputs, tokenizer, defaults, {}, gap_token)
        _put_fills(documents, [fills] if single else fills, layout, max_new_tokens, tokenizer)
        filler = Filler(self, Decoder(self, tokenizer, {}, logprobs=True), choice)
        for document in documents:
            self._check_room(document, filler.decoder)
        end = self.config.infill_end_token_id if layout == "free" else None
        outputs = [filler.score(document, order, end).output() for document in documents]
        return outputs[0] if single else outputs

    # ------------------------------------------------------------------------------------------------------- checks

    def _read_inputs(self, inputs, tokenizer, defaults, named, gap_token) -> tuple[list[Document], bool]:
        if not isinstance(inputs, (str, list, tuple)):
            raise ValueError(f"inputs={inputs!r}: must be a string, a list of strings and Gaps, or a list of these.")
        if not isinstance(named, Mapping) or not all(isinstance(gap, Gap) for gap in named.values()):
            raise ValueError(f"gaps={named!r}: must map the names of gaps to Gap objects.")
        single = isinstance(inputs, str) or any(isinstance(part, Gap) for part in inputs)
        batch = [inputs] if single else list(inputs)
        documents = [read_document(item, gap_token, defaults, named, n) for n, item in enumerate(batch)]
        known = {gap.name for document in documents for gap in document.gaps}
        if documents and set(named) - known:
            raise ValueError(f"gaps: no gap is named {[*set(named) - known]}; there are {sorted(known - {None})}.")
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
        if choice.selection == "end" and self.config.infill_end_token_id is None:
            raise ValueError("selection='end': this checkpoint was not trained to end a gap. Use 'join'.")
        if self.training and self.model.gradient_checkpointing:
            raise ValueError(
                "infill() needs a cache, which gradient checkpointing switches off in training mode. Call model.eval() first."
            )
        if own := OWN_ARGUMENTS & set(generate_kwargs):
            raise ValueError(f"{sorted(own)}: infill() sets these itself; leave them out.")
        if readers := PROMPT_READERS & set(generate_kwargs):
            raise ValueError(
                f"{sorted(readers)}: infill() has no prompt to be read from left to right; leave them out."
            )
        if generate_kwargs.get("cache_implementation") not in (None, "dynamic", "static"):
            raise ValueError(
                f"cache_implementation={generate_kwargs['cache_implementation']!r}: must be 'dynamic' or 'static'."
            )
        _check_sampling(generate_kwargs)
        if tokenizer.bos_token_id is None or not tokenizer.is_fast:
            raise ValueError("tokenizer: infill() needs a fast tokenizer with a bos_token.")

    def _check_room(self, document, decoder: Decoder) -> None:
        where, tokenizer, rooms = f"inputs[{document.number}]", decoder.tokenizer, []
        for number, gap in enumerate(document.gaps):
            given = [fill_ids(text, document, number, tokenizer) for text in gap.candidates or ()]
            rooms.append(max([decoder.room(gap), *map(len, given)]))
            if gap.prefix:
                _check_prefix(where, document, number, tokenizer)
        n_text, limit = sum(map(len, document.ids)), self.config.max_position_embeddings
        if n_text + sum(rooms) > limit:
            raise ValueError(
                f"{where}: {n_text} tokens of text and gaps of {rooms} positions exceed max_position_embeddings={limit}; "
                f"{max(limit - n_text, 0)} positions are left for the gaps. Shorten the text, or pass a smaller length."
            )


def _check_prefix(where, document, number, tokenizer) -> None:
    gap = document.gaps[number]
    ids, (_, most) = fill_ids(gap.prefix, document, number, tokenizer), gap.limits()
    if len(ids) > most:
        raise ValueError(
            f"{where}: prefix={gap.prefix!r}: its {len(ids)} tokens exceed the gap's {most}. Let it be longer."
        )
    if fill_text(ids, document, number, tokenizer) != gap.prefix:
        raise ValueError(
            f"{where}: prefix={gap.prefix!r}: the tokenizer has no tokens for it. Leave out what is unusual."
        )


def _put_fills(documents, fills, layout, max_new_tokens, tokenizer) -> None:
    """Makes each text the one candidate of its gap, and the gap's length that of the layout."""
    if isinstance(fills, str) or len(fills) != len(documents):
        raise ValueError(f"fills={fills!r}: must be a list of {len(documents)} lists, one an input.")
    for document, texts in zip(documents, fills):
        where = f"fills[{document.number}]"
        if isinstance(texts, str) or len(texts) != len(document.gaps) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{where}={texts!r}: must be a list of {len(document.gaps)} strings, one a gap.")
        for number, text in enumerate(texts):
            check_text(where, text)
            size = max(len(fill_ids(text, document, number, tokenizer)), 1)
            length = size if layout == "exact" else "auto"
            document.gaps[number] = Gap(
                length, max(size, max_new_tokens), 0, document.gaps[number].name, candidates=[text]
            )


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
