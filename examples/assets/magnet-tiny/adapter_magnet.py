"""The LoRA adapter and its gate: on in bidirectional and hybrid mode, off in causal mode, which then is the base model.

Modes are per call and per thread, so the gate is too; merged weights could not be switched off.
"""

import contextlib
import math
import threading

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn

MAGNET = "magnet"  # the adapter's name in PEFT's layers, and so in a checkpoint's keys
GATED = "magnet_gated"  # in the adapter_config.json of one that was taken out of a checkpoint


class _Gate(threading.local):
    """Whether LoRA layers act, per thread. Open by default, because activation checkpointing recomputes a layer in
    a thread of its own; a thread-local (not a context variable) because torch.compile can trace it."""

    is_open = True


_gate = _Gate()


@contextlib.contextmanager
def adapter_gate(is_open: bool):
    """Opens or closes the adapter for the calls made inside, in this thread only; a gate around that is closed stays so."""
    before, _gate.is_open = _gate.is_open, _gate.is_open and is_open
    try:
        yield
    finally:
        _gate.is_open = before


class GatedLoraLinear(LoraLinear):
    """
    PEFT's LoRA layer with MAGNET's adapter, which acts while the gate is open, and with whatever adapters PEFT puts on
    top: these act in every mode, and are switched, merged, saved and unloaded without touching MAGNET's.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_state_dict_post_hook(_leave_magnet_out_of_peft_files)

    @property
    def active_adapters(self) -> list[str]:
        """What PEFT switches: every active adapter but MAGNET's own, which follows the gate alone."""
        names = [self.active_adapter] if isinstance(self.active_adapter, str) else self.active_adapter
        return [name for name in names if name != MAGNET]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activates adapters on top. MAGNET's own freezes then: PEFT would not save what it learns."""
        super().set_adapter(adapter_names, inference_mode)
        if self.active_adapters:
            for part in (self.lora_A[MAGNET], self.lora_B[MAGNET]):
                # a new Parameter, because PEFT restores requires_grad of those it saw before it adds an adapter
                part.weight = nn.Parameter(part.weight.detach(), requires_grad=False)

    def unload_and_optionally_merge_module(self, merge: bool, safe_merge: bool, adapter_names: list[str] | None):
        """PEFT's hook for layers that do not become their base layer when the adapters on top go."""
        if merge:
            self.merge(safe_merge, adapter_names)
        self.merged_adapters.clear()
        self.set_adapter(MAGNET)
        for name in set(self.lora_A) - {MAGNET}:
            self.delete_adapter(name)
        return self

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        result = super().forward(x, *args, **kwargs) if self.active_adapters else self.base_layer(x)
        if not _gate.is_open or MAGNET in self.merged_adapters:
            return result
        lora_A, lora_B = self.lora_A[MAGNET], self.lora_B[MAGNET]
        x = x.to(lora_A.weight.dtype) if self.cast_input_dtype_enabled else x
        return (result + lora_B(lora_A(x)) * self.scaling[MAGNET]).to(result.dtype)


def _leave_magnet_out_of_peft_files(layer, state_dict, prefix, _) -> None:
    """A `PeftModel`, known by its prefix, would write whatever lies in a LoRA layer into its adapter's file."""
    if prefix.startswith("base_model.model.") and layer.active_adapters:
        for part in ("lora_A", "lora_B"):
            del state_dict[f"{prefix}{part}.{MAGNET}.weight"]


def inject_adapter(model: nn.Module, adapter: dict) -> None:
    """Puts the LoRA layers of `config.adapter` into `model`, in place; they start as the identity (B = 0)."""
    lora = LoraConfig(r=adapter["r"], lora_alpha=adapter["alpha"], target_modules=list(adapter["target_modules"]))
    lora._register_custom_module({nn.Linear: GatedLoraLinear})  # PEFT's documented hook for own layer classes
    inject_adapter_in_model(lora, model, adapter_name=MAGNET)
    del model.peft_config  # or PEFT would count MAGNET's adapter among those that users add, save and delete
    for layer in model.modules():
        if isinstance(layer, GatedLoraLinear):
            layer.lora_A[MAGNET].lora_part, layer.lora_B[MAGNET].lora_part = "A", "B"


def freeze_base(model: nn.Module) -> None:
    """
    Leaves the adapter and the heads on top trainable. Training the base as well would change causal mode, and what PEFT
    adds to a model with LoRA layers freezes nothing by itself.
    """
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    if (lm_head := model.get_output_embeddings()) is not None:
        lm_head.requires_grad_(False)


def adopt_adapter(model: nn.Module, adapter_name: str) -> None:
    """
    Makes an adapter that PEFT has loaded, and that was taken out of a MAGNET checkpoint, MAGNET's own again: off in causal
    mode, saved with the model. Its `adapter_config.json` says `auto_mapping: {"magnet_gated": true}`; any other is left alone.
    """
    lora = model.peft_config[adapter_name]
    if not (lora.auto_mapping or {}).get(GATED):
        return
    weights = {}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A:
            weights[name] = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
            model.set_submodule(name, layer.get_base_layer())
    model.delete_adapter(adapter_name)
    model._weight_conversions = None  # from PEFT's names to its layers': saving would put those names into the file
    model.config.adapter = {"r": lora.r, "alpha": lora.lora_alpha, "target_modules": sorted(lora.target_modules)}
    inject_adapter(model, model.config.adapter)
    for name, (A, B) in weights.items():
        layer = model.get_submodule(name)
        layer.lora_A[MAGNET].weight, layer.lora_B[MAGNET].weight = A, B


def reset_lora_part(module: nn.Module) -> None:
    """
    PEFT's initialisation of A and B, for `_init_weights`, where Llama's would make B random. It looks at A and B
    themselves: transformers shows custom code only those modules that have parameters of their own.
    """
    part = getattr(module, "lora_part", None)
    if part == "A":
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    elif part == "B":
        nn.init.zeros_(module.weight)
