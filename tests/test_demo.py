"""The demo's parts on the repository's own assets; the whole of it, shortened, is marked slow."""

import json
from pathlib import Path

import pytest

from magnet_hub.save import save_checkpoint
from magnet_train import demo

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_table_has_a_dash_where_a_system_cannot():
    rows = {"base": {"infill_causal": 64.02, "causal_ppl": 64.02}, "ours": dict.fromkeys(demo.COLUMNS, 1.25)}
    lines = demo.table(rows).splitlines()
    assert lines[2] == "| base | 64.0 | - | - | - | - | 64.0 |"
    assert lines[3] == "| ours | 1.2 | 1.2 | 1.2 | 1.2 | 1.2 | 1.2 |"


@pytest.mark.slow
def test_shipped_checkpoint_loads_elsewhere_and_computes_the_same():
    proof = demo.prove_loading(demo.ASSETS / "magnet-tiny")
    assert "transformers_modules.MagnetLlamaForCausalLM" in proof
    assert "causal logits from the base's by 0" in proof


@pytest.mark.slow
def test_proof_fails_for_a_checkpoint_that_is_not_the_base_in_causal_mode(tmp_path):
    model, tokenizer = demo.load(str(demo.ASSETS / "magnet-tiny"))
    model.config.causal_adapter = True
    save_checkpoint(model, tokenizer, tmp_path / "changed")
    with pytest.raises(RuntimeError, match="computes something else elsewhere"):
        demo.prove_loading(tmp_path / "changed")


def test_shipped_checkpoint_beats_base_and_control_where_the_issue_asks():
    base, control, tiny = [
        json.loads(line) for line in (ROOT / "docs/measured/stories.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert tiny["infill_exact"] < min(base["infill_causal"], control["infill_causal"])
    assert tiny["exact_over_causal_95"][1] < 1  # not by chance: the paired interval leaves 1 out
    assert tiny["spearman"] > max(base["spearman"], base["spearman_mean_pooled"])
    assert tiny["top1"] > max(base["top1"], base["top1_mean_pooled"])
    assert tiny["causal_ppl"] == base["causal_ppl"]


def test_assets_are_small_safetensors_and_licensed_stories():
    for name in ("magnet-tiny-base", "magnet-tiny"):
        weights = demo.ASSETS / name / "model.safetensors"
        assert weights.stat().st_size <= 12 * 2**20
    assert not [path for path in demo.ASSETS.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pickle")]


def test_shipped_code_is_the_source():
    for shipped in (demo.ASSETS / "magnet-tiny").glob("*.py"):
        source = ROOT / "modeling_magnet" / shipped.name
        assert shipped.read_bytes() == source.read_bytes(), f"{shipped.name}: python examples/refresh_assets.py"


@pytest.mark.slow
def test_whole_demo(tmp_path, capsys):
    rows = demo.demo(str(tmp_path / "demo"), max_steps=2)
    assert list(rows) == ["base", "2-minute adaptation", "magnet-tiny"]
    assert rows["base"]["causal_ppl"] == rows["magnet-tiny"]["causal_ppl"] == rows["2-minute adaptation"]["causal_ppl"]
    assert rows["magnet-tiny"]["infill_exact"] < rows["base"]["infill_causal"]
    for name in ("report.md", "report.json", "curves.png", "train_log.jsonl", "model.safetensors"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert "given length" in capsys.readouterr().out
