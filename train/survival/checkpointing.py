"""Marks and finds complete checkpoints.

transformers writes a checkpoint file by file and resumes from the folder with the highest number, whatever is in it.
Here a checkpoint is complete once it contains `complete.json`, which is written last, atomically, with the size of
every file and the settings of the run. An interrupted save leaves a folder without it.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

COMPLETE = "complete.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-<step>` of a run, oldest first, complete or not."""
    found = (path for path in Path(output_dir).glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name))
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(CHECKPOINT.fullmatch(checkpoint.name)[1])


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
    write_whole(checkpoint / COMPLETE, json.dumps({"resumable": resumable, "run": run, "files": files}, indent=1))


def write_whole(path: Path, text: str) -> None:
    """Writes a file atomically: readers find the old one or the new one, never a part."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_complete(checkpoint: Path) -> dict:
    """
    The content of `complete.json`.

    Raises:
        `ValueError` or `OSError` if it is missing or not in the form that `mark_complete` writes.
    """
    content = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or {"resumable", "run", "files"} - content.keys():
        raise ValueError("it has not the fields resumable, run and files")
    if not all(isinstance(size, int) for size in content["files"].values()):
        raise ValueError("a file has no size")
    return content


def problem(checkpoint: Path) -> str | None:
    """Why a run cannot resume from this folder, naming the file; `None` if it can."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    try:
        content = read_complete(checkpoint)
    except FileNotFoundError:
        return f"{COMPLETE} is missing, so its save did not finish"
    except (OSError, ValueError, AttributeError) as error:
        return f"{COMPLETE} cannot be read: {error}"
    if not content["resumable"]:
        return "it holds weights only (save_only_model=True)"
    for name, size in content["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were saved"
    return None


def newest_complete(output_dir: str | Path) -> Path | None:
    """The newest checkpoint whose files are all intact. Warns about each newer one and why it is skipped."""
    for checkpoint in reversed(checkpoints(output_dir)):
        reason = problem(checkpoint)
        if reason is None:
            return checkpoint
        logger.warning("%s is skipped: %s.", checkpoint, reason)
    return None


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint, `complete.json` first, so that a run killed here leaves no damaged complete one."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def rotate(newest: Path, limit: int | None, best: Path | None = None) -> None:
    """
    Deletes the older folders that a complete checkpoint replaces: unfinished ones, and complete ones beyond `limit`.

    Args:
        newest (`Path`): The checkpoint just completed, which is kept.
        limit (`int`, *optional*): Complete checkpoints to keep; `None` or 0 keeps all.
        best (`Path`, *optional*): Also kept.
    """
    older = [path for path in checkpoints(newest.parent) if step_of(path) < step_of(newest)]
    complete = [path for path in older if (path / COMPLETE).is_file()]
    spare = [path for path in complete if best is None or path.name != best.name]
    kept = len(complete) + 1
    surplus = spare[: max(kept - limit, 0)] if limit else []
    for path in [path for path in older if path not in complete] + surplus:
        remove(path)
