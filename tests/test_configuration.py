"""The configuration of each family: what it refuses, that it comes back from disk as it was, that Auto classes know it."""

import json
import sys

import families
import pytest
import transformers
from families import OWN, TINY
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

import modeling_magnet
from modeling_magnet import FAMILIES, MagnetFields, MagnetLlamaConfig
from modeling_magnet.configuration_magnet import ADAPTER_TARGETS, CONFIGS

NAMES = pytest.mark.parametrize("name", families.NAMES)
ADAPTER = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
EVERYTHING = {
    "attention_mode": "bidirectional",
    "mask_token_id": 5,
    "text_start_token_id": 0,
    "infill_end_token_id": 2,
    "infill_free_offsets": [16, 64],
    "adapter": ADAPTER,
    "causal_adapter": True,
    "pooling": "mean",
    "representation_prompt": "Represent this:",
    "projection_head": "mlp",
}
AUTO = {
    "AutoModel": "Model",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
}


def config_of(name, **fields):
    return FAMILIES[name].config_class(**TINY | OWN[name] | fields)


def base_config(name, **settings):
    return AutoConfig.for_model(name, **TINY | OWN[name] | settings)


def refuses(match: str):
    return pytest.raises((ValueError, StrictDataclassError), match=match)


# --------------------------------------------------------------------------------------------------------- what it holds


def test_the_fields_are_all_tried_here():
    assert set(EVERYTHING) == set(MagnetFields.__annotations__)


@NAMES
def test_defaults(name):
    config, base = config_of(name), base_config(name)
    assert (config.model_type, config.base_model_type) == (f"magnet_{name}", name)
    assert (config.attention_mode, config.adapter, config.infill_free_offsets) == ("causal", None, [128])
    ours = {*MagnetFields.__annotations__, "auto_map", "model_type", "infill_free_offsets"}
    assert {key: value for key, value in config.to_dict().items() if key not in ours} == {
        key: value for key, value in base.to_dict().items() if key not in ours
    }


@NAMES
def test_round_trip(name, tmp_path):
    config = config_of(name, **EVERYTHING)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert {key: getattr(loaded, key) for key in EVERYTHING} == EVERYTHING
    assert loaded.to_json_string() == config.to_json_string()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["auto_map"] == config.auto_map
    assert "is_causal" not in written


@NAMES
def test_a_base_becomes_magnet_and_is_itself_again(name, tmp_path):
    base = base_config(name)
    config = type(config_of(name)).from_base(base, **EVERYTHING)
    assert {key: getattr(config, key) for key in EVERYTHING} == EVERYTHING
    back = config.to_base()
    assert type(back) is type(base) and back.to_dict() == base.to_dict()
    base.save_pretrained(tmp_path)
    read = type(config).from_pretrained(tmp_path, adapter=ADAPTER)
    assert (read.model_type, read.attention_mode, read.adapter) == (f"magnet_{name}", "causal", ADAPTER)
    assert read.to_base().to_dict() == base.to_dict()


def test_what_a_family_reads_into_its_settings_is_not_read_twice():
    """EmbeddingGemma's window is written whole and halved when it is read; the thetas of Gemma's layers stay apart."""
    base = base_config("gemma3_text", use_bidirectional_attention=True, sliding_window=8)
    config = FAMILIES["gemma3_text"].config_class.from_base(base)
    assert config.sliding_window == base.sliding_window == 5
    assert config.rope_parameters == base.rope_parameters
    assert config.rope_parameters["full_attention"] != config.rope_parameters["sliding_attention"]


@NAMES
def test_another_family_is_refused(name):
    other = families.NAMES[families.NAMES.index(name) - 1]
    with refuses(f"The base's model_type is '{other}'. Use {FAMILIES[other].__name__}."):
        type(config_of(name)).from_base(base_config(other))


def test_offsets_stay_a_list(tmp_path):
    config = MagnetLlamaConfig(infill_free_offsets=(16, 64))
    assert config.infill_free_offsets == [16, 64]
    config.save_pretrained(tmp_path)
    assert MagnetLlamaConfig.from_pretrained(tmp_path).infill_free_offsets == [16, 64]
    first, second = MagnetLlamaConfig(), MagnetLlamaConfig()
    first.infill_free_offsets.append(512)
    assert second.infill_free_offsets == [128]  # no list shared between configs


