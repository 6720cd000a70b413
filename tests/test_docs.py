"""What README, CONTRIBUTING and docs say is run and compared: code blocks, commands, tables, links, docstring examples."""

import argparse
import doctest
import importlib
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import TINY, Magnet
from transformers import HfArgumentParser, PreTrainedModel

from magnet_cli.main import COMMANDS
from magnet_hub.check import CHECKS
from magnet_train.settings.recipes import NAMES, recipe_names
from magnet_train.trainer import MagnetTrainer

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
TEXTS.pop("docs/LOG.md")  # tells of files and commands as they were
README = TEXTS["README.md"]
PACKAGES = {"cli": "magnet_cli", "evaluation": "magnet_eval", "hub": "magnet_hub", "train": "magnet_train"}
PACKAGES |= {"modeling_magnet": "modeling_magnet"}
NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The command lines of a page's bash blocks, without those that are abbreviated by "..."."""
    lines = []
    for block in blocks(page, "bash"):
        block = block.replace("\\\n", " ")
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, flags=re.MULTILINE):
            block = block.replace(f"${name}", value)
        lines += [line for line in block.splitlines() if line and not line.startswith("#") and "..." not in line]
    return lines


def section(text: str, heading: str) -> str:
    """From a second-level heading to the next one."""
    return re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)[1]


def same(printed: str, shown: str) -> bool:
    """Whether two texts differ at most in the last digits of numbers, which depend on the CPU."""
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown))
    return NUMBER.sub("#", printed) == NUMBER.sub("#", shown) and all(
        abs(float(a) - float(b)) < 0.02 for a, b in pairs
    )


@pytest.fixture
def work_folder(tmp_path, monkeypatch):
    """An empty folder to write into, with `examples/` and what `magnet fetch` would write; a tiny base for the training."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "smollm2").symlink_to(TINY.with_name("magnet-tiny-base"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --------------------------------------------------------------------------------------------------------------- code


@pytest.fixture
def with_the_model(work_folder, shipped):
    (work_folder / "magnet-smollm2").symlink_to(shipped)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "python")])
def test_python_blocks_print_what_the_page_shows(page, with_the_model, capsys):
    namespace = {}
    pattern = r"^```python\n(.*?)^```\n(?:```\n(.*?)^```\n)?"
    for code, shown in re.findall(pattern, TEXTS[page] + "\n", flags=re.MULTILINE | re.DOTALL):
        exec(compile(code, page, "exec"), namespace)
        printed = re.sub(r"^\{'.*\}\n", "", capsys.readouterr().out, flags=re.MULTILINE)  # a Trainer's log lines
        assert same(printed, shown), f"{code}\nprinted:\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "console")])
def test_console_blocks_print_what_the_page_shows(page, with_the_model, monkeypatch, capsys):
    """`cat` of a file that does not exist yet writes it; `magnet` runs in this process, also within a pipe."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    magnet = Magnet(monkeypatch, capsys)
    monkeypatch.setenv("MAGNET_MODEL", "magnet-smollm2")
    text = "".join(blocks(page, "console"))
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, flags=re.MULTILINE):
        file = Path(command.removeprefix("cat "))
        if command.startswith("cat ") and "|" not in command and not file.exists():
            file.write_text(shown, encoding="utf-8")
            continue
        printed = b""
        for part in re.split(r"(?<=\S) \| (?=\w)", command):
            words = shlex.split(part)
            if words[0] == "magnet":
                printed = magnet(words[1:], stdin=printed).encode()
            else:
                printed = subprocess.run(words, input=printed, stdout=subprocess.PIPE, check=True).stdout
        assert same(printed.decode(), shown), f"{command}\nprinted:\n{printed.decode()}"


def modules_with_examples() -> list[str]:
    found = [
        path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py") if ">>> " in path.read_text("utf-8")
    ]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in found]
    return sorted(".".join([PACKAGES[first], *rest]) for first, *rest in parts)


