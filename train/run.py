"""Puts a training run together: arguments -> model, data -> MagnetTrainer -> checkpoint.

    magnet train --config default
    magnet train --config default --model_name_or_path HuggingFaceTB/SmolLM2-135M --train_file texts.txt \\
        --pairs_file pairs.jsonl --output_dir runs/smol
"""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedModel, set_seed

from magnet_hub.save import save_checkpoint
from magnet_hub.trust import check_source

from .curves import CurvesCallback
from .data.training_data import TrainingData, build_data
from .model import build_model, check_lengths, is_trained, unquantised
from .settings.arguments import DataArguments, MagnetTrainingArguments, ModelArguments, ViewArguments, check_pairs
from .settings.recipes import configuration, parse
from .survival.resume import check_same_run, checkpoint_to_resume, run_settings, sharding_of
from .survival.saving import complete_checkpoints
from .trainer import MagnetTrainer

logger = logging.getLogger(__name__)
TRAINED = "trained.safetensors"  # of a run whose checkpoint did not fit


def main(args: list[str] | None = None) -> None:
    """`python -m magnet_train`: reports errors in settings, data or disk in one line."""
    try:
        run(sys.argv[1:] if args is None else args)
    except (ValueError, OSError, FloatingPointError) as error:
        logger.debug("where it happened:", exc_info=True)
        sys.exit(f"magnet train: {error}")


def run(args: list[str]) -> None:
    """
    `magnet train`.

    Raises:
        `ValueError`, `OSError` or `FloatingPointError` for errors in settings, data or disk; `SystemExit` with 130
        after a second Ctrl-C.
    """
    logging.basicConfig(format="%(message)s")
    is_main = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate set it
    logging.getLogger(__package__).setLevel(logging.INFO if is_main else logging.ERROR)
    try:
        train(*parse(args))
    except KeyboardInterrupt:
        print("magnet train: left at once; --resume goes on from the newest complete checkpoint.", file=sys.stderr)
        sys.exit(130)


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    view_args: ViewArguments,
    training_args: MagnetTrainingArguments,
) -> PreTrainedModel:
    """
    Trains, writes the checkpoint to `output_dir`, and returns the model.

    Raises:
        `SystemExit` after SIGTERM or Ctrl-C, with a checkpoint to resume from but without the final one.
    """
    arguments = (model_args, data_args, view_args, training_args)
    settings = configuration(arguments)  # before the run adds to them
    Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)  # fails before anything is computed
    checkpoint = checkpoint_to_resume(training_args)
    trainer, data = build_trainer(*arguments)
    own = run_settings(*arguments, data.fingerprint, sharding_of(trainer))
    if checkpoint is not None:
        check_same_run(checkpoint, own, training_args.resume_changed)
    with complete_checkpoints(trainer, settings, own):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    export(trainer, model_args, view_args)
    return trainer.accelerator.unwrap_model(trainer.model)


def build_trainer(model_args, data_args, view_args, training_args) -> tuple[MagnetTrainer, TrainingData]:
    """The trainer of a run, and its data."""
    check_pairs(data_args, training_args)  # before a model is loaded
    set_seed(training_args.seed)
    check_source(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, trust_remote_code=False)
    model = build_model(model_args, view_args, tokenizer)
    check_lengths(model.config, view_args)
    training_args.eval_on_start = bool(training_args.do_eval and data_args.eval_file)
    data = build_data(model.config, tokenizer, data_args, view_args, training_args)
    trainer = MagnetTrainer(
        model=model,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.collator,
        processing_class=tokenizer,
        callbacks=[CurvesCallback(), *data.callbacks],
    )
    return trainer, data


def rescued(weights: dict[str, torch.Tensor], output_dir: Path, error: Exception) -> str:
    """The message for a failed export, usually for lack of space. Saves the trained weights where there is space."""
    trained = {name: weight.contiguous() for name, weight in weights.items() if is_trained(name)}
    size = sum(weight.nbytes for weight in weights.values())
    told = f"output_dir={str(output_dir)!r}: the checkpoint could not be written ({error}). It takes {size:,} bytes, "
    told += f"{shutil.disk_usage(output_dir).free:,} are free. "
    for path in (output_dir / TRAINED, Path(tempfile.gettempdir()) / f"{output_dir.resolve().name}-{TRAINED}"):
        try:
            save_file(trained, path, metadata={"format": "pt"})
        except (OSError, SafetensorError):
            path.unlink(missing_ok=True)
        else:
            return (
                f"{told}What was trained is in {path}: load_state_dict(load_file(path), strict=False) puts it into the base "
                "with a fresh adapter."
            )
    return f"{told}What was trained found no room either, also not in {tempfile.gettempdir()}."


def export(trainer: MagnetTrainer, model_args: ModelArguments, view_args: ViewArguments) -> None:
    """Writes the trained model to `output_dir`. Sharded weights are gathered, so every process takes part."""
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        if model_args.load_in_4bit or model_args.load_in_8bit:
            model = unquantised(state_dict, model_args, view_args, trainer.processing_class)
            state_dict = None
        try:
            save_checkpoint(model, trainer.processing_class, trainer.args.output_dir, state_dict)
        except (OSError, SafetensorError) as error:
            raise OSError(rescued(state_dict or model.state_dict(), Path(trainer.args.output_dir), error)) from error
    trainer.accelerator.wait_for_everyone()
