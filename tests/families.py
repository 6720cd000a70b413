"""Tiny random models of every family, built in code: with sliding windows, softcaps and multipliers where one has them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from modeling_magnet import FAMILIES

ADAPTER = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
WINDOW = 4  # shorter than the texts of the tests
TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,  # large enough for attention patterns to differ visibly
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": WINDOW}
OWN = {  # what is a family's own; all that it can do is switched on
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, **MIXED},
    "qwen3": {"use_sliding_window": True, **MIXED},
    "gemma3_text": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16, **MIXED},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
}
NAMES = list(OWN)
FAST = ("llama", "mistral", "gemma3_text")  # no window, one in every layer, one in some
EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
assert NAMES == list(FAMILIES), "a new family needs a line in OWN: that is all its tests need"


def build_base(family: str = "llama", impl: str = "eager", seed: int = 0, **settings) -> PreTrainedModel:
    """A random stock model in eval mode; the same seed gives the same weights on every backend."""
    config = AutoConfig.for_model(family, **TINY | OWN[family] | settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=impl).eval()


def randomize_adapter(model, seed: int = 1) -> None:
    """Fills B, which starts at zero, so that the adapter really acts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_lora.B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def build_magnet(
    family: str = "llama",
    impl: str = "eager",
    adapter: dict | None = ADAPTER,
    seed: int = 0,
    base: PreTrainedModel | None = None,
    **fields,
) -> PreTrainedModel:
    """
    A MAGNET model over `build_base(family, impl, seed)` (or `base`, whose weights it shares), with an adapter that acts.
    `fields` are those of MagnetFields.
    """
    base = build_base(family, impl, seed) if base is None else base
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[base.config.model_type].from_base(base, adapter=adapter and dict(adapter), **fields)
    randomize_adapter(model)
    return model.eval()


def windows(config) -> list[int | None]:
    """The sliding window of each layer, None where it sees everything."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    return [window if kind == "sliding_attention" else None for kind in kinds]
