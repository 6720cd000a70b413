"""Selects the checkpoint to resume from, and checks that the run's settings, data and weights are the same."""

import dataclasses
import json
import logging
from pathlib import Path

import torch
from safetensors import safe_open

from ..settings.fields import TrainingFields
from .checkpointing import checkpoints, newest_complete, problem, read_complete, step_of

logger = logging.getLogger(__name__)

# not compared: paths and what does not affect the weights; data are compared by content, the base by weights
ELSEWHERE = {"model_name_or_path", "train_file", "pairs_file", "eval_file", "eval_pairs_file", "on_bad"}
OWN_ELSEWHERE = {"output_dir", "resume", "resume_changed", "remove_unused_columns", "logging_steps"}
OWN_ELSEWHERE |= {
    "save_strategy",
    "save_total_limit",
    "report_to",
    "project",
    "run_name",
    "ddp_find_unused_parameters",
}
STOCK = """seed data_seed max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps world_size
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay max_grad_norm optim optim_args
    optim_target_modules adam_beta1 adam_beta2 adam_epsilon bf16 fp16 full_determinism neftune_noise_alpha
    dataloader_drop_last train_sampling_strategy ignore_data_skip""".split()
IN_OPTIMIZER = {"learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}
REFUSED = {
    "enable_jit_checkpoint": "a run saves by itself when SIGTERM or Ctrl-C comes. Leave it out.",
    "save_on_each_node": "a checkpoint is checked as a whole. Put output_dir on a file system that all nodes share.",
    "auto_find_batch_size": "a resumed run could find another size. Set per_device_train_batch_size.",
}


# ---------------------------------------------------------------------------------------------------- which checkpoint


def checkpoint_to_resume(args) -> Path | None:
    """
    The checkpoint that `resume` or `resume_from_checkpoint` selects, with all files verified; `None`: start at step 0.

    Raises:
        `ValueError` if the selected one is damaged, naming the file and what `resume` would take, or if output_dir
        holds checkpoints that could be confused with this run's.
    """
    for name, reason in REFUSED.items():
        if getattr(args, name):
            raise ValueError(f"{name}=True: {reason}")
    if args.resume_from_checkpoint:
        return _asked_for(Path(args.resume_from_checkpoint), args)
    found = checkpoints(args.output_dir)
    if not args.resume:
        if found:
            raise ValueError(
                f"output_dir={args.output_dir!r}: holds {', '.join(path.name for path in found)} of an earlier run. "
                "Go on from there with --resume true, delete them, or choose another output_dir."
            )
        return None
    newest = newest_complete(args.output_dir)
    if newest is None:
        logger.warning("resume: %s holds no complete checkpoint; training begins at step 0.", args.output_dir)
    else:
        logger.warning("resume: going on from %s.", newest)
    return newest


def _asked_for(checkpoint: Path, args) -> Path:
    if args.resume:
        raise ValueError("resume and resume_from_checkpoint are both set: choose one.")
    if reason := problem(checkpoint):
        fallback = newest_complete(checkpoint.parent)
        advice = f"--resume true would take {fallback.name}" if fallback else "No complete checkpoint lies beside it"
        raise ValueError(f"resume_from_checkpoint={str(checkpoint)!r}: {reason}. {advice}.")
    here = checkpoint.resolve().parent == Path(args.output_dir).resolve()
    later = [path for path in checkpoints(args.output_dir) if not here or step_of(path) > step_of(checkpoint)]
    later = [path for path in later if problem(path) is None]
    if later:
        raise ValueError(
            f"resume_from_checkpoint={str(checkpoint)!r}: {args.output_dir} holds {', '.join(p.name for p in later)} too, "
            "which a later --resume would take for this run's. Delete them, or choose another output_dir."
        )
    return checkpoint


# ---------------------------------------------------------------------------------------------------- the same run?


def run_settings(model_args, data_args, view_args, training_args, fingerprint: dict[str, str], sharding: str) -> dict:
    """
    The settings that determine the weights, in the form stored in `complete.json`.

    Args:
        fingerprint (`dict[str, str]`): Digests of the data, so that a file may move but not change.
        sharding (`str`): `none`, `fsdp` or `deepspeed`: how optimizer states are laid out.
    """
    settings = {"sharding": sharding}
    for group in (model_args, data_args, view_args):
        names = {field.name for field in dataclasses.fields(group)} - ELSEWHERE
        settings |= {name: getattr(group, name) for name in sorted(names)}
    own = {field.name for field in dataclasses.fields(TrainingFields)} - OWN_ELSEWHERE
    settings |= {name: getattr(training_args, name) for name in sorted({*own, *STOCK})}
    settings |= {f"data: {name}": digest for name, digest in sorted(fingerprint.items())}
    return json.loads(json.dumps(settings, default=str))


def sharding_of(trainer) -> str:
    """The layout of the optimizer states on disk: a checkpoint cannot be read with another one."""
    return "fsdp" if trainer.is_fsdp_enabled else "deepspeed" if trainer.is_deepspeed_enabled else "none"


def differences(saved: dict, now: dict) -> list[str]:
    """
    One entry for each changed setting.

    ```python
    >>> differences({"seed": 1, "optim": "sgd"}, {"seed": 2, "optim": "sgd"})
    ['seed: 1 in the checkpoint, now 2']

    ```
    """
    missing = "not known"
    stays = " (the checkpoint's stays in force: the optimizer's state holds it)"
    return [
        f"{name}: {saved.get(name, missing)} in the checkpoint, now {now.get(name, missing)}{stays * (name in IN_OPTIMIZER)}"
        for name in sorted({*saved, *now})
        if saved.get(name, missing) != now.get(name, missing)
    ]


def check_same_run(checkpoint: Path, now: dict, model, changed_is_fine: bool = False) -> None:
    """
    Compares settings, data and weights with the checkpoint's, before anything is loaded.

    Args:
        checkpoint (`Path`): A verified checkpoint.
        now (`dict`): The result of `run_settings` for this run.
        model ([`PreTrainedModel`]): As built, not yet wrapped or sharded.
        changed_is_fine (`bool`, defaults to `False`): Warn of differences instead of refusing (`resume_changed`).

    Raises:
        `ValueError` listing every difference, or naming the tensor that does not fit or is not finite.
    """
    saved = read_complete(checkpoint)["run"]
    if saved.get("sharding") != now["sharding"]:
        raise ValueError(
            f"{checkpoint}: its states are laid out for sharding={saved.get('sharding')}, this run has "
            f"{now['sharding']}. Go on with the launch configuration that wrote it."
        )
    changed = differences(saved, now) + check_weights(checkpoint, model)
    if not changed:
        return
    listed = "\n  ".join(changed)
    if not changed_is_fine:
        raise ValueError(
            f"{checkpoint}: this is not the run that wrote it:\n  {listed}\nSet it back, or go on nevertheless with "
            "--resume_changed true."
        )
    logger.warning("%s: going on although this is not the run that wrote it:\n  %s", checkpoint, listed)


def check_weights(checkpoint: Path, model) -> list[str]:
    """
    Compares the checkpoint's safetensors with the model. Sharded states (FSDP, ZeRO-3) hold none and are not read.

    Returns:
        One entry if the frozen weights, which training does not change, belong to another base.

    Raises:
        `ValueError` naming a tensor that is missing, unknown, of another shape, or not finite.
    """
    state, seen, foreign = model.state_dict(), set(), []
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name)
                _check_tensor(f"{file}: tensor {name!r}", tensor, state.get(name))
                seen.add(name)
                if name not in trained and not torch.equal(tensor, state[name].cpu()):
                    foreign.append(name)
    if seen:
        _check_none_missing(checkpoint, state, seen)
    if not foreign:
        return []
    return [f"model_name_or_path: {len(foreign)} frozen tensors are not the checkpoint's, the first is {foreign[0]}"]


def _check_tensor(what, tensor, expected) -> None:
    if expected is None:
        raise ValueError(f"{what} is not in the model. Use the model settings of the checkpoint.")
    if tensor.shape != expected.shape:
        raise ValueError(
            f"{what} has the shape {tuple(tensor.shape)}, the model's has {tuple(expected.shape)}. Use the model settings "
            "of the checkpoint."
        )
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ValueError(f"{what} holds NaN or infinity. Go on from an earlier one with --resume_from_checkpoint.")


def _check_none_missing(checkpoint, state, seen) -> None:
    stored = {state[name].data_ptr() for name in seen}  # only one of tied tensors is stored
    for name, tensor in state.items():
        if name not in seen and tensor.data_ptr() not in stored:
            raise ValueError(f"{checkpoint}: tensor {name!r} is missing. Use the model settings of the checkpoint.")
