"""PEFT adapters on top of a MAGNET checkpoint: MAGNET's own adapter stays, in its modes, whatever is done with the others."""

import families
import peft
import pytest
import torch
from families import build_magnet
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification
from transformers.integrations.peft import MIN_PEFT_VERSION

from modeling_magnet import ATTENTION_MODES
from modeling_magnet.modeling_magnet import low_rank_parts

LORA = {"r": 4, "target_modules": ["q_proj", "up_proj"]}  # one of MAGNET's own layers, and one that is not


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (2, 8), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    build_magnet(request.param).save_pretrained(folder)
    return folder


def load(folder, cls=AutoModelForCausalLM):
    return cls.from_pretrained(folder, attn_implementation="eager").eval()


def all_modes(model, ids) -> dict:
    spans = torch.zeros_like(ids)
    spans[:, 2:5] = 1
    with torch.no_grad():
        return {
            mode: model(input_ids=ids, attention_mode=mode, span_ids=spans if mode == "hybrid" else None)[0]
            for mode in ATTENTION_MODES
        }


def assert_same(found, expected, tolerance=0.0):
    for mode in ATTENTION_MODES:
        torch.testing.assert_close(found[mode], expected[mode], rtol=0, atol=tolerance)


def assert_different(found, other):
    for mode in ATTENTION_MODES:
        assert (found[mode] - other[mode]).abs().max() > 0.01, mode


def train(model, ids, mode="bidirectional", steps=4) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, attention_mode=mode).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_adapters_stand(model):
    """Each low-rank part acts on the innermost layer, under whatever PEFT has put around it."""
    parts = list(low_rank_parts(model))
    assert parts
    for _, layer, part in parts:
        innermost = getattr(layer, "base_layer", layer)
        assert innermost.forward.args[1] is part


# ----------------------------------------------------------------------------------------------------------- one on top


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_get_peft_model_trains_the_new_adapter_alone(folder, ids, mode):
    magnet = all_modes(load(folder), ids)
    model = get_peft_model(load(folder), LoraConfig(**LORA, task_type="CAUSAL_LM"))
    assert_same(all_modes(model, ids), magnet)  # a fresh adapter is the identity
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".default." in name}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = train(model, ids, mode)
    assert losses[-1] < losses[0]
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == trainable(model)
    assert_different(all_modes(model, ids), magnet)
    with model.disable_adapter():
        assert_same(all_modes(model, ids), magnet)
    assert trainable(model) == changed
    assert_adapters_stand(model)


@pytest.mark.parametrize("name", families.EACH)
def test_on_all_linear_layers_of_every_family(name, ids, tmp_path):
    magnet = build_magnet(name)
    expected = all_modes(magnet, ids)
    model = get_peft_model(magnet, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert_same(all_modes(model, ids), expected)
    assert not any("_lora" in key for key in model.targeted_module_names)  # none on our own parts
    train(model, ids, steps=2)
    trained = all_modes(model.eval(), ids)
    assert_different(trained, expected)
    assert_adapters_stand(model)
    with model.disable_adapter():
        assert_same(all_modes(model, ids), expected)
    merged = model.merge_and_unload()
    assert_adapters_stand(merged)
    assert_same(all_modes(merged, ids), trained, tolerance=2e-5)
    merged.save_pretrained(tmp_path)
    assert_same(all_modes(load(tmp_path), ids), all_modes(merged, ids))


@pytest.fixture(scope="module")
def task(folder, ids, tmp_path_factory):
    """An adapter trained on top and saved: (its folder, logits by mode)."""
    model = get_peft_model(load(folder), LoraConfig(**LORA, task_type="CAUSAL_LM"))
    train(model, ids)
    path = tmp_path_factory.mktemp("task")
    model.save_pretrained(path)
    return path, all_modes(model.eval(), ids)


def test_its_files_hold_it_alone_and_load_on_the_checkpoint(folder, task, ids):
    path, expected = task
    model = PeftModel.from_pretrained(load(folder), path)
    assert_same(all_modes(model, ids), expected)
    assert trainable(model) == set()
    names = load_file(path / "adapter_model.safetensors").keys()
    assert names and all("lora_" in name and "_lora." not in name for name in names)


def test_merging_it_keeps_magnets_own_adapter(folder, task, ids, tmp_path):
    path, expected = task
    merged = PeftModel.from_pretrained(load(folder), path).merge_and_unload()
    assert_same(all_modes(merged, ids), expected, tolerance=1e-5)
    merged.save_pretrained(tmp_path)
    assert_same(all_modes(load(tmp_path), ids), expected, tolerance=1e-5)


def test_merging_in_place_and_taking_it_off(folder, task, ids):
    path, expected = task
    magnet = all_modes(load(folder), ids)
    model = PeftModel.from_pretrained(load(folder), path)
    model.merge_adapter()
    assert_same(all_modes(model, ids), expected, tolerance=1e-5)
    model.unmerge_adapter()
    assert_same(all_modes(model, ids), expected, tolerance=1e-5)
    assert_same(all_modes(model.unload(), ids), magnet, tolerance=1e-5)


def test_several_on_top_are_switched(folder, task, ids):
    path, expected = task
    model = PeftModel.from_pretrained(load(folder), path, adapter_name="one")
    model.add_adapter("two", LoraConfig(**LORA, task_type="CAUSAL_LM"))
    model.set_adapter("two")
    assert_same(all_modes(model, ids), all_modes(load(folder), ids))
    model.set_adapter("one")
    assert_same(all_modes(model, ids), expected)


@pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION), reason=f"transformers asks for peft {MIN_PEFT_VERSION}"
)
def test_adapters_of_transformers_itself(folder, task, ids, tmp_path):
    path, expected = task
    model = load(folder)
    magnet = all_modes(model, ids)
    model.load_adapter(str(path), adapter_name="task")
    assert model.active_adapters() == ["task"]
    assert_same(all_modes(model, ids), expected)
    model.disable_adapters()
    assert_same(all_modes(model, ids), magnet)
    model.delete_adapter("task")
    assert_same(all_modes(model, ids), magnet)
    model.add_adapter(LoraConfig(r=4, target_modules="all-linear"), "other")
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".other." in name}
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    names = load_file(file).keys()
    assert names and not any("_lora." in name for name in names)
    assert file.name == "adapter_model.safetensors"


def test_a_classifier_on_top_trains_and_comes_back(folder, ids, tmp_path):
    config = LoraConfig(**LORA, task_type="TOKEN_CLS")
    model = get_peft_model(load(folder, AutoModelForTokenClassification), config)
    labels = torch.arange(16).reshape(2, 8) % 2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load(folder, AutoModelForTokenClassification), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
