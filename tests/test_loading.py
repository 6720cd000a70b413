"""From a base to a MAGNET model, to a checkpoint and back: no tensor is lost, renamed or left random in silence."""

import json

import families
import pytest
import torch
from families import ADAPTER, build_base, build_magnet, randomize_adapter
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

from modeling_magnet import ATTENTION_MODES, FAMILIES
from modeling_magnet.modeling_magnet import base_sha256, low_rank_parts

NAMES = pytest.mark.parametrize("name", families.EACH)


def magnet(name, **fields):
    """As loading builds it, on sdpa."""
    return build_magnet(base=build_base(name, "sdpa"), **fields)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (2, 10), generator=torch.Generator().manual_seed(5))


def logits(model, ids) -> dict[str, torch.Tensor]:
    spans = torch.zeros_like(ids)
    spans[:, 4:8] = 1
    with torch.no_grad():
        return {
            mode: model.eval()(ids, attention_mode=mode, span_ids=spans if mode == "hybrid" else None).logits
            for mode in ATTENTION_MODES
        }


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[mode], other[mode]) for mode in ATTENTION_MODES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function: the folders of a family's base and of a MAGNET checkpoint over it."""
    root = tmp_path_factory.mktemp("checkpoints")

    def of(name):
        if not (root / name).exists():
            base = build_base(name, "sdpa")
            base.save_pretrained(root / name / "base")
            build_magnet(base=base).save_pretrained(root / name / "magnet")
        return root / name / "base", root / name / "magnet"

    return of


# ----------------------------------------------------------------------------------------------------- from a plain base


@NAMES
def test_a_base_folder_with_a_fresh_adapter(name, folders, ids):
    """Every tensor of the base is found, under its own name."""
    folder, _ = folders(name)
    model, info = FAMILIES[name].from_pretrained(folder, adapter=ADAPTER, output_loading_info=True)
    assert all("_lora." in key for key in info["missing_keys"]) and not info["unexpected_keys"]
    base = build_base(name, "sdpa")
    plain = logits(build_magnet(base=base, adapter=None), ids)
    fresh = logits(model, ids)
    assert same(fresh, plain)  # a fresh adapter is the identity
    with torch.no_grad():
        assert torch.equal(fresh["causal"], base(ids).logits)
    assert model.config.adapter == ADAPTER and model.config.model_type == f"magnet_{name}"
    randomize_adapter(model)
    acting = logits(model, ids)
    assert torch.equal(acting["causal"], fresh["causal"])
    assert all((acting[mode] - fresh[mode]).abs().max() > 0.1 for mode in ("bidirectional", "hybrid"))


