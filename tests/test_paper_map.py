"""docs/paper.md and CONTRIBUTING name files and functions that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`" in line]


def definitions(path: Path) -> set[str]:
    return set(re.findall(r"^ *(?:def|class) (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_files_and_functions_exist(row):
    path, names = None, []
    for word in re.findall(r"`([^`]+)`", row.split("|")[3]):
        if word.endswith(".yaml") or word.endswith(".py"):
            path = ROOT / word if "/" in word else path.with_name(word)
            assert path.is_file(), word
        else:
            names.append(word)
            assert word.split(".")[-1] in definitions(path), f"{word} in {path.name}"
    assert path is not None


def test_every_section_of_the_method_has_a_row():
    sections = {"3.1", "3.2.1", "3.2.2", "3.2.3", "3.3", "4.1", "4.2", "4.3", "4.4", "4.6", "Appendix A", "Appendix D"}
    assert len(ROWS) >= 15
    assert all(any(row.split("|")[1].strip().startswith(section) for row in ROWS) for section in sections)


def test_what_contributing_points_to_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text[text.index("## Where is it?") : text.index("## Adding a family")]
    rooms = ("modeling_magnet", "train", "hub", "evaluation")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    defined = set.union(*map(definitions, files))
    words = [word for quoted in re.findall(r"`([^`]+)`", text) for word in quoted.split(": ")]
    assert len(words) > 25
    for word in words:
        if word.endswith((".py", "/")):
            assert any(str(path).endswith(f"/{word}") for path in files) or (ROOT / word).is_dir(), word
        elif word not in ("infill()", "sscl_start_step"):
            assert word.split(".")[-1] in defined, word
