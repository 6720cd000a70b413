"""Where a command's results go: standard output, or a file that is never half-written."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(output: str) -> Iterator:
    """Yields a temporary binary file that replaces `output` if the block succeeds and is deleted if it fails."""
    path = Path(output).resolve()
    if path.exists() and not path.is_file():
        raise ValueError(f"output={output!r}: is not a regular file. Name a file, or - for standard output.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with deleted_at_signals(unfinished), open(unfinished, "wb+") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def deleted_at_signals(unfinished: Path) -> Iterator:
    """Deletes the unfinished file on SIGTERM, which would otherwise leave it on disk, and on Ctrl-C. The handler itself
    exits the process: an exception raised there is lost during the import of a C extension."""
    if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers there only
        yield
        return

    def leave(number, _):
        unfinished.unlink(missing_ok=True)
        os._exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lines_to(output: str | None) -> Iterator:
    """Yields a function that writes a line to `output`; None or "-" is standard output."""
    if output in (None, "-"):
        yield lambda line: print(line, file=sys.stdout, flush=True)
    else:
        with replacing(output) as file:
            yield lambda line: file.write(f"{line}\n".encode())
