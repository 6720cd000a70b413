"""MAGNET: one set of weights that generates (causal), encodes (bidirectional) and infills (hybrid attention).

From top to bottom: the attention rule (section 3.1, Figure 2), the low-rank adapter and its gate, the decoder that
adds both to transformers' own, the language model, the classification heads, and a few lines per family.

This file and its siblings (`from .x import`) are copied into every checkpoint; they import torch, numpy, tqdm,
transformers, tokenizers, huggingface_hub and safetensors.
"""

import contextlib
import difflib
import functools
import hashlib
import json
import math
import threading
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization, models
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import cached_file, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.loading_report import LoadStateDictInfo
from transformers.utils.versions import require_version

from .configuration_magnet import (
    ATTENTION_MODES,
    MagnetGemma3TextConfig,
    MagnetGraniteConfig,
    MagnetLlamaConfig,
    MagnetMistralConfig,
    MagnetQwen2Config,
    MagnetQwen3Config,
)
from .encoding_magnet import EncodingMixin, own_token_states, pooled
from .infilling_magnet import InfillingMixin
from .scoring_magnet import continuation_logprobs  # noqa: F401 - named here, so that transformers fetches the file first

require_version("transformers>=5.24", "A checkpoint does not bring it along: pip install -U transformers")

# ------------------------------------------------------------------------------------------------- the attention rule


def span_attention_rule(span_ids: torch.Tensor):
    """
    MAGNET's attention rule (section 3.1, Figure 2): every token attends to the whole context; a span token also
    attends to itself and to the earlier tokens of its own span.

    Args:
        span_ids (`torch.LongTensor` of shape `(batch, length)`):
            0 for a context token, g > 0 for a token of the g-th span. All 0 is bidirectional, all 1 is causal.

    Returns:
        A predicate `allowed(batch, head, query, key) -> bool tensor`, as transformers' mask functions expect.
    """

    def allowed(batch, head, query, key):
        in_context = span_ids[batch, key] == 0
        in_own_past = (span_ids[batch, key] == span_ids[batch, query]) & (key <= query)
        return in_context | in_own_past

    return allowed


def document_rule(document_ids: torch.Tensor):
    """Texts packed into one row, numbered by `document_ids` (B, L), do not see each other."""
    return lambda batch, head, query, key: document_ids[batch, query] == document_ids[batch, key]


def window_rule(positions: torch.Tensor, window: int):
    """A sliding window over positions `(batch, slots)`, which jump at free gaps and are reordered in a cache."""

    def near(batch, head, query, key):
        return (positions[batch, query] - positions[batch, key]).abs() < window

    return near


def both(first, second):
    """The conjunction of two mask functions; either may be None."""
    if first is None or second is None:
        return first or second
    return lambda *place: first(*place) & second(*place)


def span_ids_from_mask(span_mask: torch.Tensor) -> torch.Tensor:
    """
    Numbers the runs of a boolean span mask: 0 outside, 1, 2, ... for the runs from left to right.

    Spans that touch form one run in a mask; use `span_ids` to keep them apart.

    Args:
        span_mask (`torch.BoolTensor` of shape `(batch, length)`): `True` at span tokens.

    Returns:
        `torch.LongTensor` of shape `(batch, length)`.

    Example:

    ```python
    >>> import torch
    >>> from modeling_magnet import span_ids_from_mask
    >>> span_ids_from_mask(torch.tensor([[False, True, True, False, True]]))
    tensor([[0, 1, 1, 0, 2]])

    ```
    """
    before = nn.functional.pad(span_mask, (1, 0))[:, :-1]  # (B, L), the mask shifted right
    return (span_mask & ~before).cumsum(dim=1) * span_mask


# ------------------------------------------------------------------------------------------- the adapter and its gate


class _Gate(threading.local):
    """Whether the adapter is active, per thread. Open by default, because activation checkpointing recomputes layers
    in another thread; a thread-local (not a context variable) because torch.compile can trace it."""

    is_open = True


_gate = _Gate()


@contextlib.contextmanager
def adapter_gate(is_open: bool):
    """Opens or closes the adapter for calls inside, in this thread only; an outer closed gate stays closed."""
    before, _gate.is_open = _gate.is_open, _gate.is_open and is_open
    try:
        yield
    finally:
        _gate.is_open = before


