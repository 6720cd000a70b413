"""MAGNET on Llama: one set of weights that generates (causal), encodes (bidirectional) and infills (hybrid attention).

Read `attention_magnet.py` (the one attention rule) and `adapter_magnet.py` (the gate) first, then this file from top to
bottom: the decoder, which puts the two together, and its heads.

This file and its siblings (`from .x import`) are copied into every checkpoint; they import torch, transformers and
peft only.
"""

from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .adapter_magnet import MAGNET, adapter_gate, adopt_adapter, freeze_base, inject_adapter, reset_lora_part
from .attention_magnet import (
    check_span_ids,
    refuse_other_mode_arguments,
    resolve_mode,
    span_attention_rule,
    span_ids_from_mask,
)
from .classification_magnet import SequenceClassificationMixin, TokenClassificationMixin
from .configuration_magnet import MagnetLlamaConfig
from .encoding_magnet import EncodingMixin
from .infilling_magnet import InfillingMixin

if (
    TYPE_CHECKING
):  # never run, but read: of a Hub repository's code, transformers makes sure of the files that this one names.
    # Files named by those alone would be missing where two processes load at once, or where one was killed meanwhile.
    from .decoding_magnet import Decoder  # noqa: F401
    from .filling_magnet import Filler  # noqa: F401
    from .gaps_magnet import Gap  # noqa: F401
    from .rules_magnet import GapRules  # noqa: F401
    from .scoring_magnet import span_logprobs  # noqa: F401
    from .seams_magnet import heal  # noqa: F401
    from .selection_magnet import Choice  # noqa: F401
    from .streaming_magnet import InfillStreamer  # noqa: F401

# ----------------------------------------------------------------------------------------------------- the decoder


class MagnetLlamaPreTrainedModel(LlamaPreTrainedModel):
    config: MagnetLlamaConfig
    config_class = MagnetLlamaConfig
    # also what 8- and 4-bit loading leaves alone: an adapter in integers could be neither added nor trained
    _keep_in_fp32_modules = [r".*\.lora_[AB]", "projection_head", "score"]

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Loads a checkpoint. Of one with an adapter, only adapter and heads are trainable (`requires_grad`)."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        if model.config.adapter is not None:
            freeze_base(model)
        return loaded

    def get_adapter_state_dict(self, *args, **kwargs) -> dict:
        """What `save_pretrained()` writes of an adapter that `add_adapter()` put on top, without MAGNET's own."""
        weights = super().get_adapter_state_dict(*args, **kwargs)
        return {name: weight for name, weight in weights.items() if f".{MAGNET}." not in name}

    def _init_weights(self, module):
        super()._init_weights(module)
        reset_lora_part(module)  # a fresh adapter is the identity

    def load_adapter(self, peft_model_id=None, adapter_name=None, *args, **kwargs):
        """As in transformers; an adapter exported from a MAGNET checkpoint is off in causal mode, as it was there."""
        found = super().load_adapter(peft_model_id, adapter_name, *args, **kwargs)
        adopt_adapter(self, adapter_name or "default")
        return found


