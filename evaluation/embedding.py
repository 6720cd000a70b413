"""Sentence embeddings (section 4.2): correlation with graded pairs, and retrieval of sentences by paraphrase."""

from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from modeling_magnet.encoding_magnet import padded, pooled, start_ids, text_ids


def read_graded_pairs(path: str | Path) -> list[tuple[float, str, str]]:
    """Reads `score<TAB>sentence<TAB>sentence` lines."""
    rows = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    return [(float(row[0]), row[1], row[2]) for row in rows]


def sts_spearman(encode, pairs: list[tuple[float, str, str]]) -> float:
    """
    Spearman correlation, times 100, of cosine similarity with the grades (Table 2).

    Args:
        encode (`Callable[[list[str]], np.ndarray]`): Texts to unit vectors, (N, d).
        pairs: Score and two sentences each.
    """
    return 100 * float(spearmanr(cosines(encode, pairs), [pair[0] for pair in pairs]).statistic)


def cosines(encode, pairs: list[tuple[float, str, str]]) -> np.ndarray:
    """Cosine similarity of each pair's sentences, (N,)."""
    return (encode([pair[1] for pair in pairs]) * encode([pair[2] for pair in pairs])).sum(1)


def retrieval_top1(encode, sentences: list[str], paraphrases: list[str]) -> float:
    """Percentage of paraphrases whose nearest sentence, among all, is their own."""
    return 100 * float(found_their_own(encode, sentences, paraphrases).mean())


def found_their_own(encode, sentences: list[str], paraphrases: list[str]) -> np.ndarray:
    """For each paraphrase, whether the nearest of all sentences is its own, (N,)."""
    similarity = encode(paraphrases) @ encode(sentences).T  # (N, N)
    return similarity.argmax(1) == np.arange(len(sentences))


@torch.no_grad()
def encode_causal(model, texts: list[str], tokenizer, pooling: str = "last_token", batch_size: int = 64) -> np.ndarray:
    """
    Embeds with the base model: last hidden state, causal attention (Table 2's Llama-2 row), of the same
    `[BOS] instruction text [EOS]` that MAGNET reads.

    Args:
        pooling (`str`, *optional*, defaults to `"last_token"`): `"last_token"` or `"mean"` over all tokens.

    Returns:
        `np.ndarray` of shape `(N, d)`, float32, unit rows.
    """
    start, prompt, vectors = start_ids(model.config, tokenizer), model.config.representation_prompt, []
    rows = [[*start, *text_ids(f"{prompt} {text}", tokenizer), tokenizer.eos_token_id] for text in texts]
    for first in range(0, len(rows), batch_size):
        ids, mask = padded(rows[first : first + batch_size], model.device)
        hidden = model.model(ids, attention_mask=mask, attention_mode="causal", use_cache=False).last_hidden_state
        vectors.append(pooled(hidden, mask, pooling))
    return torch.nn.functional.normalize(torch.cat(vectors).float(), dim=-1).cpu().numpy()
