"""The demo: adapt the tiny base for about two minutes, then evaluate base, adapted model and the shipped checkpoint.

All its inputs are in the repository (`examples/assets`), so it runs offline from a fresh clone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from magnet_eval.data import read_graded_pairs
from magnet_eval.stories import embedding_row, infilling_row, load, read_stories

from .run import train
from .settings.recipes import parse

ASSETS = Path("examples/assets")
STORIES = ASSETS / "everyday-stories"
COLUMNS = {
    "infill_causal": "infill ppl, left to right",
    "infill_exact": "infill ppl, given length",
    "infill_free": "infill ppl, free length + END",
    "spearman": "Spearman x 100",
    "top1": "top-1 retrieval %",
    "causal_ppl": "causal ppl",
}


def demo(output_dir: str, max_steps: int | None = None) -> dict:
    """
    Trains, evaluates, verifies that the checkpoints load elsewhere, and writes `report.md`.

    Returns:
        The metrics of each system, as printed.
    """
    if not ASSETS.is_dir():
        sys.exit(f"magnet demo: {ASSETS} is not here. Run it from the root of a clone.")
    started, folder = time.monotonic(), Path(output_dir)
    steps = [] if max_steps is None else ["--max_steps", str(max_steps)]
    train(*parse(["--config", "demo", "--output_dir", output_dir, *steps]))
    systems = {
        "base": ASSETS / "magnet-tiny-base",
        "2-minute adaptation": folder,
        "magnet-tiny": ASSETS / "magnet-tiny",
    }
    rows = {name: measure(path, name) for name, path in systems.items()}
    model, tokenizer = load(str(systems["magnet-tiny"]))
    report = "\n\n".join(
        [
            "# MAGNET demo",
            "170 held-out stories; one sentence of five is missing. The base reads from the left only.",
            table(rows),
            "## Five infills (magnet-tiny, length free, greedy)",
            infills(model, tokenizer),
            "## Similarity (magnet-tiny)",
            similarity(model, tokenizer),
            "## Loaded elsewhere",
            *(prove_loading(path) for name, path in systems.items() if name != "base"),
            f"Time: {time.monotonic() - started:.0f} s.",
        ]
    )
    (folder / "report.md").write_text(report + "\n", encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"\n{report}\n\nWritten: {folder}/report.md, {folder}/curves.png and the checkpoint.")
    return rows


def measure(path: Path, name: str) -> dict:
    print(f"measuring {name} ...", flush=True)
    model, tokenizer = load(str(path))
    stories = [story["sentences"] for story in read_stories(STORIES / "validation.jsonl")]
    return infilling_row(model, tokenizer, stories, every=False) | embedding_row(model, tokenizer, STORIES)


def table(rows: dict[str, dict]) -> str:
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[key]:.1f}" if key in row else "-" for key in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def infills(model, tokenizer, count: int = 5) -> str:
    """Fills one sentence in each of the first held-out stories; the gold sentence follows."""
    lines = []
    for number, story in enumerate(read_stories(STORIES / "validation.jsonl")[:count]):
        sentences = list(story["sentences"])
        gone, sentences[number % 5] = sentences[number % 5], "<|gap|>"
        output = model.infill(" ".join(sentences), tokenizer, return_dict=True)
        sentences[number % 5] = f"**{output.gaps[0].text.strip()}**"
        lines.append(f"{number + 1}. {' '.join(sentences)}\n   (it was: {gone})")
    return "\n".join(lines)


def similarity(model, tokenizer) -> str:
    pairs = read_graded_pairs(STORIES / "sts.tsv")
    chosen = [pairs[0], pairs[len(pairs) // 2], pairs[-1]]
    vectors = model.encode([text for pair in chosen for text in pair[1:]], tokenizer)
    cosines = (vectors[0::2] * vectors[1::2]).sum(1)
    lines = ["| grade 0-5 | cosine | | |", "|---|---|---|---|"]
    lines += [f"| {grade:g} | {cosine:.2f} | {a} | {b} |" for (grade, a, b), cosine in zip(chosen, cosines)]
    return "\n".join(lines)


def prove_loading(path: Path) -> str:
    """
    Loads the checkpoint in a fresh process outside the repository, without our packages, and compares the results.

    Raises:
        `RuntimeError` if the process fails or its results differ.
    """
    script = Path("examples/load_anywhere.py").resolve()
    with tempfile.TemporaryDirectory() as elsewhere:
        env = os.environ | {"HF_MODULES_CACHE": elsewhere, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(script), str(path.resolve())]
        done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{path} does not load elsewhere:\n{done.stderr}")
    there = json.loads(done.stdout.splitlines()[-1])
    base, tokenizer = load(str(ASSETS / "magnet-tiny-base"))
    model, _ = load(str(path))
    texts = there["texts"]
    here = model.encode(texts, tokenizer)
    with torch.no_grad():
        logits = base(tokenizer(texts[0], return_tensors="pt")["input_ids"]).logits[0, -1].numpy()
    causal = np.abs(np.array(there["causal_logits"]) - logits).max()
    vectors = max(np.abs(np.array(there[key]) - here).max() for key in ("embeddings", "sentence_transformer"))
    if causal > 0 or vectors > 1e-5:
        raise RuntimeError(f"{path} computes something else elsewhere: logits {causal}, embeddings {vectors}.")
    return (
        f"`{path}` in a fresh process without our packages ({there['class']}): embeddings through AutoModelForCausalLM and "
        f"SentenceTransformer differ by {vectors:.0e} at most, causal logits from the base's by {causal:g}."
    )
