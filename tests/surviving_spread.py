"""A run of several processes that is told to leave, refused a folder, and resumed. `test_survival.py` starts it.

torchrun --nproc_per_node 2 tests/surviving_spread.py OUT
"""

import json
import os
import signal
import sys
from pathlib import Path

import surviving
from transformers import TrainerCallback

RANK = int(os.environ["RANK"])


class TellOne(TrainerCallback):
    """Sends SIGTERM to the last process only, as a scheduler may."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and RANK == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def attempt(*args, **settings):
    """What a run ended with, in words."""
    try:
        surviving.train(*args, per_device_train_batch_size=2, **settings)
    except (OSError, ValueError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main(out: Path) -> None:
    told = {"undisturbed": attempt(out / "undisturbed"), "left": attempt(out / "run", [TellOne()])}
    told["changed"] = attempt(out / "run", resume=True, lambda_msg=3.0)
    told["resumed"] = attempt(out / "run", resume=True)
    (out / f"{RANK}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