class MagnetLlamaModel(MagnetLlamaPreTrainedModel, LlamaModel):
    """
    The Llama decoder with an attention mode per call. The mode lives in the call alone, never in shared state: threads
    may mix modes on one model.

    Example:

    ```python
    >>> import torch
    >>> from modeling_magnet import MagnetLlamaConfig, MagnetLlamaModel
    >>> config = MagnetLlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    >>> model = MagnetLlamaModel(config).eval()
    >>> ids = torch.tensor([[1, 5, 6, 7]])
    >>> model(ids, attention_mode="hybrid", span_ids=torch.tensor([[0, 0, 1, 0]])).last_hidden_state.shape
    torch.Size([1, 4, 16])

    ```
    """

    def __init__(self, config: MagnetLlamaConfig):
        super().__init__(config)
        if config.adapter is not None:
            inject_adapter(self, config.adapter)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        attention_mode: str | None = None,
        span_ids: torch.LongTensor | None = None,
        span_mask: torch.BoolTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args (beside those of [`LlamaModel`]):
            attention_mode (`str`, *optional*, defaults to `config.attention_mode`):
                `"causal"`, `"bidirectional"` or `"hybrid"`.
            span_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Needed by, and allowed in, hybrid mode without a cache: 0 = context, g > 0 = g-th span.
            span_mask (`torch.BoolTensor` of shape `(batch, length)`, *optional*):
                Instead of `span_ids`, where no two spans touch: `True` at span tokens.
            past_key_values (`Cache`, *optional*):
                Bidirectional mode fills an empty cache (the context of a later infill). Hybrid mode continues one: the
                cache is the context, and every new token belongs to the one span that is being written.
            use_cache (`bool`, *optional*):
                Causal mode creates a cache, as Llama does; the other two modes never create one.

        Raises:
            `ValueError`: an unknown mode; `is_causal` or a misspelt argument; hybrid without spans, or with flash attention; spans of a wrong
            shape, dtype or with a hole; outside causal mode, a padding mask of a wrong shape; a token id outside the
            vocabulary.
        """
        refuse_other_mode_arguments(kwargs)
        mode = resolve_mode(self.config, attention_mode, span_ids, span_mask, past_key_values)
        if mode == "causal" and self._checkpoints_closed_gate():
            raise ValueError(
                "Gradient checkpointing recomputes layers with the adapter on, but it is off in causal mode. Set "
                "config.causal_adapter=True, or switch gradient checkpointing off."
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            self._check_token_ids(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)  # (B, L, d)
        if mode == "causal" and use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen

        if span_mask is not None:
            span_ids = span_ids_from_mask(span_mask)
        mask, layer_kwargs = self._attention(
            mode, inputs_embeds, attention_mask, position_ids, past_key_values, span_ids
        )
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids=position_ids)
        hidden_states = inputs_embeds
        with adapter_gate(mode != "causal" or self.config.causal_adapter):
            for layer in self.layers:
                hidden_states = layer(
                    hidden_states,
                    attention_mask=mask,
                    position_embeddings=position_embeddings,
                    past_key_values=past_key_values,
                    use_cache=use_cache,
                    **layer_kwargs,
                    **kwargs,
                )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _attention(self, mode, inputs_embeds, attention_mask, position_ids, past_key_values, span_ids):
        """The backend's mask object for this call, (B, 1, L, keys) or None, and what else the attention layers need."""
        common = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
        }
        if mode == "causal":
            # exactly Llama's own call; position_ids let flash attention see packed rows, as in Llama
            return create_causal_mask(**common, position_ids=position_ids), {"position_ids": position_ids}
        # From here on no position_ids go to the attention layers: free gaps make them jump, which transformers would
        # read as packed documents and cut the attention between them.
        if mode == "hybrid" and past_key_values is not None:
            return create_causal_mask(**common), {}
        shape = inputs_embeds.shape[:2]
        if attention_mask is not None and attention_mask.shape != shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}: attention_mode={mode!r} builds its own 4D mask "
                f"and takes a padding mask of shape (batch, length) = {tuple(shape)}."
            )
        if mode == "bidirectional":
            return create_bidirectional_mask(**common), {"is_causal": False}
        check_span_ids(span_ids, shape)
        rule = span_attention_rule(span_ids.to(inputs_embeds.device))
        return create_bidirectional_mask(**common, and_mask_function=rule), {"is_causal": False}

    def _checkpoints_closed_gate(self) -> bool:
        gated = self.config.adapter is not None and not self.config.causal_adapter
        return gated and self.training and self.gradient_checkpointing and torch.is_grad_enabled()

    def _check_token_ids(self, input_ids) -> None:
        if input_ids.shape[1] == 0:
            raise ValueError("input_ids has length 0: pass at least one token (a tokenizer adds [BOS]).")
        # reads values, so not under compile, and not for each decoded token, where it would cost a GPU sync
        if torch.compiler.is_compiling() or input_ids.shape[1] == 1:
            return
        if input_ids.min() < 0 or input_ids.max() >= self.vocab_size:
            row, column = ((input_ids < 0) | (input_ids >= self.vocab_size)).nonzero()[0].tolist()
            raise ValueError(
                f"input_ids[{row}, {column}]={int(input_ids[row, column])}: outside the vocabulary, 0..{self.vocab_size - 1}."
            )


# ------------------------------------------------------------------------------------------------------- the heads


def projection_head(config: MagnetLlamaConfig) -> nn.Module | None:
    """The head of section 3.3 between h and e; trained, saved, and left out of every embedding."""
    d = config.hidden_size
    heads = {
        "none": lambda: None,
        "linear": lambda: nn.Linear(d, d, bias=False),
        "mlp": lambda: nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d)),
    }
    return heads[config.projection_head]()