class LowRank(nn.Module):
    """
    The low-rank adapter (LoRA) of a linear layer, which adds `x A^T B^T alpha / r` to the layer's output while the gate is
    open. The layer keeps its class and its weight's name, so a MAGNET checkpoint contains the base's tensors.

    Args:
        linear (`nn.Linear`): The layer, quantised or not.
        r (`int`): Rank.
        alpha (`float`): The adapter is scaled by `alpha / r`.
    """

    def __init__(self, linear: nn.Module, r: int, alpha: float):
        super().__init__()
        dtype = linear.weight.dtype if linear.weight.is_floating_point() else torch.get_default_dtype()
        where = {"device": linear.weight.device, "dtype": dtype}
        self.A = nn.Parameter(torch.empty(r, linear.in_features, **where))
        self.B = nn.Parameter(torch.empty(linear.out_features, r, **where))
        self.scale = alpha / r
        self.reset_parameters()

    def reset_parameters(self):
        """Resets to the identity (B is 0). transformers' functions skip weights loaded from a file."""
        initialization.kaiming_uniform_(self.A, a=math.sqrt(5))
        initialization.zeros_(self.B)

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The layer's `output` for `x`, with the adapter's part added."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.A.dtype)
        low = nn.functional.linear(x, self.A)  # (..., r)
        if low.dtype == output.dtype == self.B.dtype:  # one pass over the output instead of three
            add = torch.addmm if torch.is_grad_enabled() else torch.Tensor.addmm_
            return add(output.flatten(0, -2), low.flatten(0, -2), self.B.T, alpha=self.scale).view_as(output)
        return output + (nn.functional.linear(low, self.B) * self.scale).to(output.dtype)


def adapted_forward(forward, low_rank: LowRank, x: torch.Tensor) -> torch.Tensor:
    """The forward of a layer with an adapter, given its own."""
    output = forward(x)
    return low_rank(x, output) if _gate.is_open else output


def attach_adapter(model: nn.Module, adapter: dict | None) -> None:
    """Adds a [`LowRank`], `<target>_lora`, for each target that has none, and has the target's forward apply it."""
    for parent in list(model.modules()) if adapter else ():
        children = dict(parent.named_children())
        # in layer order: a set's order differs between processes, and with it random draws and the optimizer's state
        for name in [name for name in children if name in adapter["target_modules"]]:
            linear, part = children[name], f"{name}_lora"
            if part not in children:
                setattr(parent, part, LowRank(linear, adapter["r"], adapter["alpha"]))
            if "is_adapted" not in vars(linear):  # quantising replaces the layer
                # not a hook, which costs 5 to 10 microseconds a call even while the gate is closed
                linear.forward = functools.partial(adapted_forward, linear.forward, getattr(parent, part))
                linear.is_adapted = True


def low_rank_parts(model: nn.Module):
    """Yields `(name of the linear layer, the layer, its LowRank)`."""
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            target = name.removesuffix("_lora")
            yield target, model.get_submodule(target), module


