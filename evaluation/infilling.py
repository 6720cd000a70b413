"""Infilling perplexity (section 4.3, Table 4): one sentence of a story is missing, and only its tokens count.

Three numbers, because the paper's setting reveals the length of the gap:

* `causal`: from the left context only, like the base model;
* `exact`: from both sides, given the length (the paper's);
* `free`: from both sides, length unknown; the cost of ending the gap is added to the same tokens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_magnet.encoding_magnet import literal_tokenizer, padded, start_ids, text_ids
from modeling_magnet.scoring_magnet import token_logprobs


@dataclass
class GapExample:
    """A text's ids and its missing spans, `(start, length)` from left to right; each has a token before it."""

    ids: list[int]
    spans: list[tuple[int, int]]
    story: int  # number of the story, to resample whole stories

    @property
    def start(self) -> int:
        """Start of the first span."""
        return self.spans[0][0]

    @property
    def length(self) -> int:
        """Length of the first span."""
        return self.spans[0][1]


@dataclass
class Perplexity:
    """Cost in nats and number of span tokens of each example."""

    nats: np.ndarray
    tokens: np.ndarray
    stories: np.ndarray

    @property
    def value(self) -> float:
        return float(np.exp(self.nats.sum() / self.tokens.sum()))

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval over stories."""
        return _quantiles(np.exp(self._resampled()))

    def ratio_interval(self, other: "Perplexity") -> tuple[float, float]:
        """95 % interval of the ratio of this value to another's on the same gaps: both are resampled together, so that
        shared difficulty cancels out."""
        return _quantiles(np.exp(self._resampled() - other._resampled()))

    def _resampled(self, samples: int = 1000, seed: int = 0) -> np.ndarray:
        """Nats per token of `samples` draws of stories."""
        rng, count = np.random.default_rng(seed), self.stories.max() + 1
        nats = np.bincount(self.stories, self.nats, minlength=count)
        tokens = np.bincount(self.stories, self.tokens, minlength=count)
        drawn = rng.integers(0, count, size=(samples, count))
        return nats[drawn].sum(1) / tokens[drawn].sum(1)


def _quantiles(values) -> tuple[float, float]:
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def sentence_gaps(stories: list[list[str]], config, tokenizer, every: bool = True) -> list[GapExample]:
    """
    Gaps of one sentence. The ids are slices of the whole story's tokenization, never re-tokenized pieces.

    Args:
        stories (`list[list[str]]`): The sentences of each story; they are joined by single spaces.
        config ([`MagnetFields`]): Sets the start token. Without one, nothing predicts a story's first token, and its
            first sentence is never missing.
        tokenizer ([`PreTrainedTokenizerBase`]): A fast one.
        every (`bool`, *optional*, defaults to `True`): Each sentence in turn; else sentence `n % 5` of story n.
    """
    examples, opening = [], start_ids(config, tokenizer)
    for number, sentences in enumerate(stories):
        encoded = literal_tokenizer(tokenizer).encode(" ".join(sentences), add_special_tokens=False)
        ends, ids = np.array([end for _, end in encoded.offsets]), opening + encoded.ids
        borders = np.cumsum([0] + [len(sentence) + 1 for sentence in sentences])
        for s in range(len(sentences)) if every else [number % len(sentences)]:
            inside = np.flatnonzero((ends > borders[s]) & (ends <= borders[s + 1] - 1))
            if start := len(opening) + int(inside[0]):
                examples.append(GapExample(ids, [(start, len(inside))], number))
    return examples


@torch.no_grad()
def infill_perplexity(
    model,
    examples: list[GapExample],
    layout: Literal["causal", "exact", "free"],
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> Perplexity:
    """
    Perplexity of the missing tokens.

    Args:
        model ([`MagnetLlamaForCausalLM`]): In eval mode.
        examples (`list[GapExample]`): Texts with gaps, each scored with the others open.
        layout (`str`): `"causal"`, `"exact"` or `"free"`; the last needs `config.infill_end_token_id`.
        batch_size (`int`, *optional*, defaults to 32): Rows per forward.
    """
    if layout == "free" and model.config.infill_end_token_id is None:
        raise ValueError("layout='free': this checkpoint was not trained to end a gap. Use layout='exact'.")
    nats = np.zeros(len(examples))
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
    for first in tqdm(range(0, len(order), batch_size), desc=f"infill {layout}", disable=not show_progress_bar):
        chosen = order[first : first + batch_size]
        nats[chosen] = _batch_nats(model, [examples[i] for i in chosen], layout)
    lengths = np.array([sum(length for _, length in example.spans) for example in examples])
    return Perplexity(nats, lengths, np.array([example.story for example in examples]))


def _batch_nats(model, examples, layout) -> np.ndarray:
    """Negative log-likelihood of each example's spans, in nats."""
    ids, mask = padded([example.ids for example in examples])  # (B, L)
    spans, targets = torch.zeros_like(ids), torch.full_like(ids, -1)
    positions = torch.arange(ids.shape[1]).repeat(len(examples), 1)
    for row, example in enumerate(examples):
        for number, (start, length) in enumerate(example.spans, 1):
            end = start + length
            spans[row, start:end] = number
            targets[row, start - 1 : end - 1] = ids[row, start:end]  # predicted by the token to the left
            if layout == "free":
                targets[row, end - 1] = model.config.infill_end_token_id
                offset = next((o for o in model.config.infill_free_offsets if o >= length), None)
                if offset is None:
                    raise ValueError(
                        f"a gap of {length} tokens exceeds infill_free_offsets={model.config.infill_free_offsets}."
                    )
                positions[row, end:] += offset - length
    predicts = targets >= 0
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": predicts}
    inputs |= {} if layout == "causal" else {"span_ids": spans}
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    mode = "causal" if layout == "causal" else "hybrid"
    logits = model(**inputs, attention_mode=mode, use_cache=False).logits  # (N, V)
    costs = torch.zeros(targets.shape, dtype=torch.double)
    costs[predicts] = -token_logprobs(logits, targets[predicts].to(logits.device)).double().cpu()
    return costs.sum(1).numpy()


