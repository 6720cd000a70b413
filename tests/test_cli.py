"""The `magnet` command: help, how it ends, and what it does not import."""

import ast
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from families import build_base, build_magnet

from magnet_cli.ending import redacted, take_debug
from magnet_cli.main import COMMANDS, main
from magnet_hub.save import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
MAGNET = Path(sys.executable).with_name("magnet")
PRESENT = [name for name in COMMANDS if importlib.util.find_spec(f"magnet_cli.{name}")]


def printed_by(args, capsys) -> str:
    try:
        main(args)
    except SystemExit as end:
        assert not end.code
    return capsys.readouterr().out


def failing(monkeypatch, error):
    """Makes `magnet encode` raise this."""

    def fail(args):
        raise error

    monkeypatch.setattr("magnet_cli.encode.main", fail)


# ----------------------------------------------------------------------------------------------------------------- help


def test_help_names_every_command(capsys):
    printed = printed_by(["--help"], capsys)
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert printed_by([], capsys) == printed


@pytest.mark.parametrize("name", PRESENT)
def test_help_of_a_command_has_an_example(name, capsys):
    printed = printed_by([name, "--help"], capsys)
    assert f"\n    magnet {name}" in printed or f"\n  magnet {name}" in printed
    assert "usage: magnet" in printed


def cpu_seconds_of_children() -> float:
    return os.times().children_user + os.times().children_system


def test_help_imports_nothing_heavy():
    """The limit is on CPU seconds, for machines that do other things as well."""
    code = "import sys; from magnet_cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit as e: assert not e.code\n"
    code += "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'modeling_magnet', 'huggingface_hub'} & set(sys.modules)"
    code += "\nassert not heavy, heavy"
    described_by_dataclasses = ("train", "paraphrase")  # HfArgumentParser imports torch
    others = [name for name in PRESENT if name not in described_by_dataclasses]
    for args in ([], ["--version"], *([name, "--help"] for name in others)):
        began = cpu_seconds_of_children()
        subprocess.run([sys.executable, "-c", code, *args], check=True, stdout=subprocess.DEVNULL)
        assert cpu_seconds_of_children() - began < 0.5, args


def test_version(capsys):
    assert printed_by(["--version"], capsys).startswith("magnet-llm 0.")


# ---------------------------------------------------------------------------------------------------------------- errors


def test_unknown_commands_and_flags_are_told_the_nearest_or_all(capsys):
    with pytest.raises(SystemExit, match="magnet: error: unknown command 'trian'. Did you mean 'train'?"):
        main(["trian"])
    with pytest.raises(SystemExit, match="magnet: error: unknown command 'x'. Choose from demo, fetch, train"):
        main(["x"])
    with pytest.raises(SystemExit):
        main(["infill", "a <|gap|>", "--lenght", "4"])
    assert "unrecognized arguments: --lenght 4 (did you mean --length?)" in capsys.readouterr().err


def test_train_reports_a_wrong_setting_in_one_line():
    with pytest.raises(
        SystemExit, match="^magnet train: error: argument --gap_layout/--gap-layout: invalid choice: 'mxied'"
    ):
        main(["train", "--model_name_or_path", "x", "--train_file", "y", "--gap_layout", "mxied"])


@pytest.mark.parametrize("args", [["infill", "a <|gap|> b", "--lenght", "3"], ["encode", "--dtype", "int8"]])
def test_wrong_usage_ends_with_2(args, capsys):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: magnet ")


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("x=0: must be\npositive."), "magnet encode: error: x=0: must be positive."),
        (FileNotFoundError(2, "No such file", "a.txt"), "magnet encode: error: [Errno 2] No such file: 'a.txt'"),
        (
            KeyError("a"),
            "magnet encode: error: KeyError: 'a' (unexpected; run again with --debug for the traceback)",
        ),
        (ValueError(), "magnet encode: error: ValueError:  (unexpected; run again with --debug for the traceback)"),
    ],
)
def test_errors_take_one_line(error, line, monkeypatch):
    failing(monkeypatch, error)
    with pytest.raises(SystemExit) as end:
        main(["encode"])
    assert end.value.code == line


