"""Fills gaps with stock `generate()` (sections 3.1 and 4.3): rows of one call are gaps, each with a rule of its own.

No hybrid mask is needed. Context tokens never attend to a span, so their keys and values are computed once, by one
bidirectional forward, each at its true position; a span token attends to all of them and to its own past, which is
what a cached causal step does. The first span token is predicted by the context token left of the gap: that token is
taken out of the cache and fed once more, as the last token of generate()'s prompt. This equals the full hybrid forward.
"""

import functools
import math
from dataclasses import dataclass, field, replace

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from .gaps_magnet import Document
from .rules_magnet import GapRules, GapStops, RowRule, barred_ngrams, start_tokens
from .seams_magnet import continuation_ids, cut_at, fill_ids, fill_text, heal
from .streaming_magnet import InfillStreamer

STATIC_STEP = 64  # a static cache holds a multiple of this many tokens, so that few lengths are compiled


@dataclass
class Job:
    """One gap to be written `copies` times; `target` is whose it is, `begun` what of a long fill is context already.
    `shows` is false where other fills compete for the same gap."""

    document: Document
    gap: int
    copies: int
    target: int
    shows: bool = True
    logprobs: list[float] = field(default_factory=list)

    @property
    def begun(self) -> list[int]:
        return self.document.begun[self.gap]

    def promoted(self, tokens: list[int], logprobs: list[float]) -> "Job":
        """The job of the rest of a long fill: what is written becomes context, of a document of its own."""
        begun = list(self.document.begun)
        begun[self.gap] = begun[self.gap] + tokens
        rest = {"copies": 1, "shows": self.shows and self.copies == 1}
        return replace(self, document=replace(self.document, begun=begun), logprobs=self.logprobs + logprobs, **rest)


@dataclass
class Written:
    """All tokens of a fill, their log-probabilities (if asked for), and why it ended."""

    job: Job
    token_ids: list[int]
    logprobs: list[float]
    end_logprob: float | None
    reason: str


