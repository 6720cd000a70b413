"""
The checks of `magnet check`: one function each, listed in `CHECKS`.

A check returns what it found, raises `Skipped` if it does not apply, and any other error if something is wrong.
"""

import filecmp
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import is_flash_attn_2_available

import modeling_magnet
from modeling_magnet import ATTENTION_MODES, span_attention_rule
from modeling_magnet.encoding_magnet import check_tokenizer, start_ids, text_ids

from .card import check_code
from .trust import check_source, finite_tensors, leads_out

BACKENDS = ("eager", "sdpa", "flex_attention", "flash_attention_2")
MODES = {"encoder": ("bidirectional",), "generator": ("causal",)}  # other forms have all
SPANS = torch.tensor([[0, 0, 1, 1, 2, 2, 0, 0]])  # two adjacent spans, context on both sides
PADDING = {"alone": (0, 0), "padded on the left": (3, 0), "padded on the right": (0, 3)}  # tokens on the left, right
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
SENTENCES, POOLING = "sentence_bert_config.json", "1_Pooling/config.json"
SENTENCE_FILES = {"modules.json", SENTENCES, POOLING, "config_sentence_transformers.json"}
SETTINGS = {"add_bos_token", "add_eos_token", "bos_token", "pad_token", "split_special_tokens", "model_max_length"}


class Skipped(Exception):
    """The check does not apply, or cannot run; the message says why."""


class Outcome(NamedTuple):
    """A line of the report: `status` is `"ok"`, `"FAIL"` or `"skipped"`, `detail` what was found or is wrong."""

    name: str
    status: str
    detail: str


@dataclass
class Checkpoint:
    """
    The checkpoint to check. Its parts are loaded when a check first needs them, by the installed package: the
    checkpoint's own code is never run.

    Args:
        folder (`str` or `Path`): A checkpoint of any form, or a plain base.
        device (`str`, *optional*, defaults to `"cpu"`): Device that runs the model.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype it runs in; `"auto"` is that of `config.json`.
        backends (`list[str]`, *optional*): Attention backends to try; by default all that take seconds.

    Raises:
        `ValueError` if there is no such folder.
    """

    folder: str | Path
    device: str = "cpu"
    dtype: str = "auto"
    backends: list[str] | None = None

    def __post_init__(self):
        self.folder = Path(self.folder)
        if not self.folder.is_dir():
            raise ValueError(f"folder={str(self.folder)!r}: no such folder. Pass a local checkpoint.")

    @cached_property
    def names(self) -> list[str]:
        """Everything in the folder except hidden names (`.git`) and training checkpoints (`checkpoint-500`)."""
        names = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))
        return [name for name in names if not re.match(r"checkpoint-\d+(/|$)|(.*/)?\.", name)]

    def json(self, name: str):
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{name}: cannot be read ({error}).") from None

    @cached_property
    def config(self):
        if "adapter_config.json" in self.names:
            raise Skipped("an adapter runs on its base: check the base, or the checkpoint it was exported from")
        return AutoConfig.from_pretrained(self.folder, trust_remote_code=False, local_files_only=True)

    @property
    def form(self) -> str:
        """One of `magnet_hub.FORMS`; a plain base counts as a generator."""
        if "adapter_config.json" in self.names:
            return "adapter"
        if self.config.model_type.startswith("magnet_"):
            return "merged" if self.config.adapter is None else "magnet"
        return "encoder" if self.config.architectures[0].endswith("Model") else "generator"

    @property
    def is_magnet(self) -> bool:
        return self.form in ("magnet", "merged")

    @cached_property
    def model(self):
        """In eval mode; takes the weights' size in memory. Also sets `report`: the keys that do not match."""
        kind = getattr(modeling_magnet if self.is_magnet else transformers, self.config.architectures[0])
        settings = {"dtype": self.dtype, "use_safetensors": True, "local_files_only": True}
        settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are reported
        model, self.report = kind.from_pretrained(self.folder, **settings)
        return model.to(self.device).eval()

    def tokenizer(self, **settings):
        # given the configuration, AutoTokenizer runs no code of the folder
        offline = {"local_files_only": True, "config": self.config}
        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False, **offline, **settings)

    @torch.no_grad()
    def states(self, mode: str, ids: torch.Tensor, mask=None, spans=None) -> torch.Tensor:
        """Last hidden states (B, L, d) as float32, on the CPU. Stock forms have one mode and no argument for it."""
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"span_ids": spans} if mode == "hybrid" else {})
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items() if tensor is not None}
        inputs |= {"attention_mode": mode} if self.is_magnet else {}
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state.float().cpu()


