"""The Space's checkpoint, loaded once, and the views of its weights that the tabs compare."""

import functools
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
FOLDERS = (HERE / "magnet-tiny", HERE.parent / "assets" / "magnet-tiny")  # in a Space; in the repository
MAX_CHARACTERS = 4000


@dataclass(frozen=True)
class Checkpoint:
    """A model, its tokenizer and its name."""

    model: torch.nn.Module
    tokenizer: object
    name: str

    def module(self, name: str) -> ModuleType:
        """A module of the checkpoint's own code, or of the installed package if there is one."""
        return importlib.import_module(f"{type(self.model).__module__.rpartition('.')[0]}.{name}")


def model_name_or_path() -> str:
    """`MAGNET_MODEL`, a Hub id or a folder; by default the tiny checkpoint."""
    if name := os.environ.get("MAGNET_MODEL"):
        return name
    for folder in FOLDERS:
        if folder.is_dir():
            return str(folder)
    raise ValueError(
        "MAGNET_MODEL=None: no checkpoint to show. Set this variable of the Space to a Hub id or a folder, or put a "
        "checkpoint into a folder `magnet-tiny` beside app.py."
    )


@functools.cache
def load() -> Checkpoint:
    """Loads the checkpoint with its own code; `MAGNET_REVISION` pins the commit that you reviewed."""
    name, revision = model_name_or_path(), os.environ.get("MAGNET_REVISION", "main")
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, trust_remote_code=True, dtype="auto" if on_gpu else torch.float32
    )
    if not model.config.model_type.startswith("magnet_"):
        raise ValueError(f"MAGNET_MODEL={name}: is a {model.config.model_type}. Name a MAGNET checkpoint.")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=True)
    return Checkpoint(model.to("cuda" if on_gpu else "cpu").eval(), tokenizer, Path(name).name)


def causal_view(model, causal_adapter: bool):
    """The same weights in a model whose causal mode has the adapter on or off; the shared model does not change."""
    config = type(model.config).from_dict(model.config.to_dict() | {"causal_adapter": causal_adapter})
    return _on_weights(type(model), config, model, model.state_dict())


def stock_view(model):
    """transformers' stock model of the family with the base's weights, without MAGNET's classes, masks or adapter."""
    weights = {
        name: weight
        for name, weight in model.state_dict().items()
        if "_lora." not in name and not name.startswith("projection_head.")
    }
    return _on_weights(AutoModelForCausalLM.from_config, model.config.to_base(), model, weights)


def _on_weights(build, config, model, weights):
    config._attn_implementation = model.config._attn_implementation
    with init_empty_weights(include_buffers=False):
        view = build(config)
    view.load_state_dict(weights, assign=True)
    view.tie_weights()
    view.generation_config = model.generation_config
    return view.to(model.device).eval()


def check_text(what: str, text: str | None, most: int = MAX_CHARACTERS) -> str:
    """Raises `ValueError` if the text is empty or too long for a shared demo."""
    if not (text or "").strip():
        raise ValueError(f"{what} is empty. Write something, or choose an example.")
    if len(text) > most:
        raise ValueError(f"{what} has {len(text):,} characters, of at most {most:,}. Shorten it.")
    return text
