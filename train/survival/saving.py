"""The Trainer's own checkpoints, made complete: a callback, and what is said when a save fails or a signal ends the run."""

import contextlib
import logging
import shutil
import signal
from pathlib import Path

from accelerate import PartialState
from transformers import Trainer, TrainerCallback

from ..settings.recipes import CONFIGURATION
from .complete import COMPLETE, checkpoints, damage, mark_complete, newest_complete
from .signals import NAMES, Signals

logger = logging.getLogger(__name__)


class NothingLeftToTrain(Exception):
    """The checkpoint is the run's last. The Trainer would train one more step before checking."""


@contextlib.contextmanager
def complete_checkpoints(trainer: Trainer, configuration: str, run: dict):
    """
    What `trainer.train()` saves in this block is complete, or not taken for it.

    * `output_dir` and each checkpoint get the configuration, and each checkpoint `complete.json` as its last file.
    * A save that fails says so, and which checkpoint is left.
    * After SIGTERM or Ctrl-C the current step is finished and saved, and the process exits at the end of the block.

    Args:
        configuration (`str`): The settings as YAML.
        run (`dict`): The result of `run_settings` for this run.

    Raises:
        `OSError` if a checkpoint cannot be written.
        `SystemExit` after a signal: 0 after SIGTERM, as schedulers expect, and 130 after Ctrl-C, as shells do.
    """
    with Signals() as signals:
        callback = CompleteCallback(configuration, run, signals)
        trainer.add_callback(callback)
        try:
            yield
        except NothingLeftToTrain:
            logger.warning("The checkpoint is the last of this run: nothing is left to train.")
        except Exception as error:
            explain(checkpoint_of(trainer.args, trainer.state), error)
            raise
        finally:
            trainer.remove_callback(callback)
    if callback.left_by:
        checkpoint = checkpoint_of(trainer.args, trainer.state)
        logger.warning("%s: saved %s. Go on with the same command and --resume.", NAMES[callback.left_by], checkpoint)
        raise SystemExit(0 if callback.left_by == signal.SIGTERM else 128 + signal.SIGINT)


class CompleteCallback(TrainerCallback):
    """The callback of `complete_checkpoints`. Every process runs it; only the main one touches files."""

    def __init__(self, configuration: str, run: dict, signals: Signals):
        self.configuration, self.run, self.signals = configuration, run, signals
        self.left_by = 0  # the signal that ends this run

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            (Path(args.output_dir) / CONFIGURATION).write_text(self.configuration, encoding="utf-8")
            for checkpoint in checkpoints(args.output_dir) if state.global_step else ():
                if damage(checkpoint):  # of a process that was killed; the Trainer would count it
                    shutil.rmtree(checkpoint)
        if state.global_step >= state.max_steps:
            raise NothingLeftToTrain

    def on_step_end(self, args, state, control, **kwargs):
        self.left_by = self.signals.agreed(args)
        if self.left_by:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # after SIGTERM there is little time

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.left_by:
            control.should_save = control.should_evaluate = False  # saved at the step's end

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # every process has written its own files
        if state.is_world_process_zero:
            folder = checkpoint_of(args, state)
            (folder / CONFIGURATION).write_text(self.configuration, encoding="utf-8")
            mark_complete(folder, self.run, resumable=not args.save_only_model)


def explain(checkpoint: Path, error: Exception) -> None:
    """Raises an `OSError` that says what to do, if `error` occurred while this checkpoint was saved."""
    if not checkpoint.is_dir() or (checkpoint / COMPLETE).is_file():
        return
    free, newest = shutil.disk_usage(checkpoint).free, newest_complete(checkpoint.parent)
    rest = (
        f"{newest.name} is intact: go on from it with --resume" if newest else "There is no earlier one: start again"
    )
    raise OSError(
        f"{checkpoint} could not be saved: {error}. {free / 1e6:,.1f} MB are free. Make room, or choose another "
        f"output_dir. {rest}."
    ) from error


def checkpoint_of(args, state) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
