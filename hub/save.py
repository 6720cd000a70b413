"""Writes a checkpoint that anyone can load: weights, code, tokenizer, SentenceTransformer files, model card."""

import contextlib
import os
import shutil
from pathlib import Path

from .card import write_model_card
from .sentence_transformer import write_sentence_transformer_files
from .training_summary import read_training_summary

UNFINISHED = ".unfinished"


def save_checkpoint(model, tokenizer, folder: str | Path, state_dict: dict | None = None) -> None:
    """
    Saves the default form of a MAGNET checkpoint: all three modes, adapter unmerged, causal mode exactly the base's.

    It loads with `AutoModel*.from_pretrained(folder, trust_remote_code=True)` and with
    `SentenceTransformer(folder, trust_remote_code=True)` without this project installed. No file is ever visible
    half-written, and `config.json`, without which nothing loads, comes last.

    Args:
        model ([`MagnetLM`]): Saved in its own dtype, as safetensors.
        tokenizer ([`PreTrainedTokenizerBase`]): Saved beside it.
        folder (`str` or `Path`): Created if it does not exist.
        state_dict (`dict`, *optional*): The weights, if `model` holds only a part of them (FSDP, ZeRO-3).
    """
    folder = Path(folder)
    unfinished = folder / UNFINISHED  # inside, so that moving a file out of it is a rename
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
    try:
        model.save_pretrained(unfinished, state_dict=state_dict)
        tokenizer.save_pretrained(unfinished)
        write_sentence_transformer_files(model.config, tokenizer, unfinished)
        write_model_card(model.config, unfinished, summary=read_training_summary(folder))
        _move_files(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_output_dir(output_dir: Path) -> None:
    """Raises `ValueError` unless the folder is new or empty."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(
            f"output_dir={str(output_dir)!r}: is not empty. Choose another folder, or empty this one first."
        )


@contextlib.contextmanager
def unfinished_folder(target: Path):
    """A folder beside `target` that becomes `target` when the block succeeds, and is deleted if it fails."""
    target = target.absolute()
    folder = target.with_name(f".{target.name}{UNFINISHED}")
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    folder.mkdir(parents=True)
    try:
        yield folder
        if target.exists():
            target.rmdir()  # it was empty; raises if it no longer is
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_files(source: Path, target: Path) -> None:
    paths = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for old in target.glob("model*.safetensors*"):  # shards of an earlier save
        if old.relative_to(target) not in paths:
            old.unlink()
    for path in sorted(paths, key=lambda path: path == Path("config.json")):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / path, target / path)