class MagnetPreTrained:
    """Loading and initialisation for all classes with a MAGNET decoder. Precedes transformers' class in the bases."""

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, LowRank):
            module.reset_parameters()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        r"""
        As in transformers. Loads a MAGNET checkpoint, or a plain one of the same family with `adapter={"r", "alpha",
        "target_modules"}` and other fields of [`MagnetFields`] as arguments.

        Raises:
            `ValueError` if the file lacks a tensor of the decoder or has an extra one, `RuntimeError` if a shape
            differs; both name the tensor: such a model would be partly random. A plain base may only lack the
            adapter and the head, which start fresh.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)  # a pickle may run code
        # otherwise transformers raises, with the names only in a log
        wants_any_shape, kwargs["ignore_mismatched_sizes"] = kwargs.get("ignore_mismatched_sizes", False), True
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        attach_adapter(model.base_model, model.config.adapter)
        has_adapter = _declares_adapter(pretrained_model_name_or_path, kwargs)
        missing = [key for key in info["missing_keys"] if "_lora." not in key or has_adapter]
        heads = ("score.", "projection_head.")  # transformers itself reports fresh ones
        missing = sorted(key for key in missing if not key.startswith(heads))
        decoder, parts = model.base_model_prefix + ".", dict(model.base_model.named_children())
        extra = sorted(key for key in info["unexpected_keys"] if key.removeprefix(decoder).split(".")[0] in parts)
        shapes = sorted(key for key, *_ in info["mismatched_keys"] if not wants_any_shape)
        problems = (
            (ValueError, "has no tensors for", missing),
            (ValueError, "has tensors that the model lacks:", extra),
            (RuntimeError, "has other shapes for", shapes),  # as transformers raises
        )
        for error, problem, keys in problems:
            if keys:
                names = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
                raise error(
                    f"{pretrained_model_name_or_path}: the file {problem} {names}. Its config.json (layers, adapter) is not "
                    "that of its weights; restore the one it was saved with."
                )
        return (model, info) if wants_info else model

    def load_adapter(self, peft_model_id=None, adapter_name=None, *args, adapter_kwargs=None, **kwargs):
        """
        As in transformers. An adapter exported from a MAGNET checkpoint becomes MAGNET's own again: off in causal mode
        and saved with the model. Its `adapter_config.json` has
        `auto_mapping: {"magnet_gated": true, "base_sha256": ...}`.

        Raises:
            `ValueError` for an adapter of another base, judged by shapes and [`base_sha256`].
        """
        hub = {"subfolder": "", **(adapter_kwargs or {})}
        found = peft_model_id and cached_file(peft_model_id, "adapter_config.json", **_hub_options(hub))
        settings = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
        if not (settings.get("auto_mapping") or {}).get("magnet_gated"):
            return super().load_adapter(peft_model_id, adapter_name, *args, adapter_kwargs=adapter_kwargs, **kwargs)
        trained_on = settings["auto_mapping"].get("base_sha256")
        loaded_on = base_sha256(self) if trained_on else None
        if loaded_on not in (None, trained_on):
            raise ValueError(
                f"{peft_model_id}: was trained on {settings['base_model_name_or_path']} (sha256 of its tensors "
                f"{trained_on[:12]}), not on {self.name_or_path or 'this base'}, whose tensors differ. Load that base."
            )
        weights = load_file(cached_file(peft_model_id, "adapter_model.safetensors", **_hub_options(hub)))
        adapter = {"r": settings["r"], "alpha": settings["lora_alpha"]}
        self.add_magnet_adapter(adapter | {"target_modules": sorted(settings["target_modules"])})
        prefix = f"base_model.model.{self.base_model_prefix}."
        own = {name for name, _ in self.base_model.named_parameters() if "_lora." in name}
        renamed = {key.removeprefix(prefix): weight for key, weight in weights.items()}
        renamed = {
            key.replace(".lora_A.weight", "_lora.A").replace(".lora_B.weight", "_lora.B"): weight
            for key, weight in renamed.items()
        }
        if own != set(renamed):
            odd = sorted(own ^ set(renamed))
            raise ValueError(
                f"{peft_model_id}: the adapter does not fit this base; the first of {len(odd)}: {odd[0]}."
            )
        self.base_model.load_state_dict(renamed, strict=False)
        return LoadStateDictInfo(set(), set(), set(), [], {}, set())

    def add_magnet_adapter(self, adapter: dict) -> None:
        """Adds a fresh adapter, which starts as the identity, and writes it to `config.adapter`."""
        if self.config.adapter is not None:
            raise ValueError(f"adapter: this model already has one, {self.config.adapter}.")
        self.config.adapter = adapter
        self.config.validate_adapter()
        attach_adapter(self.base_model, adapter)

    def adapter_disabled(self):
        """A context manager in which this thread's calls use the base model in every mode."""
        return adapter_gate(False)


def base_sha256(model: PreTrainedModel) -> str | None:
    """
    Identifies a base by the sha256 of its tensors in bfloat16, which is the same for a model loaded in float32. `None`
    for weights rounded differently (float16, quantised), which prove nothing.
    """
    if model.dtype not in (torch.float32, torch.bfloat16) or getattr(model, "is_quantized", False):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(model.base_model.state_dict().items()):
        if "_lora." not in name:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _declares_adapter(path, kwargs) -> bool:
    """Whether the checkpoint's `config.json` says that its weights include an adapter."""
    if path is None:  # the weights were passed as `state_dict=`
        return False
    try:
        return bool(PreTrainedConfig.get_config_dict(path, **_hub_options(kwargs))[0].get("adapter"))
    except OSError:  # an adapter's folder, for load_adapter()
        return False


def _hub_options(kwargs: dict) -> dict:
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {name: kwargs[name] for name in names if name in kwargs}


# -------------------------------------------------------------------------------------------------------- the decoder


