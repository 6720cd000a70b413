"""Sentence vectors (section 4.2) and word vectors (section 4.1) of every kind of system."""

import functools
from collections.abc import Callable

import numpy as np
from scipy.sparse import issparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.preprocessing import normalize

from modeling_magnet.encoding_magnet import (
    last_states,
    literal_tokenizer,
    mean_by_word,
    start_ids,
    text_ids,
    tokens_of_words,
)

from .systems import BOTH_WAYS, LEFT_TO_RIGHT, System

ECHO = "Rewrite the sentence: {text}, rewritten sentence: {text}"  # Springer et al. (2024)
ONE_WORD = 'This sentence : "{text}" means in one word:"'  # PromptEOL, Jiang et al. (2024)
COUNTS = {
    "lexical binary words": CountVectorizer(binary=True),
    "lexical TF-IDF words": TfidfVectorizer(),
    "lexical TF-IDF characters": TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)),
}
SUPERVISED = "supervised"  # the way of frozen encoders, which were trained on labelled pairs
CAUSAL = {"attention_mode": "causal", "use_cache": False}
LEXICAL = [System(name) for name in COUNTS]  # baselines without a model


def encoders(system: System, batch_size: int = 64) -> dict[str, Callable]:
    """
    The ways to encode with a system: functions of texts and an instruction (`None`: the model's own) that return unit
    vectors, `(texts, d)`, as a sparse matrix for word counts.
    """
    model, tokenizer = system.model, system.tokenizer
    if system.kind == "lexical":
        return {"": lambda texts, told=None: normalize(COUNTS[system.name].fit_transform(texts))}
    found = {}
    if system.kind in BOTH_WAYS:
        found[""] = lambda texts, told: model.encode(texts, tokenizer, told, batch_size)
    if system.kind == "encoder":
        found[SUPERVISED] = lambda texts, told: model.encode(texts, batch_size=batch_size, normalize_embeddings=True)
    if system.kind in LEFT_TO_RIGHT:
        for way, pooling in (("last token", "last_token"), ("mean", "mean")):
            found[way] = lambda texts, told, pooling=pooling: encode_causal(
                model, texts, tokenizer, pooling, told, batch_size
            )
        found["Echo"] = lambda texts, told: encode_echo(model, texts, tokenizer, batch_size)
        found["PromptEOL"] = lambda texts, told: encode_one_word(model, texts, tokenizer, batch_size)
    return {way: functools.partial(each_once, encode) for way, encode in found.items()}


def each_once(encode: Callable, texts: list[str], told: str | None = None) -> np.ndarray:
    """Encodes each distinct text once: a fifth of STS12's sentences are there twice."""
    row = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return encode(list(row), told)[[row[text] for text in texts]]


def encode_causal(
    model,
    texts: list[str],
    tokenizer,
    pooling: str = "last_token",
    instruction: str | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """
    Embeds with causal attention (Table 2's Llama-2 row) the same `[BOS] instruction text [EOS]` that MAGNET reads.

    Args:
        pooling (`str`, *optional*, defaults to `"last_token"`): `"last_token"` or `"mean"` over all tokens.

    Returns:
        `np.ndarray` of shape `(N, d)`, float32, unit rows.
    """
    start = start_ids(model.config, tokenizer)
    prompt = model.config.representation_prompt if instruction is None else instruction
    texts = [f"{prompt} {text}" if prompt else text for text in texts]
    rows = [[*start, *text_ids(text, tokenizer), tokenizer.eos_token_id] for text in texts]
    kept = [range(len(row)) if pooling == "mean" else [len(row) - 1] for row in rows]
    return _pooled(model, rows, kept, batch_size)


def encode_echo(model, texts: list[str], tokenizer, batch_size: int = 64) -> np.ndarray:
    """Echo embeddings: the text is repeated, and the tokens of the second copy, which attend to all of it, are pooled."""
    start, rows, kept = start_ids(model.config, tokenizer), [], []
    for text in texts:
        encoded = literal_tokenizer(tokenizer).encode(ECHO.format(text=text), add_special_tokens=False)
        second = len(ECHO.format(text=text)) - len(text)
        rows.append([*start, *encoded.ids])
        kept.append([len(start) + n for n, (_, end) in enumerate(encoded.offsets) if end > second])
    return _pooled(model, rows, kept, batch_size)


def encode_one_word(model, texts: list[str], tokenizer, batch_size: int = 64) -> np.ndarray:
    """PromptEOL: the state that predicts the one word which the text is said to mean."""
    start = start_ids(model.config, tokenizer)
    rows = [[*start, *text_ids(ONE_WORD.format(text=text), tokenizer)] for text in texts]
    return _pooled(model, rows, [[len(row) - 1] for row in rows], batch_size)


def _pooled(model, rows, kept, batch_size) -> np.ndarray:
    """Means of the kept tokens' states, causal attention, as unit rows."""
    vectors = np.zeros((len(rows), model.config.hidden_size), np.float32)
    for chosen, hidden, _ in last_states(model.model, rows, batch_size, **CAUSAL):
        for i, states in zip(chosen, hidden):
            vectors[i] = states[kept[i]].float().mean(0).cpu().numpy()
    return normalize(vectors)


def cosines(encode: Callable, pairs: list[tuple[float, str, str]]) -> np.ndarray:
    """Cosine similarity of each pair's sentences, (N,)."""
    vectors = encode([pair[1] for pair in pairs] + [pair[2] for pair in pairs])
    first, second = vectors[: len(pairs)], vectors[len(pairs) :]
    product = first.multiply(second) if issparse(first) else first * second
    return np.asarray(product.sum(1)).ravel()


def found_their_own(encode: Callable, sentences: list[str], paraphrases: list[str]) -> np.ndarray:
    """For each paraphrase, whether its own sentence is the nearest, (N,)."""
    vectors = encode(paraphrases + sentences)
    similarity = vectors[: len(paraphrases)] @ vectors[len(paraphrases) :].T  # (N, N)
    similarity = similarity.toarray() if issparse(similarity) else similarity
    return np.asarray(similarity).argmax(1) == np.arange(len(sentences))


def encode_words(system: System, sentences: list[list[str]], batch_size: int = 64) -> list[np.ndarray]:
    """
    One vector per word, `(words, d)` for each sentence: the mean over its tokens. Token i of MAGNET and LLM2Vec is represented by
    the output at i - 1 (section 4.1), any other model's by its own: a base, with causal attention, has not read it at i - 1.
    """
    model, tokenizer = system.model, system.tokenizer
    if system.kind in ("magnet", "llm2vec"):
        return model.encode_words(sentences, tokenizer, batch_size)
    if system.kind == "encoder":
        decoder, mode = model[0].auto_model, {}
        start, end = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    else:
        decoder, start, end = model.model, start_ids(model.config, tokenizer), []
        mode = CAUSAL if system.kind in LEFT_TO_RIGHT else {"attention_mode": "bidirectional"}
    tokens = [tokens_of_words(words, tokenizer) for words in sentences]
    rows, vectors = [start + ids + end for ids, _ in tokens], [None] * len(sentences)
    for chosen, hidden, _ in last_states(decoder, rows, batch_size, **mode):
        for i, each in zip(chosen, hidden[:, len(start) :].float().cpu().numpy()):
            vectors[i] = mean_by_word(each, tokens[i][1], len(sentences[i]))
    return vectors
