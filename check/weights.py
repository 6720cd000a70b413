"""The tensors: readable, finite, with the right names, shapes and dtypes."""

import re
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from .checkpoint import Checkpoint
from .outcome import Failed, Skipped

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
AT_ONCE = 2**24  # numbers checked in one piece
NAMED = 3  # tensors that a message names


def check_headers(checkpoint: Checkpoint) -> str:
    """Each header matches its file: no gap, no overlap, nothing truncated, dtypes and shapes that fit."""
    count = 0
    for path in checkpoint.weights:
        try:
            with safe_open(path, framework="pt") as file:  # compares the header with the file's length
                count += len(file.keys())
        except (SafetensorError, OSError) as error:
            raise Failed(f"{path.name} is damaged: {error}") from None
    return f"{count} tensors in {len(checkpoint.weights)} files"


def check_tensors(checkpoint: Checkpoint) -> str:
    """The tensors match the configuration. transformers initializes missing ones at random."""
    stored = {}
    for path in checkpoint.weights:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if name in stored:
                    raise Failed(f"{name} stands in two files")
                stored[name] = tuple(file.get_slice(name).get_shape())
    _check_index(checkpoint, stored)
    if checkpoint.form == "adapter":
        raise Skipped("an adapter's tensors are those of its base; look at names and shapes there")
    _check_layers(checkpoint, stored)
    with init_empty_weights():
        model = checkpoint.model_class(checkpoint.config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = {"lm_head.weight"} if checkpoint.config.tie_word_embeddings else set()
    _compare(stored, expected, optional)
    numbers = sum(torch.Size(shape).numel() for shape in stored.values())
    return f"{len(stored)} tensors, {numbers:,} numbers, all where the configuration has them"


def _check_index(checkpoint, stored) -> None:
    for index in checkpoint.folder.glob("*.index.json"):
        names = set(checkpoint.read_json(index.name)["weight_map"])
        if names != set(stored):
            raise Failed(f"{index.name} lists other tensors than the files hold: {_some(names ^ set(stored))}")


def _check_layers(checkpoint, stored) -> None:
    """Runs before a model of `num_hidden_layers` is built, which may be any number."""
    found = len({match[1] for match in map(LAYER.search, stored) if match})
    if found != checkpoint.config.num_hidden_layers:
        raise Failed(
            f"{found} layers are stored, config.json has num_hidden_layers={checkpoint.config.num_hidden_layers}"
        )


def _compare(stored: dict, expected: dict, optional: set) -> None:
    missing = expected.keys() - stored.keys() - optional
    extra = stored.keys() - expected.keys()
    shapes = [name for name in stored.keys() & expected.keys() if stored[name] != expected[name]]
    parts = [f"missing: {_some(missing)}"] if missing else []
    parts += [f"not asked for: {_some(extra)}"] if extra else []
    parts += [f"{name} has shape {list(stored[name])}, not {list(expected[name])}" for name in sorted(shapes)[:NAMED]]
    if parts:
        raise Failed("; ".join(parts))


def _some(names) -> str:
    names = sorted(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def check_values(checkpoint: Checkpoint) -> str:
    """No NaN, no infinity. Only one tensor is in memory at a time."""
    size = sum(path.stat().st_size for path in checkpoint.weights)
    with tqdm(total=size, desc="values", unit="B", unit_scale=True, leave=False, disable=size < 2**30) as bar:
        for path in checkpoint.weights:
            _check_finite(path, bar)
    return "all finite"


def _check_finite(path: Path, bar) -> None:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            for part in tensor.flatten().split(AT_ONCE) if tensor.is_floating_point() else ():
                if not part.isfinite().all():
                    bad = "NaN" if part.isnan().any() else "infinity"
                    raise Failed(f"{name} in {path.name} holds {bad}")
                bar.update(part.nbytes)


def check_dtypes(checkpoint: Checkpoint) -> str:
    """The base is stored in one dtype, which fits into the configuration's; an adapter may be in float32."""
    found = {}
    for path in checkpoint.weights:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                found[name] = file.get_slice(name).get_dtype()
    if wrong := [name for name, dtype in found.items() if dtype not in FLOATS]:
        raise Failed(f"{_some(wrong)} stored as {found[wrong[0]]}: use float32, bfloat16 or float16")
    base = {name: dtype for name, dtype in found.items() if "_lora." not in name and "projection_head" not in name}
    if checkpoint.form == "adapter":
        return f"adapter {', '.join(sorted(set(found.values())))}"
    usual = max(set(base.values()), key=list(base.values()).count)
    if other := [name for name, dtype in base.items() if dtype != usual]:
        raise Failed(f"{_some(other)} stored as {base[other[0]]}, the rest of the base as {usual}")
    declared = checkpoint.config.dtype
    if declared is not None and torch.promote_types(FLOATS[usual], declared) != declared:
        raise Failed(f"stored as {usual}, config.json has dtype={str(declared)!r}: loading would round the weights")
    trained = sorted({dtype for name, dtype in found.items() if name not in base})
    return f"{', '.join(sorted(set(base.values())))}" + (f"; adapter {', '.join(trained)}" if trained else "")
