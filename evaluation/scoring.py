"""Negative log-likelihood of missing spans, in three layouts (section 4.3).

* `causal`: from the left context only, like the base model;
* `exact`: from both sides, given the length (as in the paper);
* `free`: from both sides, length unknown; adds the cost of ending the gap.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_magnet.encoding_magnet import literal_tokenizer, padded, start_ids, text_ids
from modeling_magnet.scoring_magnet import token_logprobs

from .figures import Figure


@dataclass
class GapExample:
    """A text's ids and its missing spans, `(start, length)` from left to right; each has a token before it."""

    ids: list[int]
    spans: list[tuple[int, int]]
    story: int  # number of the story or document, to resample whole ones

    @property
    def start(self) -> int:
        """Start of the first span."""
        return self.spans[0][0]

    @property
    def length(self) -> int:
        """Length of the first span."""
        return self.spans[0][1]

    @property
    def left(self) -> list[int]:
        """The ids before the first span."""
        return self.ids[: self.start]

    @property
    def right(self) -> list[int]:
        """The ids after the first span."""
        return self.ids[self.start + self.length :]

    @property
    def middle(self) -> list[int]:
        """The ids of the first span."""
        return self.ids[self.start : self.start + self.length]


def sentence_gaps(
    stories: list[list[str]], config, tokenizer, every: bool = True, joint: str = " "
) -> list[GapExample]:
    """
    Gaps of one sentence. The ids are slices of the whole story's tokenization, never re-tokenized pieces.

    Args:
        stories (`list[list[str]]`): The sentences of each story.
        config ([`MagnetFields`]): Sets the start token. Without one, nothing predicts a story's first token, and its
            first sentence is never missing.
        tokenizer ([`PreTrainedTokenizerBase`]): A fast one.
        every (`bool`, *optional*, defaults to `True`): Removes each sentence in turn; else sentence `n % 5` of story n.
        joint (`str`, *optional*, defaults to a space): The character between two sentences. In code, a token may hold both
            the end of a line and the next one's indentation: it belongs to the line in which it ends.
    """
    examples, opening = [], start_ids(config, tokenizer)
    for number, sentences in enumerate(stories):
        encoded = literal_tokenizer(tokenizer).encode(joint.join(sentences), add_special_tokens=False)
        ends, ids = np.array([end for _, end in encoded.offsets]), opening + encoded.ids
        borders = np.cumsum([0] + [len(sentence) + 1 for sentence in sentences])
        for s in range(len(sentences)) if every else [number % len(sentences)]:
            inside = np.flatnonzero((ends > borders[s]) & (ends <= borders[s + 1] - 1))
            if len(inside) and (start := len(opening) + int(inside[0])):
                examples.append(GapExample(ids, [(start, len(inside))], number))
    return examples


