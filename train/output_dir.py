"""The output folder of a run: created, known to be writable, and nobody else's, before anything is computed."""

import contextlib
import os
import socket
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from .processes import on_main

LOCK, OWNER = ".run.lock", ".run.pid"


@contextlib.contextmanager
def claimed(args):
    """
    Keeps `args.output_dir` for this run until the block ends. The operating system frees the lock of a process that was
    killed, so none is ever left behind.

    Raises:
        `OSError` if the folder cannot be written to, or if another process trains into it.
    """
    folder = Path(args.output_dir)
    lock = FileLock(folder / LOCK, timeout=0)
    on_main(args, lambda: _claim(folder, lock))
    try:
        yield folder
    finally:
        lock.release()  # nothing to release in the other processes


def _claim(folder: Path, lock: FileLock) -> None:
    check_writable(folder)
    try:
        lock.acquire()
    except Timeout:
        owner = (folder / OWNER).read_text(encoding="utf-8") if (folder / OWNER).is_file() else "another process"
        raise OSError(
            f"output_dir={str(folder)!r}: {owner} is training into this folder. Wait for it, end it, or choose another "
            "output_dir."
        ) from None
    (folder / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Creates the folder with its parents and writes a file into it, the only test that holds for every user."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "there is a file of that name" if folder.is_file() else f"it cannot be written to ({error.strerror})"
        raise OSError(f"output_dir={str(folder)!r}: {reason}. Choose another output_dir.") from error
