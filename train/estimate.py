"""`magnet train --estimate true`: memory per GPU of a run, what takes it, and which setting brings it down.

Nothing is loaded but the base's config. Texts and sentence pairs have a backward pass each, so the larger of the two
counts, not their sum.
"""

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import init_empty_weights

from modeling_magnet import FAMILIES
from modeling_magnet.configuration_magnet import MagnetFields

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments, ViewArguments
from .fim import FimMarkers
from .model import family_of, is_trained
from .simulate import layer_memory, shortened
from .views import IGNORE, SpecialTokens, sample_view

GIB = 2**30
LOGIT_BYTES = {2: 11, 4: 12}  # bytes of a logit -> bytes held for it at most: its copies, float32, log p (measured)
QUANTISED_BYTES = {4: 0.5 + 1 / 64 + 4 / 64 / 256, 8: 1.0}  # a weight, with nf4's doubly quantised scales
FSDP_LAYERS = 2  # gathered at a time: the one that computes and the next


@dataclass(frozen=True)
class Run:
    """What the memory of a run depends on; sizes are per GPU."""

    config: MagnetFields
    dtype: torch.dtype = torch.bfloat16
    autocast: bool = True
    bits: int = 16  # 4 or 8: quantised
    rows: int = 32
    length: int = 512
    labelled: int = 32 * 184  # positions with a label
    pairs: int = 64  # that are encoded at a time
    pair_length: int = 128
    checkpointing: bool = False
    sharding: str = "none"  # none (one GPU, DDP), states (ZeRO-2), weights (FSDP2, ZeRO-3)
    processes: int = 1
    optimizer_bytes: int = 8  # of AdamW's two moments


def estimate(
    model_args: ModelArguments,
    data_args: DataArguments,
    view_args: ViewArguments,
    training_args: MagnetTrainingArguments,
) -> str:
    """The report of `magnet train --estimate true`."""
    return report(run_of(model_args, data_args, view_args, training_args))


def run_of(model_args, data_args, view_args, training_args) -> Run:
    """The arguments as memory sees them, with rows and sentences as long as they may be."""
    rows, pairs = training_args.per_device_train_batch_size, training_args.per_device_pair_batch_size
    chunk = training_args.sscl_chunk_size
    return Run(
        config=adapted_config(model_args),
        dtype=getattr(torch, model_args.dtype),
        autocast=training_args.bf16,
        bits=4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else 16,
        rows=rows,
        length=view_args.max_length,
        labelled=labelled_positions(rows, view_args.max_length, view_args),
        pairs=(min(chunk, pairs) if chunk else pairs) if training_args.lambda_sscl > 0 else 0,
        pair_length=view_args.pair_max_length,
        checkpointing=training_args.gradient_checkpointing,  # what older releases call it; both are set
        sharding=_sharding(),
        processes=training_args.world_size,
        optimizer_bytes=2 if "8bit" in training_args.optim else 0 if training_args.optim == "sgd" else 8,
    )


def adapted_config(model_args: ModelArguments) -> MagnetFields:
    """The base's config with the adapter of the run; a MAGNET checkpoint brings its own."""
    family, is_magnet = family_of(model_args.model_name_or_path)
    settings = {"adapter": model_args.adapter, "projection_head": model_args.projection_head}
    return family.config_class.from_pretrained(model_args.model_name_or_path, **{} if is_magnet else settings)


def labelled_positions(rows: int, length: int, view_args: ViewArguments) -> int:
    """The most positions with a label that 8 batches of full rows have; the language-modelling head sees only these."""
    rng = np.random.default_rng(0)
    tokens = SpecialTokens(bos=1, mask=2, end=3, ordinary=np.arange(4, 8), fim=FimMarkers([4], [5], [6]))
    ids, starts = np.full(length - 1, 4), np.arange(length - 1) % 20 == 0  # sentences of 20 tokens
    views = [sample_view(ids, starts, view_args, tokens, rng) for _ in range(8 * rows)]
    counts = [int(((view.mntp_labels != IGNORE) | (view.msg_labels != IGNORE)).sum()) for view in views]
    return max(sum(counts[first : first + rows]) for first in range(0, 8 * rows, rows))