# ----------------------------------------------------------------------------------------------- what is in the folder


def check_paths(checkpoint: Checkpoint) -> str:
    """No link or shard name points outside the folder (transformers follows both); all else is a regular file."""
    for name in checkpoint.names:
        path = checkpoint.folder / name
        if leads_out(path, checkpoint.folder):
            raise ValueError(f"{name} is a link out of the folder. Put the file itself there.")
        if not path.is_file() and not path.is_dir():  # a pipe would block its reader forever
            raise ValueError(f"{name} is not a regular file (a pipe or a device). Remove it.")
    check_source(checkpoint.folder)
    return f"{len(checkpoint.names)} files and folders, no links out of the folder"


def check_config(checkpoint: Checkpoint) -> str:
    """Settings are readable, and name only MAGNET's own code."""
    form = checkpoint.form
    known = set(type(checkpoint.config)().auto_map.values()) if checkpoint.is_magnet else set()
    for name in [name for name in checkpoint.names if name.endswith(".json")]:
        settings = checkpoint.json(name)
        auto_map = settings.get("auto_map") or {} if isinstance(settings, dict) else {}
        if foreign := sorted(set(map(str, auto_map.values())) - known):
            raise ValueError(
                f"{name}: auto_map names {', '.join(foreign)}, which is not code of this form. Remove it."
            )
        for module in settings if name == "modules.json" else ():
            if not module["type"].startswith("sentence_transformers."):
                raise ValueError(f"{name}: {module['type']} is not a sentence-transformers module. Remove it.")
    return f"form {form}"


def check_code_files(checkpoint: Checkpoint) -> str:
    """No file is a pickle, and the code matches the model card and the installed package."""
    if pickles := [name for name in checkpoint.names if name.endswith(PICKLES)]:
        raise ValueError(f"{', '.join(pickles)}: may run code when loaded. Delete it; store safetensors.")
    check_code(checkpoint.folder)
    package, expected = Path(modeling_magnet.__file__).parent, {n for n in checkpoint.names if n.endswith(".py")}
    expected |= {path.name for path in package.glob("*_magnet.py")} if checkpoint.is_magnet else set()
    same, *_ = filecmp.cmpfiles(checkpoint.folder, package, expected, shallow=False)
    if other := sorted(expected.difference(same)):
        raise ValueError(
            f"{', '.join(other)} differ from the installed package. The checkpoint is from another version, or was "
            "edited: read the code before you trust it, or export the checkpoint again."
        )
    return (f"{len(same)} files equal to the installed package's" if same else "none") + ", no pickles"


def check_weights(checkpoint: Checkpoint) -> str:
    """Tensors are finite, stored once, not rounded on loading, and match the configuration: missing ones would be
    random. MAGNET's classes refuse those; transformers' only report them."""
    stored, dtype = {}, None if checkpoint.form == "adapter" else checkpoint.config.dtype
    for path in sorted(checkpoint.folder.glob("*.safetensors")):
        for name, tensor in finite_tensors(path):
            if stored.setdefault(name, path.name) != path.name:
                raise ValueError(f"{path.name}: {name} is in {stored[name]} too. Delete the older file.")
            is_base = "_lora." not in name and not name.startswith("projection_head.")
            rounded = dtype and is_base and torch.promote_types(tensor.dtype, dtype) != dtype
            if rounded or not tensor.is_floating_point():
                raise ValueError(f"{path.name}: {name} is {tensor.dtype}, but config.json has dtype={dtype}.")
    for name in [name for name in checkpoint.names if name.endswith(".safetensors.index.json")]:
        if checkpoint.json(name)["weight_map"] != stored:
            raise ValueError(f"{name}: does not list the tensors of the files. Save the checkpoint again.")
    if checkpoint.form == "adapter":
        return f"{len(stored)} tensors, all finite"
    model = checkpoint.model
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(map(str, checkpoint.report[what])):
            raise ValueError(f"{len(found)} {what}: {', '.join(found[:3])}. config.json does not match the weights.")
    return f"{len(stored)} tensors, all finite, matching the installed {type(model).__name__}"