class MagnetDecoder(MagnetPreTrained):
    """
    Adds attention modes to a stock decoder: builds the mask of each call and passes it to transformers' own `forward`.
    Causal calls pass through unchanged. The mode belongs to the call: threads may mix modes on one model.

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

    def __init__(self, config):
        super().__init__(config)
        attach_adapter(self, config.adapter)
        for layer in self.layers:
            layer.self_attn.register_forward_pre_hook(_attend_both_ways, with_kwargs=True)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        attention_mode: str | None = None,
        span_ids: torch.LongTensor | None = None,
        span_mask: torch.BoolTensor | None = None,
        document_ids: torch.LongTensor | None = None,
        context_position_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args (in addition to the stock decoder's):
            attention_mode (`str`, *optional*, defaults to `config.attention_mode`):
                `"causal"`, `"bidirectional"` or `"hybrid"`.
            span_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Required in hybrid mode without a cache, rejected otherwise: 0 = context, g > 0 = g-th span.
            span_mask (`torch.BoolTensor` of shape `(batch, length)`, *optional*):
                Alternative to `span_ids` if no spans touch: `True` at span tokens.
            document_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Bidirectional and hybrid mode: the texts packed into a row. A token attends to its own text only; padding
                is a text of its own, without `attention_mask`. `position_ids` should start anew in each.
            cache (`Cache`, *optional*):
                Bidirectional mode fills an empty cache (the context of a later infill). Hybrid mode continues one: the
                cache is the context, and every new token belongs to the one span being generated.
            context_position_ids (`torch.LongTensor` of shape `(batch, cached context)`, *optional*):
                Positions of the cached context that hybrid mode continues, for layers with a sliding window; defaults
                to 0, 1, ... without padding.
            use_cache (`bool`, *optional*):
                Causal mode creates a cache, as the stock decoder does; the other two modes never create one.

        Raises:
            `ValueError`: an unknown mode; `is_causal` or a misspelt argument; hybrid without spans, or with flash attention;
            spans of a wrong shape, dtype or with a hole; outside causal mode, a padding mask of a wrong shape;
            `document_ids` in causal mode, with a mask or a cache.
        """
        if cache is not None and not isinstance(cache, Cache):
            # from generate_batch(), whose mask says the same; must not reach the config, which threads share
            kwargs.pop("is_causal", None)
        _refuse_other_mode_arguments(kwargs)
        mode = resolve_mode(self.config, attention_mode, span_ids, span_mask, cache)
        if document_ids is not None:
            if mode == "causal" or attention_mask is not None or cache is not None:
                raise ValueError(
                    "document_ids: are for bidirectional and hybrid mode, with no attention_mask (give padding an id of its "
                    "own) and no cache. In causal mode, transformers reads packed texts off position_ids."
                )
            if "flash" in self.config._attn_implementation:
                kwargs |= _boundaries(document_ids)
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        if mode == "causal":
            if self._recomputes_with_closed_gate():
                raise ValueError(
                    "Gradient checkpointing recomputes layers with the adapter on, but it is off in causal mode. Set "
                    "config.causal_adapter=True, or switch gradient checkpointing off."
                )
            inputs |= {"use_cache": use_cache}
        else:
            if (input_ids is None) == (inputs_embeds is None):
                raise ValueError(
                    "You must specify exactly one of input_ids or inputs_embeds"
                )  # as the stock decoder does
            given = input_ids if inputs_embeds is None else inputs_embeds
            # the mask functions only read shape, dtype and device of the embeddings
            like_embeds = torch.empty(*given.shape[:2], 0, dtype=self.dtype, device=given.device)
            if mode == "hybrid" and cache is not None:
                attention_mask = self._continuing_mask(
                    like_embeds, attention_mask, position_ids, cache, context_position_ids
                )
            else:
                span_ids = span_ids_from_mask(span_mask) if span_mask is not None else span_ids
                attention_mask = self._mask(like_embeds, attention_mask, position_ids, cache, span_ids, document_ids)
                inputs |= {"attends_both_ways": True}
            inputs |= {"use_cache": cache is not None}
        with adapter_gate(mode != "causal" or self.config.causal_adapter):
            return super().forward(attention_mask=attention_mask, cache=cache, **inputs, **kwargs)

    def _mask(self, like_embeds, attention_mask, position_ids, cache, span_ids, document_ids):
        """The mask for bidirectional and hybrid mode, (B, 1, L, L), in the backend's format."""
        shape = tuple(like_embeds.shape[:2])
        if attention_mask is not None and tuple(attention_mask.shape) != shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}: outside causal mode it must be a padding mask of "
                f"shape (batch, length) = {shape}; the 4D mask is built here."
            )
        rule = None
        if span_ids is not None:
            check_span_ids(span_ids, shape)
            rule = span_attention_rule(span_ids.to(like_embeds.device))
        if document_ids is not None:
            rule = both(rule, document_rule(document_ids.to(like_embeds.device)))
        if position_ids is None:
            position_ids = torch.arange(shape[1], device=like_embeds.device)[None]
        common = {"config": self.config, "inputs_embeds": like_embeds, "attention_mask": attention_mask}
        common |= {"cache": cache, "allow_is_bidirectional_skip": False}
        return self._by_layer_type(
            lambda window: create_bidirectional_mask(**common, and_mask_function=both(rule, window)),
            position_ids.expand(shape),
            document_ids,
        )

    def _continuing_mask(self, like_embeds, attention_mask, position_ids, cache, context_position_ids):
        """The mask for a span generated from a cached context: causal, except for windows over positions."""
        if self.window is None or isinstance(attention_mask, dict):
            return attention_mask  # 2D, or prepared by generate() for a static cache: the stock decoder handles it
        batch, new = like_embeds.shape[:2]
        slots = cache.get_seq_length() + new
        if context_position_ids is None:  # a padded slot takes up no position
            is_real = like_embeds.new_ones(batch, slots) if attention_mask is None else attention_mask
            context_position_ids = is_real[:, : slots - new].long().cumsum(1) - 1
        written = slots - context_position_ids.shape[1]  # span tokens so far, plus the token left of it
        back = torch.arange(written - 1, -1, -1, device=like_embeds.device)
        last = position_ids[:, -1:] if position_ids is not None else context_position_ids[:, -1:] + written
        positions = torch.cat([context_position_ids, last - back], dim=1)  # (B, slots)
        common = {"config": self.config, "inputs_embeds": like_embeds, "attention_mask": attention_mask}
        return self._by_layer_type(
            lambda window: create_causal_mask(**common, cache=cache, and_mask_function=window),
            positions,
        )

    @property
    def window(self) -> int | None:
        """Tokens that a sliding-window layer sees on each side; None without such layers."""
        slides = "sliding_attention" in getattr(self.config, "layer_types", ("sliding_attention",))
        return getattr(self.config, "sliding_window", None) if slides else None

    def _by_layer_type(self, build, positions, document_ids=None):
        """One mask or, if the stock decoder expects it, a dictionary of one mask per layer type."""
        near = self.window and window_rule(positions, self.window)
        jumps = positions.diff() != 1  # (B, slots - 1)
        if document_ids is not None:
            jumps &= document_ids.diff() == 0
        if (
            near
            and "flash" in self.config._attn_implementation
            and jumps.any()
            and positions.amax() - positions.amin() >= self.window
        ):
            raise ValueError(
                f"attn_implementation={self.config._attn_implementation!r} slides over slots, not over positions: where these "
                f"jump, a text longer than sliding_window={self.window} needs 'sdpa', 'eager' or 'flex_attention'."
            )
        types = getattr(self.config, "layer_types", None)
        if types is None:  # Llama, Granite; Mistral, where all or no layers slide
            return build(near)
        return {kind: build(near if kind == "sliding_attention" else None) for kind in set(types)}

    def _recomputes_with_closed_gate(self) -> bool:
        gated = self.config.adapter is not None and not self.config.causal_adapter
        return gated and self.training and self.gradient_checkpointing and torch.is_grad_enabled()