def _sharding() -> str:
    """What `accelerate launch` has told this process."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return "weights"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return "none"
    return {"2": "states", "3": "weights"}.get(stage, "none")


# ------------------------------------------------------------------------------------------------------ the accounting


def memory(run: Run) -> dict[str, float]:
    """
    Bytes per GPU by what takes them; `"peak"` is the most they take at a time.

    Example:

    ```python
    >>> from magnet_train.estimate import GIB, Run, memory
    >>> from modeling_magnet import MagnetLlamaConfig
    >>> llama = MagnetLlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000, adapter={"r": 16, "alpha": 32, "target_modules": ["q_proj"]})
    >>> run = Run(config=llama, checkpointing=True)
    >>> round(memory(run)["base weights"] / GIB, 1)
    12.6

    ```
    """
    parts = _static(run) | {"texts": _text_pass(run), "pairs": _pair_pass(run)}
    held = sum(
        parts[name] for name in ("base weights", "gathered weights", "adapter", "gradients", "optimizer states")
    )
    return parts | {"peak": held + max(sum(parts["texts"].values()), sum(parts["pairs"].values()))}


def _static(run):
    layer, rest, layer_adapter, head = parameter_counts(run.config)
    layers, width = run.config.num_hidden_layers, run.dtype.itemsize
    of_layer = QUANTISED_BYTES.get(run.bits, width) * layer
    adapter = layer_adapter * layers + head
    whole = of_layer * layers + width * rest
    shared = run.processes if run.sharding == "weights" else 1
    states = run.processes if run.sharding in ("weights", "states") else 1
    return {
        "base weights": whole / shared,
        "gathered weights": (FSDP_LAYERS * of_layer + width * rest) if shared > 1 else 0.0,
        "adapter": 4 * adapter / shared,
        "gradients": 4 * adapter / states,
        "optimizer states": run.optimizer_bytes * adapter / states,
    }


def parameter_counts(config: MagnetFields) -> tuple[int, int, int, int]:
    """Parameters of a layer, of all other frozen weights, of a layer's adapter, and of the projection head."""
    one = shortened(config, num_hidden_layers=1)
    with init_empty_weights():
        model = FAMILIES[config.base_model_type](one)
    counts = [0, 0, 0, 0]
    for name, parameter in model.named_parameters():  # tied weights come once
        place = (2 if is_trained(name) else 0) + (0 if ".layers." in name else 1)
        counts[place] += parameter.numel()
    return tuple(counts)


def _text_pass(run):
    layer = layer_memory(run.config, run.dtype, run.autocast, run.rows, run.length)
    width = 2 if run.autocast else run.dtype.itemsize
    logits = LOGIT_BYTES[width] * run.labelled * run.config.vocab_size
    return _pass(run, layer, run.rows * run.length, logits)


def _pair_pass(run):
    if run.pairs == 0:
        return {"activations": 0.0, "logits": 0.0, "largest temporary": 0.0}
    sentences = 2 * run.pairs  # both sides go through in one forward
    layer = layer_memory(run.config, run.dtype, run.autocast, sentences, run.pair_length, all_states=True)
    return _pass(run, layer, sentences * run.pair_length, logits=0)


def _pass(run, layer, tokens, logits):
    """Activations, logits, and what a layer's backward pass holds besides once the logits are gone."""
    layers, entry = run.config.num_hidden_layers, tokens * run.config.hidden_size * run.dtype.itemsize
    kept = (entry if run.checkpointing else layer.kept) * layers + layer.edges
    spike = layer.spike + (
        layer.kept if run.checkpointing else 0
    )  # a layer that is computed again is whole for a moment
    if run.bits != 16:
        spike += 2 * run.config.hidden_size * run.config.intermediate_size  # a matrix in bfloat16
    return {"activations": float(kept), "logits": float(logits), "largest temporary": float(max(spike - logits, 0))}


# ---------------------------------------------------------------------------------------------------------- the report


def report(run: Run) -> str:
    """A table of what takes the memory, and what would bring it down."""
    parts = memory(run)
    lines = [f"{'':28}{'GiB per GPU':>12}"]
    for name in ("base weights", "gathered weights", "adapter", "gradients", "optimizer states"):
        if parts[name]:
            lines.append(f"{name:28}{parts[name] / GIB:12.2f}")
    for which in ("texts", "pairs"):
        for name, size in parts[which].items():
            if size:
                lines.append(f"{f'{which}: {name}':28}{size / GIB:12.2f}")
    lines.append(f"{'peak':28}{parts['peak'] / GIB:12.2f}")
    lines.append(
        "Texts and pairs are never in memory together: the peak has the larger of the two. Not in it: the GPU's"
    )
    lines.append("driver and the allocator's fragmentation.")
    return "\n".join([*lines, "", *advice(run, parts["peak"])])


def advice(run: Run, peak: float) -> list[str]:
    """One line for each change that saves a twentieth or more, the best first."""
    found = {name: memory(changed)["peak"] for name, changed in changes(run).items()}
    useful = sorted((size, name) for name, size in found.items() if size < 0.95 * peak)
    return ["What would bring it down:"] * bool(useful) + [
        f"{size / GIB:8.2f} GiB  with {name}" for size, name in useful
    ]


def changes(run: Run) -> dict[str, Run]:
    """The settings that cost no exactness in the gradient, except for dtype and bits."""
    found = {}
    if not run.checkpointing:
        found["activation_checkpointing=true (a third more time)"] = replace(run, checkpointing=True)
    if run.dtype == torch.float32:
        found["dtype=bfloat16, bf16=true"] = replace(run, dtype=torch.bfloat16, autocast=True)
    if run.bits == 16:
        found["load_in_4bit=true"] = replace(run, bits=4)
    if run.rows % 2 == 0:
        half = {"rows": run.rows // 2, "labelled": -(-run.labelled // 2), "pairs": -(-run.pairs // 2)}
        name = f"per_device_train_batch_size={run.rows // 2}, half of the pairs, twice gradient_accumulation_steps"
        found[name] = replace(run, **half)
    if run.pairs > 8:
        found[f"sscl_chunk_size={run.pairs // 4}"] = replace(run, pairs=run.pairs // 4)
    if run.sharding != "weights":
        found["accelerate_configs/fsdp2.yaml on 8 GPUs"] = replace(run, sharding="weights", processes=8)
    return found
