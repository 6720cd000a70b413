"""Model cards: what they say of a run, what they must never say, and that their snippets run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import LlamaConfig

from magnet_hub.card import checkpoint_summary, is_generated, refresh_model_card, write_model_card
from magnet_hub.eval_results import Measured, read_eval_results, write_eval_results
from magnet_hub.export import export_checkpoint
from magnet_hub.save import save_checkpoint
from magnet_hub.training_summary import TrainingSummary, read_training_summary
from modeling_magnet import MagnetLlamaConfig

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "tests" / "assets" / "magnet-tiny"
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "dtype": "float32"}
CONFIG = MagnetLlamaConfig(**SIZES, infill_end_token_id=2)
SPEARMAN = Measured("sentence-similarity", "STS-B", "spearman", 71.25, "STS", "Spearman x 100", [70.5, 72.0])


def run_of(folder: Path, **settings) -> Path:
    """A folder as `magnet train` leaves it."""
    folder.mkdir(exist_ok=True)
    settings = {
        "train_file": "/home/anna/secret/texts.txt",
        "learning_rate": 3e-5,
        "output_dir": str(folder),
    } | settings
    (folder / "training_config.yaml").write_text(yaml.safe_dump(settings))
    lines = [{"step": 20, "loss_mntp": 3.0}, {"step": 40, "loss_mntp": 2.5, "grad_norm": 1.0}]
    (folder / "train_log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 60, "loss_mn')
    return folder


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


# ----------------------------------------------------------------------------------------------------- what it says


TITLES = {
    "magnet": "MAGNET checkpoint",
    "merged": "MAGNET checkpoint, adapter merged",
    "encoder": "MAGNET encoder",
    "generator": "MAGNET generator",
    "adapter": "MAGNET adapter",
}
LIBRARIES = {"encoder": "sentence-transformers", "adapter": "peft"}


@pytest.mark.parametrize("form", TITLES)
def test_metadata_of_each_form(tmp_path, form):
    known = {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "license": "apache-2.0",
        "language": "en",
        "datasets": ["a/b"],
    }
    write_model_card(CONFIG, tmp_path, form, TrainingSummary(known), repo_id="anna/tiny")
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data.items() >= known.items() and "model_name" not in data and "model-index" not in data
    assert data["library_name"] == LIBRARIES.get(form, "transformers")
    assert data["pipeline_tag"] == ("sentence-similarity" if form == "encoder" else "text-generation")
    assert data["base_model_relation"] == ("adapter" if form == "adapter" else "finetune")
    assert "magnet" in data["tags"] and ("custom_code" in data["tags"]) is (form not in ("encoder", "generator"))
    assert card.text.startswith(f"\n# {TITLES[form]}\n\n") and "Licence: apache-2.0, that of the base" in card.text
    assert "https://arxiv.org/abs/2501.08648" in card.text and '"anna/tiny"' in card.text
    assert ("trust_remote_code=True)" in card.text) is (form not in ("encoder", "generator"))
    for rest in ("{{", "{%", "\n\n\n", "None", "Undefined"):  # of the template
        assert rest not in card.text.replace("\nNone: there is no", "").replace("\nNone here: ", "")


def test_licence_by_name_and_what_is_in_it(tmp_path):
    adapter = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    config = MagnetLlamaConfig(**SIZES, adapter=adapter, causal_adapter=True)
    write_model_card(config, tmp_path, summary=TrainingSummary({"license": "other", "license_name": "gemma"}))
    text = text_of(tmp_path)
    assert "Licence: gemma, that of the base model." in text and "Causal mode is adapted too" in text
    assert (
        "* 2 layers, width 64, vocabulary 32000\n* at most 2048 tokens, loads as float32\n* adapter: LoRA r=4" in text
    )
    assert "alpha=8 on q_proj, v_proj\n* gaps of a given length only" in text and "tokenizer, length=8))" in text
    write_model_card(CONFIG, tmp_path)
    assert "Causal mode is the base model's" in text_of(tmp_path) and "length=8" not in text_of(tmp_path)


def test_another_form_is_refused(tmp_path):
    with pytest.raises(ValueError, match="form='onnx': must be one of magnet, merged"):
        write_model_card(CONFIG, tmp_path, "onnx")


def test_a_hub_base_and_hub_data_are_named(tmp_path):
    run = run_of(tmp_path / "run", model_name_or_path="HuggingFaceTB/SmolLM2-135M", train_file="wiki/text:en@v1")
    write_model_card(CONFIG, tmp_path, summary=read_training_summary(run))
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.datasets) == ("HuggingFaceTB/SmolLM2-135M", ["wiki/text"])
    text = text_of(tmp_path)
    assert "https://huggingface.co/HuggingFaceTB/SmolLM2-135M" in text and "`wiki/text:en@v1`" in text
    assert "| learning_rate | 3e-05 |" in text and "step 40, loss_mntp 2.5" in text and "grad_norm" not in text
    assert "license" not in data.to_dict() and "Licence: that of the base model." in text


@pytest.mark.parametrize("exists", [True, False])
def test_local_names_stay_at_home(tmp_path, exists):
    base = tmp_path / "home" / "base"
    if exists:
        base.mkdir(parents=True)
        (base / "README.md").write_text("---\nlicense: llama2\nlanguage: [en, de]\n---\n")
    run = run_of(
        tmp_path / "run", model_name_or_path=str(base), pairs_file="/home/anna/pairs.jsonl", hub_token="hf_abc"
    )
    write_model_card(CONFIG, tmp_path, summary=read_training_summary(run))
    text, data = text_of(tmp_path), ModelCard.load(tmp_path / "README.md").data.to_dict()
    for leak in (str(tmp_path), "/home", "secret", "anna", "hf_abc"):
        assert leak not in text
    assert "base_model" not in data and "a model that is not named here" in text
    assert "`texts.txt`" in text and "`pairs.jsonl`" in text
    assert data.get("license") == ("llama2" if exists else None)
    assert data.get("language") == (["en", "de"] if exists else None)


def test_a_relative_folder_is_no_hub_id(tmp_path, monkeypatch):
    """`runs/base` could be either; where there is such a folder, it is that."""
    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in read_training_summary(run_of(tmp_path / "run", model_name_or_path="runs/base")).metadata


def test_what_was_known_survives_elsewhere(tmp_path, monkeypatch):
    """Refreshed where `runs/base` is no folder, the card still names no base; what is made of it inherits its facts."""
    (tmp_path / "runs" / "base").mkdir(parents=True)
    (tmp_path / "runs" / "base" / "README.md").write_text("---\nlicense: llama2\n---\n")
    monkeypatch.chdir(tmp_path)
    run = run_of(tmp_path / "run", model_name_or_path="runs/base")
    CONFIG.save_pretrained(run)
    write_model_card(CONFIG, run, summary=read_training_summary(run))
    monkeypatch.chdir("/")
    assert refresh_model_card(run, repo_id="anna/tiny")
    data = ModelCard.load(run / "README.md").data
    assert data.base_model is None and data.license == "llama2" and '"anna/tiny"' in text_of(run)
    made = tmp_path / "made"
    made.mkdir()
    write_model_card(CONFIG, made, "encoder", summary=checkpoint_summary(run))
    assert ModelCard.load(made / "README.md").data.license == "llama2" and "3e-05" in text_of(made)


@pytest.mark.parametrize("content", ["no yaml at all", "---\n- a list\n---\n", "---\n: [\n---\n"])
def test_a_base_with_a_broken_card_is_a_base_without(tmp_path, content):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(content)
    assert read_training_summary(run_of(tmp_path / "run", model_name_or_path=str(base))).metadata == {}


# ------------------------------------------------------------------------------------------ overwritten, or left alone


def test_an_edited_card_is_left_alone(tmp_path):
    CONFIG.save_pretrained(tmp_path)
    write_model_card(CONFIG, tmp_path)
    assert is_generated(tmp_path) and refresh_model_card(tmp_path) and is_generated(tmp_path)
    mine = text_of(tmp_path).replace("## Results", "I tried it and it is fine.\n\n## Results")
    (tmp_path / "README.md").write_text(mine)
    assert not is_generated(tmp_path) and not refresh_model_card(tmp_path)
    assert text_of(tmp_path) == mine
    assert checkpoint_summary(tmp_path) == TrainingSummary()  # what others wrote is not taken over as known


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_refreshed_card_keeps_form_and_name(tmp_path, form):
    if form == "adapter":  # it has no config.json
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"]}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    else:
        CONFIG.save_pretrained(tmp_path)
    write_model_card(None if form == "adapter" else CONFIG, tmp_path, form, repo_id="anna/tiny")
    before = text_of(tmp_path)
    assert refresh_model_card(tmp_path) and text_of(tmp_path) == before
    assert f"# {TITLES[form]}\n" in before and '"anna/tiny"' in before
    assert ("* adapter: LoRA r=4, alpha=8 on q_proj, v_proj" in before) is (form == "adapter")


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (CONFIG, "magnet"),
        (MagnetLlamaConfig(hidden_size=64, num_attention_heads=4, causal_adapter=True), "merged"),
        (LlamaConfig(architectures=["LlamaModel"]), "encoder"),
        (LlamaConfig(architectures=["LlamaForCausalLM"]), "generator"),
    ],
)
def test_a_checkpoint_without_a_card_gets_that_of_its_form(tmp_path, config, form):
    config.save_pretrained(tmp_path)
    assert refresh_model_card(tmp_path) and f"# {TITLES[form]}\n" in text_of(tmp_path)


# ---------------------------------------------------------------------------------------------------- measured figures


def test_measured_figures_stand_in_table_and_model_index(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    CONFIG.save_pretrained(tmp_path)
    write_eval_results(tmp_path, [SPEARMAN])
    write_eval_results(
        tmp_path, [Measured("text-generation", "stories", "perplexity", 12.5, command="magnet evaluate")]
    )
    assert refresh_model_card(tmp_path, repo_id="anna/tiny")
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [(each.task_type, each.metric_value) for each in results] == [
        ("sentence-similarity", 71.25),
        ("text-generation", 12.5),
    ]
    text = text_of(tmp_path)
    assert "| STS | STS-B | Spearman x 100 | 71.25 (70.5 to 72) |" in text and "```bash\nmagnet evaluate\n```" in text
    write_eval_results(tmp_path, [Measured("text-generation", "stories", "perplexity", 11.0)])  # measured anew
    assert [each.value for each in read_eval_results(tmp_path)] == [71.25, 11.0]


def test_figures_of_other_weights_are_left_out(tmp_path, caplog):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_eval_results(tmp_path, [SPEARMAN])
    (tmp_path / "model.safetensors").write_bytes(b"trained further")
    assert read_eval_results(tmp_path) == [] and "measured with other weights" in caplog.text
    write_model_card(CONFIG, tmp_path)
    assert "71.25" not in text_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "value=nan"),
        ({"value": "71"}, "value='71'"),
        ({"interval": [1.0]}, r"interval=\[1.0\]"),
        ({"metric": ""}, "metric=''"),
        ({"dataset_name": "/home/anna/sts.tsv"}, "dataset_name='/home/anna/sts.tsv': contains a local path"),
        ({"command": "magnet evaluate --data '/home/x'"}, "command=.*contains a local path"),
    ],
)
def test_figures_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Measured(**SPEARMAN.__dict__ | change)


@pytest.mark.parametrize("content", ["{", "[]", '{"weights": {}}', '{"weights": {}, "results": [{"f1": 1}]}'])
def test_a_file_of_another_form_is_named(tmp_path, content):
    (tmp_path / "eval_results.json").write_text(content)
    with pytest.raises(ValueError, match="eval_results.json: not in the format"):
        read_eval_results(tmp_path)


# ------------------------------------------------------------------------------------------------------- snippets run


@pytest.mark.slow
def test_snippets_run_where_the_project_is_not_installed(tmp_path, text_magnet, tokenizer):
    save_checkpoint(
        text_magnet(infill_end_token_id=None), tokenizer, tmp_path / "exact"
    )  # its infill() needs a length
    save_checkpoint(text_magnet(), tokenizer, tmp_path / "magnet")
    for form in ("encoder", "generator", "adapter"):
        export_checkpoint(tmp_path / "magnet", tmp_path / form, form)
    folders = [str(tmp_path / name) for name in ("exact", "magnet", "encoder", "generator", "adapter")]
    settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | settings
    command = [sys.executable, "-I", str(ROOT / "tests" / "run_card.py"), *folders]
    closed = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, **closed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[y/N]" not in done.stdout + done.stderr  # whether to run the code is said, not asked
    printed = re.findall(r"== (\w+)\n(.*?)(?=== |\Z)", done.stdout, flags=re.DOTALL)
    assert [name for name, _ in printed] == ["exact", "exact", "magnet", "magnet", "encoder", "generator", "adapter"]
    for name, text in printed:
        assert text.strip(), name
    assert done.stdout.count("Tom was hungry. ") == 3 and done.stdout.count("(2, 64)") == 5
