"""Nothing of a checkpoint runs unasked, nothing outside its folder is read, and damage is refused by name."""

import json
import os
import shutil

import pytest
import torch
from families import build_base
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from magnet_cli.main import main
from magnet_hub.check import Checkpoint, run_checks
from magnet_hub.save import save_checkpoint
from magnet_hub.trust import check_source
from magnet_train import run
from magnet_train.run import TRAINED, export
from modeling_magnet import MagnetLlamaConfig, MagnetLlamaForCausalLM

GAP = "Tom was hungry. <|gap|> He was full."
COMMANDS = {
    "infill": ["infill", GAP, "--length", "3"],
    "encode": ["encode", "Tom was hungry."],
    "evaluate": ["evaluate", "infill", "--data", "data", "--out", "report"],
    "export": ["export", "--output_dir", "out"],
    "train": ["train", "--train_file", "texts.txt", "--output_dir", "out", "--max_steps", "1", "--lambda_sscl", "0"],
}


@pytest.fixture
def folder(text_magnet, tokenizer, tmp_path, monkeypatch):
    """A checkpoint in two shards; the working directory has what commands read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "texts.txt").write_text("Tom was hungry and went to the kitchen to look for bread.\n" * 64)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "validation.jsonl").write_text(json.dumps({"sentences": ["Tom ran.", "He fell."]}) + "\n")
    save_checkpoint(text_magnet(), tokenizer, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def in_shards(folder) -> dict:
    """Splits the weights in two files with an index, and returns the index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    return {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}


def ends(command: str, folder, match: str) -> None:
    with pytest.raises(SystemExit, match=match):
        main([*COMMANDS[command], "--model_name_or_path", str(folder)])
    assert not os.path.exists("out/model.safetensors")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("way", ["parent", "absolute", "link"])
def test_no_weights_are_read_outside_the_folder(folder, tmp_path, command, way):
    index = in_shards(folder)
    (folder / "two.safetensors").rename(tmp_path / "two.safetensors")
    outside = {
        "parent": "../two.safetensors",
        "absolute": str(tmp_path / "two.safetensors"),
        "link": "two.safetensors",
    }
    if way == "link":
        (folder / "two.safetensors").symlink_to(tmp_path / "two.safetensors")
    index["weight_map"] = {
        name: outside[way] if file.startswith("two") else file for name, file in index["weight_map"].items()
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    AutoModelForCausalLM.from_pretrained(folder)  # transformers itself would read it
    told = {
        "parent": "a shard outside the folder",
        "absolute": "a shard by an absolute path",
        "link": "is a link out of",
    }
    ends(command, folder, told[way])


def test_a_link_to_a_file_of_any_kind_is_refused_and_the_hubs_cache_is_not(folder, tmp_path):
    snapshot, blobs = tmp_path / "models--me" / "snapshots" / "abc", tmp_path / "models--me" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for path in [path for path in snapshot.iterdir() if path.is_file()]:
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    check_source(snapshot)
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match="tokenizer.json is a link out"):
        check_source(folder)


# -------------------------------------------------------------------------------------------------- code of elsewhere


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_no_configuration_chooses_a_kernel(folder, key):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {key: "evil/attn"}))
    for config in (AutoConfig.from_pretrained(folder), MagnetLlamaConfig.from_pretrained(folder)):
        assert "evil" not in repr(vars(config))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config._attn_implementation == "sdpa"
    assert (
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").config._attn_implementation
        == "eager"
    )
    ends("infill", folder, f"config.json sets {key}='evil/attn', external code")


def test_nor_does_that_of_a_plain_base(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_base("llama", vocab_size=4096).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(settings | {"attn_implementation": "evil/attn"}))
    assert MagnetLlamaForCausalLM.from_pretrained(tmp_path / "base").config._attn_implementation == "sdpa"
    (tmp_path / "texts.txt").write_text("Tom was hungry and went to the kitchen.\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "validation.jsonl").write_text(json.dumps({"sentences": ["Tom ran.", "He fell."]}) + "\n")
    for command in ("evaluate", "train"):
        ends(command, tmp_path / "base", "external code")


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_pickle_is_read(folder, tmp_path, command):
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Canary(str(tmp_path / "canary"))}, folder / "pytorch_model.bin")
    ends(command, folder, "pytorch_model.bin is a pickle, which may run code. Convert it to safetensors")
    assert not (tmp_path / "canary").exists()