@pytest.mark.parametrize("module", modules_with_examples())
def test_docstring_examples(module, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0


# ----------------------------------------------------------------------------------------------------------- commands


class Understood(Exception):
    """Raised by a command once it has parsed its arguments."""


@pytest.fixture
def only_parsing(monkeypatch):
    def then_stop(parse):
        def parsed(*args, **kwargs):
            parse(*args, **kwargs)
            raise Understood

        return parsed

    for cls, name in ((argparse.ArgumentParser, "parse_args"), (HfArgumentParser, "parse_args_into_dataclasses")):
        monkeypatch.setattr(cls, name, then_stop(getattr(cls, name)))
    monkeypatch.setattr("magnet_train.run.train", then_stop(lambda *args, **kwargs: None))


def magnet_commands() -> list[tuple[str, str]]:
    found = [(page, re.sub(r"^.*-m magnet_train", "magnet train", line)) for page in TEXTS for line in commands(page)]
    return [(page, command.split(" > ")[0]) for page, command in found if command.startswith("magnet ")]


@pytest.mark.parametrize("page, command", magnet_commands())
def test_commands_are_understood(page, command, only_parsing, work_folder):
    """In a folder with what they name: the page's own recipe, and the settings that the first run left."""
    for recipe in blocks(page, "yaml"):
        (work_folder / recipe.split()[1]).write_text(recipe, encoding="utf-8")
    stored = work_folder / "runs" / "smol" / "training_config.yaml"
    stored.parent.mkdir(parents=True)
    stored.write_text("extends: default\nmodel_name_or_path: base\ntrain_file: texts.txt\n", encoding="utf-8")
    name, *flags = shlex.split(command, comments=True)[1:]
    with pytest.raises(Understood):
        importlib.import_module(f"magnet_cli.{name}").main(flags)


def test_every_command_has_a_line():
    assert re.findall(r"^\| `magnet (\w+)`", TEXTS["docs/install.md"], flags=re.MULTILINE) == list(COMMANDS)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.split()[1] for page in TEXTS for line in commands(page) if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


# ------------------------------------------------------------------------------------------ tables, names and links


@pytest.mark.parametrize("page", [page for page in TEXTS if "<!-- begin" in TEXTS[page]])
def test_tables_are_those_of_the_measured_files(page):
    render = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))["render"]
    assert render(TEXTS[page]) == TEXTS[page], "run: python docs/make_tables.py"


@pytest.mark.parametrize("page", ["docs/train.md", "docs/scale.md"])
def test_settings_exist(page):
    named = set(re.findall(r"`-{0,2}([a-z]+(?:_[a-z0-9]+)+)(?:: [^`]*)?`", TEXTS[page]))
    logged = {f"{what}_{name}" for what in ("loss", "eval_loss") for name in ("mntp", "msg", "sscl", "kl")}
    logged |= {"grad_norm", "tokens_per_second", "eval_accuracy_sscl"}
    known = {*NAMES, *recipe_names(), *logged, *inspect.signature(MagnetTrainer).parameters, *dir(PreTrainedModel)}
    known |= {"output_dir", "activation_checkpointing"}  # gradient_checkpointing before transformers 5.23
    assert len(named) > 5 and not named - known


def test_every_recipe_has_a_row():
    rows = re.findall(r"^\| (`.*?) \|", section(TEXTS["docs/train.md"], "Recipes"), flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == recipe_names()


def test_every_check_has_a_row():
    rows = re.findall(r"^\| `(.*?)` \|", section(TEXTS["docs/share.md"], "Check"), flags=re.MULTILINE)
    assert rows == list(dict.fromkeys(re.sub("^modes, .*", "modes, ...", name) for name in CHECKS))


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_files_exist(page):
    folder = (ROOT / page).parent
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", TEXTS[page]):
        path = (folder / target).resolve() if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{target}#{anchor}"
    for file in re.findall(r"`((?:examples|tests|benchmarks|accelerate_configs)/[\w./]+)`", TEXTS[page]):
        assert (ROOT / file).exists(), file


def test_the_tree_names_folders_and_files_that_exist():
    tree = section(TEXTS["CONTRIBUTING.md"], "Rooms")
    ours = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"]
    folders = {path.name for path in ours if any(path.rglob("*.py"))} - {"runs", "build", "dist"}
    assert folders | {"accelerate_configs"} == set(re.findall(r"^(\w+)/", tree, flags=re.MULTILINE))
    files = set(re.findall(r"\b\w+_magnet\.py\b", tree))
    assert files == {path.name for path in (ROOT / "modeling_magnet").glob("*_magnet.py")}
