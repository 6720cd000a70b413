"""Complete checkpoints.

transformers writes a checkpoint file by file and resumes from the folder with the highest number, whatever is in it.
Here one is complete once it contains `complete.json`, which is written last, atomically, with the size of every file and
the settings of the run. A killed save leaves a folder without it.
"""

import json
import logging
import os
import re
from pathlib import Path

logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-<step>` of a run, oldest first, complete or not."""
    found = {path: CHECKPOINT.fullmatch(path.name) for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()}
    return sorted((path for path, step in found.items() if step), key=lambda path: int(found[path][1]))


def mark_complete(checkpoint: Path, run: dict, resumable: bool = True) -> None:
    """
    Writes `complete.json` into a checkpoint, after every other file is on disk, so that it survives a power cut.

    Args:
        checkpoint (`Path`): A folder whose files are all written.
        run (`dict`): The settings that determine the weights, serializable as JSON.
        resumable (`bool`, defaults to `True`): Whether optimizer, scheduler and generators were saved with the weights.
    """
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != COMPLETE:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            files[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    part = checkpoint / f"{COMPLETE}.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump({"resumable": resumable, "run": run, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, checkpoint / COMPLETE)


def read_complete(checkpoint: Path) -> dict:
    return json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))


def problem(checkpoint: Path) -> str | None:
    """Why a run cannot resume from this folder, naming the file; `None` if it can."""
    if reason := damage(checkpoint):
        return reason
    return None if read_complete(checkpoint)["resumable"] else "it holds weights only (save_only_model=True)"


def damage(checkpoint: Path) -> str | None:
    """What is missing of a checkpoint; `None` if it is as it was saved."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    try:
        content = read_complete(checkpoint)
    except FileNotFoundError:
        return f"{COMPLETE} is missing, so its save did not finish"
    except (OSError, ValueError) as error:
        return f"{COMPLETE} cannot be read: {error}"
    for name, size in content["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were saved"
    return None


def newest_complete(output_dir: str | Path) -> Path | None:
    """The newest checkpoint whose files are all there. Warns about each newer one and why it is skipped."""
    for checkpoint in reversed(checkpoints(output_dir)):
        reason = problem(checkpoint)
        if reason is None:
            return checkpoint
        logger.warning("%s is skipped: %s.", checkpoint, reason)
    return None
