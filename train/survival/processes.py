"""Work that one process does for all: files are checked and deleted once, and an error reaches every process."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


def on_main(args, function: Callable[[], Result]) -> Result:
    """
    Calls `function` in the main process only; every process gets its result, or raises its error.

    If errors were not shared, the others would wait for a main process that has already failed. This is also a
    barrier: no process continues before all have arrived.

    Args:
        args ([`TrainingArguments`]): Gives the process index and world size.
        function (`Callable`): Its result must be picklable, and so must the `OSError` or `ValueError` it raises.
    """
    if args.world_size == 1:
        return function()
    outcome = [None, None]
    if args.process_index == 0:
        try:
            outcome[0] = function()
        except (OSError, ValueError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    dist.barrier()  # a broadcast does not block its sender
    result, error = outcome
    if error is not None:
        raise error
    return result
