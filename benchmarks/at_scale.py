"""Ray Data with two workers against one process on the same cores: encode and infill, texts a second; not part of `make bench`.

    pip install 'ray[data]>=2.60'
    python benchmarks/at_scale.py

A random Llama. Each way runs with few and with more texts, and the difference counts, so that starting Ray and loading the model,
which a large set of texts pays once, are left out. Wall-clock time, two threads; a Ray worker has one. Prints rows as the other
benchmarks do; `run.py` takes them from docs/measured/at_scale.json.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from common import ROOT, load_tokenizer, magnet, mixed_texts, random_llama, row, show

from magnet_hub.save import save_checkpoint

OUT = ROOT / "docs" / "measured" / "at_scale.json"
CORES = 2


def gapped(text: str) -> str:
    """The text with a gap in its middle."""
    words = text.split()
    return " ".join([*words[: len(words) // 2], "<|gap|>", *words[len(words) // 2 :]])


def with_ray(task: type, model: str, texts: list[str], folder: Path) -> float:
    """Seconds of a whole job, without `ray.init`."""
    import encode_at_scale

    (folder / "in").mkdir(parents=True)
    for part in range(4):
        table = pyarrow.table({"id": range(part, len(texts), 4), "text": texts[part::4]})
        pyarrow.parquet.write_table(table, folder / "in" / f"{part}.parquet")
    started = time.perf_counter()
    names = [str(folder / name) for name in ("in", "out", "done")]
    encode_at_scale.process(task, *names, model, CORES, 0, max(len(texts) // 8, 1), 32)
    seconds = time.perf_counter() - started
    assert pyarrow.parquet.read_table(folder / "out").num_rows == len(texts)
    return seconds


def alone(task: type, model: str, texts: list[str]) -> float:
    """Seconds of the same rows in this process, without loading the model."""
    worker, rows = task(model, 32), pyarrow.table({"id": range(len(texts)), "text": texts})
    started = time.perf_counter()
    assert worker(rows).num_rows == len(texts)
    return time.perf_counter() - started


def main(layers: int = 4, hidden: int = 512, encoded: int = 200, infilled: int = 20) -> list[dict]:
    sys.path.append(str(ROOT / "examples"))
    search = [str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(search)  # of the workers, who import the classes from there
    import encode_at_scale
    import ray

    torch.set_num_threads(CORES)
    ray.init(num_cpus=CORES + 2, include_dashboard=False, log_to_driver=False)
    answers = []
    with tempfile.TemporaryDirectory() as scratch:
        model = str(Path(scratch, "model"))
        save_checkpoint(magnet(random_llama(layers, hidden, 4096), 16), load_tokenizer(), Path(model))
        for name, count in (("encode", encoded), ("infill", infilled)):
            task, texts = encode_at_scale.TASKS[name], mixed_texts(4 * count)
            texts = texts if name == "encode" else [gapped(text) for text in texts]
            some, all_ = texts[:count], texts
            ways = {
                "one process": lambda part, task=task: alone(task, model, part),
                "Ray": lambda part, task=task, name=name: with_ray(
                    task, model, part, Path(scratch, f"{name}-{len(part)}")
                ),
            }
            few = {way: call(some) for way, call in ways.items()}
            rates = {way: 3 * count / (call(all_) - few[way]) for way, call in ways.items()}
            told = ", ".join(f"{way} {rate:.1f}" for way, rate in rates.items())
            shape = f"{layers} layers of {hidden}, LoRA, {3 * count} texts from sentences to pages"
            how = f"texts a second: Ray with {CORES} workers / one process with {CORES} threads ({told})"
            answers.append(row(f"{name} at scale", shape, how, rates["Ray"] / rates["one process"], None, None))
    return answers


if __name__ == "__main__":
    answers = main()
    OUT.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    show(answers)
