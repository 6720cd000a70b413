"""What one process does for all of them: files are checked, locked and deleted once, and an error reaches everyone."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

Result = TypeVar("Result")


def on_main(args, function: Callable[[], Result]) -> Result:
    """
    Calls `function` in the main process only; every process gets its result, or raises its error.

    Without the second half the others would wait for a main process that has already failed. It is a meeting point
    too: no process goes on before all have come here.

    Args:
        args ([`TrainingArguments`]): Knows the process and how many there are.
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
    dist.barrier()  # a broadcast lets its sender go on alone
    result, error = outcome
    if error is not None:
        raise error
    return result
