"""The five forms a MAGNET checkpoint can be given away in, and the one rule of each: docs/hub.md."""

import shutil
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaModel

from .adapter_form import remove_adapter, unfinished_folder, write_adapter
from .configuration_magnet import MagnetLlamaConfig
from .encoder_files import write_encoder_files
from .eval_results import EVAL_RESULTS, weights_of
from .export import save_checkpoint
from .model_card import checkpoint_origin, write_model_card
from .modeling_magnet import MagnetLlamaForCausalLM

DTYPES = ("auto", "float32", "bfloat16", "float16")
NOT_LLAMA = ("model_type", "architectures", "auto_map", "transformers_version")


def export_checkpoint(
    model_name_or_path: str | Path,
    output_dir: str | Path,
    form: str = "magnet",
    dtype: str = "auto",
    base_model_name_or_path: str | None = None,
) -> None:
    """
    Writes one form of a MAGNET checkpoint. `output_dir` appears complete or not at all.

    Args:
        model_name_or_path (`str` or `Path`): A MAGNET checkpoint, a folder or a Hub id.
        output_dir (`str` or `Path`): A folder that does not exist yet, or is empty.
        form (`str`, *optional*, defaults to `"magnet"`):
            - `"magnet"`: the checkpoint itself, its code and its files written anew.
            - `"merged"`: the adapter merged into the weights; all modes, causal mode adapted too, as in the paper.
            - `"encoder"`: a stock `LlamaModel` with `is_causal: false`, adapter merged; needs no remote code.
            - `"generator"`: a stock `LlamaForCausalLM` that computes what causal mode does: the base's weights bit for bit,
              or the merged ones if `config.causal_adapter` (or if the checkpoint is a merged one).
            - `"adapter"`: a PEFT adapter for a MAGNET base.
        dtype (`str`, *optional*, defaults to `"auto"`):
            `"float32"`, `"bfloat16"`, `"float16"`, or the checkpoint's own. Merging is done in float32 and rounded once.
        base_model_name_or_path (`str`, *optional*):
            Form `"adapter"` only: the MAGNET base it goes on, a folder or a Hub id whose weights are this checkpoint's base,
            bit for bit. By default that base is written too, to `<output_dir>-base`.

    Raises:
        `ValueError`: an unknown form or dtype; an `output_dir` that is not empty; no MAGNET checkpoint; quantised weights;
        a checkpoint without an adapter, or another base, for the form `"adapter"`.

    Example:

    ```python
    >>> import tempfile
    >>> from transformers import AutoModelForCausalLM
    >>> from modeling_magnet.forms import export_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_checkpoint("examples/assets/magnet-tiny", f"{folder}/generator", "generator")
    ...     type(AutoModelForCausalLM.from_pretrained(f"{folder}/generator")).__name__
    'LlamaForCausalLM'

    ```
    """
    writers = {"magnet": _magnet, "merged": _merged, "encoder": _encoder, "generator": _generator}
    if form not in (*writers, "adapter"):
        raise ValueError(f"form={form!r}: must be one of {', '.join((*writers, 'adapter'))}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}.")
    if base_model_name_or_path is not None and form != "adapter":
        raise ValueError(f"base_model_name_or_path={base_model_name_or_path!r}: only form='adapter' names a base.")
    output_dir = Path(output_dir)
    _check_output_dir(output_dir)
    source = _local_folder(model_name_or_path)
    model, tokenizer = _load(source, dtype), AutoTokenizer.from_pretrained(source)
    dtype = model.dtype if dtype == "auto" else getattr(torch, dtype)
    if form == "adapter":
        write_adapter(model, tokenizer, output_dir, dtype, base_model_name_or_path, checkpoint_origin(source))
        return
    with unfinished_folder(output_dir) as folder:
        config = writers[form](model, tokenizer, folder, dtype)
        if form == "magnet":
            _keep_measured(source, folder)
        write_model_card(config, folder, form, checkpoint_origin(source))


