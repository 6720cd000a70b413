"""Checkpoints of the format before, whose adapter lay in PEFT's layers, become present ones: once, in a folder of their own."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from magnet_hub.card import check_code, is_generated, refresh_model_card
from magnet_hub.convert import convert_checkpoint, main
from magnet_hub.eval_results import Measured, read_eval_results, write_eval_results
from magnet_hub.push import check_folder
from magnet_hub.save import save_checkpoint

CODE = {f"{name}_magnet.py" for name in ("configuration", "encoding", "infilling", "modeling", "scoring")}


def old_name(name: str, names) -> str:
    layer, _, last = name.rpartition(".")
    if last == "weight" and f"{layer}_lora.A" in names:
        return f"{layer}.base_layer.weight"
    return name.replace("_lora.A", ".lora_A.magnet.weight").replace("_lora.B", ".lora_B.magnet.weight")


def make_old(folder: Path) -> None:
    """Gives a checkpoint the names of tensors and the files of code that it would have had."""
    names = {name for path in folder.glob("*.safetensors") for name in load_file(path)}
    for path in folder.glob("*.safetensors"):
        weights = {old_name(name, names): tensor for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    for index in folder.glob("*.index.json"):
        content = json.loads(index.read_text())
        content["weight_map"] = {old_name(name, names): file for name, file in content["weight_map"].items()}
        index.write_text(json.dumps(content))
    for path in folder.glob("*.py"):
        path.unlink()
    for name in ("modeling", "configuration", "adapter", "gaps"):
        (folder / f"{name}_magnet.py").write_text("raise RuntimeError('the old code')\n")
    (folder / "README.md").unlink(missing_ok=True)
    refresh_model_card(folder, repo_id="anna/tiny")


@pytest.fixture
def model(text_magnet):
    return text_magnet(projection_head="mlp")


@pytest.fixture
def old(model, tokenizer, tmp_path):
    save_checkpoint(model, tokenizer, tmp_path / "old")
    make_old(tmp_path / "old")
    write_eval_results(tmp_path / "old", [Measured("sentence-similarity", "STS-B", "spearman", 71.25)])
    refresh_model_card(tmp_path / "old")
    return tmp_path / "old"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_old_format_is_not_loaded_in_part(old):
    with pytest.raises(ValueError, match="has no tensors for model.layers.0.self_attn.k_proj.weight"):
        AutoModelForCausalLM.from_pretrained(old, trust_remote_code=False)


def test_converted(old, model, caplog):
    before, new = contents(old), old.with_name("new")
    with caplog.at_level(logging.WARNING):
        convert_checkpoint(old, new)
    assert contents(old) == before
    assert {path.name for path in new.glob("*.py")} == CODE and contents(new).keys() - CODE == before.keys() - {
        name for name in before if name.endswith(".py")
    }
    loaded = AutoModelForCausalLM.from_pretrained(new, trust_remote_code=False)
    assert type(loaded) is type(model)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert before["config.json"] == contents(new)["config.json"]
    assert read_eval_results(new) == read_eval_results(old) != [] and "other weights" not in caplog.text
    check_folder(new)
    check_code(new)
    text = (new / "README.md").read_text(encoding="utf-8")
    assert is_generated(new) and "gaps_magnet.py" not in text and "scoring_magnet.py" in text
    assert '"anna/tiny"' in text and "71.25" in text


def test_shards_and_a_card_written_by_hand(old, model):
    shutil.copy(old / "README.md", old.with_name("card.md"))
    model.save_pretrained(old, max_shard_size="300KB")
    (old / "model.safetensors").unlink(missing_ok=True)
    make_old(old)
    with (old / "README.md").open("a") as card:
        card.write("I tried it and it is fine.\n")
    main([str(old), str(old.with_name("new"))])
    assert len(list(old.with_name("new").glob("model-*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(old.with_name("new"), trust_remote_code=False)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert "it is fine" in (old.with_name("new") / "README.md").read_text() and not is_generated(old.with_name("new"))
    check_code(old.with_name("new"))


def test_a_classifier(model, tmp_path):
    """It has neither tokenizer nor card here: only weights, settings and code are written."""
    model.save_pretrained(tmp_path / "lm")
    head = AutoModelForTokenClassification.from_pretrained(tmp_path / "lm", num_labels=5, trust_remote_code=False)
    head.save_pretrained(tmp_path / "old")
    make_old(tmp_path / "old")
    (tmp_path / "old" / "README.md").unlink()
    convert_checkpoint(tmp_path / "old", tmp_path / "new")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "new", trust_remote_code=False)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in head.state_dict().items())
    assert contents(tmp_path / "new").keys() == CODE | {"config.json", "model.safetensors"}


def test_what_is_refused_leaves_nothing(old):
    new = old.with_name("new")
    new.mkdir()
    (new / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        convert_checkpoint(old, new)
    weights = load_file(old / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no tensors for model.layers.1.mlp.up_proj.weight"):
        convert_checkpoint(old, old.with_name("newer"))
    assert {path.name for path in old.parent.iterdir()} == {"old", "new"}
    assert [path.name for path in new.iterdir()] == ["mine.txt"]
