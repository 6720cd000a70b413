"""SIGTERM and Ctrl-C: the current step is finished and saved before the process exits."""

import os
import signal
import threading
import time

import torch
import torch.distributed as dist

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
ECHO = 1.0  # seconds; torchrun forwards the Ctrl-C that the terminal has already sent to every process


class Signals:
    """
    Catches SIGTERM and Ctrl-C while its block runs: the first is stored in `caught`, a second Ctrl-C raises
    `KeyboardInterrupt` at once. Outside the main thread, where Python allows no handlers, it catches nothing.

    transformers' `enable_jit_checkpoint` handles only SIGTERM, saves after three seconds in the middle of whatever is
    running, and lets the script continue as if training had finished.
    """

    def __enter__(self):
        self.caught, self._since, self._process, self._before = 0, 0.0, os.getpid(), {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in NAMES}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if os.getpid() != self._process:
            return  # a data-loading worker: it ends with its parent
        if self.caught == number == signal.SIGINT and time.monotonic() - self._since > ECHO:
            raise KeyboardInterrupt
        if not self.caught:
            self.caught, self._since = int(number), time.monotonic()
            hint = " Ctrl-C again leaves at once." if number == signal.SIGINT else ""
            os.write(2, f"\n{NAMES[number]}: this step is finished and saved, then training leaves.{hint}\n".encode())

    def agreed(self, args) -> int:
        """The signal that any process has caught, 0 for none: a scheduler may signal only one of them."""
        if args.world_size == 1:
            return self.caught
        caught = torch.tensor(self.caught, device=args.device)
        dist.all_reduce(caught, op=dist.ReduceOp.MAX)
        return int(caught)
