"""lm-eval scores a checkpoint as it scores the base: `--model hf`, unchanged, and causal mode is the base."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
ASSETS = Path(__file__).parents[1] / "examples" / "assets"
TASK = """
task: endings
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{query}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""


def questions() -> list[dict]:
    """The last sentence of a shipped story, among those of three other stories."""
    lines = (ASSETS / "everyday-stories" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    stories = [json.loads(line)["sentences"] for line in lines]
    rows = []
    for n, story in enumerate(stories):
        choices = [stories[(n + k) % len(stories)][-1] for k in (0, 5, 9, 14)]
        choices = choices[-(n % 4) :] + choices[: -(n % 4)]
        rows.append({"query": " ".join(story[:-1]), "choices": choices, "label": choices.index(story[-1])})
    return rows


def evaluate(model: Path, tmp_path: Path) -> list[dict]:
    """The log-likelihoods that lm-eval logs for every choice of every question."""
    output = tmp_path / model.name
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "endings"]
    command += ["--model_args", f"pretrained={model},trust_remote_code=True,dtype=float32"]
    command += ["--include_path", str(tmp_path / "tasks"), "--device", "cpu", "--batch_size", "4"]
    command += ["--output_path", str(output), "--log_samples"]
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    (samples,) = output.rglob("samples_endings_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return [{"doc": row["doc_id"], "likelihoods": row["resps"], "acc": row["acc"]} for row in rows]


def test_a_checkpoint_scores_as_its_base(tmp_path):
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, questions())), encoding="utf-8")
    (tmp_path / "tasks" / "endings.yaml").write_text(TASK % data, encoding="utf-8")
    base, magnet = (evaluate(ASSETS / name, tmp_path) for name in ("magnet-tiny-base", "magnet-tiny"))
    likelihoods = [float(value) for row in base for ((value, _),) in row["likelihoods"]]
    assert len(set(likelihoods)) == len(likelihoods) == 4 * 24 and max(likelihoods) < 0
    assert magnet == base
    print(f"accuracy {sum(row['acc'] for row in base) / len(base):.4f} for both")