# ------------------------------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("pooling", "cls", "last_token.*mean"),
        ("projection_head", "conv", "none.*linear.*mlp"),
        ("causal_adapter", "yes", "bool"),
        ("representation_prompt", 3, "str"),
        ("infill_free_offsets", [], "positive, increasing and not empty"),
        ("infill_free_offsets", [0], "positive, increasing and not empty"),
        ("infill_free_offsets", [-4, 128], "positive, increasing and not empty"),
        ("infill_free_offsets", [128, 16], "positive, increasing and not empty"),
        ("infill_free_offsets", [16, 16], "positive, increasing and not empty"),
        ("infill_free_offsets", ["128"], "int"),
        ("adapter", "lora", "dict"),
        ("adapter", {}, "exactly the keys 'r', 'alpha' and 'target_modules'"),
        ("adapter", {"r": 4, "alpha": 8}, "exactly the keys"),
        ("adapter", ADAPTER | {"dropout": 0.1}, "exactly the keys"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_wrong_value_names_the_field_and_what_is_allowed(name, field, value, allowed):
    with refuses(f"(?s){field}.*{allowed}"):
        config_of(name, **{field: value})


@pytest.mark.parametrize("rank", [0, -1, 2.0, "4", True])
def test_adapter_rank(rank):
    with refuses(r"adapter\['r'\]=.*positive integer"):
        MagnetLlamaConfig(adapter=ADAPTER | {"r": rank})


@pytest.mark.parametrize("alpha", [0, -1.5, float("inf"), float("nan"), "8", True])
def test_adapter_alpha(alpha):
    with refuses(r"adapter\['alpha'\]=.*positive number"):
        MagnetLlamaConfig(adapter=ADAPTER | {"alpha": alpha})


@pytest.mark.parametrize("targets", [[], ["q"], ["q_proj", "lm_head"], "q_proj", None])
def test_adapter_targets(targets):
    with refuses(r"(?s)adapter\['target_modules'\]=.*choose from.*q_proj.*down_proj"):
        MagnetLlamaConfig(adapter=ADAPTER | {"target_modules": targets})


@NAMES
def test_adapter_may_sit_on_every_projection(name):
    config = config_of(name, adapter={"r": 1, "alpha": 0.5, "target_modules": list(ADAPTER_TARGETS)})
    model = FAMILIES[name](config)
    parts = {key.split(".")[-2] for key in model.state_dict() if "_lora." in key}
    assert parts == {f"{target}_lora" for target in ADAPTER_TARGETS}


@pytest.mark.parametrize("key", ["my_own_note", "sep_token_id", "num_labels", "finetuning_task"])
def test_other_keys_are_kept_as_transformers_keeps_them(key):
    assert getattr(MagnetLlamaConfig(**{key: 3}), key) == 3


@pytest.mark.parametrize("value", [True, False])
@NAMES
def test_is_causal_is_refused(name, value):
    with refuses("is_causal.*attention_mode='bidirectional'"):
        config_of(name, is_causal=value)


def test_saving_validates_what_was_set_later(tmp_path):
    config = config_of("llama", **EVERYTHING)
    config.mask_token_id = 97
    with refuses("mask_token_id=97"):
        config.save_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------------------- Auto classes


@NAMES
def test_importing_the_package_registers_the_family(name):
    config = config_of(name)
    family = type(config).__name__.removesuffix("Config")
    for auto, ending in AUTO.items():
        cls = getattr(transformers, auto)._model_mapping[type(config)]
        assert cls is getattr(modeling_magnet, family + ending)
        assert cls.config_class is type(config)
        assert (
            cls.__module__ == "modeling_magnet.modeling_magnet"
            and cls.__name__ in modeling_magnet.modeling_magnet.__all__
        )
    assert FAMILIES[name] is getattr(modeling_magnet, family + "ForCausalLM")


@NAMES
def test_auto_map_names_what_the_files_hold(name):
    """What remote code is found by."""
    config = config_of(name)
    assert set(config.auto_map) == {"AutoConfig", *AUTO}
    for entry in config.auto_map.values():
        file, cls = entry.split(".")
        assert getattr(sys.modules[f"modeling_magnet.{file}"], cls).__name__ == cls


def test_pinned_code_keeps_its_auto_map():
    pinned = {"AutoModel": "someone/magnet--modeling_magnet.MagnetLlamaModel"}
    assert MagnetLlamaConfig(auto_map=pinned).auto_map == MagnetLlamaConfig().auto_map | pinned


def test_there_is_one_config_a_family():
    assert [config.base_model_type for config in CONFIGS] == families.NAMES
