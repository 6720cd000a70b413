"""The training view x^m of a text: which tokens are spans, which are masked, where positions jump (sections 3.2, 3.3).

All randomness comes from the generator passed in, so that a view depends only on (seed, epoch, index).
"""

from dataclasses import dataclass

import numpy as np

from modeling_magnet.encoding_magnet import start_ids

from .fim import FimMarkers, fim_markers, fim_row

IGNORE = -100


@dataclass
class View:
    """One row for the hybrid forward; all arrays have shape (length,). Labels are placed where they are predicted."""

    input_ids: np.ndarray
    span_ids: np.ndarray  # 0 = context, g = g-th span
    position_ids: np.ndarray
    mntp_labels: np.ndarray  # mntp_labels[l] = token l+1 if that was masked, else -100 (MTP: token l)
    msg_labels: np.ndarray  # msg_labels[l] = token l+1 if that is a span token, or END after a free span, else -100


def sample_view(ids, sentence_starts, settings, tokens, rng) -> View:
    """
    Draws one view of a text.

    Args:
        ids (`np.ndarray` of shape `(n,)`): The text's tokens, without the opening token.
        sentence_starts (`np.ndarray` of shape `(n,)`, bool): Where sentences start; used by `sentence_span_ratio`.
        settings ([`~magnet_train.settings.arguments.ViewArguments`]): How to draw.
        tokens ([`SpecialTokens`]): The ids of the opening token, the mask, the end token and the ordinary vocabulary.
        rng (`np.random.Generator`): Source of all randomness.
    """
    if settings.vary_length:
        ids, sentence_starts = _crop(ids, sentence_starts, rng)
    ids = np.concatenate([tokens.start, ids]).astype(np.int64)
    starts = np.concatenate([np.zeros(len(tokens.start), bool), sentence_starts])
    kind = rng.random()
    if kind < settings.all_span_ratio:
        return _causal_view(ids)
    if kind < settings.all_span_ratio + settings.fim_ratio:
        return _fim_view(ids, starts, settings, tokens, rng)
    spans = sample_spans(starts, settings, rng)
    span_ids = np.zeros(len(ids), dtype=np.int64)
    for g, (start, length) in enumerate(spans, start=1):
        span_ids[start : start + length] = g
    offsets = [_free_offset(length, settings, rng) for _, length in spans]
    clean = bool(spans) and rng.random() < settings.clean_context_ratio
    masked = np.zeros(len(ids), bool) if clean else sample_masked(span_ids, settings, rng)
    return View(
        input_ids=corrupt(ids, masked, settings, tokens, rng),
        span_ids=span_ids,
        position_ids=free_positions(len(ids), spans, offsets),
        mntp_labels=_labels_left_of(ids, masked) if settings.mask_objective == "mntp" else _labels_at(ids, masked),
        msg_labels=_msg_labels(ids, spans, offsets, tokens.end),
    )


@dataclass
class SpecialTokens:
    """
    Ids the views need. `bos` opens a row, unless the tokenizer adds nothing before a text; `ordinary` are the ids that
    may randomly replace a masked token.
    """

    bos: int | None
    mask: int
    end: int | None
    ordinary: np.ndarray
    fim: FimMarkers | None = None

    @property
    def start(self) -> list[int]:
        return [] if self.bos is None else [self.bos]


def special_tokens(config, tokenizer) -> SpecialTokens:
    special = set(tokenizer.all_special_ids) | {config.mask_token_id}
    # Qwen's and Gemma's embeddings have rows for more ids than the tokenizer has tokens
    ordinary = np.array([i for i in range(len(tokenizer)) if i not in special])
    end = tokenizer.eos_token_id if config.infill_end_token_id is None else config.infill_end_token_id
    bos = next(iter(start_ids(config, tokenizer)), None)
    return SpecialTokens(bos, config.mask_token_id, end, ordinary, fim_markers(tokenizer))


def _crop(ids, sentence_starts, rng):
    """Crops to at least half of the text: in rows of fixed length, the number of context tokens would reveal the gap's
    length."""
    kept = cropped_length(len(ids), rng)
    first = int(rng.integers(0, len(ids) - kept + 1))
    return ids[first : first + kept], sentence_starts[first : first + kept]


