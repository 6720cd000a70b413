"""What a decoder layer keeps for the backward pass, found by running it on tensors that have a shape and no data.

No formula to go out of date: whatever transformers, adapter, autocast and SDPA keep is counted, at any size, in a tenth of a
second and without memory.
"""

import functools
import json
import weakref
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_magnet import FAMILIES
from modeling_magnet.configuration_magnet import MagnetFields

from .model import is_trained


class LiveBytes(TorchDispatchMode):
    """
    Counts the bytes of the tensors that are made inside and still held: `live` now, `peak` at most.

    Args:
        ignored (iterable of `torch.Tensor`, *optional*): Tensors from before that are not to be counted when they are seen.

    Example:

    ```python
    >>> import torch
    >>> from magnet_train.simulate import LiveBytes
    >>> with LiveBytes() as count:
    ...     kept = torch.zeros(1000).exp()
    >>> count.live, count.peak
    (4000, 8000)

    ```
    """

    def __init__(self, ignored=()):
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in ignored}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage):
        key = storage._cdata  # views have the storage of what they show
        if key not in self._known:
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key, size):
        self._known.discard(key)
        self.live -= size


@dataclass
class LayerMemory:
    """Bytes of one pass through the decoder."""

    kept: int  # by each layer, for the backward pass
    edges: int  # by what stands before and after the layers, whatever their number
    spike: int  # that a layer's backward pass holds for a moment, over all that is kept


def layer_memory(
    config: MagnetFields, dtype: torch.dtype, autocast: bool, rows: int, length: int, all_states: bool = False
) -> LayerMemory:
    """
    Simulates the decoder over `(rows, length)` tokens with a mask.

    Args:
        config ([`MagnetFields`]): Sizes and adapter.
        dtype (`torch.dtype`): Of the base weights.
        autocast (`bool`): Whether the run computes in bfloat16 (`bf16=True`).
        all_states (`bool`, defaults to `False`): Whether the output of every layer is held, as for sentence vectors.
    """
    one, two = (
        _simulate(config.to_json_string(), dtype, autocast, rows, length, layers, all_states) for layers in (1, 2)
    )
    kept = two[0] - one[0]
    return LayerMemory(kept=kept, edges=max(one[0] - kept, 0), spike=max(two[1] - two[0], 0))


@functools.lru_cache(
    maxsize=64
)  # advice asks for the same shapes again; a configuration cannot be a key, its text can
def _simulate(config, dtype, autocast, rows, length, layers, all_states):
    config = json.loads(config)
    family = FAMILIES[config["model_type"].removeprefix("magnet_")]
    config = family.config_class.from_dict(config)
    model = _shell(family, config, layers)
    with FakeTensorMode():
        for module_name, module in model.named_modules():
            for name, old in list(module.named_parameters(recurse=False)):
                trained = is_trained(f"{module_name}.{name}")
                new = torch.empty(old.shape, dtype=torch.float32 if trained else dtype)
                setattr(module, name, nn.Parameter(new, requires_grad=trained))
        mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast)
        with LiveBytes(model.parameters()) as count:
            with mixed:
                states = _forward(model, config, dtype, rows, length)
            if not all_states:
                states = states[-1:]
            kept = count.live
            states[-1].backward(torch.empty_like(states[-1]))
    return kept, count.peak


def shortened(config: MagnetFields, num_hidden_layers: int, **changes) -> MagnetFields:
    """The configuration of a model with fewer layers."""
    settings = config.to_dict() | {"num_hidden_layers": num_hidden_layers, "dtype": None} | changes
    if settings.get("layer_types"):
        settings["layer_types"] = settings["layer_types"][:num_hidden_layers]
    return type(config)(**settings)


def _shell(family, config, layers):
    tokens = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id", "infill_end_token_id")
    tokens += ("text_start_token_id",)
    small = shortened(config, layers, vocab_size=8, **dict.fromkeys(tokens))
    small._attn_implementation = "sdpa"
    with torch.device("meta"):
        return family.decoder_class(small).train()


def _forward(model, config, dtype, rows, length):
    hidden = torch.empty(rows, length, config.hidden_size, dtype=dtype)
    mask = torch.empty(rows, 1, length, length, dtype=torch.bool)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    angles = torch.empty(1, length, width, dtype=dtype)
    states = [hidden]
    for layer in model.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=(angles, angles))
        states.append(hidden)
    return [*states[:-1], model.norm(hidden)]
