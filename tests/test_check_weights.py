"""magnet check on damaged weights and tokens."""

import json
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from damage import CONFIG, INDEX, SENTENCES, WEIGHTS, change_json, change_tensors, found

from magnet_check.checkpoint import Checkpoint
from magnet_check.run import CHECKS
from magnet_check.weights import FLOATS

# ------------------------------------------------------------------------------------------------------------- weights


def header_of(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def damage_header(folder: Path, kind: str) -> None:
    header, data = header_of(folder / WEIGHTS)
    first, second = (name for name in list(header) if name != "__metadata__") if len(header) < 3 else list(header)[1:3]
    if kind == "overlapping":
        header[second]["data_offsets"] = header[first]["data_offsets"]
    elif kind == "wrong dtype":
        header[first]["dtype"] = "F64"
    elif kind == "wrong shape":
        header[first]["shape"] = [1, 1]
    elif kind == "unknown dtype":
        header[first]["dtype"] = "Q7"
    elif kind == "truncated":
        data = data[:-8]
    elif kind == "longer":
        data += b"hidden"
    write_header(folder / WEIGHTS, header, data)


@pytest.mark.parametrize(
    "kind", ["overlapping", "wrong dtype", "wrong shape", "unknown dtype", "truncated", "longer", "no header", "zeros"]
)
def test_a_damaged_header(folder, kind):
    if kind in ("no header", "zeros"):
        (folder / WEIGHTS).write_bytes(b"\xff" * 100 if kind == "no header" else bytes(100))
    else:
        damage_header(folder, kind)
    assert found(folder, "headers").startswith(f"{WEIGHTS} is damaged: ")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_that_is_not_finite(folder, value):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors[name][3, 3].fill_(float(value)))
    assert found(folder, "values") == f"{name} in {WEIGHTS} holds {'NaN' if value == 'nan' else 'infinity'}"


def missing(tensors):
    del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.q_proj_lora.A"]


def extra(tensors):
    tensors["model.layers.0.self_attn.bias"] = torch.zeros(3)


def shape(tensors):
    tensors["model.norm.weight"] = torch.ones(63)


def layer(tensors):
    for name in [name for name in tensors if ".layers.2." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, "missing: model.layers.0.self_attn.q_proj_lora.A, model.norm.weight"),
        (extra, "not asked for: model.layers.0.self_attn.bias"),
        (shape, "model.norm.weight has shape [63], not [64]"),
        (layer, "2 layers are stored, config.json has num_hidden_layers=3"),
    ],
)
def test_tensors_that_are_not_the_configurations(folder, change, message):
    change_tensors(folder, change)
    assert found(folder, "tensors") == message


def test_a_configuration_of_a_billion_layers_is_refused_at_once(folder):
    change_json(folder / CONFIG, num_hidden_layers=10**9)
    started = time.monotonic()
    assert "num_hidden_layers=1000000000" in found(folder, "tensors")
    assert time.monotonic() - started < 5


def test_tensors_in_two_files_or_not_in_the_index(folder):
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    assert "stands in two files" in found(folder, "tensors")
    (folder / "other.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": WEIGHTS}}))
    assert f"{INDEX} lists other tensors" in found(folder, "tensors")


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float64, "stored as F64: use"),
        (torch.int8, "stored as I8: use"),
        (torch.bfloat16, "stored as BF16, the rest of the base as F32"),
    ],
)
def test_a_precision_that_is_not_the_configurations(folder, dtype, message):
    change_tensors(
        folder, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(dtype)})
    )
    said = found(folder, "dtypes")
    assert said.startswith("model.norm.weight") and message in said


@pytest.mark.parametrize(("stored", "declared"), [("F32", "bfloat16"), ("F16", "bfloat16"), ("BF16", "float16")])
def test_a_precision_that_loading_would_round(folder, stored, declared):
    change_tensors(folder, lambda tensors: tensors.update({n: t.to(FLOATS[stored]) for n, t in tensors.items()}))
    assert stored in CHECKS["dtypes"](Checkpoint(folder))  # config.json has float32, which holds either
    change_json(folder / CONFIG, dtype=declared)
    assert found(folder, "dtypes").startswith(f"stored as {stored}, config.json has dtype='torch.{declared}'")


def test_an_adapter_may_be_in_another_precision(folder):
    change_tensors(
        folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if "_lora." in n})
    )
    assert CHECKS["dtypes"](Checkpoint(folder)) == "F32; adapter BF16"


# -------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": 5000}, "eos_token_id=5000, outside the 4096 rows"),
        ({"pad_token_id": -1}, "pad_token_id=-1, outside"),
        ({"bos_token_id": 7}, "bos_token_id is 1 in the tokenizer, 7 in config.json"),
        ({"mask_token_id": 2}, "mask_token_id=2 is the control token '</s>'"),
        ({"infill_end_token_id": 9}, "infill_end_token_id=9 is not the tokenizer's eos_token_id=2"),
    ],
)
def test_special_tokens_that_cannot_be(folder, values, message):
    change_json(folder / CONFIG, **values)
    assert message in found(folder, "tokens")


def test_a_tokenizer_that_has_more_tokens_than_the_embedding_rows(folder):
    change_json(folder / CONFIG, vocab_size=4000)
    change_tensors(
        folder, lambda t: t.update({n: v[:4000].clone() for n, v in t.items() if "embed" in n or "lm_head" in n})
    )
    assert found(folder, "tokens") == "the tokenizer has 4096 tokens, the embedding 4000 rows"


def processor(**values) -> dict:
    settings = {"add_bos_token": True, "add_eos_token": True, "split_special_tokens": True, "model_max_length": 512}
    return {"processor_kwargs": {name: value for name, value in (settings | values).items() if value is not None}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (processor(add_eos_token=False), "does not end with [EOS]"),
        (processor(add_bos_token=False), "does not begin with <s>"),
        (processor(split_special_tokens=None), "become control tokens"),
        (processor(model_max_length=4096), "sentences may have 4096 tokens, the model 512"),
        (processor(tokenizer_class="Evil"), "passes tokenizer_class to the tokenizer"),
        ({"config_kwargs": {"attention_mode": "causal"}}, "attention_mode='causal'"),
    ],
)
def test_sentences_that_are_tokenized_wrongly(folder, values, message):
    change_json(folder / SENTENCES, **values)
    assert message in found(folder, "sentences")
