"""Robust saving: a Trainer callback that completes and rotates checkpoints, explains failures, exits on a signal."""

import contextlib
import logging
import shutil
from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from .checkpointing import COMPLETE, mark_complete, newest_complete, remove, rotate
from .interrupts import Interrupts, leave
from .processes import on_main

logger = logging.getLogger(__name__)

SMALL_FILES = 16 * 2**20  # bytes: tokenizer, configuration, generators


class NothingLeftToTrain(Exception):
    """The checkpoint is the run's last. The Trainer would train one more step before checking."""


@contextlib.contextmanager
def guarded(trainer: Trainer, run: dict):
    """
    Guards the checkpoints of `trainer.train()` while the block runs.

    * A checkpoint is complete once it has `complete.json`; only then are older ones deleted (`save_total_limit`). The
      Trainer deletes them first, so a process killed in between has none.
    * A failed save reports the folder, the bytes and the checkpoint to resume from; the partial folder is deleted.
    * After SIGTERM or Ctrl-C the current step is finished and saved, and the process exits at the end of the block.

    Args:
        trainer ([`Trainer`]): Not yet started.
        run (`dict`): The result of `run_settings` for this run.

    Raises:
        `OSError` if a checkpoint cannot be written.
        `SystemExit` at the end of the block, if a signal came.
    """
    limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
    guard = CheckpointGuard(run, limit, Interrupts())
    trainer.add_callback(guard)
    try:
        with guard.interrupts:
            yield
    except NothingLeftToTrain:
        logger.warning("The checkpoint is the last of this run: nothing is left to train.")
    except Exception as error:
        guard.explain(trainer.args, error)
        raise
    finally:
        trainer.remove_callback(guard)
        trainer.args.save_total_limit = limit
    if guard.left_by:
        leave(guard.left_by, checkpoint_of(trainer.args, trainer.state))


class CheckpointGuard(TrainerCallback):
    """The callback of `guarded`. Every process runs it; only the main one touches files."""

    def __init__(self, run: dict, limit: int | None, interrupts: Interrupts):
        self.run, self.limit, self.interrupts = run, limit, interrupts
        self.left_by = 0  # the signal that ends this run
        self.saving, self.needed = None, 0  # the folder being written, and its size in bytes

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            if checkpoint_of(args, state).is_dir():  # it may have been killed between saving and deleting
                on_main(args, lambda: self._rotate(args, state))
            raise NothingLeftToTrain

    def on_step_begin(self, args, state, control, **kwargs):
        self.saving = None  # save_strategy=best may have skipped it

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.left_by = self.interrupts.agreed(args)
        if self.left_by:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # after SIGTERM there is little time
        self._prepare(args, state, control, model, optimizer)

    def on_epoch_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        if self.left_by:
            control.should_save = control.should_evaluate = False  # saved at the step's end
        self._prepare(args, state, control, model, optimizer)

    def on_save(self, args, state, control, **kwargs):
        on_main(args, lambda: None)  # every process has written its own files
        on_main(args, lambda: self._complete(args, state))
        self.saving = None

    def _prepare(self, args, state, control, model, optimizer):
        if control.should_save or (control.should_evaluate and args.save_strategy == SaveStrategy.BEST):
            self.saving, self.needed = checkpoint_of(args, state), bytes_needed(model, optimizer)
            on_main(args, self._make_room)

    def _make_room(self):
        remove(self.saving)  # left by a process killed during this save, or damaged since
        free = shutil.disk_usage(self.saving.parent).free
        if free < self.needed:
            raise OSError(self._message("the disk is full", free))

    def _complete(self, args, state):
        folder = checkpoint_of(args, state)
        mark_complete(folder, self.run, resumable=not args.save_only_model)
        self._rotate(args, state)

    def _rotate(self, args, state):
        best = state.best_model_checkpoint and Path(state.best_model_checkpoint)
        rotate(checkpoint_of(args, state), self.limit, best)

    def explain(self, args, error: Exception) -> None:
        """Raises an `OSError` that says what to do, if `error` occurred in a save."""
        if self.saving is None or not self.saving.is_dir() or (self.saving / COMPLETE).is_file():
            return
        if args.process_index == 0:
            remove(self.saving)
        raise OSError(self._message(str(error), shutil.disk_usage(self.saving.parent).free)) from error

    def _message(self, reason: str, free: int) -> str:
        newest = newest_complete(self.saving.parent)
        rest = (
            f"{newest.name} is intact: make room, then go on from it with --resume true"
            if newest
            else "There is no earlier one: make room, then start again"
        )
        return (
            f"{self.saving} could not be saved: {reason}. It needs about {self.needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free. {rest}, or choose another output_dir."
        )


def checkpoint_of(args, state) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def bytes_needed(model, optimizer) -> int:
    """Size of a checkpoint: weights, optimizer states and small files."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*model.parameters(), *(value for value in states if hasattr(value, "element_size"))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + SMALL_FILES
