"""The LoRA adapter and its gate: on in bidirectional and hybrid mode, off in causal mode, which then is the base model.

Modes are per call and per thread, so the gate is too; merged weights could not be switched off.
"""

import contextlib
import math
import threading

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn


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
    """PEFT's LoRA layer, which is exactly its base layer while the gate is closed."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if not _gate.is_open:
            return self.base_layer(x)
        return super().forward(x, *args, **kwargs)


def inject_adapter(model: nn.Module, adapter: dict) -> None:
    """Puts the LoRA layers of `config.adapter` into `model`, in place; they start as the identity (B = 0)."""
    lora = LoraConfig(r=adapter["r"], lora_alpha=adapter["alpha"], target_modules=list(adapter["target_modules"]))
    lora._register_custom_module({nn.Linear: GatedLoraLinear})  # PEFT's documented hook for own layer classes
    inject_adapter_in_model(lora, model, adapter_name="magnet")
    for layer in model.modules():
        if isinstance(layer, GatedLoraLinear):
            layer.lora_A["magnet"].lora_part, layer.lora_B["magnet"].lora_part = "A", "B"


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
