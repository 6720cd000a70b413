"""docs/infilling.md and the examples of infilling are run: code blocks, scripts, the notebook, what is said to be printed."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "infilling.md").read_text(encoding="utf-8")


def script(name: str, monkeypatch, *arguments) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_the_blocks_of_the_guide_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL):
        exec(compile(block, "infilling.md", "exec"), namespace)
    assert capsys.readouterr().out.startswith("Mina slid a tray of rolls into her oven. ")


def test_the_guide_shows_what_the_example_printed():
    render = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))["render"]
    assert "<!-- begin infill_example -->" in GUIDE and render(GUIDE) == GUIDE, "run: python docs/make_tables.py"


def test_links_and_files_of_the_guide_exist():
    for target in re.findall(r"\]\(([\w./]+)(?:#\w+)?\)", GUIDE):
        assert (ROOT / "docs" / target).is_file(), target
    for file in re.findall(r"`(examples/[\w./]+)`", GUIDE):
        assert (ROOT / file).is_file(), file


def test_the_story_example(monkeypatch, capsys):
    """What was stored, up to the numbers' last digits and what sampling does with them on another machine."""
    script("infill.py", monkeypatch)
    printed = capsys.readouterr().out
    stored = (ROOT / "docs" / "measured" / "infill_example.txt").read_text(encoding="utf-8")
    parts, stored_parts = printed.split("\n-- "), stored.split("\n-- ")
    assert [part.splitlines()[0] for part in parts] == [part.splitlines()[0] for part in stored_parts]
    story = parts[0].splitlines()[1]
    assert story.startswith("Mina slid a tray of rolls into her oven. ") and ". Her brother came home. He was" in story
    assert len(parts[1].splitlines()) == 4 and "soup" in parts[2].splitlines()[1]
    streamed = [line.split("   <- ")[0] for line in parts[3].splitlines()[1:] if line]
    assert len(streamed) == 2 and all(fill in story for fill in streamed)


def test_the_template_filler(monkeypatch, capsys, tmp_path):
    script("fill_template.py", monkeypatch, "examples/template.txt", "examples/template.yaml")
    filled = capsys.readouterr()
    pieces = re.split(r"<\|gap:\w+\|>", (ROOT / "examples/template.txt").read_text(encoding="utf-8"))
    pattern = "(.*?)".join(map(re.escape, pieces))
    friend, event, thing, _ = re.fullmatch(pattern, filled.out, flags=re.DOTALL).groups()
    assert friend in ("Tom", "Anna", "the moon") and thing in ("the dog", "the river", "the sun")
    assert event.startswith("She") and "event: " in filled.err


def test_the_template_filler_keeps_line_ends_and_reads_json(monkeypatch, tmp_path):
    template, rules, output = (tmp_path / name for name in ("t.txt", "r.json", "o.txt"))
    template.write_bytes(b"Tom was hungry.\r\n<|gap:a|>\r\n")
    rules.write_text(json.dumps({"gaps": {"a": {"candidates": ["He ate."]}}}), encoding="utf-8")
    script("fill_template.py", monkeypatch, template, rules, "--output", output)
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
def test_wrong_rules_are_named(monkeypatch, capsys, tmp_path, rules, message):
    path = tmp_path / "rules.yaml"
    path.write_text(rules, encoding="utf-8")
    with pytest.raises(SystemExit):
        script("fill_template.py", monkeypatch, "examples/template.txt", path)
    assert re.search(message, capsys.readouterr().err)


def test_the_notebook(monkeypatch, capsys):
    notebook = json.loads((ROOT / "examples" / "infill.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    monkeypatch.chdir(ROOT / "examples")
    namespace = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "infill.ipynb", "exec"), namespace)
        stored = [output for output in cell["outputs"] if output.get("name") == "stdout"]
        assert bool(capsys.readouterr().out) == bool(stored)
