"""Measures of fills of free length: against the gold text, and by how well the text continues after them."""

import functools
import json
import math
import re
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from tqdm.auto import tqdm

from modeling_magnet.encoding_magnet import literal_tokenizer, start_ids
from modeling_magnet.scoring_magnet import continuation_logprobs


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"])


def rouge_l(gold: str, fill: str) -> float:
    """ROUGE-L F1, times 100."""
    return 100 * _scorer().score(gold, fill)["rougeL"].fmeasure


def right_bits(judge, tokenizer, texts: list[tuple[str, str]], name: str | None = None) -> np.ndarray:
    """
    log2 p(right | before) under a judge, left to right.

    Args:
        judge (`Magnet*ForCausalLM`): Only its base model is used.
        texts: Pairs of a text and its continuation, joined by a space.
        name (`str`, *optional*): Title of the progress bar; `None` for no bar.
    """
    opening, bits = start_ids(judge.config, tokenizer), []
    for before, right in tqdm(texts, desc=name, disable=name is None):
        encoded = literal_tokenizer(tokenizer).encode(f"{before} {right}", add_special_tokens=False)
        seen = sum(end <= len(before) for _, end in encoded.offsets)
        (logprobs,) = continuation_logprobs(judge, opening + encoded.ids[:seen], [encoded.ids[seen:]])
        bits.append(sum(logprobs) / math.log(2))
    return np.array(bits)


def mean_interval(values: np.ndarray, samples: int = 2000, seed: int = 0) -> list[float]:
    """Mean over stories and its 95 % bootstrap interval."""
    values = np.asarray(values, float)
    drawn = np.random.default_rng(seed).integers(0, len(values), size=(samples, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return [round(float(value), 3) for value in (values.mean(), low, high)]


def write_report(path: str, report: dict) -> None:
    """JSON with each list of numbers on one line."""
    text = json.dumps(report, indent=1)
    lists = re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text)
    Path(path).write_text(lists + "\n", encoding="utf-8")
