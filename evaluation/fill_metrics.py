"""Measures of generated fills whose length nobody gave: against the gold text, and by how well the text goes on."""

import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from tqdm.auto import tqdm


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"])


def rouge_l(gold: str, fill: str) -> float:
    """ROUGE-L F1, times 100."""
    return 100 * _scorer().score(gold, fill)["rougeL"].fmeasure


def copy_rate(fill: str, left: str, right: str, n: int = 5) -> float:
    """
    Share of a fill's n-grams of words that stand in the text around it; 0 where it has none.

    Example:

    ```python
    >>> from magnet_eval.fill_metrics import copy_rate
    >>> copy_rate("he ran home to eat bread", "Then he ran home to eat.", "", n=4)
    0.6666666666666666

    ```
    """
    around = set(_ngrams(left, n)) | set(_ngrams(right, n))
    grams = _ngrams(fill, n)
    return sum(gram in around for gram in grams) / max(len(grams), 1)


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = ["".join(filter(str.isalnum, word)) for word in text.lower().split()]
    return list(zip(*(words[i:] for i in range(n))))


def joined(*parts: str) -> str:
    """Sentences with single spaces between them; an empty fill leaves no second one."""
    return " ".join(part for part in parts if part)


@torch.no_grad()
def target_logprobs(model, rows: list[tuple[list[int], list[int]]], batch_size: int = 32, name: str | None = None):
    """
    Log-probability of target tokens behind their contexts, left to right.

    Args:
        model ([`MagnetLlamaForCausalLM`]): In eval mode; runs in causal mode.
        rows: Pairs of context ids, [BOS] first, and target ids.
        name (`str`, *optional*): Of the progress bar; none without.

    Returns:
        For each row a `np.ndarray` of one value a target, in nats.
    """
    found = [np.zeros(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
    for first in tqdm(range(0, len(order), batch_size), desc=name, disable=name is None):
        chosen = order[first : first + batch_size]
        whole = [torch.tensor([*rows[i][0], *rows[i][1]]) for i in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)  # (B, L), padded on the right
        kept = torch.zeros_like(ids, dtype=torch.bool)
        for row, i in enumerate(chosen):
            start = len(rows[i][0])
            kept[row, start - 1 : start - 1 + len(rows[i][1])] = True  # each token is predicted one to its left
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in whole], batch_first=True)
        logits = model(ids, attention_mask=mask, logits_to_keep=kept, attention_mode="causal", use_cache=False).logits
        targets = torch.cat([torch.tensor(rows[i][1], dtype=torch.long) for i in chosen])
        values = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0].double().numpy()
        parts = np.split(values, np.cumsum([len(rows[i][1]) for i in chosen])[:-1])
        for i, part in zip(chosen, parts):
            found[i] = part
    return found


def right_bits(judge, tokenizer, texts: list[tuple[str, str]], name: str | None = None) -> np.ndarray:
    """log2 p(right | before) under a judge for pairs of texts; NaN without a right side."""
    rows = []
    for before, right in texts:
        whole = joined(before, right)
        encoded = tokenizer(whole, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        seen = sum(end <= len(before) for _, end in encoded["offset_mapping"])
        ids = encoded["input_ids"]
        rows.append(([tokenizer.bos_token_id, *ids[:seen]], ids[seen:]))
    sums = [values.sum() if len(values) else math.nan for values in target_logprobs(judge, rows, name=name)]
    return np.array(sums) / math.log(2)


def mean_interval(values: np.ndarray, samples: int = 2000, seed: int = 0) -> list[float]:
    """Mean over stories and its 95 % bootstrap interval; stories without a value (NaN) are left out."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    drawn = np.random.default_rng(seed).integers(0, len(values), size=(samples, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return [round(float(value), 3) for value in (values.mean(), low, high)]


def write_report(path: str, report: dict) -> None:
    """JSON with each list of numbers on one line."""
    text = json.dumps(report, indent=1)
    lists = re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text)
    Path(path).write_text(lists + "\n", encoding="utf-8")