def check_tokens(checkpoint: Checkpoint) -> str:
    """Special tokens match the tokenizer's; the mask is an ordinary token, and a gap ends with [EOS]."""
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    check_tokenizer(tokenizer, config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = getattr(config, name), getattr(tokenizer, name)
        if None not in (ours, theirs) and theirs not in (ours if isinstance(ours, list) else [ours]):
            raise ValueError(f"config.json: {name}={ours}, but the tokenizer's is {theirs}.")
    mask, end = getattr(config, "mask_token_id", None), getattr(config, "infill_end_token_id", None)
    if mask in tokenizer.all_special_ids:
        raise ValueError(f"config.json: mask_token_id={mask} is the special token {tokenizer.decode(mask)!r}.")
    if end not in (None, tokenizer.eos_token_id):
        raise ValueError(f"config.json: infill_end_token_id={end}, but [EOS] is {tokenizer.eos_token_id}.")
    return f"{len(tokenizer)} of {config.vocab_size} rows; [EOS] {tokenizer.eos_token_id}, mask {mask}, gap end {end}"


def check_sentences(checkpoint: Checkpoint) -> str:
    """sentence-transformers gets the same tokens as `encode()`, with [EOS] even after a truncated text."""
    config, bare = checkpoint.config, checkpoint.tokenizer()
    if checkpoint.form == "generator":
        raise Skipped("no files for sentence-transformers")
    if missing := sorted(SENTENCE_FILES.difference(checkpoint.names)):
        raise ValueError(f"{', '.join(missing)}: missing, so vectors would differ. Export again.")
    settings, pooling = checkpoint.json(SENTENCES), checkpoint.json(POOLING)["pooling_mode"]
    start = start_ids(config, bare) if checkpoint.is_magnet else bare("")["input_ids"][:-1]  # without [EOS]
    if checkpoint.is_magnet and pooling != config.pooling.replace("_", ""):
        raise ValueError(f"{POOLING}: pooling_mode={pooling!r}, but config.json has pooling={config.pooling!r}.")
    if checkpoint.is_magnet and (mode := settings["config_kwargs"]["attention_mode"]) != "bidirectional":
        raise ValueError(f"{SENTENCES}: attention_mode={mode!r}, but sentences need 'bidirectional'.")
    if unknown := sorted(settings.get("processor_kwargs", {}).keys() - SETTINGS):
        raise ValueError(
            f"{SENTENCES}: processor_kwargs has {', '.join(unknown)}, which sets neither tokens nor length."
        )
    tokenizer = checkpoint.tokenizer(**settings.get("processor_kwargs", {}))
    limit, most = settings.get("max_seq_length") or tokenizer.model_max_length, config.max_position_embeddings
    if limit > most:
        raise ValueError(f"{SENTENCES}: texts may have {limit} tokens, but max_position_embeddings={most}.")
    plain, control = "Rain fell all day and all night on the roof of the house.", "".join(tokenizer.all_special_tokens)
    for text in (plain, f"A {control} cat.", "It rained. " * limit):
        expected = [*start, *text_ids(text, bare)][: limit - 1] + [tokenizer.eos_token_id]
        if (ids := tokenizer(text, truncation=True, max_length=limit)["input_ids"]) != expected:
            ours, theirs = (tokenizer.convert_ids_to_tokens(each[:4] + each[-2:]) for each in (expected, ids))
            raise ValueError(f"{SENTENCES}: {text[:30]!r} starts and ends with {theirs}, in encode() with {ours}.")
    return f"tokens as in encode(), [EOS] last, up to {limit}"


# -------------------------------------------------------------------------------------------------- running the model


def check_gate(checkpoint: Checkpoint) -> str:
    """Causal mode is the base bit for bit unless `causal_adapter`; the adapter acts in bidirectional mode."""
    ids, acts = torch.arange(SPANS.shape[1])[None], getattr(checkpoint.config, "causal_adapter", False)
    if checkpoint.form != "magnet":
        raise Skipped("no adapter, or it is merged")
    on, causal = checkpoint.states("bidirectional", ids), checkpoint.states("causal", ids)
    with checkpoint.model.adapter_disabled():
        off = checkpoint.states("bidirectional", ids)
    if torch.equal(on, off):
        raise ValueError("the adapter has no effect in bidirectional mode. Is it untrained?")
    if torch.equal(causal, _base_states(checkpoint, ids)) == acts:
        raise ValueError(f"causal_adapter={acts}, but causal mode is {'' if acts else 'not '}the base.")
    moved = float(((on - off).norm(dim=-1) / off.norm(dim=-1)).max())
    mode = "adapted too" if acts else "the base, bit for bit"
    return f"causal mode is {mode}; bidirectional vectors change by up to {moved:.0%} of their norm"


@torch.no_grad()
def _base_states(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states of transformers' own decoder, which shares the weights."""
    config, decoder = checkpoint.config.to_base(), checkpoint.model.base_model
    with init_empty_weights(include_buffers=False):
        base = AutoModel.from_config(config, attn_implementation=decoder.config._attn_implementation)
    weights = {name: weight for name, weight in decoder.state_dict().items() if "_lora." not in name}
    base.load_state_dict(weights, assign=True)
    ids, base = ids.to(checkpoint.device), base.to(checkpoint.device).eval()
    return base(ids, use_cache=False).last_hidden_state.float().cpu()


def check_modes(checkpoint: Checkpoint, backend: str) -> str:
    """Changing a token changes the states of the tokens that may attend to it and of no others, alone and padded."""
    modes, model = MODES.get(checkpoint.form, ATTENTION_MODES), checkpoint.model
    on_cpu = torch.device(checkpoint.device).type == "cpu"
    if checkpoint.backends is not None and backend not in checkpoint.backends:
        raise Skipped("not requested")
    if backend == "flex_attention" and on_cpu and checkpoint.backends is None:
        raise Skipped(f"takes minutes to compile on a CPU; request it with --attn_implementation {backend}")
    if backend == "flash_attention_2":
        if on_cpu or not is_flash_attn_2_available() or model.dtype == torch.float32:
            raise Skipped("needs a GPU, flash-attn and --dtype bfloat16")
        modes = [mode for mode in modes if mode != "hybrid"]  # it takes no masks
    model.set_attn_implementation(backend)
    for mode in modes:
        for where, (left, right) in PADDING.items():
            _check_reach(checkpoint, mode, where, left, right)
    return f"{', '.join(modes)}: tokens attend exactly as they should, alone and padded"


def _check_reach(checkpoint: Checkpoint, mode: str, where: str, left: int, right: int) -> None:
    """Replaces each token of a text in turn, and each padding token, which no token may attend to."""
    spans = {"bidirectional": torch.zeros_like(SPANS), "causal": torch.ones_like(SPANS), "hybrid": SPANS}[mode]
    spans, real = (torch.nn.functional.pad(row, (left, right)) for row in (spans, torch.ones_like(SPANS)))  # (1, L)
    length, generator = spans.shape[1], torch.Generator().manual_seed(0)
    ids = torch.randperm(checkpoint.config.vocab_size, generator=generator)[: length + 1]
    rows = ids[:length].repeat(length + 1, 1)  # (L + 1, L): the text, then with another token at 0, 1, ...
    rows[torch.arange(1, length + 1), torch.arange(length)] = ids[length]
    mask = real.expand_as(rows) if left or right else None
    states = checkpoint.states(mode, rows, mask, spans.expand_as(rows))  # (L + 1, L, d)
    noticed = ((states[1:] - states[0]).abs().amax(-1) > 0).T  # (i, j): a masked token j contributes exactly 0 to i
    places, real = torch.arange(length), real[0].bool()
    allowed = span_attention_rule(spans)(0, 0, places[:, None], places[None, :]) & real
    for i, j in ((noticed != allowed) & real[:, None]).nonzero().tolist():
        verb, other = (
            "attends to" if noticed[i, j] else "does not attend to",
            f"token {j - left}" if real[j] else "padding",
        )
        raise ValueError(f"{mode}, {where}: token {i - left} {verb} {other}.")


CHECKS = {
    "paths": check_paths,
    "config": check_config,
    "code": check_code_files,
    "weights": check_weights,
    "tokens": check_tokens,
    "sentences": check_sentences,
    "adapter's gate": check_gate,
    **{f"modes, {backend}": partial(check_modes, backend=backend) for backend in BACKENDS},
}
NEEDED = ("paths", "config", "weights")  # once one of them fails, nothing more is read or loaded


def run_checks(checkpoint: Checkpoint) -> Iterator[Outcome]:
    """
    Yields the outcome of each check as it finishes, in the order of `CHECKS`.

    Example:

    ```python
    >>> from magnet_hub.check import Checkpoint, run_checks
    >>> next(run_checks(Checkpoint("tests/assets/magnet-tiny"))).status
    'ok'

    ```
    """
    failed = None
    for name, check in CHECKS.items():
        try:
            status, detail = ("skipped", f"{failed} failed") if failed else ("ok", check(checkpoint))
        except Skipped as reason:
            status, detail = "skipped", str(reason)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # checkpoints break in many ways; a panic in tokenizers is not an Exception
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            status, detail = "FAIL", kind + " ".join(str(error).split())
        failed = name if status == "FAIL" and name in NEEDED else failed
        yield Outcome(name, status, detail)
