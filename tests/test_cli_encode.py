"""magnet encode: a row of the output for each line of the input, in bounded memory, and never half a file."""

import json

import numpy as np
import pytest
from commands import TINY, Magnet, load

from magnet_cli import encode as command

TEXTS = ["A cat sleeps.", "", "Ünï 日本\0", "Rain fell all day, and the boy stayed at home."]


@pytest.fixture
def magnet(monkeypatch, capsys):
    return Magnet(monkeypatch, capsys)


@pytest.fixture(scope="module")
def vectors():
    model, tokenizer = load(str(TINY))
    return model.encode(TEXTS, tokenizer)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "texts.txt").write_bytes("\r\n".join(TEXTS).encode())
    return tmp_path / "texts.txt"


@pytest.mark.parametrize("read_at_once", [1, 3, 32])
def test_rows_are_those_of_the_input(read_at_once, magnet, vectors, file, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "READ_AT_ONCE", read_at_once)
    assert magnet(["encode", "--input", file, "--output", tmp_path / "v.npy", "--batch_size", "1"]) == ""
    found = np.load(tmp_path / "v.npy")
    assert found.dtype == np.float32 and found.shape == (4, 192)
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    assert "1 empty texts: encoded" in magnet.err and "4 vectors" in magnet.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt", "v.npy"]


def test_json_lines_hold_the_same_numbers(magnet, file, tmp_path):
    magnet(["encode", "--input", file, "--output", tmp_path / "v.npy"])
    rows = [json.loads(line) for line in magnet(["encode"], stdin=file.read_bytes()).splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert np.array_equal(np.array([row["embedding"] for row in rows], dtype=np.float32), np.load(tmp_path / "v.npy"))
    magnet(["encode", *TEXTS, "--output", tmp_path / "v.jsonl"])
    assert [json.loads(line) for line in (tmp_path / "v.jsonl").read_text(encoding="utf-8").splitlines()] == rows


def test_empty_lines_may_be_left_out_or_refused(magnet, vectors, file, tmp_path):
    magnet(["encode", "--input", file, "--output", tmp_path / "v.npy", "--on_empty", "skip"])
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), vectors[[0, 2, 3]], atol=1e-5)
    assert "1 empty texts: skipped" in magnet.err
    with pytest.raises(SystemExit, match="texts.txt:2: is empty. Fix it, or use --on_empty encode or skip"):
        magnet(["encode", "--input", file, "--output", tmp_path / "w.npy", "--on_empty", "raise"])
    assert not (tmp_path / "w.npy").exists()


def test_settings_are_those_of_encode(magnet):
    model, tokenizer = load(str(TINY))
    row = json.loads(magnet(["encode", TEXTS[0], "--instruction", "", "--no_normalize"]))
    expected = model.encode(TEXTS[0], tokenizer, instruction="", normalize=False)
    np.testing.assert_allclose(row["embedding"], expected, rtol=1e-5)
    assert not np.isclose(np.linalg.norm(expected), 1)


def test_nothing_in_gives_no_rows(magnet, tmp_path):
    magnet(["encode", "--output", tmp_path / "v.npy"], stdin="")
    assert np.load(tmp_path / "v.npy").shape == (0, 192)


def test_input_is_read_as_it_goes(magnet, monkeypatch):
    """The second chunk is not read before the first is encoded."""
    read, encoded = [], []
    monkeypatch.setattr(command, "READ_AT_ONCE", 1)
    monkeypatch.setattr(command, "encode", lambda *args: encoded.append(len(read)) or np.zeros((2, 192), np.float32))
    texts = (read.append(n) or command_text(n) for n in range(6))
    monkeypatch.setattr(command, "read_texts", lambda options: texts)
    magnet(["encode", "--batch_size", "2"])
    assert encoded == [2, 4, 6]


def command_text(n):
    from magnet_cli.texts import Text

    return Text(f"text {n}", f"x:{n}")


def test_a_run_that_fails_leaves_the_old_file(magnet, tmp_path):
    (tmp_path / "v.npy").write_bytes(b"old")
    with pytest.raises(SystemExit, match="stdin:2: not UTF-8"):
        magnet(["encode", "--output", tmp_path / "v.npy"], stdin=b"a\n\xff\n")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("output", ["v.txt", "v", "/dev/null"])
def test_other_outputs_are_refused(output, magnet):
    with pytest.raises(SystemExit, match="output='.*': must end in .npy or .jsonl"):
        magnet(["encode", "a", "--output", output])


def test_a_folder_is_no_output(magnet, tmp_path):
    (tmp_path / "v.npy").mkdir()
    with pytest.raises(SystemExit, match="v.npy': is not a regular file"):
        magnet(["encode", "a", "--output", tmp_path / "v.npy"])
