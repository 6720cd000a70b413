"""From files, folders and Hub data sets to texts, sentences and pairs; what is wrong is named by file and line."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnet_train.data.pairs import group_pairs, load_pairs
from magnet_train.data.reading import list_files, load_texts, read_records
from magnet_train.data.sentences import long_sentences, split_sentences

TEXTS = ["One line.", "Two — ü.", "Three\u2028lines."]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """`datasets` writes its cache into a folder of the test's own, and says nothing."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.fixture
def write(tmp_path):
    """`write(name, content)`: a file of bytes, of text, or of one row a JSON object; packed as its name says."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet") and isinstance(content, list):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
            return str(path)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        data = content.encode("utf-8") if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") and isinstance(content, str) else data)
        return str(path)

    return write


def texts_of(source, column="text", **options):
    return [document.text for document in load_texts(source, column, **options)]


def origins_of(source):
    return [document.origin for document in load_texts(source, "text")]


# --------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.parquet"])
def test_the_same_texts_from_each_kind_of_file(write, name):
    lines = "".join(f"{text}\n" for text in TEXTS)
    path = write(name, lines if ".txt" in name else [{"text": text, "n": 1} for text in TEXTS])
    assert texts_of(path) == TEXTS
    assert origins_of(path) == [f"{path}:{number}" for number in (1, 2, 3)]


def test_origins_count_the_lines_of_the_file(write):
    path = write("a.txt", "\ufeffOne.\r\n\n  \nTwo.\n")
    assert texts_of(path) == ["One.", "Two."]  # without the byte-order mark and the carriage return
    assert origins_of(path) == [f"{path}:1", f"{path}:4"]
    path = write("a.jsonl", '{"text": "One."}\n\n{"text": ""}\n{"text": "Two."}')
    assert origins_of(path) == [f"{path}:1", f"{path}:4"]


def test_a_list_column_is_joined_by_spaces(write):
    path = write("a.jsonl", [{"sentences": ["One.", "Two."]}, {"sentences": []}, {"sentences": ["Three."]}])
    assert texts_of(path, "sentences") == ["One. Two.", "Three."]


@pytest.mark.parametrize(
    ("sample_by", "texts", "origins"),
    [
        ("paragraph", ["= Title =", "One.\nTwo.", "Three.", "Four."], ["a:1", "a:3", "a:6", "b:1"]),
        ("document", ["= Title =\nOne.\nTwo.\nThree.", "Four."], ["a:1", "b:1"]),
    ],
)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_the_lines_of_a_paragraph_or_of_a_file_are_one_text(write, tmp_path, kind, sample_by, texts, origins):
    lines = ["= Title =", "", "One.", "Two.", " ", "Three."]
    write(f"a.{kind}", "\n".join(lines) if kind == "txt" else [{"text": line} for line in lines])
    write("b.txt", "Four.\n")
    found = load_texts(str(tmp_path), "text", sample_by=sample_by)
    assert [each.text for each in found] == texts
    assert [each.origin.split("/")[-1].replace(f".{kind}", "").replace(".txt", "") for each in found] == origins


def test_a_folder_is_read_in_sorted_order(write, tmp_path):
    write("b/two.jsonl", [{"text": "Two."}])
    write("b/readme.md", "Not a text.")
    write("a.txt", "One.\n")
    write("c/d/three.parquet", [{"text": "Three."}])
    write("c/four.txt.gz", "Zero.\n")
    assert texts_of(str(tmp_path)) == ["One.", "Two.", "Three.", "Zero."]
    assert origins_of(str(tmp_path))[2] == f"{tmp_path}/c/d/three.parquet:1"


@pytest.mark.parametrize("source", ["gone.txt", "gone.jsonl", "gone.json.gz", "gone.parquet", "a/b/gone", ""])
def test_missing_source_is_named(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"'{source}': no such file or folder"):
        load_texts(source, "text")


def test_files_that_cannot_be_read_are_named(write, tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv: not a kind of file that can be read. Give one that ends in \.txt"):
        load_texts(write("a.csv", "text\nOne.\n"), "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no file in this folder"):
        load_texts(str(tmp_path / "empty"), "text")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.txt", "\n \n"), ("a.jsonl", [{"text": ""}, {"text": []}]), ("a.parquet", [{"text": ""}])],
)
def test_a_source_without_text_is_refused(write, name, content):
    with pytest.raises(ValueError, match=f"{name}: column 'text' holds no text"):
        load_texts(write(name, content), "text")


# ------------------------------------------------------------------------------------------------------------ bad rows

GOOD = b'{"text": "One."}\n'
BAD_ROWS = {
    "utf-8": ("a.txt", b"One.\n\xff\xfe\nOne.\n", "no UTF-8 (byte 0: invalid start byte)"),
    "json": ("a.jsonl", GOOD + b'{"text": \n' + GOOD, "no JSON object on this line (Expecting value"),
    "nested": ("a.jsonl", GOOD + b"[" * 200_000 + b"\n" + GOOD, "no JSON object on this line"),
    "array": ("a.json", GOOD + b"[1]\n" + GOOD, "no JSON object on this line but a list"),
    "column": ("a.jsonl", GOOD + b'{"story": "x"}\n' + GOOD, "no column 'text'; it has ['story']"),
    "number": ("a.jsonl", GOOD + b'{"text": 5}\n' + GOOD, "'text' holds '5' (int), which is no text"),
    "list": ("a.jsonl", GOOD + b'{"text": ["a", null]}\n' + GOOD, "'text' holds 'None' (NoneType)"),
    "surrogate": ("a.jsonl", GOOD + b'{"text": "a\\ud800"}\n' + GOOD, "'text' holds a lone surrogate at character 1"),
    "parquet": ("a.parquet", [{"text": "One."}, {"text": None}, {"text": "One."}], "'text' holds 'None'"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line_or_skipped_and_counted(write, kind, caplog):
    name, content, why = BAD_ROWS[kind]
    path = write(name, content)
    with pytest.raises(ValueError) as error:
        load_texts(path, "text")
    assert str(error.value).startswith(f"{path}:2: {why}")
    assert str(error.value).endswith("leave such rows out with on_bad=skip.")
    assert texts_of(path, on_bad="skip") == ["One.", "One."]
    assert f"{path}: 1 bad rows skipped. The first: {path}:2: {why}" in caplog.text


PACKED = gzip.compress(b"One.\n" + bytes(range(1, 9)) * 50, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("cut.txt.gz", PACKED[:-9], ":2: cannot be read from here on (Compressed file ended"),
        ("no.txt.gz", b"neither", ":1: cannot be read from here on (Not a gzipped file"),
        ("no.parquet", b"neither", ":1: cannot be read from here on ("),
    ],
    ids=["cut off", "no gzip", "no parquet"],
)
@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_a_damaged_file_is_named_and_never_skipped(write, name, content, told, on_bad):
    path = write(name, content)
    with pytest.raises(ValueError) as error:
        load_texts(path, "text", on_bad)
    assert str(error.value).startswith(path + told)


def test_only_bad_rows_are_an_error_even_when_skipped(write):
    path = write("a.jsonl", [{"story": "One."}] * 5)
    with pytest.raises(ValueError) as error:
        load_texts(path, "text", on_bad="skip")
    assert f"{path}: column 'text' holds no text. {path}:1: no column 'text'; it has ['story']." in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "column", "told"),
    [
        ("a.parquet", [{"story": "One.", "n": 1}], "text", r"a\.parquet: no column 'text'; it has \['story', 'n'\]"),
        ("a.txt", "One.\n", "story", r"a\.txt:1: no column 'story'; it has \['text'\]"),
    ],
)
def test_a_wrong_column_names_the_columns(write, name, content, column, told):
    with pytest.raises(ValueError, match=told):
        load_texts(write(name, content), column)


# ---------------------------------------------------------------------------------------------------------- data sets


def test_a_hub_id_is_read_by_datasets(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs["split"], kwargs["revision"]))
        return datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("owner/name", "owner/name:part@abc"):
        records = list(read_records(source, ["text"]))
        assert [record.values for record in records] == [{"text": text} for text in TEXTS]
        assert [record.origin for record in records] == [f"{source}:{number}" for number in (1, 2, 3)]
    assert asked == [(("owner/name", None), "train", None), (("owner/name", "part"), "train", "abc")]


@pytest.mark.parametrize("error", [datasets.exceptions.DatasetNotFoundError("gone"), ConnectionError("gone")])
def test_a_hub_id_that_cannot_be_had_is_named(monkeypatch, error):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="no/where: neither a file, nor a folder, nor a Hub data set .* gone"):
        load_texts("no/where", "text")
    assert list_files("no/where") is None


def test_a_connection_that_breaks_is_no_bad_row(monkeypatch):
    def rows():
        yield {"text": "One."}
        raise ConnectionError("gone")

    broken = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: broken)
    with pytest.raises(ConnectionError, match="gone"):
        load_texts("owner/name", "text", on_bad="skip")


# --------------------------------------------------------------------------------------------------------------- pairs


def sides(pairs):
    return [(pair.text, pair.positive) for pair in pairs]


def test_pairs_of_two_columns_or_of_each_sentence_with_itself(write):
    path = write("a.jsonl", [{"text": "a", "positive": "A", "x": 0}, {"text": "b", "positive": "B", "x": 1}])
    pairs = load_pairs(path, ["text", "positive"])
    assert sides(pairs) == [("a", "A"), ("b", "B")]
    assert [pair.origin for pair in pairs] == [f"{path}:1", f"{path}:2"]
    assert sides(load_pairs(path, ["text"])) == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_two_list_columns_are_paired_item_by_item(write, name):
    path = write(name, [{"s": ["a", "b"], "p": ["A", "B"]}, {"s": [], "p": []}, {"s": ["c"], "p": ["C"]}])
    pairs = load_pairs(path, ["s", "p"])
    assert sides(pairs) == [("a", "A"), ("b", "B"), ("c", "C")]
    assert [pair.origin for pair in pairs] == [f"{path}:1 (item 1)", f"{path}:1 (item 2)", f"{path}:3 (item 1)"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"text": "b", "positive": None}, "'positive' holds 'None'"),
        ({"text": "b", "positive": ""}, "'positive' is empty"),
        ({"text": " ", "positive": "B"}, "'text' is empty"),
        ({"text": "b"}, "no column 'positive'; it has ['text']"),
        ({"text": ["b", "c"], "positive": ["B"]}, "'text' has 2 items and 'positive' 1"),
        ({"text": ["b", None], "positive": ["B", "C"]}, "'text' holds 'None'"),
        ({"text": ["b"], "positive": None}, "'text' holds \"['b']\" (list)"),
    ],
)
def test_a_pair_with_one_side_missing_is_named_or_skipped(write, bad, why, caplog):
    path = write("a.jsonl", [{"text": "a", "positive": "A"}, bad, {"text": "c", "positive": "C"}])
    with pytest.raises(ValueError) as error:
        load_pairs(path, ["text", "positive"])
    assert str(error.value).startswith(f"{path}:2: {why}")
    assert sides(load_pairs(path, ["text", "positive"], on_bad="skip")) == [("a", "A"), ("c", "C")]
    assert f"1 bad rows skipped. The first: {path}:2: {why}" in caplog.text


def test_no_pair_at_all_is_an_error(write):
    with pytest.raises(ValueError, match=r"a\.jsonl: no sentence pair in columns \['text', 'positive'\]"):
        load_pairs(write("a.jsonl", ""), ["text", "positive"])


def test_groups_join_pairs_that_share_a_text_on_either_side():
    pairs = [("a", "A"), ("b", "B"), ("c", "a"), ("d", "B"), ("e", "E"), ("c", "d"), ("f", "f")]
    for part, expected in ((pairs, [{0, 1, 2, 3, 5}, {4}, {6}]), (pairs[:5], [{0, 2}, {1, 3}, {4}]), ([], [])):
        groups = group_pairs(part)
        assert sorted({i for i, group in enumerate(groups) if group == one} for one in set(groups)) == expected


# ----------------------------------------------------------------------------------------------------------- sentences


def test_sentences_of_more_than_so_many_words(write):
    path = write("a.txt", "One two three. Mr. Okoro has four words now.\nOne two three four.\n")
    found = list(long_sentences(load_texts(path, "text"), min_words=3))
    assert [sentence.text for sentence in found] == ["Mr. Okoro has four words now.", "One two three four."]
    assert [sentence.origin for sentence in found] == [f"{path}:1", f"{path}:2"]


@given(st.text(st.sampled_from("aAé.!?\"'( \n\t\x00\u2028\u3000\u00a0😀。")))
def test_sentences_are_the_text_again(text):
    assert "".join(split_sentences(text)) == text


def test_wide_white_space_behind_an_initial():
    """sentencex alone panics here, and a panic is no Exception that could be caught."""
    assert split_sentences("It was plan A\u2003. So be it.") == ["It was plan A\u2003. ", "So be it."]
