"""8-bit and 4-bit base weights: the adapter stays exact and acts, causal mode is the stock model in as many bits."""

import importlib.util

import families
import pytest
import torch
from families import ADAPTER, build_base, build_magnet, randomize_adapter
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, BitsAndBytesConfig

from modeling_magnet import ATTENTION_MODES, FAMILIES
from modeling_magnet.modeling_magnet import adapter_gate, low_rank_parts

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="could not import 'bitsandbytes'"),
    pytest.mark.parametrize("bits", [4, 8]),
    pytest.mark.parametrize("name", families.NAMES),
]


def few(bits: int) -> dict:
    settings = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8, "bnb_4bit_compute_dtype": torch.float32}
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function: the folder with a family's base and MAGNET checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")

    def of(name):
        if not (root / name).exists():
            base = build_base(name)
            base.save_pretrained(root / name / "base")
            build_magnet(base=base).save_pretrained(root / name / "magnet")
        return root / name

    return of


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (2, 10), generator=torch.Generator().manual_seed(5))


def logits(model, ids) -> dict[str, torch.Tensor]:
    spans = torch.zeros_like(ids)
    spans[:, 4:8] = 1
    with torch.no_grad():
        return {
            mode: model(ids, attention_mode=mode, span_ids=spans if mode == "hybrid" else None).logits
            for mode in ATTENTION_MODES
        }


def test_a_checkpoint_is_quantised_around_its_adapter(name, bits, folder, ids):
    whole = AutoModelForCausalLM.from_pretrained(folder(name) / "magnet").eval()
    model = AutoModelForCausalLM.from_pretrained(folder(name) / "magnet", **few(bits)).eval()
    adapters = zip(low_rank_parts(whole), low_rank_parts(model), strict=True)
    for (_, _, exact), (_, linear, part) in adapters:
        assert torch.equal(part.A, exact.A) and torch.equal(part.B, exact.B)
        assert not linear.weight.is_floating_point()
        assert linear.forward.args[1] is part
    base = AutoModelForCausalLM.from_pretrained(folder(name) / "base", **few(bits)).eval()
    found, exact = logits(model, ids), logits(whole, ids)
    with torch.no_grad():
        assert torch.equal(found["causal"], base(ids).logits)
    for mode in ("bidirectional", "hybrid"):
        rounding = (found[mode] - exact[mode]).norm()
        without = (found["causal"] - exact[mode]).norm()
        assert 0 < rounding < without / 2


def test_the_update_is_exact_on_a_quantised_layer(name, bits, folder):
    model = AutoModelForCausalLM.from_pretrained(folder(name) / "magnet", **few(bits)).eval()
    for _, linear, part in low_rank_parts(model):
        x = torch.randn(2, 5, linear.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            opened = linear(x)
            with adapter_gate(False):
                closed = linear(x)
        assert torch.equal(opened, closed + x @ part.A.T @ part.B.T * 2)  # alpha / r


def test_a_base_in_few_bits_gets_a_fresh_adapter(name, bits, folder, ids):
    model = FAMILIES[name].from_pretrained(folder(name) / "base", adapter=ADAPTER, **few(bits)).eval()
    fresh = logits(model, ids)
    parts = list(low_rank_parts(model))
    assert {(part.A.dtype, part.A.device.type) for _, _, part in parts} == {(torch.float32, "cpu")}
    assert all(part.A.abs().max() > 0 and part.B.abs().max() == 0 for _, _, part in parts)
    randomize_adapter(model)
    acting = logits(model, ids)
    assert torch.equal(acting["causal"], fresh["causal"])
    assert all((acting[mode] - fresh[mode]).abs().max() > 0.1 for mode in ("bidirectional", "hybrid"))


def test_adapter_and_head_train(name, bits, folder, ids):
    cls = AutoModelForTokenClassification
    model = cls.from_pretrained(folder(name) / "magnet", num_labels=3, **few(bits))
    model(ids, labels=torch.ones_like(ids)).loss.backward()
    assert model.score.weight.grad.abs().max() > 0
    assert all(part.A.grad.abs().max() > 0 and part.B.grad.abs().max() > 0 for _, _, part in low_rank_parts(model))
