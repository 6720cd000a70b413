"""Which checkpoint a run goes on from, and whether that was written by the same run: its settings and data."""

import dataclasses
import json
import logging
from pathlib import Path

from transformers import TrainingArguments

from .complete import checkpoints, newest_complete, problem, read_complete

logger = logging.getLogger(__name__)

# not compared: paths and what does not affect the weights. Data are compared by content; the base is in the checkpoint
ELSEWHERE = {"model_name_or_path", "train_file", "pairs_file", "eval_file", "eval_pairs_file", "on_bad"}
ELSEWHERE |= {"resume", "resume_changed"}
STOCK = """seed data_seed max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps world_size
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay max_grad_norm optim optim_args
    optim_target_modules adam_beta1 adam_beta2 adam_epsilon bf16 fp16 full_determinism neftune_noise_alpha
    dataloader_drop_last train_sampling_strategy ignore_data_skip""".split()
IN_OPTIMIZER = {"learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}


def checkpoint_to_resume(args) -> Path | None:
    """
    The checkpoint that `resume` or `resume_from_checkpoint` selects; `None`: start at step 0.

    Raises:
        `ValueError` if the selected one is damaged, naming the file and what `resume` would take, or if output_dir
        holds checkpoints of another run.
    """
    if args.resume_from_checkpoint:
        checkpoint = Path(args.resume_from_checkpoint)
        if reason := problem(checkpoint):
            fallback = newest_complete(checkpoint.parent)
            advice = f"--resume would take {fallback.name}" if fallback else "No complete checkpoint lies beside it"
            raise ValueError(f"resume_from_checkpoint={str(checkpoint)!r}: {reason}. {advice}.")
        return checkpoint
    found = checkpoints(args.output_dir)
    if found and not args.resume:
        raise ValueError(
            f"output_dir={args.output_dir!r}: holds {', '.join(path.name for path in found)} of an earlier run. "
            "Go on from there with --resume, delete them, or choose another output_dir."
        )
    newest = newest_complete(args.output_dir) if args.resume else None
    if newest is not None:
        logger.warning("resume: going on from %s.", newest)
    elif args.resume:
        logger.warning("resume: %s holds no complete checkpoint; training begins at step 0.", args.output_dir)
    return newest


def run_settings(model_args, data_args, view_args, training_args, fingerprint: dict[str, str], sharding: str) -> dict:
    """
    The settings that determine the weights, in the form stored in `complete.json`.

    Args:
        fingerprint (`dict[str, str]`): Digests of the data, so that a file may move but not change.
        sharding (`str`): `none`, `fsdp` or `deepspeed`: how optimizer states are laid out.
    """
    settings = {"sharding": sharding} | {name: getattr(training_args, name) for name in STOCK}
    stock = {field.name for field in dataclasses.fields(TrainingArguments)}
    for group in (model_args, data_args, view_args, training_args):
        names = {field.name for field in dataclasses.fields(group)} - ELSEWHERE - stock
        settings |= {name: getattr(group, name) for name in names}
    settings |= {f"data: {name}": digest for name, digest in fingerprint.items()}
    return json.loads(json.dumps(settings, default=str, sort_keys=True))


def sharding_of(trainer) -> str:
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


def check_same_run(checkpoint: Path, now: dict, changed_is_fine: bool = False) -> None:
    """
    Compares settings and data with the checkpoint's, before anything is loaded.

    Args:
        now (`dict`): The result of `run_settings` for this run.
        changed_is_fine (`bool`, defaults to `False`): Warn of differences instead of refusing (`resume_changed`).

    Raises:
        `ValueError` listing every difference.
    """
    changed = differences(read_complete(checkpoint)["run"], now)
    listed = "\n  ".join(changed)
    if changed and not changed_is_fine:
        raise ValueError(
            f"{checkpoint}: this is not the run that wrote it:\n  {listed}\nSet it back, or go on nevertheless with "
            "--resume_changed."
        )
    if changed:
        logger.warning("%s: going on although this is not the run that wrote it:\n  %s", checkpoint, listed)
