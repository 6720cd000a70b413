"""Where a run's settings came from: what is printed, what is stored, and that it can be read back."""

import json
import pickle

import pytest
import yaml

from magnet_train.run import main
from magnet_train.settings.provenance import ConfigurationCallback, configuration, describe
from magnet_train.settings.recipes import OWN_NAMES, parse, parse_with_sources

BASE = ["--model_name_or_path", "base", "--train_file", "texts.txt"]


def test_configuration_tells_values_and_their_sources(tmp_path):
    flags = ["--config", "default", *BASE, "--use_cpu", "--output_dir", str(tmp_path), "--adam_beta2", "0.95"]
    *arguments, sources = parse_with_sources(
        [*flags, "--hub_token", "hf_secret", "--report_to", "tensorboard", "mlflow"]
    )
    text = describe(arguments, sources)
    lines = text.splitlines()
    for line in (
        "learning_rate: 3.0e-05  # paper.yaml",
        "gap_layout: mixed  # default.yaml",
        "adam_beta2: 0.95  # flag",
        "text_column: text  # default",
        "lora_target_modules: [q_proj, k_proj, v_proj, o_proj]  # paper.yaml",
        "report_to: [tensorboard, mlflow]  # flag",
    ):
        assert line in lines, line
    named = {line.split(":")[0] for line in lines[:-1]}
    assert set(OWN_NAMES) <= named and not {"adam_beta1", "seed"} & named  # these two are at their defaults
    more = len(configuration(arguments)) - len(named)
    assert lines[-1] == f"({more} more of TrainingArguments are at their defaults)" and more > 80
    assert "hf_secret" not in text and "hub_token" not in text


@pytest.mark.parametrize("name", ["paper", "demo", "llm2vec"])
def test_stored_configuration_gives_the_same_arguments(name, tmp_path):
    given = [] if name == "demo" else BASE
    flags = [*given, "--use_cpu", "--output_dir", str(tmp_path), "--lr_scheduler_kwargs", '{"num_cycles": 2}']
    flags += ["--mask_token", "# -", "--hub_token", "hf_secret", "--report_to", "tensorboard"]
    *arguments, sources = parse_with_sources(["--config", name, *flags])
    stored = tmp_path / "training_config.yaml"
    stored.write_text(ConfigurationCallback(arguments, sources).text, encoding="utf-8")
    assert "hf_secret" not in stored.read_text()
    again = parse(["--config", str(stored)])
    assert configuration(again) == configuration(arguments)
    for one, other in zip(arguments[:3], again):
        assert one == other
    assert again[3].lr_scheduler_kwargs == {"num_cycles": 2} and again[0].mask_token == "# -"


def test_a_run_prints_its_settings_and_keeps_them(tmp_path, base_model_path, capsys):
    story = "Tom was hungry. He opened the fridge and took a yoghurt. Then he was full and went to bed."
    (tmp_path / "texts.jsonl").write_text((json.dumps({"story": story}) + "\n") * 4)
    (tmp_path / "own.yaml").write_text("extends: ablation_mntp_msg\nbf16: false\ndtype: float32\ntext_column: story\n")
    sizes = "--max_steps 1 --max_length 32 --span_max 8 --per_device_train_batch_size 2 --use_cpu --disable_tqdm true"
    where = [str(base_model_path), str(tmp_path / "texts.jsonl"), str(tmp_path / "out")]
    names = ("--model_name_or_path", "--train_file", "--output_dir")
    flags = [part for pair in zip(names, where) for part in pair] + sizes.split() + ["--hub_token", "hf_secret"]
    flags += ["--report_to", "tensorboard"]
    main(["--config", str(tmp_path / "own.yaml"), *flags])
    printed, stored = capsys.readouterr(), tmp_path / "out" / "training_config.yaml"
    for line in (
        "text_column: story  # own.yaml",
        "lambda_sscl: 0.0  # ablation_mntp_msg.yaml",
        "max_steps: 1  # flag",
    ):
        assert line in printed.out.splitlines() and line in stored.read_text().splitlines()
    assert (tmp_path / "out" / "checkpoint-1" / "training_config.yaml").read_text() == stored.read_text()
    assert "hf_secret" not in printed.out + printed.err
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"training_args.bin", "trainer_state.json", "complete.json", "train_log.jsonl", "config.json"} <= names
    assert any("tfevents" in name for name in names)
    told = [path.name for path in files if b"hf_secret" in path.read_bytes()]
    assert told == []  # a checkpoint is for others to load
    assert yaml.safe_load(stored.read_text())["learning_rate"] == 3e-5
    again = parse(["--config", str(stored)])
    assert (again[0].model_name_or_path, again[3].output_dir, again[3].max_steps) == (where[0], where[2], 1)


def test_the_token_stays_with_the_run(tmp_path):
    """It is left out of what is pickled, not taken from the arguments that push to the Hub."""
    args = parse([*BASE, "--use_cpu", "--output_dir", str(tmp_path), "--hub_token", "hf_secret"])[3]
    assert args.hub_token == "hf_secret"
    assert b"hf_secret" not in pickle.dumps(args)
    again = pickle.loads(pickle.dumps(args))
    assert again.hub_token is None and again.lambda_sscl == args.lambda_sscl
    assert args.hub_token == "hf_secret"


def test_help_is_about_our_arguments(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and len(text.splitlines()) < 120
    assert all(f"  --{name} " in text for name in OWN_NAMES)
    assert "ablation_sscl_msg" in text and "ddp_timeout" in text


def test_recipe_extends_another(tmp_path):
    """Down to the last one; a name is one of ours, a file lies beside the one that names it."""
    (tmp_path / "lower.yaml").write_text("extends: paper\nlora_r: 4\nmax_spans: 1\n")
    (tmp_path / "own.yaml").write_text("extends: lower.yaml\nmax_spans: 3\nsave_total_limit: null\n")
    model, _, view, training, sources = parse_with_sources(
        ["--config", str(tmp_path / "own.yaml"), *BASE, "--use_cpu", "--seed", "42"]
    )
    assert (model.lora_r, view.max_spans, training.learning_rate, training.save_total_limit) == (4, 3, 3e-5, None)
    found = {key: sources[key] for key in ("lora_r", "max_spans", "learning_rate", "seed", "train_file")}
    assert found == {
        "lora_r": "lower.yaml",
        "max_spans": "own.yaml",
        "learning_rate": "paper.yaml",
        "seed": "flag",  # although it is the default's value
        "train_file": "flag",
    }
    assert not {"extends", "text_column"} & set(sources)
