"""A checkpoint taken apart: its adapter as PEFT's files, and the MAGNET base it goes on, the same weights without it."""

import contextlib
import shutil
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from .adapter_magnet import GATED, MAGNET, GatedLoraLinear
from .card_facts import Origin
from .configuration_magnet import MagnetLlamaConfig
from .export import save_checkpoint
from .model_card import write_model_card
from .modeling_magnet import MagnetLlamaForCausalLM

NOT_COMPARED = ("adapter", "projection_head")


@contextlib.contextmanager
def unfinished_folder(target: Path):
    """A folder beside `target` that becomes `target` when the block is done, and disappears if it fails."""
    target = target.absolute()
    folder = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here
    folder.mkdir(parents=True)
    try:
        yield folder
        if target.exists():
            target.rmdir()  # it was empty; raises if it no longer is
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_adapter(model, dtype: torch.dtype, merge: bool) -> None:
    """Puts plain linear layers where the adapter sits, in place: merged in float32 and rounded once, or the base's own."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, GatedLoraLinear):
            if merge:
                layer.float().merge(safe_merge=True, adapter_names=[MAGNET])
            model.set_submodule(name, layer.get_base_layer().to(dtype))
    model.config.adapter = None


def write_adapter(model, tokenizer, output_dir: Path, dtype: torch.dtype, base: str | None, origin: Origin) -> None:
    """
    Writes form `"adapter"` to `output_dir`, and its base beside it unless `base` names one.

    Args:
        model ([`MagnetLlamaForCausalLM`]): With its adapter; afterwards without.
        tokenizer ([`PreTrainedTokenizerBase`]): Saved with both.
        output_dir (`Path`): Does not exist, or is empty; the same is asked of `<output_dir>-base`.
        dtype (`torch.dtype`): Of the weights.
        base (`str`, *optional*): A folder or Hub id of this checkpoint's base in MAGNET form.
        origin ([`Origin`]): For the cards.

    Raises:
        `ValueError`: no adapter, a base that is another one, or a `<output_dir>-base` that is not empty.
    """
    config = model.config
    if config.adapter is None:
        raise ValueError("form='adapter': this checkpoint has no adapter. Export it as 'magnet'.")
    lora = LoraConfig(
        r=config.adapter["r"],
        lora_alpha=config.adapter["alpha"],
        target_modules=list(config.adapter["target_modules"]),
        task_type="CAUSAL_LM",
        inference_mode=True,
        auto_mapping=None if config.causal_adapter else {GATED: True},
    )
    weights = {
        "base_model.model." + name.replace(f".{MAGNET}.", "."): weight.to(dtype).contiguous()
        for name, weight in model.state_dict().items()
        if ".lora_" in name
    }
    remove_adapter(model, dtype, merge=False)
    model.add_projection_head("none")  # used in training only
    if base is None:
        lora.base_model_name_or_path = str(_write_base(model, tokenizer, output_dir, origin))
    else:
        _compare_base(model, base)
        lora.base_model_name_or_path = base
        origin.base_model = base if not Path(base).exists() else origin.base_model
    with unfinished_folder(output_dir) as folder:
        lora.save_pretrained(folder)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)
        write_model_card(model.config, folder, "adapter", origin)


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
    """Raises `ValueError` unless `base` holds the very model that is left of the checkpoint without its adapter."""
    name = f"base_model_name_or_path={base!r}"
    kind = MagnetLlamaConfig.get_config_dict(base)[0].get("model_type")
    if kind != "magnet_llama":
        raise ValueError(
            f"{name}: model_type={kind!r} is no MAGNET base; on it, the adapter would load and attention stay causal. Leave "
            "base_model_name_or_path out: a MAGNET base is then written beside the adapter."
        )
    other = MagnetLlamaForCausalLM.from_pretrained(base, dtype=model.dtype)
    for key in MagnetLlamaConfig.__annotations__:
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
