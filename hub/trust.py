"""Checks a checkpoint before loading: no links out of its folder, no external code, no NaN or infinity."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from modeling_magnet.configuration_magnet import KERNELS


def check_source(path: str | Path, revision: str | None = None) -> None:
    """
    Checks a checkpoint before any of it is loaded; call this before loading one for a user.

    Args:
        path (`str` or `Path`): A folder or a Hub id. For a Hub id only `config.json` is checked: huggingface_hub keeps
            all other files inside its cache.
        revision (`str`, *optional*): Of a Hub id.

    Raises:
        `ValueError` for a folder with a link or a shard outside it, weights that are not safetensors, or a
        configuration that names an external attention kernel.

    Example:

    ```python
    >>> from magnet_hub.trust import check_source
    >>> check_source("tests/assets/magnet-tiny")

    ```
    """
    folder = Path(path)
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if leads_out(entry, folder):
                raise ValueError(f"{path}: {entry.name} is a link out of the folder. Put the file there.")
        for index in sorted(folder.glob("*.index.json")):
            for name in shards(index):
                if problem := shard_problem(name):
                    raise ValueError(f"{path}: {index.name} names a shard {problem}: {name!r}. Nothing is loaded.")
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
        if not weights and (pickles := sorted(each.name for each in folder.glob("*.bin"))):
            raise ValueError(f"{path}: {pickles[0]} is a pickle, which may run code. Convert it to safetensors.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        return  # an adapter; or no checkpoint, which transformers reports better
    settings, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    for key in KERNELS:
        if "/" in str(settings.get(key)):
            raise ValueError(f"{path}: config.json sets {key}={settings[key]!r}, external code. Remove the line.")


def leads_out(entry: Path, folder: Path) -> bool:
    """Whether it is a link out of the folder. The Hub's cache links each snapshot file to its blob."""
    root = folder.resolve()
    allowed = [root] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
    return entry.is_symlink() and not any(entry.resolve().is_relative_to(place) for place in allowed)


def shards(index: Path) -> list[str]:
    """The files that a weight index names; `ValueError` if it is invalid."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        names = ()
    if not names:
        raise ValueError(f"{index}: has no weight_map.")
    return sorted(set(map(str, names)))


def shard_problem(name: str) -> str | None:
    """What is wrong with a shard's name, or `None`. transformers opens whatever an index names."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        return "by an absolute path"
    if ".." in posix.parts or ".." in windows.parts:
        return "outside the folder"
    if len(windows.parts) != 1 or not name.endswith(".safetensors"):
        return "that is not a safetensors file beside it"
    return None


def check_finite(model: torch.nn.Module) -> None:
    """Raises `ValueError` naming a tensor that contains NaN or infinity, since all outputs would be NaN."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{model.name_or_path}: the tensor {name} contains NaN or infinity. The file is damaged.")


def finite_tensors(path: Path):
    """
    Yields the name and tensor of each weight in a safetensors file, one in memory at a time.

    Raises:
        `ValueError` for a damaged file, or a tensor that contains NaN or infinity.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():
                tensor = weights.get_tensor(name)
                if not tensor.float().isfinite().all():  # one-byte floats have no isfinite()
                    raise ValueError(f"{path.name}: {name} contains NaN or infinity. Use another checkpoint.")
                yield name, tensor
    except SafetensorError as error:
        raise ValueError(f"{path.name}: is damaged ({error}). Save the checkpoint again.") from None