def _attend_both_ways(attention: nn.Module, args: tuple, kwargs: dict):
    """
    Flash attention does not take our mask: this marks the call as non-causal and drops positions, whose jumps at free
    gaps it would treat as boundaries of packed texts. transformers' own `is_causal` argument would be written to the
    config, which threads share.
    """
    if kwargs.pop("attends_both_ways", False):
        kwargs["is_causal"] = False
        kwargs.pop("position_ids", None)
    return args, kwargs


def _boundaries(document_ids: torch.Tensor) -> dict:
    """Where flash attention, which takes no mask, finds the texts of packed rows."""
    rows = torch.arange(len(document_ids), device=document_ids.device)[:, None].expand_as(document_ids)
    place = torch.stack([rows.flatten(), document_ids.flatten()])  # (2, B L)
    starts = (place[:, 1:] != place[:, :-1]).any(0).nonzero()[:, 0] + 1
    ends = starts.new_tensor([place.shape[1]])
    offsets = torch.cat([ends * 0, starts, ends]).to(torch.int32)  # (texts + 1,)
    longest = int(offsets.diff().max())
    return {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest}


def resolve_mode(config, attention_mode, span_ids, span_mask, cache) -> str:
    """
    The mode of this call: `attention_mode`, or else `config.attention_mode`.

    Raises:
        `ValueError` for an unknown mode, and for spans or a cache that the mode cannot honour: attention never
        silently differs from the call.
    """
    mode = config.attention_mode if attention_mode is None else attention_mode
    if mode not in ATTENTION_MODES:
        raise ValueError(f"attention_mode={mode!r}: must be one of {list(ATTENTION_MODES)}.")
    if span_ids is not None and span_mask is not None:
        raise ValueError("Pass either span_ids or span_mask, not both.")
    if span_mask is not None and span_mask.dtype != torch.bool:
        raise ValueError(f"span_mask has dtype {span_mask.dtype}: must be torch.bool (use span_ids= for integers).")
    has_spans = span_ids is not None or span_mask is not None
    cached = mode != "causal" and cache is not None and _is_filled(cache, mode)
    if mode == "hybrid" and cache is not None and (has_spans or not cached):
        raise ValueError(
            "attention_mode='hybrid' with a cache continues one span over a cached context: fill the cache "
            "with attention_mode='bidirectional' first and pass no span_ids, or use infill()."
        )
    if mode != "causal" and cache is not None and any(cache.is_sliding):
        raise ValueError(
            "cache: this one forgets what a sliding window has passed, but a gap may stand there: use DynamicCache(), "
            "without config=."
        )
    if mode == "hybrid" and cache is None and not has_spans:
        raise ValueError("attention_mode='hybrid' needs span_ids (batch, length), or use attention_mode='causal'.")
    if mode == "hybrid" and has_spans and "flash" in config._attn_implementation:
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} ignores attention_mode='hybrid'. Use 'sdpa', 'eager' or "
            "'flex_attention'."
        )
    if mode != "hybrid" and has_spans:
        raise ValueError(f"span_ids and span_mask mean nothing in attention_mode={mode!r}: use 'hybrid'.")
    if mode == "bidirectional" and cached:
        raise ValueError(
            "cache is not empty: attention_mode='bidirectional' would have to change the cached states. Use "
            "'hybrid' to continue a cached context, or pass the whole text without a cache."
        )
    return mode