def test_debug_shows_the_traceback(monkeypatch, capsys):
    failing(monkeypatch, ValueError("x=0: hf_abcdefghijklmnopqrstuvwxyz is no number."))
    for args in (["encode", "--debug"], ["--debug", "encode"]):
        with pytest.raises(SystemExit) as end:
            main(args)
        printed = capsys.readouterr().err
        assert end.value.code == 1 and "Traceback" in printed and "x=0: *** is no number." in printed


def test_ctrl_c_is_quiet(monkeypatch, capsys):
    failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(SystemExit) as end:
        main(["encode"])
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_debug_of_transformers_and_text_stay():
    assert take_debug(["train", "--debug", "underflow_overflow"]) == (
        ["train", "--debug", "underflow_overflow"],
        False,
    )
    assert take_debug(["infill", "--", "--debug"]) == (["infill", "--", "--debug"], False)


def test_tokens_are_never_shown(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "from-the-environment")
    args = ["push", "--token", "as-a-flag", "--hub_token=with-equals", "--gap_token", "gap"]
    text = "from-the-environment as-a-flag with-equals gap hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345 hf_transfer"
    assert redacted(text, args) == "*** *** *** gap *** hf_transfer"
    with pytest.raises(SystemExit):
        main(["encode", "--tokn", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"])
    assert "hf_Ab" not in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_commands_take_a_checkpoint_of_any_family(family, tmp_path, tokenizer, capsys):
    base = build_base(family, "sdpa", vocab_size=4096, pad_token_id=0)
    model = build_magnet(base=base, infill_end_token_id=2, infill_free_offsets=[64], mask_token_id=66)
    save_checkpoint(model, tokenizer, tmp_path / "magnet")
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    text, own = "Tom was hungry. <|gap|> He was full.", ["--model_name_or_path", str(tmp_path / "magnet")]
    expected = model.infill(text, tokenizer, length=4)
    assert printed_by(["infill", text, "--length", "4", *own], capsys) == expected + "\n"
    vector = json.loads(printed_by(["encode", "It rained.", *own], capsys))["embedding"]
    np.testing.assert_allclose(vector, model.encode("It rained.", tokenizer), atol=1e-5)
    own[1] = str(tmp_path / "base")
    with pytest.raises(SystemExit, match=f"is a {family} checkpoint, not a MAGNET one. Adapt it with magnet train"):
        main(["infill", text, *own])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sts.tsv").write_text("1\tIt rained.\tTom ate.\n5\tIt rained.\tRain fell.\n")
    report = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "report")]
    assert "Spearman x 100" in printed_by(["evaluate", "sts", *report, *own], capsys)


# ----------------------------------------------------------------------------------------------------------------- trust


def silent_calls(path: Path):
    """The places of `Auto*.from_pretrained` that leave open whether a checkpoint's code may run."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr == "from_pretrained":
            is_auto = isinstance(called.value, ast.Name) and called.value.id.startswith("Auto")
            if is_auto and "trust_remote_code" not in [keyword.arg for keyword in node.keywords]:
                yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_auto_class_is_told_whether_it_may_run_code():
    """Left open, transformers asks at the terminal, and waits for an answer that a job cannot give."""
    files = [
        path
        for folder in ROOT.iterdir()
        if folder.is_dir() and folder.name[0] != "." and folder.name not in ("tests", "runs")
        for path in folder.rglob("*.py")
    ]
    assert len(files) > 50
    assert [place for path in sorted(files) for place in silent_calls(path)] == []


# --------------------------------------------------------------------------------------------------------- real processes


def test_a_reader_that_has_gone_is_no_error():
    command = f"'{MAGNET}' infill --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("usage: magnet infill")
    assert done.stdout.splitlines()[-1] in ("0", "141")  # 0 where all was written before head left
    assert done.stderr == ""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_quietly_and_leaves_no_file(number, code, tmp_path):
    command = [MAGNET, "encode", "--output", tmp_path / "v.npy"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.iterdir()):  # it has begun to write
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(number)
    _, printed = running.communicate(timeout=120)
    assert running.returncode == code and "Traceback" not in printed
    assert not list(tmp_path.iterdir())


def test_output_is_utf8_whatever_the_locale(monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    monkeypatch.setattr("magnet_cli.encode.main", lambda args: print("日本 é"))
    main(["encode"])
    assert sys.stdout.buffer.getvalue().decode("utf-8") == "日本 é\n"
