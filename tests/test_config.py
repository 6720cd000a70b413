"""MagnetLlamaConfig: what it refuses, and that it comes back from disk as it was."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, LlamaConfig

from configuration_magnet import MagnetLlamaConfig
from modeling_magnet.configuration_magnet import ADAPTER_TARGETS, AUTO_MAP

ADAPTER = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
EVERYTHING = {
    "vocab_size": 97,
    "attention_mode": "bidirectional",
    "mask_token_id": 5,
    "infill_end_token_id": 2,
    "infill_free_offsets": [16, 64],
    "adapter": ADAPTER,
    "causal_adapter": True,
    "pooling": "mean",
    "representation_prompt": "Represent this:",
    "projection_head": "mlp",
}


def refuses(match: str):
    return pytest.raises((ValueError, StrictDataclassError), match=match)


def test_defaults():
    config = MagnetLlamaConfig()
    assert (config.model_type, config.attention_mode, config.adapter) == ("magnet_llama", "causal", None)
    assert config.infill_free_offsets == [128]
    assert config.auto_map == AUTO_MAP
    assert config.hidden_size == LlamaConfig().hidden_size


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("attention_mode", "bidirectonal", "causal.*bidirectional.*hybrid"),
        ("attention_mode", 1, "causal.*bidirectional.*hybrid"),
        ("pooling", "cls", "last_token.*mean"),
        ("projection_head", "conv", "none.*linear.*mlp"),
        ("causal_adapter", "yes", "bool"),
        ("representation_prompt", 3, "str"),
        ("mask_token_id", "_", "int"),
        ("mask_token_id", -1, r"0\.\.31999"),
        ("mask_token_id", 32000, r"0\.\.31999"),
        ("infill_end_token_id", 32000, r"0\.\.31999"),
        ("infill_end_token_id", 2.5, "int"),
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
def test_a_wrong_value_names_the_field_and_what_is_allowed(field, value, allowed):
    with refuses(f"(?s){field}.*{allowed}"):
        MagnetLlamaConfig(**{field: value})


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


def test_adapter_may_sit_on_every_projection():
    config = MagnetLlamaConfig(adapter={"r": 1, "alpha": 0.5, "target_modules": list(ADAPTER_TARGETS)})
    assert config.adapter["alpha"] == 0.5


@pytest.mark.parametrize(
    "misspelt, meant",
    [
        ("attention_mod", "attention_mode"),
        ("attention_modes", "attention_mode"),
        ("causal_adaptor", "causal_adapter"),
        ("infil_end_token_id", "infill_end_token_id"),
        ("infill_free_offset", "infill_free_offsets"),
        ("mask_token", "mask_token_id"),
    ],
)
def test_a_misspelt_field_is_refused(misspelt, meant):
    with refuses(f"{misspelt}=.*unknown setting. Did you mean '{meant}'"):
        MagnetLlamaConfig(**{misspelt: None})


@pytest.mark.parametrize("key", ["my_own_note", "sep_token_id", "num_labels", "finetuning_task"])
def test_other_keys_are_kept_as_transformers_keeps_them(key):
    assert getattr(MagnetLlamaConfig(**{key: 3}), key) == 3


@pytest.mark.parametrize("value", [True, False])
def test_is_causal_is_refused(value):
    with refuses("is_causal.*attention_mode='bidirectional'"):
        MagnetLlamaConfig(is_causal=value)


def test_round_trip(tmp_path):
    config = MagnetLlamaConfig(**EVERYTHING)
    config.save_pretrained(tmp_path)
    loaded = MagnetLlamaConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in EVERYTHING} == EVERYTHING
    assert type(AutoConfig.from_pretrained(tmp_path)) is MagnetLlamaConfig
    assert loaded.to_json_string() == config.to_json_string()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["auto_map"] == AUTO_MAP
    assert written["infill_free_offsets"] == [16, 64]
    assert "is_causal" not in written


def test_config_files_are_read_with_the_same_care(tmp_path):
    MagnetLlamaConfig(**EVERYTHING).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_mode": "both"}))
    with refuses("(?s)attention_mode.*causal.*bidirectional.*hybrid"):
        MagnetLlamaConfig.from_pretrained(tmp_path)


def test_saving_validates_what_was_set_later(tmp_path):
    config = MagnetLlamaConfig(**EVERYTHING)
    config.mask_token_id = 97
    with refuses("mask_token_id=97"):
        config.save_pretrained(tmp_path)


def test_offsets_stay_a_list(tmp_path):
    config = MagnetLlamaConfig(infill_free_offsets=(16, 64))
    assert config.infill_free_offsets == [16, 64]
    config.save_pretrained(tmp_path)
    assert MagnetLlamaConfig.from_pretrained(tmp_path).infill_free_offsets == [16, 64]
    first, second = MagnetLlamaConfig(), MagnetLlamaConfig()
    first.infill_free_offsets.append(512)
    assert second.infill_free_offsets == [128]  # no list shared between configs


def test_plain_llama_config_loads_as_causal_magnet(tmp_path):
    llama = LlamaConfig(vocab_size=97, hidden_size=64, num_attention_heads=4, rope_parameters=None, rms_norm_eps=1e-5)
    llama.save_pretrained(tmp_path)
    config = MagnetLlamaConfig.from_pretrained(tmp_path)
    assert (config.attention_mode, config.adapter, config.rms_norm_eps) == ("causal", None, 1e-5)
    assert config.rope_parameters == llama.rope_parameters
    assert config.head_dim == llama.head_dim == 16


def test_pinned_code_keeps_its_auto_map():
    pinned = {"AutoModel": "someone/magnet--modeling_magnet.MagnetLlamaModel"}
    assert MagnetLlamaConfig(auto_map=pinned).auto_map == AUTO_MAP | pinned
