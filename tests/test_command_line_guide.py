"""docs/command_line.md: its examples print what the page says, its other commands are understood, all are named."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Magnet

from magnet_cli.main import COMMANDS

PAGE = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_command_is_told():
    assert re.findall(r"^\| `magnet (\w+)`", PAGE, flags=re.MULTILINE) == list(COMMANDS)


def test_examples_print_what_the_page_says(monkeypatch, capsys, tmp_path):
    """`cat` of a file that is not there yet makes it; `magnet` runs in this process, between the commands of a pipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    magnet = Magnet(monkeypatch, capsys)
    steps = [
        step for example in EXAMPLES for step in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", example, re.MULTILINE)
    ]
    assert len(steps) == 10
    for command, expected in steps:
        file = tmp_path / command.removeprefix("cat ")
        if command.startswith("cat ") and "|" not in command and not file.exists():
            file.write_text(expected, encoding="utf-8")
            continue
        printed = b""
        for part in re.split(r"(?<=\S) \| (?=\w)", command):
            words = shlex.split(part)
            if words[0] == "magnet":
                printed = magnet(words[1:], stdin=printed).encode()
            else:
                printed = subprocess.run(words, input=printed, stdout=subprocess.PIPE, check=True).stdout
        assert printed.decode() == expected, command


@pytest.mark.parametrize("command", re.findall(r"^magnet .*$", PAGE, flags=re.MULTILINE))
def test_other_commands_are_understood(command):
    name, *flags = shlex.split(command)[1:]
    importlib.import_module(f"magnet_cli.{name}").parse(flags)
