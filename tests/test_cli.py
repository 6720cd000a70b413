"""The `magnet` command: help, unknown commands, and what it does not import."""

import subprocess
import sys

import pytest

from magnet_cli.main import COMMANDS, main


def test_help_names_every_command(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_unknown_command_names_the_known_ones():
    with pytest.raises(SystemExit, match="no command 'trian'. Known: demo, train"):
        main(["trian"])


def test_help_imports_no_torch():
    code = "import sys; from magnet_cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_train_reports_a_wrong_setting_in_one_line():
    with pytest.raises(SystemExit, match="magnet train: gap_layout='mxied': must be 'exact' or 'mixed'"):
        main(["train", "--model_name_or_path", "x", "--train_file", "y", "--gap_layout", "mxied"])


def test_demo_outside_a_clone_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="Run it from the root of a clone"):
        main(["demo"])