@NAMES
def test_from_base_takes_a_folder_as_well(name, folders, ids):
    folder, _ = folders(name)
    model = FAMILIES[name].from_base(folder, adapter=ADAPTER, causal_adapter=True, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.causal_adapter and model.config.adapter == ADAPTER


@NAMES
def test_from_base_shares_the_parameters_of_a_model(name):
    base = build_base(name)
    model = FAMILIES[name].from_base(base, adapter=ADAPTER)
    theirs, ours = dict(base.named_parameters()), dict(model.named_parameters())
    assert all(ours[key] is parameter for key, parameter in theirs.items())
    assert all("_lora." in key for key in set(ours) - set(theirs))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is (
        base.get_output_embeddings().weight is base.get_input_embeddings().weight
    )
    assert base.config.model_type == name  # the base stays what it was


def test_from_llama_is_its_old_name():
    base = build_base("llama")
    assert FAMILIES["llama"].from_llama(base).lm_head.weight is base.lm_head.weight


@pytest.mark.parametrize("name, other", zip(families.NAMES, families.NAMES[1:] + families.NAMES[:1]))
def test_a_base_of_another_family_is_refused_with_the_right_class(name, other, folders):
    wanted = f"model_type is {other!r}. Use {FAMILIES[other].__name__}."
    with pytest.raises(ValueError, match=wanted):
        FAMILIES[name].from_base(build_base(other))
    base, magnet = folders(other)
    with pytest.raises(ValueError, match=wanted):
        FAMILIES[name].from_pretrained(base)
    with pytest.raises(ValueError, match=f"model_type is 'magnet_{other}'. Use {FAMILIES[other].__name__}."):
        FAMILIES[name].from_pretrained(magnet)


def test_a_base_of_no_family_is_refused_with_the_families_there_are(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(
        ValueError, match="model_type is 'gpt2'. MAGNET knows these families: llama, mistral, .*granite"
    ):
        FAMILIES["llama"].from_pretrained(tmp_path)


# --------------------------------------------------------------------------------------------------------- checkpoints


@NAMES
def test_a_checkpoint_comes_back_as_it_was(name, folders, ids):
    _, folder = folders(name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is FAMILIES[name]
    assert same(logits(model, ids), logits(magnet(name), ids))
    assert all(parameter.requires_grad for parameter in model.parameters())  # as transformers leaves it


@NAMES
def test_its_file_is_the_bases_and_the_adapter(name, folders):
    base, magnet = (load_file(folder / "model.safetensors") for folder in folders(name))
    assert all(torch.equal(magnet[key], weight) for key, weight in base.items())
    assert {key for key in magnet if "_lora." not in key} == set(base)


@NAMES
def test_the_stock_class_reads_it_as_the_base(name, folders, ids):
    _, folder = folders(name)
    base = build_base(name, "sdpa")
    read, info = type(base).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        assert torch.equal(read.eval()(ids).logits, base(ids).logits)


@pytest.mark.parametrize(
    "auto", [AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, AutoModelForSequenceClassification]
)
@NAMES
def test_all_auto_classes_read_one_checkpoint(name, auto, folders, ids):
    _, folder = folders(name)
    model = auto.from_pretrained(folder, num_labels=3).eval()
    assert type(model).__name__.startswith("Magnet")
    expected = magnet(name)
    with torch.no_grad():
        states = [
            part(ids, attention_mode="bidirectional").last_hidden_state for part in (model.base_model, expected.model)
        ]
    assert torch.equal(*states)
    assert all(parameter.requires_grad for parameter in model.parameters())


@NAMES
def test_several_files_and_a_device_map(name, ids, tmp_path):
    model = magnet(name)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    assert same(logits(again, ids), logits(model, ids))


def test_the_projection_head_is_saved_and_stays_out_of_the_stock_model(tmp_path, ids):
    model = magnet("qwen3", projection_head="mlp")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.projection_head[0].weight, model.projection_head[0].weight)
    assert same(logits(again, ids), logits(model, ids))
    stock, info = type(build_base("qwen3")).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not any("projection_head" in key for key in stock.state_dict())


@NAMES
def test_resized_embeddings_go_along(name, ids, tmp_path):
    model = magnet(name)
    before = logits(model, ids)
    model.resize_token_embeddings(101)
    assert model.config.vocab_size == 101
    after = logits(model, ids)
    for mode in ATTENTION_MODES:
        torch.testing.assert_close(after[mode][..., :97], before[mode], rtol=0, atol=1e-5)
    assert model(torch.tensor([[5, 100]])).logits.shape == (1, 2, 101)
    model.config.mask_token_id = 100
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.mask_token_id == 100
    assert same(logits(again, ids), after)


@pytest.fixture
def peft_folder(tmp_path):
    """A function that writes a model's adapter as PEFT names it, with our sign in its settings."""

    def write(model, **mark):
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ADAPTER["target_modules"]}
        settings |= {"auto_mapping": {"magnet_gated": True} | mark, "base_model_name_or_path": "its/own"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        tensors = {}
        for target, _, part in low_rank_parts(model):
            for letter in "AB":
                tensors[f"base_model.model.{target}.lora_{letter}.weight"] = getattr(part, letter).detach()
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        return tmp_path

    return write


@NAMES
def test_an_exported_adapter_becomes_magnets_own_again(name, peft_folder, ids):
    model, plain = magnet(name), magnet(name, adapter=None)
    plain.load_adapter(peft_folder(model))
    assert same(logits(plain, ids), logits(model, ids))
    assert plain.config.adapter == ADAPTER | {"target_modules": sorted(ADAPTER["target_modules"])}


def test_an_exported_adapter_of_another_base_is_refused(peft_folder):
    folder, smaller = peft_folder(magnet("llama")), build_base("llama", num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"the adapter does not fit this base.*layers\.2\.self_attn\.k_proj_lora\.A"):
        FAMILIES["llama"].from_base(smaller).load_adapter(folder)


def test_an_exported_adapter_knows_its_base_by_its_tensors(peft_folder, tmp_path):
    model = magnet("llama")
    folder = peft_folder(model, base_sha256=base_sha256(model))
    for dtype in (torch.float32, torch.bfloat16):
        magnet("llama", adapter=None).to(dtype).load_adapter(folder)
    other = magnet("llama", adapter=None)
    other.model.layers[1].mlp.up_proj.weight.data[3, 5] += 0.01
    other.name_or_path = "another/one"
    with pytest.raises(
        ValueError, match=r"trained on its/own \(sha256 of its tensors [0-9a-f]{12}\), not on another/one"
    ):
        other.load_adapter(folder)
    assert other.config.adapter is None
    other.half().load_adapter(folder)  # rounded, which proves nothing


# --------------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.fixture
def damaged(folders, tmp_path):
    """A function that writes a copy of a MAGNET checkpoint with other settings or tensors, and returns its folder."""

    def write(name="qwen2", change=lambda tensors: tensors, **settings):
        _, folder = folders(name)
        config = json.loads((folder / "config.json").read_text()) | settings
        (tmp_path / "config.json").write_text(json.dumps(config))
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return write


def without(*endings):
    return lambda tensors: {key: weight for key, weight in tensors.items() if not key.endswith(endings)}


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModel, AutoModelForTokenClassification])
@pytest.mark.parametrize(
    "missing",
    ["layers.1.self_attn.q_proj.weight", "layers.2.self_attn.q_proj.bias", "layers.0.self_attn.v_proj_lora.B"],
)
def test_a_missing_tensor(missing, auto, damaged):
    folder = damaged(change=without(missing))
    with pytest.raises(ValueError, match=f"has no tensors for .*{missing}. Its config.json"):
        auto.from_pretrained(folder)


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModel])
def test_an_extra_tensor(auto, damaged):
    extra = "model.layers.1.self_attn.q_norm.weight"
    with pytest.raises(ValueError, match=f"has tensors that the model lacks: .*{extra.removeprefix('model.')}"):
        auto.from_pretrained(damaged(change=lambda tensors: tensors | {extra: torch.ones(16)}))


