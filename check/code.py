"""Compares a checkpoint's Python files with two lists of hashes: the card's and the installed package's."""

import hashlib
import re
from pathlib import Path

import modeling_magnet

from .checkpoint import Checkpoint
from .outcome import Failed, Skipped

ROW = re.compile(r"^\| `([^`]+\.py)` \| `([0-9a-f]{64})` \|$", re.MULTILINE)


def check_card_hashes(checkpoint: Checkpoint) -> str:
    """Every code file matches its hash in the model card."""
    if not checkpoint.code:
        raise Skipped("there is no code")
    card = checkpoint.folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if checkpoint.has("README.md") else ""
    listed = dict(ROW.findall(text))
    if not listed:
        if checkpoint.trust_remote_code:  # which would run unverified code
            check_installed_hashes(checkpoint)
        raise Skipped("README.md lists no hashes")
    found = {each.name: sha256(each) for each in checkpoint.code}
    _compare(found, listed, "README.md")
    return f"{len(found)} files as README.md lists them"


def check_installed_hashes(checkpoint: Checkpoint) -> str:
    """Every code file equals the installed package's."""
    if not checkpoint.code:
        raise Skipped("there is no code")
    installed = {path.name: sha256(path) for path in Path(modeling_magnet.__file__).parent.glob("*_magnet.py")}
    _compare({each.name: sha256(each) for each in checkpoint.code}, installed, "the installed package")
    return f"{len(checkpoint.code)} files as in the installed package"


def _compare(found: dict, expected: dict, where: str) -> None:
    other = [name for name in found if name in expected and found[name] != expected[name]]
    unknown, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    parts = [
        f"{', '.join(names)}: {what}" for names, what in ((other, "other content"), (unknown, "not there")) if names
    ]
    parts += [f"{', '.join(missing)}: missing here"] if missing else []
    if parts:
        raise Failed(f"against {where}: {'; '.join(parts)}. Of another version, or edited: read before you trust it")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
