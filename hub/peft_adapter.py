"""The form `"adapter"`: a checkpoint's adapter as PEFT files, and its MAGNET base."""

import re
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_magnet import MagnetFields
from modeling_magnet.modeling_magnet import base_sha256

from .card import write_model_card
from .save import check_output_dir, save_checkpoint, unfinished_folder
from .stock import to_stock
from .training_summary import TrainingSummary
from .trust import check_source


def write_adapter(model, tokenizer, output_dir: Path, base: str | None, summary: TrainingSummary) -> None:
    """
    Writes the adapter to `output_dir`, and its base to `<output_dir>-base` unless `base` names one.

    Args:
        model ([`MagnetLM`]): With its adapter, in the dtype to be written.
        tokenizer ([`PreTrainedTokenizerBase`]): Saved with both.
        output_dir (`Path`): New or empty.
        base (`str`, *optional*): A folder or Hub id of this checkpoint's base in MAGNET form.
        summary ([`TrainingSummary`]): For the cards.

    Raises:
        `ValueError`: no adapter, a base that does not match, or a `<output_dir>-base` that is not empty.
    """
    adapter = model.config.adapter
    if adapter is None:
        raise ValueError("form='adapter': this checkpoint has no adapter. Export it as 'magnet'.")
    bare = to_stock(model, "base", model.dtype)
    if base is None:
        base = str(_write_base(bare, tokenizer, output_dir, summary))
    else:
        _compare_base(bare, base)
        if not Path(base).exists():
            summary.metadata["base_model"] = base
    gated = {"magnet_gated": True, "base_sha256": base_sha256(bare)}
    settings = LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["alpha"],
        target_modules=list(adapter["target_modules"]),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base,
        auto_mapping=None if model.config.causal_adapter else gated,
    )
    weights = {name: weight for name, weight in model.state_dict().items() if "_lora." in name}
    weights = {re.sub(r"_lora\.([AB])$", r".lora_\1.weight", name): weight for name, weight in weights.items()}
    with unfinished_folder(output_dir) as folder:
        settings.save_pretrained(folder)
        weights = {f"base_model.model.{name}": weight for name, weight in weights.items()}
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)
        write_model_card(None, folder, "adapter", summary)


def _write_base(bare, tokenizer, output_dir: Path, summary: TrainingSummary) -> Path:
    target = output_dir.absolute().with_name(f"{output_dir.name}-base")
    try:
        check_output_dir(target)
    except ValueError:
        raise ValueError(
            f"output_dir={str(output_dir)!r}: its base would be written to {str(target)!r}, which is not empty. Pass it as "
            "base_model_name_or_path if it is this checkpoint's base, or choose another output_dir."
        ) from None
    with unfinished_folder(target) as folder:
        save_checkpoint(bare, tokenizer, folder)
        write_model_card(bare.config, folder, "magnet", summary)
    return target


def _compare_base(bare, base: str) -> None:
    """Raises `ValueError` unless `base` is exactly the checkpoint without its adapter."""
    name = f"base_model_name_or_path={base!r}"
    check_source(base)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if config.model_type != bare.config.model_type:
        raise ValueError(
            f"{name}: model_type={config.model_type!r} is not a MAGNET base; the adapter would load, but attention stay "
            "causal. Leave base_model_name_or_path out to write a MAGNET base beside the adapter."
        )
    for key in sorted(MagnetFields.__annotations__.keys() - {"adapter", "projection_head"}):
        ours, theirs = getattr(bare.config, key), getattr(config, key)
        if ours != theirs:
            raise ValueError(
                f"{name}: has {key}={theirs!r}, the checkpoint {ours!r}. Pass this checkpoint's own base."
            )
    ours = bare.state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=bare.dtype, trust_remote_code=False).state_dict()
    different = [key for key in ours if key not in theirs or not torch.equal(ours[key], theirs[key])]
    different += theirs.keys() - ours.keys()
    if different:
        raise ValueError(
            f"{name}: {len(different)} tensors differ from the checkpoint's base, such as {min(different)}. Pass its own base."
        )