MORE = {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
LESS = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}


@pytest.mark.parametrize(
    "settings, message",
    [
        (MORE, r"has no tensors for (model\.)?layers\.3\..* and \d+ more"),
        (LESS, r"has tensors that the model lacks: (model\.)?layers\.2\..* and \d+ more"),
        ({"adapter": None}, r"has tensors that the model lacks: .*_lora\.A"),
        ({"adapter": ADAPTER | {"r": 2}}, r"has other shapes for .*k_proj_lora\.A"),
        ({"adapter": ADAPTER | {"r": 8}}, r"has other shapes for .*k_proj_lora\.A"),
        ({"adapter": ADAPTER | {"target_modules": ["q_proj"]}}, r"has tensors that the model lacks: .*k_proj_lora\.A"),
        (
            {"adapter": ADAPTER | {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]}},
            "up_proj_lora",
        ),
        ({"intermediate_size": 80}, r"has other shapes for .*mlp\.down_proj\.weight"),
    ],
    ids=[
        "a layer more",
        "a layer less",
        "no adapter",
        "smaller r",
        "larger r",
        "fewer targets",
        "more targets",
        "narrower",
    ],
)
@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModel])
def test_a_config_that_is_not_that_of_the_weights(settings, message, auto, damaged):
    with pytest.raises(RuntimeError if "shapes" in message else ValueError, match=message):
        auto.from_pretrained(damaged(**settings))


def test_a_file_of_a_decoder_alone(tmp_path):
    """Its names have no prefix; the care is the same."""
    magnet("qwen2").model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | LESS))
    with pytest.raises(ValueError, match=r"has tensors that the model lacks: layers\.2"):
        AutoModel.from_pretrained(tmp_path)


def test_a_head_of_another_size_is_refused_unless_asked_for(tmp_path):
    model = AutoModelForTokenClassification.from_config(magnet("qwen2").config)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"has other shapes for score\.bias, score\.weight"):
        AutoModelForTokenClassification.from_pretrained(tmp_path, num_labels=5)
    wanted = {"num_labels": 5, "ignore_mismatched_sizes": True}
    assert AutoModelForTokenClassification.from_pretrained(tmp_path, **wanted).score.weight.shape == (5, 64)


def test_a_checkpoint_of_a_decoder_alone_has_no_head(tmp_path):
    """So it does not become a language model with a random one."""
    magnet("llama").model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.model_type == "magnet_llama"
    with pytest.raises(ValueError, match="has no tensors for lm_head.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------------- transformers' Trainer


@pytest.mark.parametrize(
    "name, causal_adapter",
    [("llama", False), ("mistral", False), ("llama", True), ("gemma3_text", True)]
    + [
        pytest.param(name, False, marks=pytest.mark.slow)
        for name in families.NAMES
        if name not in ("llama", "mistral")
    ],
)
def test_a_plain_trainer_trains_it_on_causal_text(name, causal_adapter, folders, ids, tmp_path):
    _, folder = folders(name)
    model = AutoModelForCausalLM.from_pretrained(folder, causal_adapter=causal_adapter)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        tmp_path, max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=1e-2
    )
    state = Trainer(model, arguments, train_dataset=rows).train()
    assert state.global_step == 1 and state.training_loss > 0
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert any("_lora." not in key for key in moved)
    assert any("_lora." in key for key in moved) is causal_adapter
