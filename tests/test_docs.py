"""What README and docs say is run and compared: code blocks, command lines, tables, docstring examples."""

import doctest
import importlib
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from magnet_cli.main import main as magnet
from magnet_train.settings.recipes import parse, read_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = [
    "magnet_cli.encode",
    "magnet_cli.ending",
    "magnet_cli.evaluate",
    "magnet_cli.infill",
    "magnet_eval.checkpoint",
    "magnet_eval.infill",
    "magnet_train.settings.help",
    "modeling_magnet.configuration_magnet",
    "modeling_magnet.encoding_magnet",
    "magnet_hub.results",
    "magnet_hub.fetch",
    "magnet_hub.trust",
    "magnet_train.settings.precision",
    "magnet_hub.forms",
    "modeling_magnet.infilling_magnet",
    "modeling_magnet.modeling_magnet",
    "magnet_hub.draw_mask",
    "magnet_check.run",
    "magnet_train.fim",
    "magnet_train.losses",
    "magnet_train.settings.recipes",
    "magnet_train.survival.resuming",
    "magnet_train.data.paraphrase",
    "magnet_train.data.reading",
    "magnet_train.data.sentences",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0


def test_readme_python_blocks_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert printed.count("Mina slid a tray of rolls into her oven. ") == 2
    assert "exact_length" in printed and "(3, 192)" in printed and "tensor([[" in printed


def test_readme_training_commands_parse():
    commands = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    training = [shlex.split(command)[2:] for command in commands if command.startswith("magnet train")]
    assert len(training) == 2
    for flags in training:
        model_args, data_args, _, _ = parse([*flags, "--use_cpu", "true"])  # the recipes expect a GPU
        assert model_args.model_name_or_path == flags[flags.index("--model_name_or_path") + 1]
        assert data_args.pairs_file == "pairs.jsonl"


def test_readme_commands_have_the_flags_it_names(capsys):
    commands = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    others = [shlex.split(c, comments=True)[1:] for c in commands if re.match(r"magnet (?!train)", c)]
    assert {name for name, *_ in others} == {"infill", "encode", "evaluate", "check", "push", "export"}
    for name, *arguments in others:
        with pytest.raises(SystemExit):
            magnet([name, "--help"])
        known = capsys.readouterr().out
        assert all(flag in known for flag in arguments if flag.startswith("--")), name


def test_readme_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_are_what_the_scripts_wrote(page):
    render = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))["render"]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- begin" in text
    assert render(text) == text, "run: python docs/make_tables.py"


def test_the_tree_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"## The tree\n\n```\n(.*?)```", text, flags=re.DOTALL)[1]
    folders = set(re.findall(r"^(\w+)/", tree, flags=re.MULTILINE))
    assert folders == {path.parts[0] for path in tracked_code()}
    files = set(re.findall(r"\b\w+_magnet\.py\b", tree))
    assert files == {path.name for path in (ROOT / "modeling_magnet").glob("*_magnet.py")}


def tracked_code() -> list[Path]:
    """Files of the folders that hold code, recipes or docs."""
    kinds = (".py", ".yaml", ".md")
    return [
        path.relative_to(ROOT)
        for folder in ROOT.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in ("runs", "build", "dist")
        for path in folder.rglob("*")
        if path.suffix in kinds
    ]


def test_readme_tells_the_steps_that_made_the_checkpoint():
    log = (ROOT / "docs/magnet-tiny/train_log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = json.loads(log[-1])["step"]
    assert f"in {steps:,} steps" in README
    assert read_recipe("magnet_tiny")["max_steps"] == steps