def test_nor_one_of_harmless_tensors_beside_the_commands(tmp_path):
    base = build_base("llama")
    base.save_pretrained(tmp_path)
    torch.save(base.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "train"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder, command, value, capsys):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ends(command, folder, "the tensor model.layers.1.mlp.up_proj.weight contains NaN or infinity")
    assert capsys.readouterr().out == ""


def test_a_tokenizer_that_panics_is_told_in_one_line(folder, capfd):
    settings = json.loads((folder / "tokenizer.json").read_text())
    endless = {"type": "Split", "pattern": {"Regex": r"(\w+\s?)+$"}, "behavior": "Isolated", "invert": False}
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [endless, settings["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    text = (
        "Tom was hungry and he went on and on to the other side of the wide river with his many friends. <|gap|> Yes."
    )
    with pytest.raises(SystemExit, match="magnet infill: error: PanicException: .*retry-limit"):
        main(["infill", text, "--model_name_or_path", str(folder)])
    outcomes = list(run_checks(Checkpoint(folder)))
    assert any("PanicException" in each.detail for each in outcomes if each.status == "FAIL")


# ---------------------------------------------------------------------------------------- an export that finds no room


@pytest.fixture
def trainer(text_magnet, tokenizer, tmp_path):
    """What `export` asks of one."""
    model, folder = text_magnet(), tmp_path / "out"
    folder.mkdir()

    class Accelerator:
        get_state_dict = staticmethod(lambda wrapped: wrapped.state_dict())
        unwrap_model = staticmethod(lambda model, keep_torch_compile: model)
        wait_for_everyone = staticmethod(lambda: None)

    class Trainer:
        accelerator, processing_class = Accelerator(), tokenizer
        args = type("Args", (), {"output_dir": str(folder)})
        is_world_process_zero = staticmethod(lambda: True)

    Trainer.model = Trainer.model_wrapped = model
    return Trainer()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
@pytest.mark.parametrize("room", ["there", "in the temporary folder", "nowhere"])
def test_what_was_trained_is_kept_where_the_checkpoint_finds_no_room(trainer, tmp_path, monkeypatch, error, room):
    def full(*args):
        raise error

    writes = {"there": ("out", "tmp"), "in the temporary folder": ("tmp",), "nowhere": ()}[room]

    def save_where_there_is_room(tensors, path, metadata):
        if path.parent.name not in writes:
            path.write_bytes(b"half")
            raise error
        save_file(tensors, path, metadata)

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(run, "save_checkpoint", full)
    monkeypatch.setattr(run, "save_file", save_where_there_is_room)
    monkeypatch.setattr(run.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    options = type("Options", (), {"load_in_4bit": False, "load_in_8bit": False})
    size = sum(weight.nbytes for weight in trainer.model.state_dict().values())
    with pytest.raises(
        OSError, match=f"could not be written .*No space left.*takes {size:,} bytes, [0-9,]+ are free"
    ) as told:
        export(trainer, options, None)
    found = [path for path in tmp_path.rglob(f"*{TRAINED}")]
    if room == "nowhere":
        assert found == [] and "found no room either" in str(told.value)
        return
    (path,) = found
    assert path.parent.name == writes[0] and f"What was trained is in {path}" in str(told.value)
    kept, model = load_file(path), trainer.model
    assert kept and all(
        "_lora." in name and torch.equal(value, model.state_dict()[name]) for name, value in kept.items()
    )
    fresh = MagnetLlamaForCausalLM(model.config)
    assert not fresh.load_state_dict(kept, strict=False).unexpected_keys