def _is_filled(cache: Cache, mode: str) -> bool:
    length = cache.get_seq_length()
    if isinstance(length, torch.Tensor) and torch.compiler.is_compiling():
        return mode == "hybrid"  # a static cache's length is a tensor: reading it would break the graph
    return bool(length > 0)


def check_span_ids(span_ids: torch.Tensor, shape: tuple[int, int]) -> None:
    """Raises `ValueError` unless `span_ids` is an integer tensor of `shape` with contiguous spans."""
    if span_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise ValueError(
            f"span_ids has dtype {span_ids.dtype}: must be an integer tensor (use span_mask= for booleans)."
        )
    if tuple(span_ids.shape) != tuple(shape):
        raise ValueError(f"span_ids has shape {tuple(span_ids.shape)}: must be (batch, length) = {tuple(shape)}.")
    if torch.compiler.is_compiling():  # the checks below read values, which would break the graph
        return
    if (span_ids < 0).any():
        raise ValueError("span_ids holds negative values: use 0 for context tokens and 1, 2, ... for spans.")
    runs, spans = _changes(span_ids), _changes(span_ids.sort(dim=1).values)  # (B,)
    if (runs != spans).any():
        row = int((runs != spans).nonzero()[0])
        raise ValueError(
            f"span_ids, row {row}: a span is not contiguous ({span_ids[row].tolist()}). Give each unbroken run of span "
            "tokens an id of its own."
        )


def _changes(ids: torch.Tensor) -> torch.Tensor:
    """Number of runs of equal positive ids in each row, (B,)."""
    before = nn.functional.pad(ids, (1, 0))[:, :-1]
    return ((ids != before) & (ids > 0)).sum(1)


def _refuse_other_mode_arguments(kwargs: dict) -> None:
    """Stock forwards silently accept any keyword, so a misspelt `attention_mode` would leave the model causal."""
    if "is_causal" in kwargs:
        raise ValueError(f"is_causal={kwargs['is_causal']!r}: pass attention_mode= instead.")
    for key in () if torch.compiler.is_compiling() else kwargs:
        if close := _meant(key):
            raise ValueError(f"{key}={kwargs[key]!r}: unknown argument. Did you mean {close!r}?")


@functools.cache  # called for each decoded token
def _meant(key: str) -> str | None:
    close = difflib.get_close_matches(key, ("attention_mode", "span_ids", "span_mask"), n=1, cutoff=0.85)
    return close[0] if close else None


# -------------------------------------------------------------------------------------------------- the language model


def projection_head(kind: str, d: int) -> nn.Module | None:
    """The head of section 3.3 between h and e; trained and saved, but not used for embeddings."""
    if kind == "linear":
        return nn.Linear(d, d, bias=False)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d))
    return None


