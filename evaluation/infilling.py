"""Infilling perplexity (section 4.3, Table 4): one sentence of a story is missing, only its tokens count.

Three numbers, because the paper's setting tells the model how long the gap is:

* `causal`: from the left context alone, as the base model reads;
* `exact`: from both sides, given the length (the paper's);
* `free`: from both sides, the length unknown; the cost of ending the gap is paid for by the same tokens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm


@dataclass
class GapExample:
    """A text's ids with [BOS], and the tokens `start : start + length` that are missing."""

    ids: list[int]
    start: int
    length: int
    story: int  # number of the story, to resample whole stories


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
        """95 % interval of this value over another's on the same gaps: both are resampled together, so that what makes
        a story hard for both does not count."""
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


def sentence_gaps(stories: list[list[str]], tokenizer, every: bool = True) -> list[GapExample]:
    """
    Gaps of one sentence. The ids are slices of the whole story's tokenization, never re-tokenized pieces.

    Args:
        stories (`list[list[str]]`): The sentences of each story; they are joined by single spaces.
        tokenizer ([`PreTrainedTokenizerBase`]): A fast tokenizer with [BOS].
        every (`bool`, *optional*, defaults to `True`): Each sentence in turn; else sentence `n % 5` of story n.
    """
    examples = []
    for number, sentences in enumerate(stories):
        text = " ".join(sentences)
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        ends = np.array([end for _, end in encoded["offset_mapping"]])
        ids = [tokenizer.bos_token_id, *encoded["input_ids"]]
        chosen = range(len(sentences)) if every else [number % len(sentences)]
        borders = np.cumsum([0] + [len(sentence) + 1 for sentence in sentences])
        for s in chosen:
            inside = np.flatnonzero((ends > borders[s]) & (ends <= borders[s + 1] - 1))
            examples.append(GapExample(ids, int(inside[0]) + 1, len(inside), number))  # + 1 for [BOS]
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
        examples (`list[GapExample]`): All with one gap.
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
    lengths = np.array([example.length for example in examples])
    return Perplexity(nats, lengths, np.array([example.story for example in examples]))


def _batch_nats(model, examples, layout) -> np.ndarray:
    """Negative log-likelihood of each example's span, in nats."""
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)  # (B, L)
    mask, spans, labels = torch.zeros_like(ids), torch.zeros_like(ids), torch.full_like(ids, -100)
    positions = torch.arange(length).repeat(len(examples), 1)
    for row, example in enumerate(examples):
        start, end = example.start, example.start + example.length
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = 1
        spans[row, start:end] = 1
        labels[row, start - 1 : end - 1] = ids[row, start:end]  # each token is predicted one to its left
        if layout == "free":
            labels[row, end - 1] = model.config.infill_end_token_id
            offset = next((o for o in model.config.infill_free_offsets if o >= example.length), None)
            if offset is None:
                raise ValueError(
                    f"a gap of {example.length} tokens exceeds infill_free_offsets={model.config.infill_free_offsets}."
                )
            positions[row, end:] += offset - example.length
    kept = labels != -100
    mode = {"attention_mode": "causal"} if layout == "causal" else {"attention_mode": "hybrid", "span_ids": spans}
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": kept} | mode
    inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    logits = model(**inputs, use_cache=False).logits.float().cpu()  # (kept, V)
    costs = torch.zeros(labels.shape)
    costs[kept] = F.cross_entropy(logits, labels[kept], reduction="none")
    return costs.sum(1).double().numpy()


@torch.no_grad()
def causal_perplexity(model, texts: list[str], tokenizer, batch_size: int = 32) -> float:
    """Perplexity of whole texts, left to right (causal mode)."""
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    examples = [GapExample([tokenizer.bos_token_id, *row], 1, len(row), n) for n, row in enumerate(rows)]
    return infill_perplexity(model, examples, "causal", batch_size).value