@dataclass
class Decoder:
    """
    Writes gaps.

    Args:
        model ([`MagnetLlamaForCausalLM`]): In eval mode.
        tokenizer ([`PreTrainedTokenizerBase`]): A fast one.
        generate_kwargs (`dict`): What the caller wants `generate()` to be told.
        chunk_size (`int`, *optional*): Longer fills are written in chunks, each becoming context of the next.
        avoid_copy (`int`, *optional*): Length of n-grams of the text right of the gap that a fill must not contain.
        batch_size (`int`): Rows of a call.
        logprobs (`bool`): Whether to keep log-probabilities; costs the logits of every step.
        streamer ([`InfillStreamer`], *optional*): Told of the jobs of a call and their rows of tokens after each token.
    """

    model: torch.nn.Module
    tokenizer: object
    generate_kwargs: dict
    chunk_size: int | None = None
    avoid_copy: int | None = None
    batch_size: int = 32
    logprobs: bool = False
    streamer: InfillStreamer | None = None

    def __post_init__(self):
        config = self.generate_kwargs.get("generation_config") or self.model.generation_config
        self.samples = bool(self.generate_kwargs.get("do_sample", config.do_sample))
        self.beams = self.generate_kwargs.get("num_beams", config.num_beams) or 1
        self.static = self.generate_kwargs.get("cache_implementation", config.cache_implementation) == "static"
        self.static_room = self.generate_kwargs.get("max_cache_len", config.max_cache_len) or 0
        self.end = self.model.config.infill_end_token_id
        self.control = (set(self.tokenizer.all_special_ids) | {self.end}) - {None}

    @functools.cached_property
    def twins(self) -> list[int]:
        """Looked up for free gaps only: it costs two readings of the output matrix."""
        return end_twins(self.model, self.end)[1:]

    def write(self, jobs: list[Job]) -> list[Written]:
        """Writes every job's copies, long ones chunk by chunk."""
        written = []
        for job in jobs:
            self._check_copies(job.copies)
        while jobs:
            unfinished = []
            for batch in self._batches(jobs):
                for job, tokens, logprobs, end_logprob, reason in self._generate(batch):
                    if reason == "more":
                        unfinished.append(job.promoted(tokens, logprobs))
                    else:
                        whole = job.begun + tokens
                        written.append(Written(job, whole, job.logprobs + logprobs, end_logprob, reason))
            jobs = unfinished
        return written

    def _check_copies(self, copies: int) -> None:
        if copies > 1 and self.beams == 1 and not self.samples:
            raise ValueError(
                f"num_return_sequences or num_candidates={copies}: greedy search writes one fill of a gap. Pass do_sample=True, "
                f"or num_beams={copies}."
            )
        if copies > self.beams > 1:
            raise ValueError(
                f"num_return_sequences or num_candidates={copies}: more than num_beams={self.beams}. Pass num_beams={copies}."
            )

    # ------------------------------------------------------------------------------------------------------- lengths

    def budget(self, gap, begun: int = 0) -> int:
        """Positions that an open gap takes: its length, or the smallest trained offset that holds what is left."""
        _, most = gap.limits()
        if not gap.is_free:
            return most - begun
        offsets = sorted(self.model.config.infill_free_offsets)
        return next((offset for offset in offsets if offset >= most - begun), offsets[-1])

    def chunk(self, gap, begun: int = 0) -> int:
        """Most tokens to be written before what is written becomes context."""
        rest = gap.limits()[1] - begun
        chunk, offset = min(rest, self.chunk_size or rest), self.budget(gap, begun)
        return chunk if chunk <= offset else max(1, offset * 3 // 4)  # the offset's last positions were rarely trained

    def room(self, gap) -> int:
        """Positions that a gap takes at most: what is written and the budget of the rest, whatever the chunk."""
        begun, room = 0, 0
        while begun < gap.limits()[1]:
            room = max(room, begun + self.budget(gap, begun))
            begun += self.chunk(gap, begun)
        return room

    def _batches(self, jobs: list[Job]):
        """Jobs that one call can hold, the longest contexts together. Beams of one call end at one length."""
        groups = {}
        for job in jobs:
            longest = self.chunk(job.document.gaps[job.gap], len(job.begun))
            key = (job.copies, longest if self.beams > 1 else None)
            groups.setdefault(key, []).append(job)
        for (copies, _), group in groups.items():
            group.sort(key=lambda job: -sum(map(len, job.document.ids)))
            rows = max(1, self.batch_size // max(copies, self.beams))
            yield from (group[first : first + rows] for first in range(0, len(group), rows))

    # ---------------------------------------------------------------------------------------------------- one call

    def _generate(self, jobs: list[Job]) -> list[tuple]:
        """One `generate()` call; (job, tokens, logprobs, end_logprob, reason) for each copy of each job."""
        contexts, row_of = [], []  # a document with several gaps is encoded once
        for job in jobs:
            known = next((n for n, document in enumerate(contexts) if document is job.document), len(contexts))
            contexts[known:] = contexts[known:] or [job.document]
            row_of.append(known)
        layouts = [document.layout(self.budget) for document in contexts]
        ids, positions, mask, cache = self._encode(layouts)
        rows = torch.tensor(row_of, device=ids.device)
        left = torch.tensor([layouts[r][2][job.gap] for r, job in zip(row_of, jobs)], device=ids.device)[:, None]
        rules = [self._rule(job) for job in jobs]
        others = torch.arange(ids.shape[1] - 1, device=ids.device).expand(len(jobs), -1)
        others = others + (others >= left)  # (R, C - 1): all but the left neighbour
        cache = self._expand(cache, rows, others, max(self.beams, jobs[0].copies), max(r.longest for r in rules))
        order = torch.cat([others, left], dim=1)
        ids, positions, mask = (values[rows].gather(1, order) for values in (ids, positions, mask))  # (R, C)
        outputs = self.model.generate(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            attention_mode="hybrid",
            num_return_sequences=jobs[0].copies,
            **self._arguments(jobs, rules, ids.shape[1]),
        )
        fills = outputs.sequences[:, ids.shape[1] :].tolist()
        logprobs = self._logprobs(outputs, fills) if self.logprobs else [[None] * len(fill) for fill in fills]
        copies = jobs[0].copies
        return [
            self._outcome(jobs[n // copies], rules[n // copies], *row) for n, row in enumerate(zip(fills, logprobs))
        ]

    def _encode(self, layouts):
        """Encodes the contexts, (D, C) padded on the right, bidirectionally into a cache."""
        length = max(2, *(len(ids) for ids, _, _ in layouts))  # one is fed again, and a cache must hold something
        ids = torch.zeros(len(layouts), length, dtype=torch.long)
        positions, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (row_ids, row_positions, _) in enumerate(layouts):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            positions[row, : len(row_ids)] = torch.tensor(row_positions)
            mask[row, : len(row_ids)] = 1
        device = self.model.device
        ids, positions, mask = ids.to(device), positions.to(device), mask.to(device)
        cache = DynamicCache(config=self.model.config)
        inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        self.model.model(ids, **inputs, attention_mode="bidirectional")
        return ids, positions, mask, cache

    def _expand(self, cache: DynamicCache, rows, others, copies: int, longest: int) -> Cache:
        """
        The cache of `generate()`'s rows: what each attends to, (R, C - 1) slots of its context's. generate() expands its
        inputs, not a given cache. A static cache is filled from the dynamic one, because a context that is read into it
        would attend to slots that hold nothing yet.
        """
        rows, others = rows.repeat_interleave(copies), others.repeat_interleave(copies, dim=0)
        room = -(-(others.shape[1] + longest) // STATIC_STEP) * STATIC_STEP
        static = StaticCache(self.model.config, max_cache_len=max(room, self.static_room)) if self.static else None
        for number, layer in enumerate(cache.layers):
            states = (states[rows[:, None], :, others].transpose(1, 2) for states in (layer.keys, layer.values))
            if static is None:
                layer.keys, layer.values = states
            else:
                static.update(*states, number)
        return cache if static is None else static

    def _rule(self, job: Job) -> RowRule:
        gap, document = job.document.gaps[job.gap], job.document
        fewest, _ = gap.limits()
        start = self._start(job, gap)[len(job.begun) :]
        stops = None
        if gap.stop is not None:

            def stops(fill):
                return cut_at(fill_text(job.begun + fill, document, job.gap, self.tokenizer), gap) is not None

        return RowRule(
            shortest=max(fewest - len(job.begun), len(start) if gap.prefix else 0),
            longest=self.chunk(gap, len(job.begun)),
            end=self.end if gap.is_free else None,
            start=start,
            barred=barred_ngrams(document.ids[job.gap + 1 :], self.avoid_copy),
            begun=job.begun,
            stops=stops,
        )

    def _start(self, job, gap) -> list[set[int]]:
        """The prefix, and the space that was healed off the text to the left: a fill behind it begins a word."""
        if gap.prefix:
            return start_tokens(fill_ids(gap.prefix, job.document, job.gap, self.tokenizer), self.tokenizer)
        left = job.document.texts[job.gap]
        if heal(left) == left:
            return []
        start = start_tokens(continuation_ids(" ", self.tokenizer), self.tokenizer)
        if gap.is_free and self.end is not None:
            start[0].add(self.end)  # a fill may be empty
        return start

    def _arguments(self, jobs, rules, prompt_length) -> dict:
        """Control tokens are never written into a text; the end token alone may be predicted, in a free gap."""
        end = self.end if any(rule.end is not None for rule in rules) else None
        watch = self.streamer and functools.partial(self.streamer.written, jobs)
        arguments = {
            "max_new_tokens": max(rule.longest for rule in rules),
            # generate() pads finished rows only if there is an end token; [BOS] is suppressed, so it ends nothing and,
            # as padding, cannot be taken for the end token
            "eos_token_id": self.tokenizer.bos_token_id if end is None else end,
            "pad_token_id": self.tokenizer.bos_token_id,
            "return_dict_in_generate": True,
            "output_logits": self.logprobs,
            "tokenizer": self.tokenizer,  # for stop_strings
            "use_cache": True,  # a model fresh from training may have it off, which would feed the context twice
            "cache_implementation": None,  # generate() is given the cache
            "max_cache_len": None,
        }
        if end is not None and self.twins:
            bias = math.log(1 + len(self.twins))
            arguments["sequence_bias"] = _with_bias(self.generate_kwargs.get("sequence_bias"), end, bias)
        processors = [
            *(self.generate_kwargs.get("logits_processor") or []),
            GapRules(rules, prompt_length, end, self.control - {end} | set(self.twins if end is not None else ())),
        ]
        stops = [*(self.generate_kwargs.get("stopping_criteria") or []), GapStops(rules, prompt_length, watch)]
        arguments["logits_processor"] = LogitsProcessorList(processors)
        arguments["stopping_criteria"] = StoppingCriteriaList(stops)
        return self.generate_kwargs | arguments

    def _logprobs(self, outputs, fills) -> list[list[float]]:
        """Log-probability of each token under the model itself, before processors and temperature."""
        beams = getattr(outputs, "beam_indices", None)  # of beam search only
        scores = self.model.compute_transition_scores(outputs.sequences, outputs.logits, beams, normalize_logits=True)
        return scores[:, : len(fills[0])].tolist()

    def _outcome(self, job, rule, fill, logprobs) -> tuple:
        stop = next((i for i, token in enumerate(fill) if token in self.control), len(fill))
        ended = stop < len(fill) and rule.end is not None and fill[stop] == rule.end
        tokens = fill[:stop]
        gap = job.document.gaps[job.gap]
        _, most = gap.limits()
        if ended:
            reason = "end_token"
        elif rule.stops and rule.stops(tokens):
            reason = "stop"
        elif len(job.begun) + len(tokens) == most:
            reason = "max_tokens" if gap.is_free else "exact_length"
        else:
            reason = "more" if len(tokens) == rule.longest else "stop"
        return job, tokens, logprobs[:stop], logprobs[stop] if ended else None, reason


def _with_bias(given, token: int, bias: float):
    """The caller's `sequence_bias`, which is a dictionary or a list, and one of ours."""
    if isinstance(given, dict):
        return given | {(token,): given.get((token,), 0.0) + bias}
    mine = [entry for entry in given or [] if list(entry[0]) == [token]]
    others = [entry for entry in given or [] if list(entry[0]) != [token]]
    return [*others, [[token], bias + sum(entry[1] for entry in mine)]]


def end_twins(model, end: int, tolerance: float = 0.05) -> list[int]:
    """
    Tokens whose output rows are END's, END first: those that pretraining never wrote all stay alike, and a LoRA cannot
    tell them apart. END could have no more than its share of what they have together, and never be the likeliest; so what
    they have together is END's, and none of them is written.

    Args:
        model ([`PreTrainedModel`]): With an output matrix.
        end (`int`): The end token.
        tolerance (`float`): Largest distance of a twin's row, relative to the length of END's.
    """
    rows = model.get_output_embeddings().weight.detach()
    row = rows[end].float()
    length = rows.norm(dim=1).float()  # (V,)
    alike = ((rows @ rows[end]).float() > 0.9 * length * row.norm()).nonzero()[:, 0]  # few, so that no copy is large
    near = (rows[alike].float() - row).norm(dim=1) < tolerance * row.norm()
    return [end] + [token for token in alike[near].tolist() if token != end]
