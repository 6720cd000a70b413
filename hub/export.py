"""export_checkpoint(): writes a MAGNET checkpoint in one of its five forms."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from modeling_magnet import MagnetFields

from . import FORMS
from .card import checkpoint_summary, write_model_card
from .eval_results import EVAL_RESULTS, weights_of
from .peft_adapter import write_adapter
from .save import check_output_dir, save_checkpoint, unfinished_folder
from .sentence_transformer import write_encoder_files
from .stock import is_merged, to_stock
from .trust import check_finite, check_source

DTYPES = ("auto", "float32", "bfloat16", "float16")


def export_checkpoint(
    model_name_or_path: str | Path,
    output_dir: str | Path,
    form: str = "magnet",
    dtype: str = "auto",
    base_model_name_or_path: str | None = None,
) -> None:
    """
    Writes one form of a MAGNET checkpoint. `output_dir` appears only when complete.

    Args:
        model_name_or_path (`str` or `Path`): A MAGNET checkpoint: a folder or a Hub id.
        output_dir (`str` or `Path`): A new or empty folder.
        form (`str`, *optional*, defaults to `"magnet"`):
            - `"magnet"`: the checkpoint itself, with its code and files rewritten.
            - `"merged"`: the adapter merged into the weights; all modes, causal mode adapted too, as in the paper.
            - `"encoder"`: transformers' own decoder, such as `LlamaModel`, made bidirectional by its `config.json`, adapter
              merged; needs no remote code.
            - `"generator"`: transformers' own language model, such as `LlamaForCausalLM`, equivalent to causal
              mode: the base's weights bit for bit, or the merged ones if `config.causal_adapter` (or if the checkpoint
              is a merged one).
            - `"adapter"`: a PEFT adapter for a MAGNET base.
        dtype (`str`, *optional*, defaults to `"auto"`):
            `"float32"`, `"bfloat16"` or `"float16"`. `"auto"` is float32 if the adapter is merged, which keeps its
            vectors, and otherwise the checkpoint's own.
        base_model_name_or_path (`str`, *optional*):
            Form `"adapter"` only: its MAGNET base, a folder or a Hub id whose weights equal this checkpoint's base bit
            for bit. By default that base is also written, to `<output_dir>-base`.

    Raises:
        `ValueError`: an unknown form or dtype; an `output_dir` that is not empty; not a MAGNET checkpoint; quantised
        weights; a checkpoint without an adapter, or another base, for the form `"adapter"`.

    Example:

    ```python
    >>> import tempfile
    >>> from transformers import AutoModelForCausalLM
    >>> from magnet_hub.export import export_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_checkpoint("tests/assets/magnet-tiny", f"{folder}/generator", "generator")
    ...     type(AutoModelForCausalLM.from_pretrained(f"{folder}/generator")).__name__
    'LlamaForCausalLM'

    ```
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}.")
    if base_model_name_or_path is not None and form != "adapter":
        raise ValueError(
            f"base_model_name_or_path={base_model_name_or_path!r}: only form='adapter' has a base. Leave it out."
        )
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    source = _local_folder(model_name_or_path)
    loaded = "float32" if is_merged(_checked_config(source), form) else dtype
    model = AutoModelForCausalLM.from_pretrained(source, dtype=loaded, trust_remote_code=False)
    check_finite(model)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    summary = checkpoint_summary(source)
    if form == "adapter":
        return write_adapter(model, tokenizer, output_dir, base_model_name_or_path, summary)
    with unfinished_folder(output_dir) as folder:
        stored = model.dtype if dtype == "auto" else getattr(torch, dtype)
        exported = model if form == "magnet" else to_stock(model, form, stored)
        if form in ("magnet", "merged"):
            save_checkpoint(exported, tokenizer, folder)
            if (source / EVAL_RESULTS).is_file() and weights_of(source) == weights_of(folder):
                shutil.copyfile(source / EVAL_RESULTS, folder / EVAL_RESULTS)
        else:
            exported.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        if form == "encoder":
            write_encoder_files(model.config, tokenizer, folder)
        write_model_card(exported.config, folder, form, summary)


def _local_folder(model_name_or_path: str | Path) -> Path:
    """The folder itself, or the downloaded snapshot of a Hub id."""
    if Path(model_name_or_path).is_dir():
        return Path(model_name_or_path)
    if Path(model_name_or_path).exists() or str(model_name_or_path).count("/") != 1:
        raise ValueError(
            f"model_name_or_path={str(model_name_or_path)!r}: is not a folder, nor a Hub id like 'name/model'. Pass a "
            "checkpoint folder."
        )
    return Path(snapshot_download(str(model_name_or_path)))


def _checked_config(source: Path) -> MagnetFields:
    check_source(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if not isinstance(config, MagnetFields):
        raise ValueError(
            f"model_name_or_path={str(source)!r}: model_type={config.model_type!r} is not a MAGNET checkpoint. Convert a "
            "plain model with from_base() of its family's class, such as MagnetLlamaForCausalLM."
        )
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"model_name_or_path={str(source)!r}: its weights are quantised. Export the checkpoint they were made from."
        )
    return config
