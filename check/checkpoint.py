"""The examined checkpoint: its parts are read when a check first needs them, its weights once."""

import json
import os
import re
import sys
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import modeling_magnet
from magnet_hub.trust import leads_out
from modeling_magnet import FAMILIES

from .outcome import Failed, Skipped

MODES = {
    "magnet": ("causal", "bidirectional", "hybrid"),
    "merged": ("causal", "bidirectional", "hybrid"),
    "encoder": ("bidirectional",),
    "generator": ("causal",),
}
TOKENIZER_SETTINGS = ("add_bos_token", "add_eos_token", "split_special_tokens", "model_max_length")


class Checkpoint:
    """
    Args:
        folder (`str` or `Path`): A checkpoint of any form.
        device (`str`, *optional*, defaults to `"cpu"`): Device that runs the model.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype it runs in; `"auto"` is the stored one.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the checkpoint's own code is run instead of the installed package's.
        backends (`list[str]`, *optional*): Attention backends to try; by default all that take seconds.

    Raises:
        `ValueError` if there is no such folder.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        backends: list[str] | None = None,
    ):
        self.folder, self.device, self.dtype = Path(folder), device, dtype
        self.trust_remote_code, self.backends = trust_remote_code, backends
        self.unsound = []  # failed checks that forbid loading
        if not self.folder.is_dir():
            raise ValueError(f"folder={str(folder)!r}: no such folder. Give a checkpoint on this machine.")

    # ----------------------------------------------------------------------------------------------------- the files

    @cached_property
    def entries(self) -> list[Path]:
        """
        All entries below the folder. Links to folders are not followed. Hidden names (such as `.git`) and
        training checkpoints to resume from are left out.
        """
        found = []
        for top, folders, files in os.walk(self.folder, followlinks=False):
            folders[:] = [name for name in folders if not self._is_aside(Path(top) / name)]
            linked = [name for name in folders if (Path(top) / name).is_symlink()]
            found += [Path(top) / name for name in (*files, *linked) if not name.startswith(".")]
        return sorted(found)

    def _is_aside(self, path: Path) -> bool:
        of_run = path.parent == self.folder and re.fullmatch(r"checkpoint-\d+", path.name)
        return path.name.startswith(".") or bool(of_run)

    @cached_property
    def files(self) -> list[Path]:
        """Files that may be opened: regular ones, and links unless `leads_out` objects. Opening a pipe would block
        forever, and a device may have no end."""
        return [path for path in self.entries if path.is_file() and not self.leads_out(path)]

    def leads_out(self, path: Path) -> bool:
        return leads_out(path, self.folder)

    def has(self, name: str) -> bool:
        return self.folder / name in self.files

    def read_json(self, name: str):
        """Reads a JSON file of the folder; `Failed` if it cannot."""
        if not self.has(name):
            raise Failed(f"{name} cannot be read: it is missing, or no regular file of this folder")
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Failed(f"{name} cannot be read: {error}") from None

    @cached_property
    def settings(self) -> dict:
        content = self.read_json("config.json")
        if not isinstance(content, dict):
            raise Failed("config.json holds no object")
        return content

    @cached_property
    def form(self) -> str:
        """One of `magnet_hub.forms`; a plain base counts as a generator."""
        if self.has("adapter_config.json"):
            return "adapter"
        if self.family.config_class.model_type == self.settings["model_type"]:
            return "merged" if self.settings.get("adapter") is None else "magnet"
        return "encoder" if self.architecture.endswith("Model") else "generator"

    @property
    def family(self) -> type:
        """MAGNET's language model of the checkpoint's family, for any form."""
        kind = self.settings.get("model_type")
        if str(kind).removeprefix("magnet_") not in FAMILIES:
            raise Failed(f"config.json has model_type={kind!r}; MAGNET knows the families {', '.join(FAMILIES)}")
        return FAMILIES[kind.removeprefix("magnet_")]

    @property
    def stock_classes(self) -> tuple[type, type]:
        """transformers' own language model and decoder of the family."""
        return self.family.__bases__[1], self.family.decoder_class.__bases__[1]

    @property
    def is_magnet(self) -> bool:
        return self.form in ("magnet", "merged")

    @property
    def weights(self) -> list[Path]:
        return [path for path in self.files if path.parent == self.folder and path.suffix == ".safetensors"]

    @property
    def code(self) -> list[Path]:
        return [path for path in self.files if path.parent == self.folder and path.suffix == ".py"]

    # ----------------------------------------------------------------------------------------------------- the model

    @property
    def architecture(self) -> str:
        known = [path.split(".")[1] for path in self.family.config_class().auto_map.values() if "Config" not in path]
        known += [each.__name__ for each in self.stock_classes]
        name = (self.settings.get("architectures") or [self.family.__name__])[0]
        if name not in known:
            raise Failed(f"config.json names the class {name!r}; known are {', '.join(known)}")
        return name

    @property
    def model_class(self) -> type:
        if not self.is_magnet:
            return next(each for each in self.stock_classes if each.__name__ == self.architecture)
        if self.trust_remote_code:
            self.require_loadable()
            return get_class_from_dynamic_module(f"modeling_magnet.{self.architecture}", str(self.folder))
        return getattr(modeling_magnet, self.architecture)

    @cached_property
    def config(self):
        return self.model_class.config_class.from_dict(self.settings)

    def require_loadable(self) -> None:
        """`Skipped` if the checkpoint must not, or cannot, be loaded."""
        if self.unsound:
            raise Skipped(f"nothing is loaded: {', '.join(self.unsound)} failed")
        if self.form == "adapter":
            raise Skipped("an adapter runs on its base: check that, or the checkpoint it was taken from")

    @cached_property
    def model(self):
        """In eval mode. Takes the weights' size in memory, in the requested dtype. `code_run` tells whether it was loaded."""
        self.require_loadable()
        model = self.model_class.from_pretrained(
            self.folder, config=self.config, dtype=self.dtype, use_safetensors=True, local_files_only=True
        )
        return model.to(self.device).eval()

    @property
    def code_run(self) -> str:
        """Which code the model ran with so far."""
        if "model" not in vars(self):
            return "none"
        return "the checkpoint's" if self.trust_remote_code else "the installed package's"

    @property
    def decoder(self):
        """The model without its head."""
        return self.model.base_model

    @property
    def causal_lm(self):
        self.require_loadable()
        if self.architecture != self.family.__name__:
            raise Skipped(f"{self.architecture} does not fill gaps or encode by itself")
        return self.model

    def gate(self, is_open: bool):
        """The adapter's gate, from the code that the model runs."""
        return sys.modules[type(self.decoder).__module__].adapter_gate(is_open)

    @torch.no_grad()
    def states(self, mode: str, ids: torch.Tensor, mask=None, spans=None) -> torch.Tensor:
        """Last hidden states (B, L, d) as float32, on the CPU. Stock forms have one mode and take no argument for it."""
        inputs = {"input_ids": ids.to(self.device)}
        if mask is not None:
            inputs["attention_mask"] = mask.to(self.device)
        if self.is_magnet:
            inputs["attention_mode"] = mode
            if mode == "hybrid":
                inputs["span_ids"] = spans.to(self.device)
        return self.decoder(**inputs, use_cache=False).last_hidden_state.float().cpu()

    # ------------------------------------------------------------------------------------------------- the tokenizer

    @cached_property
    def tokenizer(self):
        return self.load_tokenizer()

    def load_tokenizer(self, **settings):
        self.require_loadable()
        if not self.has("tokenizer_config.json"):
            raise Skipped("there is no tokenizer")
        # given the configuration, AutoTokenizer reads no configuration or code in the folder
        return AutoTokenizer.from_pretrained(
            self.folder, config=self.config, trust_remote_code=False, local_files_only=True, **settings
        )
