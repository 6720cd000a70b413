"""The output folder of a run, created and checked to be writable before anything is computed."""

import tempfile
from pathlib import Path


def check_writable(folder: Path) -> None:
    """Creates the folder with its parents and writes a file into it, the only test that works for every user."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "there is a file of that name" if folder.is_file() else f"it cannot be written to ({error.strerror})"
        raise OSError(f"output_dir={str(folder)!r}: {reason}. Choose another output_dir.") from error
