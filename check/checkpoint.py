"""The checkpoint that is examined: its parts are read when a check first asks for them, its weights once."""

import json
import sys
from functools import cached_property
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import modeling_magnet
from modeling_magnet import MagnetLlamaConfig

from .outcome import Failed, Skipped

MAGNET_CLASSES = (
    "MagnetLlamaForCausalLM",
    "MagnetLlamaModel",
    "MagnetLlamaForTokenClassification",
    "MagnetLlamaForSequenceClassification",
)
STOCK_CLASSES = ("LlamaForCausalLM", "LlamaModel")
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
        device (`str`, *optional*, defaults to `"cpu"`): Where the model is run.
        dtype (`str`, *optional*, defaults to `"auto"`): What it is run in; `"auto"` is what is stored.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the checkpoint's own code is run instead of the installed package's.
        backends (`list[str]`, *optional*): Attention backends to try; by default all that cost seconds.

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
        self.unsound = []  # checks that failed, after which nothing is loaded
        if not self.folder.is_dir():
            raise ValueError(f"folder={str(folder)!r}: no such folder. Give a checkpoint on this machine.")

    # ----------------------------------------------------------------------------------------------------- the files

    def read_json(self, name: str):
        """A JSON file of the folder; `Failed` if it is none."""
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
        """One of `modeling_magnet.forms`; a plain Llama counts as a generator."""
        if (self.folder / "adapter_config.json").is_file():
            return "adapter"
        if self.settings.get("model_type") == "magnet_llama":
            return "merged" if self.settings.get("adapter") is None else "magnet"
        if self.settings.get("model_type") == "llama":
            return "encoder" if self.architecture == "LlamaModel" else "generator"
        raise Failed(
            f"config.json has model_type={self.settings.get('model_type')!r}, which is neither MAGNET nor Llama"
        )

    @property
    def is_magnet(self) -> bool:
        return self.form in ("magnet", "merged")

    @property
    def weights(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def code(self) -> list[Path]:
        return sorted(self.folder.glob("*.py"))

    # ----------------------------------------------------------------------------------------------------- the model

    @property
    def architecture(self) -> str:
        names = self.settings.get("architectures") or ["MagnetLlamaForCausalLM"]
        if names[0] not in (*MAGNET_CLASSES, *STOCK_CLASSES):
            raise Failed(
                f"config.json names the class {names[0]!r}; known are {', '.join(MAGNET_CLASSES + STOCK_CLASSES)}"
            )
        return names[0]

    @property
    def model_class(self) -> type:
        if not self.is_magnet:
            return getattr(transformers, self.architecture)
        if self.trust_remote_code:
            self.require_loadable()
            return get_class_from_dynamic_module(f"modeling_magnet.{self.architecture}", str(self.folder))
        return getattr(modeling_magnet, self.architecture)

    @cached_property
    def config(self):
        if not self.is_magnet:
            return LlamaConfig.from_pretrained(self.folder)
        return (self.model_class.config_class if self.trust_remote_code else MagnetLlamaConfig).from_pretrained(
            self.folder
        )

    def require_loadable(self) -> None:
        """`Skipped` for what must not, or cannot, be loaded."""
        if self.unsound:
            raise Skipped(f"nothing is loaded: {', '.join(self.unsound)} failed")
        if self.form == "adapter":
            raise Skipped("an adapter runs on its base: check that, or the checkpoint it was taken from")

    @cached_property
    def model(self):
        """In eval mode. Takes the weights' size in memory, in the dtype asked for."""
        self.require_loadable()
        model = self.model_class.from_pretrained(
            self.folder, config=self.config, dtype=self.dtype, use_safetensors=True, local_files_only=True
        )
        return model.to(self.device).eval()

    @property
    def decoder(self):
        """The model without its head."""
        return self.model if self.architecture.endswith("LlamaModel") else self.model.model

    @property
    def causal_lm(self):
        self.require_loadable()
        if self.architecture != "MagnetLlamaForCausalLM":
            raise Skipped(f"{self.architecture} does not fill gaps or encode by itself")
        return self.model

    def gate(self, is_open: bool):
        """The adapter's gate, of the very code the model runs."""
        return sys.modules[type(self.decoder).__module__].adapter_gate(is_open)

    @torch.no_grad()
    def states(self, mode: str, ids: torch.Tensor, mask=None, spans=None) -> torch.Tensor:
        """Last hidden states (B, L, d) as float32, on the CPU. Stock forms have one mode, and are not told it."""
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
        if not (self.folder / "tokenizer_config.json").is_file():
            raise Skipped("there is no tokenizer")
        # with the configuration given, no configuration and no code of the folder is looked up
        return AutoTokenizer.from_pretrained(
            self.folder, config=self.config, trust_remote_code=False, local_files_only=True, **settings
        )
