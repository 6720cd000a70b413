"""What the repository ships: the adapter, the stories, and the tiny checkpoints of the tests."""

import json
from pathlib import Path

import pytest

from magnet_hub.eval_results import read_eval_results
from magnet_hub.fetch import ASSETS
from modeling_magnet import MagnetLlamaConfig

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "assets" / "magnet-tiny"
ADAPTER = ASSETS / "magnet-smollm2-135m"


def test_the_tiny_checkpoint_has_the_code_of_this_clone():
    names = {path.name for path in (ROOT / "modeling_magnet").glob("*_magnet.py")}
    assert names == {path.name for path in TINY.glob("*.py")}
    for name in names:
        source = ROOT / "modeling_magnet" / name
        assert (TINY / name).read_bytes() == source.read_bytes(), f"{name}: python examples/refresh_assets.py"


@pytest.mark.parametrize("folder", [ASSETS, TINY.parent], ids=["shipped", "tests"])
def test_weights_are_safetensors(folder):
    assert list(folder.rglob("*.safetensors"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")]


def test_the_shipped_adapter_is_small_and_its_card_tells_base_data_and_results():
    assert sum(path.stat().st_size for path in ADAPTER.iterdir()) <= 20e6
    settings = json.loads((ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["auto_mapping"]["magnet_gated"] and len(settings["auto_mapping"]["base_sha256"]) == 64
    config = MagnetLlamaConfig.from_pretrained(ADAPTER)
    assert config.text_start_token_id == 0 and config.infill_end_token_id == 2 and not config.causal_adapter
    card, measured = (ADAPTER / "README.md").read_text(encoding="utf-8"), read_eval_results(ADAPTER)
    assert all(word in card for word in ("Q4_1", "## Sources", "CC BY-SA", "apache-2.0"))
    assert measured and all(f"{each.value:.4g}" in card for each in measured)
    given, alone = (
        next(each for each in measured if each.metric_name == name)
        for name in (
            "perplexity of the missing text, given length",
            "the same from the left alone, causal mode",
        )
    )
    assert given.interval[1] < alone.interval[0]
