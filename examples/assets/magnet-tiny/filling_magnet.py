"""From documents with gaps to documents with fills: rounds of gaps, what is written or given for each, which is kept."""

from dataclasses import dataclass, replace

import torch

from .decoding_magnet import Decoder, Job, Written
from .gaps_magnet import Document, InfilledGap
from .scoring_magnet import span_logprobs
from .seams_magnet import close_seam, continuation_ids, cut_at, fill_ids, fill_text, overlap
from .selection_magnet import Choice, rank, score_joins

GRID = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)


@dataclass
class Filler:
    """
    Fills documents.

    Args:
        model ([`MagnetLlamaForCausalLM`]): In eval mode.
        decoder ([`Decoder`]): What writes.
        choice ([`Choice`]): How many fills are written, and which are kept.
    """

    model: torch.nn.Module
    decoder: Decoder
    choice: Choice

    def fill_all(self, documents: list[Document], order: str) -> list[list[Document]]:
        """Fills every gap of every document; returns each document's alternatives."""
        answers = [[document] for document in documents]
        rounds = [[gap] for gap in range(max((len(d.gaps) for d in documents), default=0))]
        if order == "parallel":
            rounds = [[gap for (gap,) in rounds]]
        for number, gaps in enumerate(rounds):
            # alternatives share their first round; from then on each is a document of its own
            wanted = self.choice.num_return_sequences if number == 0 else 1
            targets = [(d, gap) for many in answers for d in many for gap in gaps if gap < len(d.gaps)]
            fills = dict(zip(((id(d), gap) for d, gap in targets), self._fill(targets, wanted)))
            answers = [
                [
                    _with_fills(d, {gap: fills[id(d), gap][n] for gap in gaps if gap < len(d.gaps)})
                    for d in many
                    for n in range(wanted)
                ]
                for many in answers
            ]
        return answers

    def score(self, document: Document, order: str, end: int | None) -> Document:
        """Scores the one candidate of each gap; `end`, if not None, is scored behind it."""
        scored = replace(document, fills=list(document.fills))
        for gap, options in enumerate(document.gaps):
            (text,) = options.candidates
            fill = InfilledGap(text, fill_ids(text, document, gap, self.decoder.tokenizer), "candidate")
            seen = scored if order == "sequential" else document
            fill.token_logprobs, fill.end_logprob = self._logprobs(seen, gap, fill.token_ids, end)
            score_joins(self.model, seen, gap, [fill], self.choice)
            scored.fills[gap] = fill
        return scored

    # -------------------------------------------------------------------------------------------------- fills of a gap

    def _fill(self, targets, wanted: int) -> list[list[InfilledGap]]:
        """For each target, a document and a gap in it, the `wanted` best fills."""
        jobs, found = [], [[] for _ in targets]
        for number, (document, gap) in enumerate(targets):
            if document.gaps[gap].candidates is not None:
                found[number] = self._given(document, gap)
            else:
                jobs += self._jobs(document, gap, number, wanted)
        for written in self.decoder.write(jobs):
            found[written.job.target].append(self._finished(written))
        ranked = []
        for (document, gap), fills in zip(targets, found):
            if len(fills) < wanted:
                raise ValueError(f"num_return_sequences={wanted}: gap {gap} has only {len(fills)} candidates.")
            ranked.append(rank(self.model, document, gap, fills, self.choice, self.decoder.beams)[:wanted])
            if self.decoder.streamer:
                self.decoder.streamer.filled(document, gap, ranked[-1][0])
        return ranked

    def _jobs(self, document, gap, number, wanted) -> list[Job]:
        """What is to be written for a gap: as many copies as candidates, or one for each length of a search."""
        copies = self.choice.num_candidates or 1
        if not document.gaps[gap].is_free or self.model.config.infill_end_token_id is not None:
            return [Job(document, gap, max(copies, wanted), number)]
        variants = []
        for length in self._lengths(document, gap):
            gaps = list(document.gaps)
            gaps[gap] = replace(gaps[gap], length=length)
            variants.append(replace(document, gaps=gaps))
        return [Job(variant, gap, copies, number, shows=False) for variant in variants]

    def _lengths(self, document, gap) -> list[int]:
        """The lengths that a search tries; a prefix must fit."""
        fewest, most = document.gaps[gap].limits()
        prefix = document.gaps[gap].prefix
        needed = len(fill_ids(prefix, document, gap, self.decoder.tokenizer)) if prefix else 1
        fewest = max(fewest, needed)
        return sorted({fewest, most, *(n for n in GRID if fewest < n < most)})

    def _given(self, document, gap) -> list[InfilledGap]:
        texts = document.gaps[gap].candidates
        rows = [fill_ids(text, document, gap, self.decoder.tokenizer) for text in texts]
        fills = [InfilledGap(text, row, "candidate") for text, row in zip(texts, rows)]
        if self.decoder.logprobs:
            for fill in fills:
                gaps = list(document.gaps)
                gaps[gap] = replace(gaps[gap], length=max(len(fill.token_ids), 1))
                exact = replace(document, gaps=gaps)
                fill.token_logprobs, _ = self._logprobs(exact, gap, fill.token_ids, None)
        return fills

    def _finished(self, written: Written) -> InfilledGap:
        """The fill as it stands in the text: cut where the gap's rule says, without what the text behind repeats."""
        document, gap = written.job.document, written.job.gap
        right, options = document.texts[gap + 1], document.gaps[gap]
        prefix = options.prefix or ""
        whole = fill_text(written.token_ids, document, gap, self.decoder.tokenizer)
        cut, reason, trimmed = cut_at(whole, options), written.reason, ""
        text = whole[:cut]
        reason = reason if cut is None else "stop"
        if reason != "exact_length" and (repeated := overlap(text[len(prefix) :], right)):
            text, trimmed = text[:-repeated], text[-repeated:]
        fill = InfilledGap(close_seam(text, right, prefix), written.token_ids, reason, trimmed=trimmed)
        if self.decoder.logprobs:
            fill.token_logprobs, fill.end_logprob = written.logprobs, written.end_logprob
        if text != whole:
            self._retokenize(fill, written)
        return fill

    def _retokenize(self, fill: InfilledGap, written: Written) -> None:
        """Gives a fill that was cut its tokens: the first ones written, and those of what the cut left of a token."""
        document, gap = written.job.document, written.job.gap
        tokenizer, ids = self.decoder.tokenizer, written.token_ids
        kept, known = 0, ""
        for count in range(len(ids) + 1):
            so_far = fill_text(ids[:count], document, gap, tokenizer)
            if fill.text.startswith(so_far):
                kept, known = count, so_far
            if len(so_far) >= len(fill.text):
                break
        rest = fill.text[len(known) :]
        tail = continuation_ids(rest, tokenizer) if kept else fill_ids(rest, document, gap, tokenizer)
        fill.token_ids, fill.end_logprob = ids[:kept] + tail, None
        if fill.token_logprobs is not None:
            fill.token_logprobs = fill.token_logprobs[:kept]
        if tail and self.decoder.logprobs:
            document = replace(document, begun=[[] for _ in document.gaps])
            fill.token_logprobs, _ = self._logprobs(document, gap, fill.token_ids, None)

    def _logprobs(self, document, gap, tokens, end) -> tuple[list[float], float | None]:
        """[`span_logprobs`], chunk by chunk as the decoder would have written the fill."""
        options, begun, logprobs = document.gaps[gap], 0, []
        while True:
            chunk = self.decoder.chunk(options, begun)
            last = len(tokens) - begun < chunk or begun + chunk >= options.limits()[1]
            part = tokens[begun:] if last else tokens[begun : begun + chunk]
            known = list(document.begun)
            known[gap] = tokens[:begun]
            part_of = replace(document, begun=known)
            each, end_logprob = span_logprobs(
                self.model, part_of, gap, part, self.decoder.budget, end if last else None
            )
            logprobs += each
            if last:
                return logprobs, end_logprob
            begun += chunk


def _with_fills(document: Document, fills: dict[int, InfilledGap]) -> Document:
    filled = list(document.fills)
    for gap, fill in fills.items():
        filled[gap] = replace(fill)
    return replace(document, fills=filled)
