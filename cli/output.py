"""Where a command's results go: standard output, or a file that is never seen half-written."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(output: str) -> Iterator:
    """A binary file beside `output` that takes its place when the block ends well, and is deleted when it does not."""
    path = Path(output).resolve()
    if path.exists() and not path.is_file():
        raise ValueError(f"output={output!r}: is no regular file. Name a file, or - for standard output.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb+") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def lines_to(output: str | None) -> Iterator:
    """A function that writes a line of text to `output`; None or "-" is standard output."""
    if output in (None, "-"):
        yield lambda line: print(line, file=sys.stdout, flush=True)
    else:
        with replacing(output) as file:
            yield lambda line: file.write(f"{line}\n".encode())