class MagnetLM(InfillingMixin, EncodingMixin, MagnetPreTrained):
    """
    MAGNET with its language-modelling head: `generate()`, [`~InfillingMixin.infill`], [`~EncodingMixin.encode`].

    In causal mode it is the base model bit for bit, unless `config.causal_adapter`.

    Example:

    ```python
    >>> from modeling_magnet import MagnetLlamaForCausalLM
    >>> from transformers import AutoTokenizer
    >>> model = MagnetLlamaForCausalLM.from_pretrained("tests/assets/magnet-tiny")
    >>> tokenizer = AutoTokenizer.from_pretrained("tests/assets/magnet-tiny", trust_remote_code=True)
    >>> text = model.infill("Tom was hungry. <|gap|> He was full.", tokenizer, length=12)
    >>> text.startswith("Tom was hungry. ") and text.endswith(" He was full.")
    True

    ```
    """

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)  # a family's own would build a stock decoder besides
        self.model = self.decoder_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.projection_head = projection_head(config.projection_head, config.hidden_size)
        self.post_init()

    @classmethod
    def from_base(cls, path_or_model: str | PreTrainedModel, adapter: dict | None = None, **fields):
        r"""
        Builds a MAGNET model from a plain one of the same family. A loaded model's weights are shared, not copied.

        Args:
            path_or_model (`str` or `PreTrainedModel`):
                A folder, a Hub id or a loaded model (whose parameters the new model then shares).
            adapter (`dict`, *optional*):
                A fresh adapter, `{"r", "alpha", "target_modules"}`.
            fields:
                Further fields of [`MagnetFields`], and loading options such as `dtype` for a folder or Hub id.

        Raises:
            `ValueError` for a base of another family, naming the class to use.

        Example:

        ```python
        >>> from transformers import Qwen3Config, Qwen3ForCausalLM
        >>> from modeling_magnet import MagnetQwen3ForCausalLM
        >>> base = Qwen3ForCausalLM(Qwen3Config(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
        >>> model = MagnetQwen3ForCausalLM.from_base(base, adapter={"r": 2, "alpha": 4, "target_modules": ["q_proj"]})
        >>> model.lm_head.weight is base.lm_head.weight
        True

        ```
        """
        if not isinstance(path_or_model, nn.Module):
            return cls.from_pretrained(path_or_model, adapter=adapter, **fields)
        base = path_or_model
        config = cls.config_class.from_base(base.config, **fields)
        config._attn_implementation = base.config._attn_implementation
        with initialization.no_init_weights():
            model = cls(config)
        weights = base.state_dict(keep_vars=True)
        model.load_state_dict(weights, strict=False, assign=True)
        model.tie_weights()
        model.add_projection_head(config.projection_head)
        model.generation_config = base.generation_config
        if adapter is not None:
            model.add_magnet_adapter(adapter)
        return model.train(base.training)

    def add_projection_head(self, kind: str) -> None:
        """Sets a fresh projection head and writes its kind to `config.projection_head`."""
        self.config.projection_head = kind
        self.projection_head = projection_head(kind, self.config.hidden_size)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        cache=None,
        inputs_embeds=None,
        attention_mode=None,
        context_position_ids=None,
        **kwargs,
    ):
        """`generate()` runs in causal mode; infill() also lets it continue a span from a cached context (hybrid). The
        signature lists MAGNET's `forward` arguments because `generate()` rejects arguments in neither signature."""
        mode = self.config.attention_mode if attention_mode is None else attention_mode
        if mode == "hybrid" and (cache is None or cache.get_seq_length() == 0):
            raise ValueError("attention_mode='hybrid' cannot generate from a prompt: use infill(), which fills gaps.")
        if mode == "bidirectional":
            raise ValueError(
                "attention_mode='bidirectional' cannot generate: pass attention_mode='causal' or use infill()."
            )
        inputs = super().prepare_inputs_for_generation(input_ids, cache=cache, inputs_embeds=inputs_embeds, **kwargs)
        return inputs | {"attention_mode": mode, "context_position_ids": context_position_ids}


# ---------------------------------------------------------------------------------------------- the classification heads


