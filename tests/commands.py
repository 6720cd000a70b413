"""Runs `magnet` in this process, with the tiny checkpoint of the tests as its default, loaded once."""

import functools
import io
import sys
from pathlib import Path

from magnet_cli import model as loading
from magnet_cli.main import main

TINY = Path(__file__).parent / "assets" / "magnet-tiny"

load = functools.cache(lambda path: LOAD(Options(path)))
LOAD = loading.load_causal


class Options:
    revision, dtype, device = None, "float32", "cpu"

    def __init__(self, path):
        self.model_name_or_path = path


class Magnet:
    """`magnet(["infill", ...], stdin="...")` returns what was printed to stdout; stderr is in `.err`."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys, self.err = monkeypatch, capsys, ""
        monkeypatch.setenv("MAGNET_MODEL", str(TINY))
        for module in (loading, "magnet_cli.evaluate"):
            name = "magnet_cli.model" if module is loading else module
            monkeypatch.setattr(
                f"{name}.load_causal", lambda options: load(loading.chosen_model(options.model_name_or_path))
            )

    def __call__(self, args: list, stdin: str | bytes = "") -> str:
        stdin = stdin.encode() if isinstance(stdin, str) else stdin
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self.capsys.readouterr()
        main([str(arg) for arg in args])
        printed = self.capsys.readouterr()
        self.err = printed.err
        return printed.out
