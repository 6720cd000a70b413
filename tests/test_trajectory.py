"""Twenty steps of losses and gradient norms are what they were: nothing that counts has changed by the way.

After a change that is meant, write them anew and say so in the commit:    python tests/test_trajectory.py
"""

import json
import platform
import tempfile
from pathlib import Path

import accelerate
import numpy
import pytest
import torch
import transformers
from training import log_of, magnet, make_trainer, texts

STORED = Path(__file__).with_name("trajectory.json")
RUNS = {
    "magnet": {"sscl_start_step": 8, "view": {"gap_layout": "mixed", "free_offset": 16, "clean_context_ratio": 0.5}},
    "paper layout, accumulated": {"sscl_start_step": 0, "view": {}, "gradient_accumulation_steps": 2},
    "causal rows and KL": {"view": {"all_span_ratio": 0.5}, "causal_adapter": True, "lambda_kl": 1.0},
}
KEPT = ("loss", "loss_mntp", "loss_sscl", "loss_msg", "loss_kl", "grad_norm")


def trajectory(run: dict) -> list[dict[str, float]]:
    settings = {"causal_adapter": run["causal_adapter"]} if "causal_adapter" in run else {}
    options = {"per_device_train_batch_size": 4, "max_steps": 20, "learning_rate": 1e-3, "max_grad_norm": 1.0}
    options |= {key: value for key, value in run.items() if key != "causal_adapter"}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, magnet(**settings), rows=texts(30, seed=5), **options)
        trainer.train()
    return [{key: line[key] for key in KEPT if key in line} for line in log_of(trainer)]


def versions() -> dict[str, str]:
    modules = (torch, transformers, accelerate, numpy)
    return {"python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}


@pytest.mark.parametrize(
    "name", [name if name == "magnet" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_trajectory_is_the_stored_one(name):
    stored = json.loads(STORED.read_text())
    expected, found = stored["runs"][name], trajectory(RUNS[name])
    assert len(found) == len(expected) == 20
    for step, (now, then) in enumerate(zip(found, expected)):
        assert now.keys() == then.keys(), f"step {step}"
        for key, value in then.items():
            told = f"{key} at step {step}; stored with {stored['versions']}, now {versions()}"
            assert now[key] == pytest.approx(value, rel=1e-4), told


def test_stored_runs_differ_and_train():
    runs = json.loads(STORED.read_text())["runs"]
    assert runs.keys() == RUNS.keys()
    assert len({json.dumps(run[0]) for run in runs.values()}) == len(runs)
    for run in runs.values():
        assert len({json.dumps(line) for line in run}) == 20
        assert all(value == value for line in run for value in line.values())


if __name__ == "__main__":
    written = {"versions": versions(), "runs": {name: trajectory(run) for name, run in RUNS.items()}}
    STORED.write_text(json.dumps(written, indent=1) + "\n")
