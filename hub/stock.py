"""to_stock(): a model without adapter layers, for every form but `"magnet"` and `"adapter"`."""

import copy

import torch
from transformers import PreTrainedModel, initialization

from modeling_magnet import MagnetFields
from modeling_magnet.modeling_magnet import low_rank_parts


def is_merged(config: MagnetFields, form: str) -> bool:
    """Whether a form's weights include the adapter."""
    forms = ("merged", "encoder", "generator") if config.causal_adapter else ("merged", "encoder")
    return config.adapter is not None and form in forms


@torch.no_grad()
def to_stock(model, form: str, dtype: torch.dtype) -> PreTrainedModel:
    """
    Merges the adapter into the weights, or leaves it out, and builds the form's class around them.

    Args:
        model ([`MagnetLM`]): The checkpoint, in float32 if the adapter is merged: the sum is then rounded once.
        form (`str`):
            `"encoder"` or `"generator"`: transformers' own class. `"merged"`: MAGNET's, with the adapter active in
            causal mode too. `"base"`: MAGNET's, without the adapter and the projection head.
        dtype (`torch.dtype`): Of the new model's weights; its rotary frequencies stay in float32.

    Example:

    ```python
    >>> import torch
    >>> from magnet_hub.stock import to_stock
    >>> from modeling_magnet import MagnetLlamaForCausalLM
    >>> model = MagnetLlamaForCausalLM.from_pretrained("tests/assets/magnet-tiny")
    >>> type(to_stock(model, "encoder", torch.float32)).__name__
    'LlamaModel'

    ```
    """
    kind, config = type(model), copy.deepcopy(model.config)
    weights = {name: weight for name, weight in model.state_dict().items() if "_lora." not in name}
    for name, linear, part in low_rank_parts(model) if is_merged(config, form) else ():
        weights[f"{name}.weight"] = linear.weight.float() + part.scale * (part.B.float() @ part.A.float())
    config.adapter = None
    if form == "merged":
        config.causal_adapter = True
    else:
        config.projection_head = "none"  # used in training only
        weights = {name: weight for name, weight in weights.items() if not name.startswith("projection_head.")}
    if form == "generator":
        kind, config = _stock_class(kind), config.to_base()
    elif form == "encoder":
        kind, config = _stock_class(type(model.model)), config.to_base(**_bidirectional(config))
        prefix = f"{model.base_model_prefix}."
        weights = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    with initialization.no_init_weights():
        stock = kind(config)
    stock.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    stock.tie_weights()
    if stock.can_generate():
        stock.generation_config = model.generation_config
    return stock.eval()


def _stock_class(kind: type) -> type:
    """The transformers class that a MAGNET class extends."""
    return next(base for base in kind.__mro__ if base.__module__.startswith("transformers.models."))


def _bidirectional(config: MagnetFields) -> dict:
    """
    Settings that make a stock decoder bidirectional. MAGNET's sliding layers see tokens less than `sliding_window`
    away; transformers' include the token at that distance if `is_causal` is false, and Gemma 3 halves the value.
    """
    window = getattr(config, "sliding_window", None)
    if hasattr(config, "use_bidirectional_attention"):
        return {"use_bidirectional_attention": True, "sliding_window": 2 * (window - 1)}
    return {"is_causal": False} | ({"sliding_window": window - 1} if window else {})