class MagnetTokenClassifier(MagnetPreTrained):
    """
    A linear classifier on every token, applied to the output to its left: MNTP trains position i-1 to represent token
    i (section 4.1). Bidirectional by default.
    """

    _keep_in_fp32_modules = ["score"]  # also skipped by 8-bit and 4-bit loading, above all a fresh head

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.decoder_class(config)
        self.dropout = nn.Dropout(0.1)  # the paper's rate for its word-level tasks
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        attention_mode: str = "bidirectional",
        **kwargs,
    ) -> TokenClassifierOutput:
        r"""
        Args (in addition to [`MagnetDecoder`]'s):
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*): Class ids; -100 at ignored tokens.
        """
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, attention_mode=attention_mode, **kwargs
        )
        hidden_states = own_token_states(outputs.last_hidden_state, attention_mask)
        logits = self.score(self.dropout(hidden_states).to(self.score.weight.dtype))  # (B, L, num_labels)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class MagnetSequenceClassifier(MagnetPreTrained):
    """
    A linear classifier on the vector that `encode()` returns: the last token's (append [EOS] to the text) or the mean,
    set by `config.pooling`. Bidirectional by default.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.decoder_class(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        attention_mode: str = "bidirectional",
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""
        Args (in addition to [`MagnetDecoder`]'s):
            attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                0 at padding, on either side. It locates the last token, not the padding id: if a tokenizer pads with
                [EOS], transformers' own heads would read the token before it.
            labels (`torch.Tensor`, *optional*):
                Class ids `(batch,)`, or floats for regression and multi-label tasks, by `config.problem_type`.
        """
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, attention_mode=attention_mode, **kwargs
        )
        hidden_states = outputs.last_hidden_state
        mask = hidden_states.new_ones(hidden_states.shape[:2]) if attention_mask is None else attention_mask
        logits = self.score(pooled(hidden_states, mask, self.config.pooling))  # (B, num_labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


# ------------------------------------------------------------------------------------------------------- the families


class MagnetLlamaModel(MagnetDecoder, models.llama.LlamaModel):
    config_class = MagnetLlamaConfig


class MagnetLlamaForCausalLM(MagnetLM, models.llama.LlamaForCausalLM):
    decoder_class, config_class = MagnetLlamaModel, MagnetLlamaConfig
    from_llama = classmethod(MagnetLM.from_base.__func__)  # its name before other families were added


class MagnetMistralModel(MagnetDecoder, models.mistral.MistralModel):
    config_class = MagnetMistralConfig


class MagnetMistralForCausalLM(MagnetLM, models.mistral.MistralForCausalLM):
    decoder_class, config_class = MagnetMistralModel, MagnetMistralConfig


class MagnetQwen2Model(MagnetDecoder, models.qwen2.Qwen2Model):
    config_class = MagnetQwen2Config


class MagnetQwen2ForCausalLM(MagnetLM, models.qwen2.Qwen2ForCausalLM):
    decoder_class, config_class = MagnetQwen2Model, MagnetQwen2Config


class MagnetQwen3Model(MagnetDecoder, models.qwen3.Qwen3Model):
    config_class = MagnetQwen3Config


class MagnetQwen3ForCausalLM(MagnetLM, models.qwen3.Qwen3ForCausalLM):
    decoder_class, config_class = MagnetQwen3Model, MagnetQwen3Config


class MagnetGemma3TextModel(MagnetDecoder, models.gemma3.Gemma3TextModel):
    config_class = MagnetGemma3TextConfig


class MagnetGemma3TextForCausalLM(MagnetLM, models.gemma3.Gemma3ForCausalLM):
    decoder_class, config_class = MagnetGemma3TextModel, MagnetGemma3TextConfig


class MagnetGraniteModel(MagnetDecoder, models.granite.GraniteModel):
    config_class = MagnetGraniteConfig


class MagnetGraniteForCausalLM(MagnetLM, models.granite.GraniteForCausalLM):
    decoder_class, config_class = MagnetGraniteModel, MagnetGraniteConfig


FAMILIES = {  # by the base's model_type
    "llama": MagnetLlamaForCausalLM,
    "mistral": MagnetMistralForCausalLM,
    "qwen2": MagnetQwen2ForCausalLM,
    "qwen3": MagnetQwen3ForCausalLM,
    "gemma3_text": MagnetGemma3TextForCausalLM,
    "granite": MagnetGraniteForCausalLM,
}
__all__ = ["FAMILIES"]
for language_model in FAMILIES.values():  # their classifiers, which differ only in the family, and all Auto classes
    family = language_model.__name__.removesuffix("ForCausalLM")
    pretrained = language_model.__bases__[1].__bases__[0]  # LlamaPreTrainedModel
    shared = {"decoder_class": language_model.decoder_class, "config_class": language_model.config_class}
    made = {"AutoModel": language_model.decoder_class, "AutoModelForCausalLM": language_model}
    for task, head in (
        ("TokenClassification", MagnetTokenClassifier),
        ("SequenceClassification", MagnetSequenceClassifier),
    ):
        name = f"{family}For{task}"
        made[f"AutoModelFor{task}"] = type(
            name, (head, pretrained), shared | {"__module__": __name__, "__doc__": head.__doc__}
        )
    for auto_class, model_class in made.items():
        model_class.register_for_auto_class(auto_class)
        globals()[model_class.__name__] = model_class
        __all__.append(model_class.__name__)