def _check_output_dir(output_dir: Path) -> None:
    """Raises `ValueError` unless the folder can be written without touching anything that is there."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(
            f"output_dir={str(output_dir)!r}: is not empty. Choose another folder, or empty this one first."
        )


def _local_folder(model_name_or_path: str | Path) -> Path:
    """The folder itself, or the downloaded snapshot of a Hub id."""
    if Path(model_name_or_path).is_dir():
        return Path(model_name_or_path)
    if Path(model_name_or_path).exists() or str(model_name_or_path).count("/") != 1:
        raise ValueError(
            f"model_name_or_path={str(model_name_or_path)!r}: is no folder, and no Hub id like 'name/model'. Pass the "
            "folder of a checkpoint."
        )
    return Path(snapshot_download(str(model_name_or_path)))


def _keep_measured(source: Path, folder: Path) -> None:
    """Measured figures belong to the very weights: they go along if the weights came out the same."""
    if (source / EVAL_RESULTS).is_file() and weights_of(source) == weights_of(folder):
        shutil.copyfile(source / EVAL_RESULTS, folder / EVAL_RESULTS)


def _load(source: Path, dtype: str) -> MagnetLlamaForCausalLM:
    name = f"model_name_or_path={str(source)!r}"
    config, _ = MagnetLlamaConfig.get_config_dict(source)
    if config.get("model_type") != "magnet_llama":
        raise ValueError(
            f"{name}: model_type={config.get('model_type')!r} is no MAGNET checkpoint. A plain Llama becomes one with "
            "MagnetLlamaForCausalLM.from_llama()."
        )
    if config.get("quantization_config"):
        raise ValueError(f"{name}: its weights are quantised. Export the checkpoint they were made of.")
    # a narrower dtype is taken at the end, so that merging rounds once
    model, found = MagnetLlamaForCausalLM.from_pretrained(
        source, dtype="float32" if dtype == "float32" else "auto", output_loading_info=True
    )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(
            f"{name}: has no weights for {missing[0]} and {len(missing) - 1} more. Export a complete model."
        )
    return model.eval()


# ----------------------------------------------------------------------------------------------------------- the forms


def _magnet(model, tokenizer, folder: Path, dtype: torch.dtype) -> MagnetLlamaConfig:
    save_checkpoint(_cast(model, dtype), tokenizer, folder)
    return model.config


def _merged(model, tokenizer, folder: Path, dtype: torch.dtype) -> MagnetLlamaConfig:
    remove_adapter(model, dtype, merge=True)
    model.config.causal_adapter = True  # what was the adapter acts in causal mode too
    return _magnet(model, tokenizer, folder, dtype)


def _generator(model, tokenizer, folder: Path, dtype: torch.dtype) -> LlamaConfig:
    remove_adapter(model, dtype, merge=model.config.causal_adapter)
    weights = {name: w for name, w in model.state_dict().items() if not name.startswith("projection_head.")}
    stock = _stock(LlamaForCausalLM, _llama_config(model.config), weights, dtype)
    stock.generation_config = model.generation_config
    stock.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return stock.config


def _encoder(model, tokenizer, folder: Path, dtype: torch.dtype) -> LlamaConfig:
    remove_adapter(model, dtype, merge=True)
    stock = _stock(LlamaModel, _llama_config(model.config, is_causal=False), model.model.state_dict(), dtype)
    stock.save_pretrained(folder)
    write_encoder_files(model.config, tokenizer, folder)
    return stock.config


def _stock(kind: type, config: LlamaConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype):
    """A model of transformers' own over the given tensors, which are not copied."""
    with init_empty_weights(include_buffers=False):
        stock = kind(config)
    stock.load_state_dict(weights, assign=True)
    stock.tie_weights()
    return _cast(stock, dtype)


def _llama_config(config: MagnetLlamaConfig, **settings) -> LlamaConfig:
    shape = config.to_dict()
    for key in (*MagnetLlamaConfig.__annotations__, *NOT_LLAMA):
        shape.pop(key, None)
    return LlamaConfig(**shape, **settings)


def _cast(model, dtype: torch.dtype):
    """The parameters only: `model.to(dtype)` would round the rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model