@torch.no_grad()
def span_costs(
    model,
    examples: list[GapExample],
    layout: Literal["causal", "exact", "free"],
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> np.ndarray:
    """
    Negative log-likelihood of each example's missing tokens, in nats, `(examples,)`.

    Args:
        model ([`MagnetLlamaForCausalLM`]): In eval mode.
        examples (`list[GapExample]`): Texts with gaps; each gap is scored with the others missing.
        layout (`str`): `"causal"`, `"exact"` or `"free"`; the last needs `config.infill_end_token_id`.
        batch_size (`int`, *optional*, defaults to 32): Rows per forward pass.
    """
    if layout == "free" and model.config.infill_end_token_id is None:
        raise ValueError("layout='free': this checkpoint was not trained to end a gap. Use layout='exact'.")
    rows, row_of = examples, range(len(examples))
    if layout == "causal":  # what a token costs does not depend on the gap it is in: each text is read once
        texts = {}
        for example in examples:
            texts.setdefault(tuple(example.ids), []).extend(example.spans)
        number_of = {ids: number for number, ids in enumerate(texts)}
        rows = [GapExample(list(ids), spans, 0) for ids, spans in texts.items()]
        row_of = [number_of[tuple(example.ids)] for example in examples]
    costs = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    starts = range(0, len(order), batch_size)
    for first in tqdm(starts, desc=f"score {layout}", leave=False, disable=None if show_progress_bar else True):
        chosen = order[first : first + batch_size]
        for i, each in zip(chosen, _batch_costs(model, [rows[i] for i in chosen], layout)):
            costs[i] = each
    end = layout == "free"
    return np.array(
        [
            sum(costs[row][start - 1 : start - 1 + length + end].sum() for start, length in example.spans)
            for row, example in zip(row_of, examples)
        ]
    )


def _batch_costs(model, examples, layout) -> np.ndarray:
    """Negative log-likelihood of each span's tokens, in nats, where they are predicted: one to the left. (B, L)"""
    ids, mask = padded([example.ids for example in examples])  # (B, L)
    spans, targets, barred = torch.zeros_like(ids), torch.full_like(ids, -1), torch.zeros_like(ids, dtype=torch.bool)
    positions = torch.arange(ids.shape[1]).repeat(len(examples), 1)
    for row, example in enumerate(examples):
        for number, (start, length) in enumerate(example.spans, 1):
            end = start + length
            spans[row, start:end] = number
            targets[row, start - 1 : end - 1] = ids[row, start:end]  # predicted by the token to the left
            if layout != "causal":  # where END is barred in training and in infill()
                barred[row, start - 1 : start if layout == "free" else end - 1] = True
            if layout == "free":
                targets[row, end - 1] = model.config.infill_end_token_id
                positions[row, end:] += free_offset(model.config, length) - length
    predicts = targets >= 0
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": predicts}
    inputs |= {} if layout == "causal" else {"span_ids": spans}
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    mode = "causal" if layout == "causal" else "hybrid"
    logits = model(**inputs, attention_mode=mode, use_cache=False).logits  # (N, V)
    if model.config.infill_end_token_id is not None:
        logits[barred[predicts].to(logits.device), model.config.infill_end_token_id] = -torch.inf
    costs = torch.zeros(targets.shape, dtype=torch.double)
    costs[predicts] = -token_logprobs(logits, targets[predicts].to(logits.device)).double().cpu()
    return costs.numpy()


def free_offset(config, length: int) -> int:
    """The offset of a gap of unknown length with `length` tokens."""
    offset = next((offset for offset in config.infill_free_offsets if offset >= length), None)
    if offset is None:
        raise ValueError(f"a gap of {length} tokens exceeds infill_free_offsets={config.infill_free_offsets}.")
    return offset


def perplexity_figure(data: str, nats: np.ndarray, examples: list[GapExample], way: str, **fields) -> Figure:
    """Perplexity of the missing tokens; whole stories or documents are resampled."""
    stories = np.unique([example.story for example in examples], return_inverse=True)[1]
    tokens = np.array([sum(length for _, length in example.spans) for example in examples])
    columns = [np.bincount(stories, nats), np.bincount(stories, tokens).astype(int)]
    return Figure(data, way=way, statistic="perplexity", columns=columns, tokens=int(tokens.sum()), **fields)


def infill_perplexity(model, examples: list[GapExample], layout: str, batch_size: int = 32, **fields) -> Figure:
    """[`span_costs`] as a [`Figure`]."""
    nats = span_costs(model, examples, layout, batch_size)
    return perplexity_figure(fields.pop("data", ""), nats, examples, layout, **{"measure": "perplexity"} | fields)


def whole_texts(texts: list[str], config, tokenizer) -> list[GapExample]:
    """Texts in which all but the first token is predicted."""
    rows = [start_ids(config, tokenizer) + text_ids(text, tokenizer) for text in texts]
    limit = config.max_position_embeddings
    return [GapExample(row[:limit], [(1, min(len(row), limit) - 1)], n) for n, row in enumerate(rows)]


def right_bits(judge, tokenizer, texts: list[tuple[str, str]]) -> np.ndarray:
    """
    log2 p(right | before) under a judge, left to right, `(texts,)`.

    Args:
        judge (`Magnet*ForCausalLM`): Only its base model is used.
        texts: Pairs of a text and its continuation, joined by a space.
    """
    opening, rows = start_ids(judge.config, tokenizer), []
    for before, right in texts:
        encoded = literal_tokenizer(tokenizer).encode(f"{before} {right}", add_special_tokens=False)
        ids, seen = opening + encoded.ids, sum(end <= len(before) for _, end in encoded.offsets)
        rows.append(GapExample(ids, [(len(opening) + seen, len(encoded.ids) - seen)], 0))
    with judge.adapter_disabled():
        return -span_costs(judge, rows, "causal", batch_size=16, show_progress_bar=True) / np.log(2)