@torch.no_grad()
def causal_perplexity(model, texts: list[str], tokenizer, batch_size: int = 32) -> float:
    """Perplexity of whole texts, left to right (causal mode)."""
    opening = start_ids(model.config, tokenizer)
    rows = [opening + text_ids(text, tokenizer) for text in texts]
    return infill_perplexity(model, [whole(row, n) for n, row in enumerate(rows)], "causal", batch_size).value


def whole(ids: list[int], story: int) -> GapExample:
    """A text of which all but the first token is predicted."""
    return GapExample(ids, [(1, len(ids) - 1)], story)


# ------------------------------------------------------------------------------------------------- trivial rivals


def with_the_right_of_another(examples: list[GapExample]) -> list[GapExample]:
    """Each gap with the right side of the next story's gap: the extra cost is what its own right side is worth."""
    found = []
    for number, example in enumerate(examples):
        others = (examples[(number + n) % len(examples)] for n in range(1, len(examples)))
        other = next(each for each in others if each.story != example.story and _right(each))
        found.append(GapExample(_upto(example) + _right(other), example.spans, example.story))
    return found


def without_right(examples: list[GapExample]) -> list[GapExample]:
    """Each gap at the end of its text."""
    return [GapExample(_upto(example), example.spans, example.story) for example in examples]


def with_right(examples: list[GapExample]) -> list[GapExample]:
    """Examples with one gap and text after it."""
    return [example for example in examples if len(example.spans) == 1 and _right(example)]


def _upto(example: GapExample) -> list[int]:
    return example.ids[: example.start + example.length]


def _right(example: GapExample) -> list[int]:
    return example.ids[example.start + example.length :]
