"""8-bit and 4-bit base weights: the gate stays exact, only the adapter trains, and the checkpoint has the whole base."""

import importlib.util
import json

import pytest
import torch
from conftest import BASE_MODEL, randomize_adapter
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    LlamaForCausalLM,
)

from magnet_train.arguments import ModelArguments, ViewArguments
from magnet_train.model import build_model, is_trained, loading
from magnet_train.run import main
from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.adapter_magnet import GatedLoraLinear
from modeling_magnet.export import save_checkpoint

BITS = pytest.mark.parametrize("bits", [4, 8])
MODES = ("causal", "bidirectional", "hybrid")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="could not import 'bitsandbytes'"
)


def arguments(bits, path=BASE_MODEL, **more) -> ModelArguments:
    return ModelArguments(model_name_or_path=str(path), **{f"load_in_{bits}bit": True}, **more)


def build(bits, tokenizer, **more) -> MagnetLlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(arguments(bits, **more), ViewArguments(), tokenizer).eval()


@pytest.fixture(scope="module")
def ids(tokenizer):
    return tokenizer("Tom was hungry. He went to the kitchen. There was bread.", return_tensors="pt").input_ids


def logits(model, ids) -> dict[str, torch.Tensor]:
    spans = torch.zeros_like(ids)
    spans[0, 4:8] = 1
    with torch.no_grad():
        return {m: model(ids, attention_mode=m, span_ids=spans if m == "hybrid" else None).logits for m in MODES}


@needs_bitsandbytes
@BITS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_causal_mode_is_the_quantised_base_and_the_others_use_the_adapter(tokenizer, ids, bits, dtype):
    model = build(bits, tokenizer, dtype=dtype)
    without = logits(model, ids)  # a fresh adapter is the identity
    randomize_adapter(model)
    found = logits(model, ids)
    base = LlamaForCausalLM.from_pretrained(BASE_MODEL, **loading(arguments(bits, dtype=dtype))).eval()
    with torch.no_grad():
        assert torch.equal(found["causal"], base(ids).logits)
    for mode in ("bidirectional", "hybrid"):
        assert (found[mode] - without[mode]).abs().max() > 0.1


@needs_bitsandbytes
@BITS
def test_what_is_quantised_and_what_is_not(tokenizer, bits):
    model = build(bits, tokenizer, dtype="bfloat16", projection_head="linear")
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.base_layer.weight.dtype == layer.mlp.up_proj.weight.dtype
    assert not layer.mlp.up_proj.weight.is_floating_point()
    exact = [model.lm_head, model.model.embed_tokens, layer.input_layernorm]
    assert {module.weight.dtype for module in exact} == {torch.bfloat16}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_trained(name)}
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


@needs_bitsandbytes
@BITS
def test_the_update_is_that_of_pefts_own_quantised_layer(tokenizer, bits):
    """PEFT has LoRA layers of its own over bitsandbytes; ours over the same base gives their output and gradients."""
    from peft.tuners.lora import LoraConfig
    from peft.tuners.lora import bnb as peft_bnb

    model = build(bits, tokenizer)
    randomize_adapter(model)
    ours = model.model.layers[0].self_attn.q_proj
    assert isinstance(ours, GatedLoraLinear)
    config = LoraConfig(r=16, lora_alpha=32)
    kind = peft_bnb.Linear4bit if bits == 4 else peft_bnb.Linear8bitLt
    theirs = kind(ours.base_layer, "magnet", config=config, r=16, lora_alpha=32).float()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(2, 5, ours.in_features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    for part in ("lora_A", "lora_B"):
        assert torch.equal(getattr(ours, part)["magnet"].weight.grad, getattr(theirs, part)["magnet"].weight.grad)


@needs_bitsandbytes
@BITS
def test_a_magnet_checkpoint_is_quantised_around_its_adapter(tokenizer, ids, tmp_path, bits):
    model = build_model(ModelArguments(model_name_or_path=str(BASE_MODEL)), ViewArguments(), tokenizer)
    randomize_adapter(model)
    save_checkpoint(model, tokenizer, tmp_path)
    again = build(bits, tokenizer, path=tmp_path)
    for (name, before), (_, after) in zip(model.named_parameters(), again.named_parameters()):
        if is_trained(name):
            assert torch.equal(before, after), name
    base = LlamaForCausalLM.from_pretrained(BASE_MODEL, **loading(arguments(bits))).eval()
    with torch.no_grad():
        assert torch.equal(logits(again, ids)["causal"], base(ids).logits)


@needs_bitsandbytes
@BITS
def test_a_checkpoint_loads_in_few_bits_without_naming_what_to_skip(tokenizer, ids, tmp_path, bits):
    """As users load any model: the adapter stays exact, causal mode is the quantised base, and the adapter trains."""
    model = build_model(ModelArguments(model_name_or_path=str(BASE_MODEL)), ViewArguments(), tokenizer)
    randomize_adapter(model)
    save_checkpoint(model, tokenizer, tmp_path)
    few_bits = {"quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}bit": True}), "device_map": "cpu"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **few_bits).eval()
    for (name, before), (_, after) in zip(model.named_parameters(), again.named_parameters()):
        if is_trained(name):
            assert torch.equal(before, after) and after.requires_grad, name
    assert not again.model.layers[0].self_attn.q_proj.base_layer.weight.is_floating_point()
    base = LlamaForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32, **few_bits).eval()
    found, exact = logits(again, ids), logits(model.eval(), ids)
    with torch.no_grad():
        assert torch.equal(found["causal"], base(ids).logits)
    for mode in ("bidirectional", "hybrid"):
        rounding = 1 - torch.nn.functional.cosine_similarity(found[mode], exact[mode], dim=-1).mean()
        other_mode = 1 - torch.nn.functional.cosine_similarity(found["causal"], exact[mode], dim=-1).mean()
        assert 0 < rounding < other_mode / 3
    tokens = AutoModelForTokenClassification.from_pretrained(tmp_path, num_labels=3, dtype=torch.float32, **few_bits)
    tokens(ids, labels=torch.ones_like(ids)).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in tokens.parameters())
    assert tokens.score.weight.grad.abs().max() > 0


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
    frozen = {name.replace(".base_layer", ""): w for name, w in weights.items() if not is_trained(name)}
    assert frozen.keys() == base.keys()
    for name, weight in base.items():
        assert torch.equal(frozen[name], weight) and frozen[name].dtype == weight.dtype, name
    lora_b = [weight for name, weight in weights.items() if "lora_B" in name]
    assert lora_b and all(weight.abs().max() > 0 for weight in lora_b)


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
