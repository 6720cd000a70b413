"""The scripts that reproduce the paper: every command runs on the tiny model, what is done is skipped, budgets are equal."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import magnet, make_trainer

from magnet_train.settings.recipes import parse

ROOT = Path(__file__).parents[1]
SYSTEMS = {
    "reproduce_smollm2": "magnet magnet-paper base causal causal-contrastive fim llm2vec-mntp llm2vec magnet-mntp magnet-sscl "
    "magnet-mntp-msg magnet-sscl-msg magnet-all mtp-1 mtp-2 magnet-mntp-2 magnet-paper-2 llm2vec-mntp-2",
    "reproduce_llama2_7b": "magnet magnet-paper base causal fim llm2vec-mntp llm2vec mtp magnet-mntp magnet-sscl magnet-mntp-msg "
    "magnet-sscl-msg",
    "reproduce_smollm2_1_7b": "magnet magnet-paper base causal fim llm2vec-mntp llm2vec mtp magnet-mntp magnet-sscl "
    "magnet-mntp-msg magnet-sscl-msg",
}


def collected(script: str, folder: Path, **env) -> list[str]:
    """Runs a script dry, and returns its commands."""
    env = os.environ | {"DRY_RUN": "1", "RUNS": str(folder), "PYTHON": sys.executable} | env
    run = subprocess.run([ROOT / "examples" / f"{script}.sh"], env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    return (folder / "commands.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("script", SYSTEMS)
def test_every_command_runs_and_is_not_run_twice(script, tmp_path):
    commands = collected(script, tmp_path)
    content = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert {row["system"] for row in content["figures"]} >= set(SYSTEMS[script].split())
    assert (tmp_path / "report" / "overview.svg").is_file() and sum("magnet train" in each for each in commands) >= 11
    again = collected(script, tmp_path, PYTHON="true")  # collects what is left to do, and runs none of it
    assert again == [each for each in commands if each.startswith("magnet evaluate")]


def test_systems_have_the_same_budget(tmp_path):
    budgets = {}
    for command in collected("reproduce_smollm2", tmp_path, PYTHON="true"):
        if "--config smollm2" in command:
            name = re.search(r"--output_dir \S*/(\S+)", command)[1]
            flags = shlex.split(command.split(" --max_steps 2 ")[0])[2:]  # without those of a dry run
            model, _, views, training = parse([*flags, "--use_cpu"])
            rows = training.gradient_accumulation_steps, views.max_length
            pairs = training.per_device_pair_batch_size if training.lambda_sscl else 0
            assert (model.lora_r, len(model.lora_target_modules), rows) == (32, 7, (1, 256))
            budgets[name] = training.max_steps, training.per_device_train_batch_size, pairs
    first, second = {"magnet-1", "causal-1", "fim-1", "llm2vec-mntp"}, {"causal-contrastive", "magnet", "llm2vec"}
    expected = dict.fromkeys(first, (800, 16, 0)) | dict.fromkeys(second, (90, 8, 40))
    expected |= {"causal": (90, 8, 0), "fim": (90, 8, 0)}
    expected |= dict.fromkeys(("mntp-1", "mtp", "msg-1", "all-1"), (267, 16, 0))
    expected |= dict.fromkeys(("magnet-mntp", "magnet-mntp-msg"), (30, 8, 0))
    assert budgets == expected | dict.fromkeys(("magnet-sscl", "magnet-sscl-msg", "magnet-all"), (30, 8, 40))


def test_the_contrastive_control_reads_pairs_causally(tmp_path, monkeypatch):
    control = runpy.run_path(str(ROOT / "examples" / "reproduce_contrastive.py"))["CausalPairsTrainer"]
    monkeypatch.setattr("training.MagnetTrainer", control)
    trainer = make_trainer(tmp_path, model=magnet(projection_head="none", causal_adapter=True))
    ids = torch.tensor([[1, 10, 30, 2], [1, 40, 50, 2]])
    chunk = {"pair_input_ids": ids, "pair_attention_mask": torch.ones_like(ids)}
    hidden = trainer.model.model(ids, attention_mode="causal").last_hidden_state[:, -1]
    found = trainer.sentence_vectors(trainer.model, chunk)[0]
    torch.testing.assert_close(found, torch.nn.functional.normalize(hidden, dim=-1))
    with pytest.raises(ValueError, match="causal_adapter=False: the adapter would be off"):
        make_trainer(tmp_path, model=magnet()).sentence_vectors(trainer.model, chunk)
