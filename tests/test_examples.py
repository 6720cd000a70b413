"""The scripts and the notebook in `examples/` run and print what is recorded of them."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from commands import TINY
from test_docs import same

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch, capsys):
    """`script("infill.py", *arguments)` runs an example as a command and returns what it printed."""

    def run(name: str, *arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr()

    return run


# ---------------------------------------------------------------------------------------------------------- infilling


@pytest.mark.slow
def test_the_story(shipped, script):
    stored = (ROOT / "docs" / "measured" / "infill_example.txt").read_text(encoding="utf-8")
    for part, shown in zip(script("infill.py").out.split("\n-- "), stored.split("\n-- "), strict=True):
        if part.startswith("eight drafts"):  # another version may draw other ones
            assert len(part.splitlines()) == len(shown.splitlines()) == 4
        else:
            assert same(part, shown)


@pytest.mark.slow
def test_the_notebook(shipped, monkeypatch, capsys):
    notebook = json.loads((ROOT / "examples" / "infill.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    monkeypatch.chdir(ROOT / "examples")
    namespace = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "infill.ipynb", "exec"), namespace)
        stored = "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")
        printed = capsys.readouterr().out
        if "do_sample" in "".join(cell["source"]):
            assert len(printed.splitlines()) == len(stored.splitlines()) > 0
        else:
            assert same(printed, stored)
    assert namespace["model"].dtype == torch.float32


def test_the_template_filler(script):
    filled = script("fill_template.py", "examples/template.txt", "examples/template.yaml", "--model", TINY)
    pieces = re.split(r"<\|gap:\w+\|>", (ROOT / "examples/template.txt").read_text(encoding="utf-8"))
    pattern = "(.*?)".join(map(re.escape, pieces))
    friend, event, thing, _ = re.fullmatch(pattern, filled.out, flags=re.DOTALL).groups()
    assert friend in ("Tom", "Anna", "the moon") and thing in ("the dog", "the river", "the sun")
    assert event.startswith("She") and "event: " in filled.err


def test_the_template_filler_keeps_line_ends_and_reads_json(script, tmp_path):
    template, rules, output = (tmp_path / name for name in ("t.txt", "r.json", "o.txt"))
    template.write_bytes(b"Tom was hungry.\r\n<|gap:a|>\r\n")
    rules.write_text(json.dumps({"gaps": {"a": {"candidates": ["He ate."]}}}), encoding="utf-8")
    script("fill_template.py", template, rules, "--output", output, "--model", TINY)
    assert output.read_bytes() == b"Tom was hungry.\r\nHe ate.\r\n"


@pytest.mark.parametrize(
    "rules, message",
    [
        ("gaps: {event: {lenght: 3}}", r"gaps\.event=\{'lenght': 3\}: must be a mapping with keys among length"),
        ("gaps: [event]", "`gaps` in it a mapping"),
        ("gaps: {nobody: {length: 3}}", "no gap is named"),
        ("gaps: {event: {length: 0}}", "length=0: must be a positive integer"),
    ],
)
def test_wrong_rules_are_named(script, capsys, tmp_path, rules, message):
    path = tmp_path / "rules.yaml"
    path.write_text(rules, encoding="utf-8")
    with pytest.raises(SystemExit):
        script("fill_template.py", "examples/template.txt", path, "--model", TINY)
    assert re.search(message, capsys.readouterr().err)
