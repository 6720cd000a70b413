"""Checkpoints to be damaged: what the tests of magnet check share."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from magnet_check.checkpoint import Checkpoint
from magnet_check.outcome import Failed
from magnet_check.run import CHECKS

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer_config.json"
SENTENCES, INDEX, CODE = "sentence_bert_config.json", "model.safetensors.index.json", "scoring_magnet.py"


def found(folder: Path, name: str) -> str:
    """What the check says of a damaged folder."""
    with pytest.raises(Failed) as failure:
        CHECKS[name](Checkpoint(folder))
    return str(failure.value)


def change_json(path: Path, **values) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_tensors(folder: Path, change) -> None:
    """`change` gets the tensors by name, and changes them in place."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
