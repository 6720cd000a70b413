"""The five forms in which a MAGNET checkpoint can be exported; docs/hub.md has the rule of each."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from modeling_magnet import MagnetFields

from .adapter import base_weights, rebuilt, without_adapter, write_adapter
from .card import checkpoint_origin, write_model_card
from .results import EVAL_RESULTS, weights_of
from .save import check_output_dir, save_checkpoint, unfinished_folder
from .sentence_transformer import write_encoder_files
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
        model_name_or_path (`str` or `Path`): A MAGNET checkpoint, a folder or a Hub id.
        output_dir (`str` or `Path`): A folder that does not exist yet, or is empty.
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
    >>> from magnet_hub.forms import export_checkpoint
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
    check_output_dir(output_dir)
    source = _local_folder(model_name_or_path)
    config = _config(source)
    merges = config.adapter is not None and (
        form in ("merged", "encoder") or form == "generator" and config.causal_adapter
    )
    if merges and dtype == "auto":
        dtype = "float32"
    # merged in float32 and rounded once, if a narrower dtype was requested
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype="float32" if merges or dtype == "float32" else "auto", trust_remote_code=False
    )
    check_finite(model)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    dtype = model.dtype if dtype == "auto" else getattr(torch, dtype)
    if form == "adapter":
        write_adapter(model, tokenizer, output_dir, dtype, base_model_name_or_path, checkpoint_origin(source))
        return
    with unfinished_folder(output_dir) as folder:
        config = writers[form](model, tokenizer, folder, dtype)
        if form == "magnet":
            _keep_measured(source, folder)
        write_model_card(config, folder, form, checkpoint_origin(source))


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


def _config(source: Path) -> MagnetFields:
    check_source(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if not isinstance(config, MagnetFields):
        raise ValueError(
            f"model_name_or_path={str(source)!r}: model_type={config.model_type!r} is no MAGNET checkpoint. A plain model "
            "becomes one with from_base() of its family's class, such as MagnetLlamaForCausalLM."
        )
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"model_name_or_path={str(source)!r}: its weights are quantised. Export the checkpoint they were made of."
        )
    return config


def _keep_measured(source: Path, folder: Path) -> None:
    """Evaluation results belong to specific weights: they are copied if the weights are the same."""
    if (source / EVAL_RESULTS).is_file() and weights_of(source) == weights_of(folder):
        shutil.copyfile(source / EVAL_RESULTS, folder / EVAL_RESULTS)


# ----------------------------------------------------------------------------------------------------------- the forms


def _magnet(model, tokenizer, folder: Path, dtype: torch.dtype) -> PreTrainedConfig:
    same = rebuilt(type(model), model.config, model.state_dict(), dtype, model.generation_config)
    save_checkpoint(same, tokenizer, folder)
    return same.config


def _merged(model, tokenizer, folder: Path, dtype: torch.dtype) -> PreTrainedConfig:
    merged = without_adapter(model, dtype, merge=True)
    merged.config.causal_adapter = True  # the merged adapter acts in causal mode too
    save_checkpoint(merged, tokenizer, folder)
    return merged.config


def _generator(model, tokenizer, folder: Path, dtype: torch.dtype) -> PreTrainedConfig:
    weights = base_weights(model, merge=model.config.causal_adapter)
    stock = rebuilt(_stock(type(model)), model.config.to_base(), weights, dtype, model.generation_config)
    stock.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return stock.config


def _encoder(model, tokenizer, folder: Path, dtype: torch.dtype) -> PreTrainedConfig:
    prefix = f"{model.base_model_prefix}."
    weights = {name: w for name, w in base_weights(model, merge=True).items() if name.startswith(prefix)}
    weights = {name.removeprefix(prefix): w for name, w in weights.items()}
    config = model.config.to_base(**_both_ways(model.config))
    stock = rebuilt(_stock(type(model.model)), config, weights, dtype)
    stock.save_pretrained(folder)
    write_encoder_files(model.config, tokenizer, folder)
    return stock.config


def _stock(kind: type) -> type:
    """The transformers class behind a MAGNET class."""
    return next(base for base in kind.__mro__ if base.__module__.startswith("transformers.models."))


def _both_ways(config: MagnetFields) -> dict:
    """
    Settings that make a stock decoder bidirectional. MAGNET's sliding layers see tokens less than `sliding_window`
    away; transformers' include the token at that distance if `is_causal` is false, and Gemma 3 halves the value.
    """
    window = getattr(config, "sliding_window", None)
    if hasattr(config, "use_bidirectional_attention"):
        return {"use_bidirectional_attention": True, "sliding_window": 2 * (window - 1)}
    return {"is_causal": False} | ({"sliding_window": window - 1} if window else {})
