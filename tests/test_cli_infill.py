"""magnet infill: arguments, files and standard input; lines, JSON and streams; the same fills as model.infill()."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
from commands import TINY, Magnet, load

from magnet_cli.infill import as_json, length
from modeling_magnet import InfilledGap, InfillOutput

TEXT = "Tom was hungry. <|gap|> He was full."
OTHER = "Mina slid a tray of rolls into her oven. <|gap:then|> She wrapped the rolls in foil."


@pytest.fixture
def magnet(monkeypatch, capsys):
    return Magnet(monkeypatch, capsys)


@pytest.fixture
def infill():
    model, tokenizer = load(str(TINY))
    return lambda *args, **settings: model.infill(args[0], tokenizer, **settings)


@pytest.mark.parametrize("text, value", [("auto", "auto"), ("12", 12), ("4-12", (4, 12))])
def test_length(text, value):
    assert length(text) == value


@pytest.mark.parametrize("flags", [["--length", "x"], ["--length", "4-"], ["--length", "-3"], ["--order", "both"]])
def test_what_is_no_length_is_wrong_usage(flags, magnet):
    with pytest.raises(SystemExit) as end:
        magnet(["infill", TEXT, *flags])
    assert end.value.code == 2


def test_a_text_as_argument(magnet, infill):
    assert magnet(["infill", TEXT, "--length", "6"]) == infill(TEXT, length=6) + "\n"


def test_flags_are_those_of_infill(magnet, infill):
    flags = ["--length", "3-9", "--stop", "sentence", "--order", "parallel", "--num_beams", "2"]
    expected = infill([TEXT, OTHER], length=(3, 9), stop="sentence", order="parallel", num_beams=2)
    assert magnet(["infill", TEXT, OTHER, *flags]).splitlines() == expected
    flags = ["--max_new_tokens", "9", "--min_new_tokens", "4", "--stop", "z", "q", "--no_repeat_ngram_size", "2"]
    expected = infill(TEXT, max_new_tokens=9, min_new_tokens=4, stop=["z", "q"], no_repeat_ngram_size=2)
    assert magnet(["infill", TEXT, *flags]) == expected + "\n"
    named = ["Tom was <blank> hungry.", "--gap_token", "<blank>", "--length", "1"]
    assert magnet(["infill", *named]) == infill(named[0], gap_token="<blank>", length=1) + "\n"


def test_alternatives_depend_on_the_seed_alone(magnet):
    flags = ["--do_sample", "--num_candidates", "4", "--num_return_sequences", "2", "--length", "5"]
    first = magnet(["infill", TEXT, *flags, "--seed", "3"])
    assert len(first.splitlines()) == 2
    assert magnet(["infill", TEXT, *flags, "--seed", "3"]) == first
    assert magnet(["infill", TEXT, *flags, "--seed", "4"]) != first


def test_lines_of_a_file_and_of_stdin(magnet, infill, tmp_path):
    """CR LF, a byte order mark, NUL, other scripts, an empty line, no line break at the end."""
    texts = ["\0Ünï 日本 <|gap|> b.", "", OTHER]
    content = b"\xef\xbb\xbf" + "\r\n".join(texts).encode()
    (tmp_path / "drafts.txt").write_bytes(content)
    flags = ["--length", "4", "--output", tmp_path / "new" / "filled.txt"]
    assert magnet(["infill", "--input", tmp_path / "drafts.txt", *flags]) == ""
    written = (tmp_path / "new" / "filled.txt").read_bytes().decode()
    assert written.split("\n") == [*infill([texts[0]], length=4), "", *infill([OTHER], length=4), ""]
    assert magnet(["infill", "--length", "4"], stdin=content) == written
    assert magnet(["infill", "--input", "-", "--length", "4"], stdin=content) == written


def test_json_holds_all_of_the_output(magnet, infill, tmp_path):
    (tmp_path / "drafts.jsonl").write_text(f'{{"draft": {json.dumps(OTHER)}}}\n\n')
    flags = ["--input", tmp_path / "drafts.jsonl", "--text_column", "draft", "--length", "4", "--json"]
    (row,) = [json.loads(line) for line in magnet(["infill", *flags]).splitlines()]
    expected = infill(OTHER, length=4, return_dict=True)
    assert row["text"] == expected.text
    gap = row["gaps"][0]
    assert (gap["name"], gap["token_ids"], gap["finish_reason"]) == (
        "then",
        expected.gaps[0].token_ids,
        "exact_length",
    )
    assert gap["token_logprobs"] == pytest.approx(expected.gaps[0].token_logprobs)
    assert json.loads(magnet(["infill", "--json"], stdin="\n")) == {"text": "", "gaps": []}


def test_json_has_no_infinity():
    gap = InfilledGap("a", [1], "stop", token_logprobs=[-math.inf, -1.0], end_logprob=math.nan)
    assert json.loads(as_json(InfillOutput("a", [gap])))["gaps"][0]["token_logprobs"] == [None, -1.0]


def test_stream_shows_fills_beside_the_results(magnet, infill):
    expected = [infill(text, length=5, return_dict=True) for text in (OTHER, TEXT)]
    printed = magnet(["infill", OTHER, "", TEXT, "--stream", "--length", "5"])
    assert printed.splitlines() == [expected[0].text, "", expected[1].text]
    shown = magnet.err.splitlines()
    assert [line.strip() for line in shown] == [output.gaps[0].text.strip() for output in expected]


@pytest.mark.parametrize("flags", [["--num_return_sequences", "2"], ["--num_beams", "2"]])
def test_stream_is_of_one_gap_and_one_fill(flags, magnet):
    with pytest.raises(SystemExit, match="magnet infill: error: .*stream"):
        magnet(["infill", TEXT, "--stream", *flags])
    with pytest.raises(SystemExit, match="magnet infill: error: streamer: one text with one gap"):
        magnet(["infill", f"{OTHER} <|gap|> They ate.", "--stream"])


def test_line_breaks_of_fills_do_not_break_lines(magnet, monkeypatch):
    model, _ = load(str(TINY))
    filled = InfillOutput("a\nb", [InfilledGap("\n", [1], "stop")])
    monkeypatch.setattr(model, "infill", lambda texts, *_, **__: [filled] * len(texts))
    assert magnet(["infill"], stdin="a<|gap|>b\n") == "a b\n"
    assert "stdin:1: replaced a line break with a space; --json keeps it" in magnet.err
    assert magnet(["infill", "a<|gap|>b"]) == "a\nb\n"


@pytest.mark.parametrize(
    "args, stdin, message",
    [
        (["a <|gap|> b", "--input", "x.txt"], "", "input='x.txt': texts were also given as arguments"),
        (["--input", "gone.txt"], "", "'gone.txt': no such file or folder"),
        (["--temperature", "0.5"], TEXT, "temperature=0.5: has no effect without sampling"),
        (["--seed", "-1"], TEXT, "seed=-1: must not be negative"),
        (["--batch_size", "-2"], TEXT, "batch_size=-2: must be"),
        (["--num_beams", "0"], TEXT, "num_beams=0: must be at least 1"),
        (["--do_sample", "--temperature", "inf"], TEXT, "temperature=inf: must be above 0 and finite"),
        (["--do_sample", "--top_p", "7"], TEXT, "top_p=7.0: must be above 0 and at most 1"),
        ([], f"{TEXT}\nno gap here\n", "stdin:2: no gap"),
        (["a <|gap|>", "b"], "", "argument 2: no gap"),
        (["--length", "0"], TEXT, "length=0: must be"),
        (["--length", "1-1000000000"], TEXT, "stdin:1: a gap of up to 1000000000 tokens"),
        (["--max_new_tokens", "1000000000"], TEXT, "stdin:1: a gap of up to 1000000000 tokens"),
        (["--num_beams", "1000000"], TEXT, "num_beams=1000000: "),
        ([], b"a <|gap|> b\n\xff\n", "stdin:2: not UTF-8"),
        (["a \udcff<|gap|> b"], "", "argument 1: the character at 2 is half of a surrogate pair"),
        (["--output", "/dev/null"], TEXT, "output='/dev/null': is not a regular file"),
        (["--device", "cuda:99"], TEXT, "device='cuda:99': cannot be used"),
    ],
)
def test_errors_name_what_is_wrong(args, stdin, message, magnet, monkeypatch):
    if "--device" in args:
        monkeypatch.undo()
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
        args = [TEXT, *args]
    with pytest.raises(SystemExit) as end:
        magnet(["infill", *args], stdin=stdin)
    assert str(end.value.code).startswith("magnet infill: error: ") and message in str(end.value.code)


def test_a_terminal_is_not_waited_for(magnet, monkeypatch):
    monkeypatch.setattr("magnet_cli.texts.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    with pytest.raises(SystemExit, match="no texts. Pass them as arguments"):
        magnet(["infill"])


# ---------------------------------------------------------------------------------------------------------------- models


def test_the_model_is_the_flag_then_the_environment_then_the_shipped_one(monkeypatch, magnet, base_model_path):
    from magnet_cli.model import chosen_model

    monkeypatch.setenv("MAGNET_MODEL", "name/model")
    assert chosen_model(None) == "name/model" and chosen_model(str(base_model_path)) == str(base_model_path)
    monkeypatch.delenv("MAGNET_MODEL")
    monkeypatch.setattr("magnet_hub.fetch.shipped_checkpoint", lambda: TINY)
    magnet(["infill", TEXT, "--length", "6"])
    assert "no --model_name_or_path: using magnet-smollm2-135m" in magnet.err
    with pytest.raises(SystemExit, match="model_name_or_path='./gone': no such folder"):
        magnet(["infill", TEXT, "--model_name_or_path", "./gone"])
    with pytest.raises(SystemExit, match="is a llama checkpoint, not a MAGNET one"):
        magnet(["infill", TEXT, "--model_name_or_path", base_model_path])


def test_a_folder_without_a_checkpoint(tmp_path, monkeypatch):
    from magnet_cli.main import main

    shutil.copytree(TINY, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"0" * 100)
    for folder in (tmp_path, tmp_path / "cut"):
        with pytest.raises(SystemExit, match="magnet infill: error: model_name_or_path='.*': ") as end:
            main(["infill", TEXT, "--model_name_or_path", str(folder)])
        assert "\n" not in end.value.code and "not foreseen" not in end.value.code
