"""Splits a checkpoint: its adapter in PEFT format, and the MAGNET base it belongs to, the same weights without it."""

import copy
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, initialization

from modeling_magnet import MagnetFields
from modeling_magnet.modeling_magnet import base_sha256, low_rank_parts

from .card import write_model_card
from .origin import Origin
from .save import save_checkpoint, unfinished_folder
from .trust import check_source

NOT_COMPARED = ("adapter", "projection_head")


@torch.no_grad()
def base_weights(model, merge: bool) -> dict[str, torch.Tensor]:
    """The tensors under their names in the plain base: the base's own, or with the adapter merged, in float32."""
    ours = ("projection_head.",)
    weights = {name: w for name, w in model.state_dict().items() if "_lora." not in name and not name.startswith(ours)}
    for name, linear, part in low_rank_parts(model) if merge else ():
        weights[f"{name}.weight"] = linear.weight.float() + part.scale * (part.B.float() @ part.A.float())
    return weights


def rebuilt(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype,
    generation_config=None,
) -> PreTrainedModel:
    """A model with the given tensors, rounded to `dtype`. The rotary frequencies are not rounded."""
    with initialization.no_init_weights():
        model = kind(config)
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    model.tie_weights()
    model.config.dtype, model.generation_config = dtype, generation_config
    return model.eval()


def without_adapter(model, dtype: torch.dtype, merge: bool):
    """The same MAGNET model with its adapter merged or left out. The projection head stays."""
    config = copy.deepcopy(model.config)
    config.adapter = None
    head = {name: w for name, w in model.state_dict().items() if name.startswith("projection_head.")}
    return rebuilt(type(model), config, base_weights(model, merge) | head, dtype, model.generation_config)


def write_adapter(model, tokenizer, output_dir: Path, dtype: torch.dtype, base: str | None, origin: Origin) -> None:
    """
    Writes form `"adapter"` to `output_dir`, and its base beside it unless `base` names one.

    Args:
        model ([`MagnetLM`]): With its adapter.
        tokenizer ([`PreTrainedTokenizerBase`]): Saved with both.
        output_dir (`Path`): Must be new or empty, and so must `<output_dir>-base`.
        dtype (`torch.dtype`): Of the weights.
        base (`str`, *optional*): A folder or Hub id of this checkpoint's base in MAGNET form.
        origin ([`Origin`]): For the cards.

    Raises:
        `ValueError`: no adapter, a base that does not match, or a `<output_dir>-base` that is not empty.
    """
    adapter = model.config.adapter
    if adapter is None:
        raise ValueError("form='adapter': this checkpoint has no adapter. Export it as 'magnet'.")
    lora = LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["alpha"],
        target_modules=list(adapter["target_modules"]),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    weights = {}
    for name, _, part in low_rank_parts(model):
        weights[f"base_model.model.{name}.lora_A.weight"] = part.A.detach().to(dtype)
        weights[f"base_model.model.{name}.lora_B.weight"] = part.B.detach().to(dtype)
    bare = without_adapter(model, dtype, merge=False)
    bare.add_projection_head("none")  # used in training only
    if not model.config.causal_adapter:
        lora.auto_mapping = {"magnet_gated": True, "base_sha256": base_sha256(bare)}
    if base is None:
        lora.base_model_name_or_path = str(_write_base(bare, tokenizer, output_dir, origin))
    else:
        _compare_base(bare, base)
        lora.base_model_name_or_path = base
        origin.base_model = base if not Path(base).exists() else origin.base_model
    with unfinished_folder(output_dir) as folder:
        lora.save_pretrained(folder)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)
        write_model_card(bare.config, folder, "adapter", origin)


def _write_base(model, tokenizer, output_dir: Path, origin: Origin) -> Path:
    target = output_dir.absolute().with_name(f"{output_dir.name}-base")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"output_dir={str(output_dir)!r}: its base would be written to {str(target)!r}, which is not empty. Pass it as "
            "base_model_name_or_path if it is this checkpoint's base, or choose another output_dir."
        )
    with unfinished_folder(target) as folder:
        save_checkpoint(model, tokenizer, folder)
        write_model_card(model.config, folder, "magnet", origin)
    return target


def _compare_base(model, base: str) -> None:
    """Raises `ValueError` unless `base` is exactly the checkpoint without its adapter."""
    name = f"base_model_name_or_path={base!r}"
    check_source(base)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if config.model_type != model.config.model_type:
        raise ValueError(
            f"{name}: model_type={config.model_type!r} is no MAGNET base; on it, the adapter would load and attention stay "
            "causal. Leave base_model_name_or_path out: a MAGNET base is then written beside the adapter."
        )
    other = AutoModelForCausalLM.from_pretrained(base, dtype=model.dtype, trust_remote_code=False)
    for key in MagnetFields.__annotations__:
        ours, theirs = getattr(model.config, key), getattr(other.config, key)
        if key not in NOT_COMPARED and ours != theirs:
            raise ValueError(
                f"{name}: has {key}={theirs!r}, the checkpoint {ours!r}. Name this checkpoint's own base."
            )
    ours, theirs = model.state_dict(), other.state_dict()
    different = [key for key in ours.keys() | theirs.keys() if not _same(ours.get(key), theirs.get(key))]
    if different:
        raise ValueError(
            f"{name}: {len(different)} tensors differ from the checkpoint's base, {min(different)} for one. Name its own base."
        )


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and torch.equal(one, other)
