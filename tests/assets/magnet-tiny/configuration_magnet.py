"""MAGNET's additions to a decoder's configuration: attention mode, adapter, encoding and infilling.

`MagnetFields` holds the settings; one short class per family adds them to transformers' own configuration.
"""

import difflib
import math
from dataclasses import dataclass
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import (
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

ATTENTION_MODES = ("causal", "bidirectional", "hybrid")
ADAPTER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")
NOT_SHARED = ("model_type", "architectures", "auto_map", "transformers_version")  # specific to the base's classes


@dataclass(kw_only=True)
class MagnetFields:
    r"""
    MAGNET's settings, in addition to those of the family's configuration.

    Args:
        attention_mode (`str`, *optional*, defaults to `"causal"`):
            Default attention mode of `forward`: `"causal"`, `"bidirectional"` or `"hybrid"`. The classification heads
            are encoders: they ignore this and default to `"bidirectional"`.
        mask_token_id (`int`, *optional*):
            Id of the token that replaces masked tokens in MNTP (Appendix A uses `"_"` for Llama-2). It is an ordinary
            token: user text is never searched for it.
        text_start_token_id (`int`, *optional*):
            Id of the token prepended to every text that is encoded, infilled or trained on. `None`: whatever the
            tokenizer itself prepends ([BOS] for Llama and Gemma, nothing for Qwen and SmolLM2).
        infill_end_token_id (`int`, *optional*):
            Id predicted at the end of a gap of free length; `None` if the checkpoint was not trained to end gaps.
        infill_free_offsets (`list[int]`, *optional*, defaults to `[128]`):
            Positions reserved for a gap of free length: the right context starts that many positions after the
            left one, whatever the fill's length.
        adapter (`dict`, *optional*):
            The low-rank adapter, `{"r": int, "alpha": number, "target_modules": list of projections}`; `None` for none.
        causal_adapter (`bool`, *optional*, defaults to `False`):
            `False`: causal mode is the base model, bit for bit. `True`: the adapter is active in causal mode too, as
            in the paper.
        pooling (`str`, *optional*, defaults to `"last_token"`):
            Sentence vector: `"last_token"` (the final [EOS], section 3.2.2) or `"mean"`.
        representation_prompt (`str`, *optional*):
            Instruction prepended to every encoded sentence (Appendix A).
        projection_head (`str`, *optional*, defaults to `"none"`):
            Head between the sentence vector and the contrastive loss, `"none"`, `"linear"` or `"mlp"`. Used in
            training only (section 3.3).

    Raises:
        `ValueError` (or `StrictDataclassError`) naming the field, its value and the allowed values.

    Example:

    ```python
    >>> from modeling_magnet import MagnetQwen3Config
    >>> config = MagnetQwen3Config(hidden_size=64, adapter={"r": 4, "alpha": 8, "target_modules": ["q_proj"]})
    >>> config.attention_mode, config.adapter["r"]
    ('causal', 4)

    ```
    """

    attention_mode: Literal["causal", "bidirectional", "hybrid"] = "causal"
    mask_token_id: int | None = None
    text_start_token_id: int | None = None
    infill_end_token_id: int | None = None
    infill_free_offsets: list[int] | tuple[int, ...] = (128,)
    adapter: dict | None = None
    causal_adapter: bool = False
    pooling: Literal["last_token", "mean"] = "last_token"
    representation_prompt: str = "Given the sentence, find its representation:"
    projection_head: Literal["none", "linear", "mlp"] = "none"

    def __post_init__(self, **kwargs):
        _refuse_misspelt(kwargs)
        super().__post_init__(**kwargs)
        self.infill_free_offsets = list(self.infill_free_offsets)
        # every head loads from every checkpoint; one that pins other code (`repo--file.Class`) keeps its own entries
        name = type(self).__name__.removesuffix("Config")
        entries = {"AutoConfig": f"configuration_magnet.{name}Config", "AutoModel": f"modeling_magnet.{name}Model"}
        heads = ("ForCausalLM", "ForTokenClassification", "ForSequenceClassification")
        entries |= {f"AutoModel{head}": f"modeling_magnet.{name}{head}" for head in heads}
        self.auto_map = entries | (getattr(self, "auto_map", None) or {})

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """
        As in transformers, but also accepts the configuration of a plain base of the same family.

        Raises:
            `ValueError` for a base of another family: its weights would silently be dropped or left random.
        """
        found, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        kind = found.get("model_type", cls.model_type)
        if kind == cls.base_model_type:
            found = {key: value for key, value in found.items() if key not in NOT_SHARED}
            found["model_type"] = cls.model_type
        elif kind != cls.model_type:
            raise ValueError(f"{pretrained_model_name_or_path}: its model_type is {kind!r}. {class_for(kind)}")
        return found, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, but only the caller can choose a kernel: one named in a file may be remote code."""
        return super().from_dict({key: value for key, value in config_dict.items() if key not in KERNELS}, **kwargs)

    @classmethod
    def from_base(cls, base: PreTrainedConfig, **settings):
        """A plain decoder's configuration with MAGNET's `settings` added."""
        if base.model_type not in (cls.base_model_type, cls.model_type):
            raise ValueError(f"The base's model_type is {base.model_type!r}. {class_for(base.model_type)}")
        shape = {key: value for key, value in base.to_dict().items() if key not in NOT_SHARED}
        return cls(**shape | settings)

    def to_base(self, **settings) -> PreTrainedConfig:
        """The configuration of the plain decoder, without MAGNET's fields."""
        ours = (*MagnetFields.__annotations__, *NOT_SHARED)
        shape = {key: value for key, value in self.to_dict().items() if key not in ours}
        return self.base_config_class(**shape | settings)

    def validate_token_ids(self):
        for name in ("mask_token_id", "text_start_token_id", "infill_end_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name}={value}: must lie in 0..{self.vocab_size - 1} (vocab_size={self.vocab_size})."
                )

    def validate_free_offsets(self):
        offsets = list(self.infill_free_offsets)
        if not offsets or offsets != sorted(set(offsets)) or offsets[0] < 1:
            raise ValueError(f"infill_free_offsets={offsets}: must be positive, increasing and not empty, e.g. [128].")

    def validate_adapter(self):
        if self.adapter is None:
            return
        if set(self.adapter) != {"r", "alpha", "target_modules"}:
            raise ValueError(
                f"adapter={self.adapter!r}: must have exactly the keys 'r', 'alpha' and 'target_modules', e.g. "
                "{'r': 16, 'alpha': 32, 'target_modules': ['q_proj', 'k_proj', 'v_proj', 'o_proj']}."
            )
        r, alpha, targets = self.adapter["r"], self.adapter["alpha"], self.adapter["target_modules"]
        if isinstance(r, bool) or not isinstance(r, int) or r < 1:
            raise ValueError(f"adapter['r']={r!r}: the rank must be a positive integer.")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not (0 < alpha < math.inf):
            raise ValueError(f"adapter['alpha']={alpha!r}: must be a positive number.")
        if not isinstance(targets, (list, tuple)) or not targets or not set(targets) <= set(ADAPTER_TARGETS):
            raise ValueError(f"adapter['target_modules']={targets!r}: choose from {list(ADAPTER_TARGETS)}.")


def _refuse_misspelt(kwargs: dict) -> None:
    """Configurations accept any keyword, so a misspelt setting would have no effect."""
    for key, value in kwargs.items():
        if key == "is_causal":
            raise ValueError("is_causal is not a MAGNET setting: use attention_mode='bidirectional' instead.")
        if close := difflib.get_close_matches(key, MagnetFields.__annotations__, n=1, cutoff=0.85):
            raise ValueError(f"{key}={value!r}: unknown setting. Did you mean {close[0]!r}?")


# ------------------------------------------------------------------------------------------------------- the families


@strict
class MagnetLlamaConfig(MagnetFields, LlamaConfig):
    model_type, base_model_type, base_config_class = "magnet_llama", "llama", LlamaConfig


@strict
class MagnetMistralConfig(MagnetFields, MistralConfig):
    model_type, base_model_type, base_config_class = "magnet_mistral", "mistral", MistralConfig


@strict
class MagnetQwen2Config(MagnetFields, Qwen2Config):
    model_type, base_model_type, base_config_class = "magnet_qwen2", "qwen2", Qwen2Config


@strict
class MagnetQwen3Config(MagnetFields, Qwen3Config):
    model_type, base_model_type, base_config_class = "magnet_qwen3", "qwen3", Qwen3Config


@strict
class MagnetGemma3TextConfig(MagnetFields, Gemma3TextConfig):
    model_type, base_model_type, base_config_class = "magnet_gemma3_text", "gemma3_text", Gemma3TextConfig


@strict
class MagnetGraniteConfig(MagnetFields, GraniteConfig):
    model_type, base_model_type, base_config_class = "magnet_granite", "granite", GraniteConfig


CONFIGS = (
    MagnetLlamaConfig,
    MagnetMistralConfig,
    MagnetQwen2Config,
    MagnetQwen3Config,
    MagnetGemma3TextConfig,
    MagnetGraniteConfig,
)
for config in CONFIGS:
    config.register_for_auto_class()


def class_for(model_type: str) -> str:
    """A sentence naming the class for a base of this `model_type`, or else the supported families."""
    for config in CONFIGS:
        if model_type in (config.base_model_type, config.model_type):
            return f"Use {config.__name__.removesuffix('Config')}ForCausalLM."
    return f"MAGNET knows these families: {', '.join(config.base_model_type for config in CONFIGS)}."


__all__ = ["MagnetFields", *(config.__name__ for config in CONFIGS)]