def cropped_length(n: int, rng) -> int:
    """The first draw of a view, so that its length can be known without the view."""
    return int(rng.integers((n + 1) // 2, n + 1))


def _causal_view(ids) -> View:
    """All tokens in one span: hybrid attention is causal, MSG is next-token prediction (end of section 3.2.3)."""
    nothing = np.full(len(ids), IGNORE)
    labels = np.concatenate([ids[1:], [IGNORE]])
    return View(ids, np.ones(len(ids), dtype=np.int64), np.arange(len(ids)), nothing, labels)


def _fim_view(ids, sentence_starts, settings, tokens, rng) -> View:
    """A fill-in-the-middle row is causal too; every token is a target, as in the original paper."""
    spans = sample_spans(sentence_starts, settings, rng)
    if not spans:
        return _causal_view(ids)
    start, length = spans[int(rng.integers(len(spans)))]
    parts = ids[len(tokens.start) : start], ids[start : start + length], ids[start + length :]
    row, _ = fim_row(*parts, tokens.fim, tokens.bos, tokens.end, spm=bool(rng.random() < 0.5))
    return _causal_view(row)


def sample_spans(sentence_starts, settings, rng) -> list[tuple[int, int]]:
    """Draws up to `max_spans` spans (start, length) that do not touch and exclude index 0, which nothing predicts."""
    if settings.max_spans == 0:
        return []
    room = int((len(sentence_starts) - 1) * settings.max_span_share)
    spans = []
    for _ in range(int(rng.integers(1, settings.max_spans + 1))):
        if rng.random() < settings.sentence_span_ratio:
            span = _sentence_span(sentence_starts, rng)
        else:
            longest = min(settings.span_max, room)
            span = _span(len(sentence_starts), longest, settings.span_min, settings.span_lengths, rng)
        if span and span[1] <= room and all(_apart(span, other) for other in spans):
            spans.append(span)
            room -= span[1]
    return sorted(spans)


def _span(n, longest, shortest, lengths, rng):
    if longest < shortest:
        return None
    if lengths == "uniform":
        length = int(rng.integers(shortest, longest + 1))
    else:  # as likely between 8 and 16 as between 128 and 256
        length = int(np.exp(rng.uniform(np.log(shortest), np.log(longest + 1))))
    return int(rng.integers(1, n - length + 1)), length


def _sentence_span(sentence_starts, rng):
    borders = np.flatnonzero(sentence_starts)
    borders = np.concatenate([borders, [len(sentence_starts)]])
    if len(borders) < 3:  # one sentence or less: no context would remain
        return None
    s = int(rng.integers(int(borders[0] == 0), len(borders) - 1))
    return int(borders[s]), int(borders[s + 1] - borders[s])


def _apart(span, other) -> bool:
    (start, length), (other_start, other_length) = span, other
    return start + length < other_start or other_start + other_length < start


def _free_offset(length, settings, rng) -> int | None:
    """Positions that a span reserves, or `None` if it is exact. Half of the spans are free. A span that exactly fills
    an offset must be free, or both layouts would look the same; a span longer than all offsets cannot be."""
    offset = next((offset for offset in settings.free_offsets if offset >= length), None)
    if settings.gap_layout == "exact" or offset is None:
        return None
    return offset if length == offset or rng.random() < 0.5 else None


def free_positions(n, spans, offsets) -> np.ndarray:
    """Positions of a row: after a free span, the text continues `offset` positions after the span's start."""
    jump = np.zeros(n, dtype=np.int64)
    for (start, length), offset in zip(spans, offsets):
        if offset is not None:
            jump[start + length :] += offset - length
    return np.arange(n) + jump


def sample_masked(span_ids, settings, rng) -> np.ndarray:
    """Chooses `mask_ratio` of the context tokens (section 3.3: a fraction of the tokens outside spans), but never
    index 0 or a neighbour of a gap: a span token would predict the token right of a gap, and the one left of it
    predicts the gap's first token."""
    in_span = span_ids > 0
    near = in_span | np.append(in_span[1:], False) | np.insert(in_span[:-1], 0, False)
    eligible = np.flatnonzero(~near[1:]) + 1
    least = 1 if settings.mask_ratio > 0 else 0
    count = min(len(eligible), max(least, round(settings.mask_ratio * (~in_span).sum())))
    masked = np.zeros(len(span_ids), bool)
    masked[rng.permutation(eligible)[:count]] = True
    return masked


def corrupt(ids, masked, settings, tokens, rng) -> np.ndarray:
    """Of the masked tokens 80 % become the mask token, 10 % a random one, 10 % stay (section 3.2.1)."""
    ids = ids.copy()
    where = np.flatnonzero(masked)
    fate = rng.random(len(where))
    ids[where[fate < settings.mask_share]] = tokens.mask
    random = where[(fate >= settings.mask_share) & (fate < settings.mask_share + settings.random_share)]
    ids[random] = rng.choice(tokens.ordinary, size=len(random))
    return ids


def _labels_left_of(ids, chosen) -> np.ndarray:
    labels = np.full(len(ids), IGNORE)
    labels[:-1][chosen[1:]] = ids[1:][chosen[1:]]
    return labels


def _labels_at(ids, chosen) -> np.ndarray:
    """Masked token prediction (Appendix D): each masked token is predicted at its own position, as in BERT."""
    return np.where(chosen, ids, IGNORE)


def _msg_labels(ids, spans, offsets, end) -> np.ndarray:
    chosen = np.zeros(len(ids), bool)
    for start, length in spans:
        chosen[start : start + length] = True
    labels = _labels_left_of(ids, chosen)
    for (start, length), offset in zip(spans, offsets):
        if offset is not None:
            labels[start + length - 1] = end
    return labels
