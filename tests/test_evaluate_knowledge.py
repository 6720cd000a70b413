"""lm-eval scores a checkpoint as it scores the base: by its own command, and by `magnet evaluate knowledge`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from magnet_eval import knowledge
from magnet_eval.data import Settings
from magnet_eval.systems import load_system

pytest.importorskip("lm_eval")
ASSETS = Path(__file__).parent / "assets"
STORIES = Path(__file__).parents[1] / "examples" / "assets" / "everyday-stories"
TASK = """
task: endings
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{query}}"
doc_to_target: gold
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """The last sentence of a shipped story, among those of three other stories: as questions, and as a task of lm-eval."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = (STORIES / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    stories = [json.loads(line)["sentences"] for line in lines]
    rows = []
    for n, story in enumerate(stories):
        choices = [stories[(n + k) % len(stories)][-1] for k in (0, 5, 9, 14)]
        choices = choices[-(n % 4) :] + choices[: -(n % 4)]
        rows.append({"query": " ".join(story[:-1]), "choices": choices, "gold": choices.index(story[-1])})
    folder = tmp_path / "data"
    (folder / "lm_eval").mkdir(parents=True)
    (folder / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "lm_eval" / "endings.yaml").write_text(TASK % (folder / "arc_easy.jsonl"), encoding="utf-8")
    return folder


def by_command(model: Path, data: Path, tmp_path) -> list[dict]:
    """The log-likelihoods that lm-eval logs for every choice of every question."""
    output = tmp_path / model.name
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "endings"]
    command += ["--model_args", f"pretrained={model},trust_remote_code=True,dtype=float32"]
    command += ["--include_path", str(data / "lm_eval"), "--device", "cpu", "--batch_size", "4"]
    command += ["--output_path", str(output), "--log_samples"]
    run = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (samples,) = output.rglob("samples_endings_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return [{"doc": row["doc_id"], "likelihoods": row["resps"], "acc": row["acc"]} for row in rows]


def test_a_checkpoint_scores_as_its_base(data, tmp_path):
    base, magnet = (by_command(ASSETS / name, data, tmp_path) for name in ("magnet-tiny-base", "magnet-tiny"))
    likelihoods = [float(value) for row in base for ((value, _),) in row["likelihoods"]]
    assert len(set(likelihoods)) == len(likelihoods) == 4 * 24 and max(likelihoods) < 0
    assert magnet == base
    figures, _ = knowledge.measure(load_system("magnet", str(ASSETS / "magnet-tiny")), Settings(data))
    found = {(figure.data, figure.measure): figure for figure in figures}
    assert set(found) == {("arc_easy", "acc %"), ("arc_easy", "acc_norm %"), ("endings", "acc %")}
    answers = sorted(base, key=lambda row: row["doc"])
    assert found["endings", "acc %"].columns[0].tolist() == [100 * row["acc"] for row in answers]


def test_questions_without_an_answer_are_refused(data):
    (data / "arc_easy.jsonl").write_text('{"query": "a", "choices": ["b"]}')
    with pytest.raises(ValueError, match="arc_easy.jsonl:1: has no column 'gold'"):
        knowledge.measure(None, Settings(data))
