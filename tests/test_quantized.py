"""Training over 8-bit and 4-bit base weights: only the adapter trains, and the checkpoint has the whole base."""

import importlib.util
import json

import pytest
import torch
from conftest import BASE_MODEL
from transformers import LlamaForCausalLM

from magnet_train.model import build_model, is_trained, loading
from magnet_train.run import main
from magnet_train.settings.arguments import ModelArguments, ViewArguments
from modeling_magnet import MagnetLlamaForCausalLM

BITS = pytest.mark.parametrize("bits", [4, 8])
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="could not import 'bitsandbytes'"
)


def arguments(bits, path=BASE_MODEL, **more) -> ModelArguments:
    return ModelArguments(model_name_or_path=str(path), **{f"load_in_{bits}bit": True}, **more)


def build(bits, tokenizer, **more) -> MagnetLlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(arguments(bits, **more), ViewArguments(), tokenizer).eval()


@needs_bitsandbytes
@BITS
def test_what_is_quantised_and_what_is_not(tokenizer, bits):
    model = build(bits, tokenizer, dtype="bfloat16", projection_head="linear")
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.weight.dtype == layer.mlp.up_proj.weight.dtype
    assert not layer.mlp.up_proj.weight.is_floating_point()
    exact = [model.lm_head, model.model.embed_tokens, layer.input_layernorm]
    assert {module.weight.dtype for module in exact} == {torch.bfloat16}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_trained(name)}
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


# ---------------------------------------------------------------------------------------------------- a run with flags


@pytest.fixture
def flags(tmp_path):
    names = ["Tom", "Mina", "Jorge", "Elif", "Sam", "Ada", "Kim", "Lee"]
    story = "{} was hungry. Then came a walk to the kitchen. There was no bread. So a loaf was baked."
    (tmp_path / "texts.txt").write_text("".join(story.format(name) + "\n" for name in names))
    pairs = [{"text": f"{name} was hungry.", "positive": f"{name} wanted food."} for name in names]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    given = {
        "model_name_or_path": BASE_MODEL,
        "train_file": tmp_path / "texts.txt",
        "pairs_file": tmp_path / "pairs.jsonl",
        "max_steps": 4,
        "save_steps": 2,
        "sscl_start_step": 1,
        "max_length": 48,
        "span_max": 8,
        "per_device_train_batch_size": 4,
        "per_device_pair_batch_size": 8,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
    }

    def flags(name, **changes):
        chosen = given | {"output_dir": tmp_path / name} | changes
        return [part for key, value in chosen.items() for part in (f"--{key}", str(value))]

    return flags


@needs_bitsandbytes
@BITS
def test_the_checkpoint_is_the_trained_adapter_over_the_whole_base(flags, tmp_path, bits):
    main(flags("out", **{f"load_in_{bits}bit": True}))
    model = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert getattr(model.config, "quantization_config", None) is None
    base = LlamaForCausalLM.from_pretrained(BASE_MODEL).state_dict()
    weights = model.state_dict()
    frozen = {name: w for name, w in weights.items() if not is_trained(name)}
    assert frozen.keys() == base.keys()
    for name, weight in base.items():
        assert torch.equal(frozen[name], weight) and frozen[name].dtype == weight.dtype, name
    moved = [weight for name, weight in weights.items() if name.endswith("_lora.B")]
    assert moved and all(weight.abs().max() > 0 for weight in moved)


@needs_bitsandbytes
@BITS
def test_a_resumed_run_ends_at_the_same_adapter(flags, tmp_path, bits):
    bit_flag = {f"load_in_{bits}bit": True}
    main(flags("whole", **bit_flag))
    main(flags("resumed", **bit_flag, resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2"))
    one, other = (
        MagnetLlamaForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "resumed")
    )
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def test_without_bitsandbytes_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"load_in_4bit=True: needs bitsandbytes.*magnet-llm\[quantized\]"):
        loading(arguments(4))


def test_other_architectures_are_refused(tmp_path, tokenizer):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        build_model(ModelArguments(model_name_or_path=str(tmp_path)), ViewArguments(), tokenizer)
