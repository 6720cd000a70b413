"""docs/ecosystem.md is run: its code blocks, the files it names, and the example of naming entities."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")


def test_the_blocks_of_the_guide_run(monkeypatch, capsys, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)  # the blocks save into the current folder
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL):
        exec(compile(block, "ecosystem.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "trainable params: 30,720" in printed and "(1, 192) (1, 64)" in printed
    assert re.search(r"Tom was hungry\. .+ He was full\.", printed)


def test_files_of_the_guide_exist():
    for file in re.findall(r"`((?:examples|tests)/[\w./]+)`", GUIDE):
        assert (ROOT / file).is_file(), file


def ner(monkeypatch, capsys, tmp_path, **flags) -> dict:
    flags = {"output_dir": tmp_path / "ner"} | flags
    monkeypatch.setattr(sys, "argv", ["ner", *(str(p) for key, v in flags.items() for p in (f"--{key}", v))])
    runpy.run_path(str(ROOT / "examples" / "ner.py"), run_name="__main__")
    (scores,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('{"accuracy"')]
    return json.loads(scores)


def test_the_table_of_entities_is_what_was_measured():
    lines = (ROOT / "docs" / "measured" / "ner.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {(r["settings"]["model"], r["settings"]["train"]): r["scores"] for r in map(json.loads, lines)}
    head, base, adapter = (
        rows[f"assets/{name}", train]
        for name, train in (("magnet-tiny", "head"), ("magnet-tiny-base", "head"), ("magnet-tiny", "adapter"))
    )
    for label, row in (("base, frozen", base), ("magnet-tiny, frozen", head), ("magnet-tiny, its adapter", adapter)):
        (line,) = [line for line in GUIDE.splitlines() if line.startswith(f"| {label}")]
        figures = (row.get(name) for name in ("accuracy", "word_f1", "entity_f1"))
        cells = " | ".join("-" if figure is None else f"{100 * figure:.1f}" for figure in figures)
        assert line.endswith(f"| {cells} |")
    assert f"| the commonest label | {100 * head['accuracy_of_the_commonest_label']:.1f} | 0 | 0 |" in GUIDE


@pytest.mark.parametrize("name", ["magnet-tiny", "magnet-tiny-base"])
def test_frozen_words_are_means_of_outputs_one_to_the_left(name, tokenizer):
    """Section 4.1, for MAGNET and for the base alike; the base reads with its causal attention."""
    model = AutoModelForCausalLM.from_pretrained(
        ROOT / "examples" / "assets" / name, dtype=torch.float32, trust_remote_code=False
    )
    words = ["Ünal", "lives", "in", "Liechtenstein", "."]
    word_vectors = runpy.run_path(str(ROOT / "examples" / "ner.py"))["word_vectors"]
    (found,) = word_vectors(model, [(words, ["O"] * len(words))], tokenizer)
    pieces = [tokenizer.encode(" " * (n > 0) + word, add_special_tokens=False) for n, word in enumerate(words)]
    ids = torch.tensor([[tokenizer.bos_token_id, *(token for piece in pieces for token in piece)]])
    mode = {"attention_mode": "bidirectional"} if name == "magnet-tiny" else {}
    with torch.no_grad():
        states = model.model(ids, **mode).last_hidden_state[0]
    ends = np.cumsum([len(piece) for piece in pieces])  # a piece's last token stands at its end, for [BOS] stands at 0
    expected = torch.stack([states[end - len(piece) : end].mean(0) for piece, end in zip(pieces, ends)])
    assert max(map(len, pieces)) > 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_naming_entities_in_made_up_sentences(monkeypatch, capsys, tmp_path):
    """Names that were never trained on are found: by the words around them, and by capitals."""
    scores = ner(monkeypatch, capsys, tmp_path)
    assert scores["accuracy"] > scores["accuracy_of_the_commonest_label"] + 0.1
    assert (tmp_path / "ner" / "model.safetensors").is_file()


def test_naming_entities_in_files(monkeypatch, capsys, tmp_path):
    """CoNLL's format, with and without the model frozen; scores go to a file."""
    lines = ["-DOCSTART- -X- O", "", "Tom NNP B-PER", "ran VBD O", "", "Ünal", "slept"]
    lines[-2:] = ["Ünal NNP B-PER", "slept VBD O", ""]
    (tmp_path / "names.txt").write_text("\n".join(lines), encoding="utf-8")
    files = {"train_file": tmp_path / "names.txt", "validation_file": tmp_path / "names.txt"}
    results = tmp_path / "results.jsonl"
    for train in ("head", "adapter"):
        scores = ner(monkeypatch, capsys, tmp_path, **files, train=train, max_steps=2, results=results)
        assert scores["accuracy_of_the_commonest_label"] == 0.5
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["settings"]["train"] for row in rows] == ["head", "adapter"]
    assert rows[0]["settings"]["validation_sentences"] == 2
