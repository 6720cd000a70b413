"""MagnetLlamaConfig: a LlamaConfig that also says how the model attends, where its adapter sits and how it encodes.

This file is copied verbatim into every checkpoint, so it imports transformers and huggingface_hub only.
"""

import difflib
import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.models.llama.configuration_llama import LlamaConfig

ATTENTION_MODES = ("causal", "bidirectional", "hybrid")
ADAPTER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Every head can be loaded from one checkpoint, whichever class was saved.
AUTO_MAP = {
    "AutoConfig": "configuration_magnet.MagnetLlamaConfig",
    "AutoModel": "modeling_magnet.MagnetLlamaModel",
    "AutoModelForCausalLM": "modeling_magnet.MagnetLlamaForCausalLM",
    "AutoModelForTokenClassification": "modeling_magnet.MagnetLlamaForTokenClassification",
    "AutoModelForSequenceClassification": "modeling_magnet.MagnetLlamaForSequenceClassification",
}


@strict
class MagnetLlamaConfig(LlamaConfig):
    r"""
    Configuration of a MAGNET model. Takes everything [`LlamaConfig`] takes, and:

    Args:
        attention_mode (`str`, *optional*, defaults to `"causal"`):
            Attention used by `forward` when the call names none: `"causal"`, `"bidirectional"` or `"hybrid"`.
            The classification heads are encoders and default to `"bidirectional"` whatever stands here.
        mask_token_id (`int`, *optional*):
            Id of the token that MNTP puts in place of a masked one (Appendix A uses `"_"` for Llama-2). It is an
            ordinary token: it is never searched for in user text.
        infill_end_token_id (`int`, *optional*):
            Id predicted at the end of a gap of free length; `None` if the checkpoint was not trained to end gaps.
        infill_free_offsets (`list[int]`, *optional*, defaults to `[128]`):
            Positions reserved for a gap of free length: the right context starts that many positions after the
            left one, whatever the fill's length.
        adapter (`dict`, *optional*):
            The LoRA adapter, `{"r": int, "alpha": number, "target_modules": list of projections}`; `None` for none.
        causal_adapter (`bool`, *optional*, defaults to `False`):
            `False`: causal mode is the base model, bit for bit. `True`: the adapter is active in causal mode too, as
            in the paper.
        pooling (`str`, *optional*, defaults to `"last_token"`):
            Sentence vector: `"last_token"` (the final [EOS], section 3.2.2) or `"mean"`.
        representation_prompt (`str`, *optional*):
            Instruction put before a sentence that is encoded (Appendix A).
        projection_head (`str`, *optional*, defaults to `"none"`):
            Head between the sentence vector and the contrastive loss, `"none"`, `"linear"` or `"mlp"`. Used in
            training only (section 3.3).

    Raises:
        `ValueError` (or `StrictDataclassError`) naming the field, the value and what is allowed.

    Example:

    ```python
    >>> from modeling_magnet import MagnetLlamaConfig
    >>> config = MagnetLlamaConfig(hidden_size=64, num_attention_heads=4, adapter={"r": 4, "alpha": 8, "target_modules": ["q_proj"]})
    >>> config.attention_mode, config.adapter["r"]
    ('causal', 4)

    ```
    """

    model_type = "magnet_llama"

    attention_mode: Literal["causal", "bidirectional", "hybrid"] = "causal"
    mask_token_id: int | None = None
    infill_end_token_id: int | None = None
    infill_free_offsets: list[int] | tuple[int, ...] = (128,)
    adapter: dict | None = None
    causal_adapter: bool = False
    pooling: Literal["last_token", "mean"] = "last_token"
    representation_prompt: str = "Given the sentence, find its representation:"
    projection_head: Literal["none", "linear", "mlp"] = "none"

    def __post_init__(self, **kwargs):
        self._refuse_misspelt(kwargs)
        super().__post_init__(**kwargs)
        self.infill_free_offsets = list(self.infill_free_offsets)
        # a checkpoint that pins other code (`repo--file.Class`) keeps its own entries
        self.auto_map = AUTO_MAP | (getattr(self, "auto_map", None) or {})

    @classmethod
    def from_llama(cls, llama: LlamaConfig, **settings) -> "MagnetLlamaConfig":
        """A Llama's configuration with MAGNET's `settings` beside it, and without what names Llama's classes."""
        shape = llama.to_dict()
        for key in ("model_type", "architectures", "auto_map", "transformers_version"):
            shape.pop(key, None)
        return cls(**shape | settings)

    @staticmethod
    def _refuse_misspelt(kwargs):
        own = list(MagnetLlamaConfig.__annotations__)
        for key in kwargs:
            if key == "is_causal":
                raise ValueError("is_causal is not a MAGNET setting: use attention_mode='bidirectional' instead.")
            if close := difflib.get_close_matches(key, own, n=1, cutoff=0.85):
                raise ValueError(f"{key}={kwargs[key]!r}: unknown setting. Did you mean {close[0]!r}?")

    def validate_token_ids(self):
        for name in ("mask_token_id", "infill_end_token_id"):
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


MagnetLlamaConfig.register_for_auto_class()

__all__ = ["MagnetLlamaConfig"]
