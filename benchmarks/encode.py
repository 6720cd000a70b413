"""encode() against SentenceTransformer.encode on the stock model, texts and vectors the same.

    python benchmarks/encode.py

The stock model is the checkpoint's form `encoder`, a bidirectional `LlamaModel`. `encode_llm2vec.py` compares with
LLM2Vec, which needs an environment of its own.
"""

import tempfile
from pathlib import Path

from common import (
    compared,
    in_a_fork,
    load_tokenizer,
    magnet,
    mixed_texts,
    random_llama,
    row,
    short_texts,
    show,
    side_by_side,
)
from sentence_transformers import SentenceTransformer
from transformers.utils import logging

from magnet_hub.export import export_checkpoint
from magnet_hub.save import save_checkpoint

VOCAB = 4096  # the tokenizer's


def timed(layers: int, hidden: int, texts: list[str], repeats: int, rivals: bool) -> tuple[dict, dict]:
    """Seconds a round, and the smallest cosine of each way's vectors to those of the stock model."""
    logging.disable_progress_bar()
    tokenizer, llama = load_tokenizer(), random_llama(layers, hidden, VOCAB)
    plain = magnet(llama, None)
    adapted = magnet(llama, 16)
    calls = {"ours": lambda: plain.encode(texts, tokenizer, show_progress_bar=False)}
    with tempfile.TemporaryDirectory() as scratch:
        for name, model in (("plain", plain), ("adapted", adapted)):
            save_checkpoint(model, tokenizer, Path(scratch, name))
        export_checkpoint(Path(scratch, "plain"), Path(scratch, "stock"), "encoder")
        folders = {"stock": "stock"} | ({"ours in ST": "plain", "adapted in ST": "adapted"} if rivals else {})
        for name, folder in folders.items():
            sentences = SentenceTransformer(
                str(Path(scratch, folder)), trust_remote_code=name != "stock", device="cpu"
            )
            calls[name] = lambda sentences=sentences: sentences.encode(texts, show_progress_bar=False)
        vectors = {}
        calls = {name: lambda name=name, call=call: vectors.update({name: call()}) for name, call in calls.items()}
        seconds = side_by_side(calls, repeats)
    cosines = {name: float((found * vectors["stock"]).sum(1).min()) for name, found in vectors.items()}
    return seconds, cosines


def main(layers: int = 2, hidden: int = 512, few: int = 96, many: int = 1000, repeats: int = 2):
    answers = []
    cases = [
        (few, "mixed", mixed_texts(few), (layers, hidden), ">= 1.5", True),
        (few, "STS-like", short_texts(few), (layers, hidden), ">= 1.5", False),
        (many, "mixed", mixed_texts(many), (layers, hidden // 2), ">= 1.1", False),
    ]
    for count, kind, texts, (depth, width), least, rivals in cases:
        shape = f"{depth} layers of {width}, float32; {count} {kind} texts"
        rounds = repeats if count > few else 2 * repeats  # short ones vary more
        seconds, cosines = in_a_fork(timed, depth, width, texts, rounds, rivals)
        worst = min(cosines.values())
        assert worst >= 0.9999, cosines
        how = f"time: SentenceTransformer(stock) / encode(); cosine >= {worst:.6f}"
        answers.append(row("encode()", shape, how, *compared(seconds, "stock", "ours"), least))
        if rivals:
            question, how = "SentenceTransformer over our checkpoint", "time: SentenceTransformer(stock) / (ours)"
            answers.append(row(question, shape, how, *compared(seconds, "stock", "ours in ST"), ">= 1.0"))
            how += ", adapter unmerged; the stock model has it merged"
            answers.append(row(question, shape, how, *compared(seconds, "stock", "adapted in ST"), ">= 1.0"))
    return answers


if __name__ == "__main__":
    show(main())