class MagnetLlamaForCausalLM(InfillingMixin, EncodingMixin, MagnetLlamaPreTrainedModel, LlamaForCausalLM):
    """
    MAGNET with its language-modelling head: `generate()`, [`~InfillingMixin.infill`], [`~EncodingMixin.encode`].

    In causal mode it is the base Llama bit for bit, unless `config.causal_adapter`.

    Example:

    ```python
    >>> from modeling_magnet import MagnetLlamaForCausalLM
    >>> from transformers import AutoTokenizer
    >>> model = MagnetLlamaForCausalLM.from_pretrained("examples/assets/magnet-tiny")
    >>> tokenizer = AutoTokenizer.from_pretrained("examples/assets/magnet-tiny", trust_remote_code=True)
    >>> text = model.infill("Tom was hungry. <|gap|> He was full.", tokenizer, length=12)
    >>> text.startswith("Tom was hungry. ") and text.endswith(" He was full.")
    True

    ```
    """

    def __init__(self, config: MagnetLlamaConfig):
        super(LlamaForCausalLM, self).__init__(config)  # LlamaForCausalLM would build its own decoder first
        self.model = MagnetLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.projection_head = projection_head(config)
        self.post_init()

    @classmethod
    def from_llama(cls, path_or_model, adapter: dict | None = None, **magnet_settings) -> "MagnetLlamaForCausalLM":
        r"""
        Makes a MAGNET model from any Llama checkpoint. The weights are taken over, not copied.

        Args:
            path_or_model (`str` or [`LlamaForCausalLM`]):
                A folder, a Hub id or a loaded model (whose parameters the new model then shares).
            adapter (`dict`, *optional*):
                A fresh LoRA adapter, `{"r", "alpha", "target_modules"}`.
            magnet_settings:
                Further fields of [`MagnetLlamaConfig`]. `dtype` and other loading options go to
                `LlamaForCausalLM.from_pretrained`: load first where you need them, and pass the model.

        Example:

        ```python
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from modeling_magnet import MagnetLlamaForCausalLM
        >>> llama = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
        >>> model = MagnetLlamaForCausalLM.from_llama(llama, adapter={"r": 2, "alpha": 4, "target_modules": ["q_proj"]})
        >>> model.lm_head.weight is llama.lm_head.weight
        True

        ```
        """
        llama = (
            path_or_model if isinstance(path_or_model, nn.Module) else LlamaForCausalLM.from_pretrained(path_or_model)
        )
        config = MagnetLlamaConfig.from_llama(llama.config, **magnet_settings | {"projection_head": "none"})
        config._attn_implementation = llama.config._attn_implementation
        with init_empty_weights(include_buffers=False):
            model = cls(config)
        model.load_state_dict(llama.state_dict(keep_vars=True), assign=True)
        model.tie_weights()
        model.generation_config = llama.generation_config
        if adapter is not None:
            model.add_magnet_adapter(adapter)
        model.add_projection_head(magnet_settings.get("projection_head", "none"))
        return model.train(llama.training)

    def add_magnet_adapter(self, adapter: dict) -> None:
        """Adds a fresh adapter (it starts as the identity) and writes it to `config.adapter`."""
        if self.config.adapter is not None:
            raise ValueError(f"adapter: this model already has one, {self.config.adapter}.")
        self.config.adapter = adapter
        self.config.validate_adapter()
        inject_adapter(self.model, adapter)

    def add_projection_head(self, kind: str) -> None:
        """Sets a fresh projection head and writes its kind to `config.projection_head`."""
        self.config.projection_head = kind
        self.projection_head = projection_head(self.config)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        attention_mode: str | None = None,
        span_ids: torch.LongTensor | None = None,
        span_mask: torch.BoolTensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""
        Args (beside those of [`LlamaForCausalLM`] and [`MagnetLlamaModel`]):
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                As in Llama; or a bool tensor of shape `(batch, length)`: only there logits are computed, and `logits`
                has shape `(number of True, vocab_size)`. Training labels a third of the positions, and the head over
                all of them is the largest tensor of a step.
        """
        modes = {"attention_mode": attention_mode, "span_ids": span_ids, "span_mask": span_mask}
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
        }
        if not (isinstance(logits_to_keep, torch.Tensor) and logits_to_keep.dtype == torch.bool):
            return super().forward(**inputs, labels=labels, logits_to_keep=logits_to_keep, **modes, **kwargs)
        if labels is not None:
            raise ValueError(
                "labels cannot be combined with a boolean logits_to_keep: compute the loss from the logits."
            )
        outputs = self.model(**inputs, **modes, **kwargs)
        return CausalLMOutputWithPast(
            logits=self.lm_head(outputs.last_hidden_state[logits_to_keep]),  # (number of True, V)
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, inputs_embeds=None, attention_mode=None, **kwargs
    ):
        """`generate()` runs in causal mode; infill() also lets it continue a span over a cached context (hybrid)."""
        mode = self.config.attention_mode if attention_mode is None else attention_mode
        if mode == "hybrid" and (past_key_values is None or past_key_values.get_seq_length() == 0):
            raise ValueError("attention_mode='hybrid' cannot generate from a prompt: use infill(), which fills gaps.")
        if mode == "bidirectional":
            raise ValueError(
                "attention_mode='bidirectional' cannot generate: pass attention_mode='causal' or use infill()."
            )
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        return inputs | {"attention_mode": mode}


class MagnetLlamaForTokenClassification(TokenClassificationMixin, MagnetLlamaPreTrainedModel):
    def __init__(self, config: MagnetLlamaConfig):
        super().__init__(config)
        self.model = MagnetLlamaModel(config)
        self.add_classifier()
        self.post_init()


class MagnetLlamaForSequenceClassification(SequenceClassificationMixin, MagnetLlamaPreTrainedModel):
    def __init__(self, config: MagnetLlamaConfig):
        super().__init__(config)
        self.model = MagnetLlamaModel(config)
        self.add_classifier()
        self.post_init()


MagnetLlamaModel.register_for_auto_class("AutoModel")
MagnetLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
MagnetLlamaForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
MagnetLlamaForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "MagnetLlamaPreTrainedModel",
    "MagnetLlamaModel",
    "MagnetLlamaForCausalLM",
    "MagnetLlamaForTokenClassification",
    "MagnetLlamaForSequenceClassification",
]
