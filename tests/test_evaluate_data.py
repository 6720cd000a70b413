"""Evaluation data: what is read, and errors that name file, line and reason."""

import gzip
import json
from pathlib import Path

import pytest

from magnet_eval.data import (
    Settings,
    files,
    name_of,
    overlaps,
    passages,
    read_cloze,
    read_conll,
    read_documents,
    read_graded_pairs,
    read_labelled,
    read_stories,
    read_wikitext,
    training_files,
)


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_what_the_readers_read(write):
    assert read_graded_pairs(write("sts.tsv", "4.5\tA b.\tC d.\tnews\n1\tE\tF\n")) == [
        (4.5, "A b.", "C d."),
        (1.0, "E", "F"),
    ]
    cloze = write("cloze2016_val.tsv", "id\t1\t2\t3\t4\tright\twrong\t1\nid\t1\t2\t3\t4\twrong\tright\t2\n")
    assert read_cloze(cloze) == [["1", "2", "3", "4", "right"]] * 2 and len(read_stories(cloze, 1)) == 1
    conll = write("valid.txt", "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nruns VBZ B-VP O\n\nYes UH O O\n")
    assert [[row[0] for row in sentence] for sentence in read_conll(conll)] == [["EU", "runs"], ["Yes"]]
    news = write("clustering/news.tsv", 'split\tlabel\tsubject\na\tcars\tRe: "red\nb\tguns\t\nc\tguns\ttwo\nd\tx\ty\n')
    assert read_labelled(news) == [("cars", 'Re: "red'), ("guns", "two"), ("x", "y")]
    assert len(read_labelled(news, 2)) == 2
    wiki = write(
        "wiki.valid.raw", " \n = Crab = \n \n It is red . \n \n = = Life = = \n It eats . \n = Two = \n B . \n"
    )
    assert read_wikitext(wiki) == read_documents(wiki) == ["It is red. It eats.", "B."]
    documents = write("documents.txt", "It is red .\n\n= B =\nThree.\n")
    assert read_documents(documents) == ["It is red .", "= B =", "Three."] and name_of(documents) == "documents"
    documents = write("documents.txt.gz", "")
    documents.write_bytes(gzip.compress(b"One.\nTwo.\n"))
    assert read_documents(documents, 1) == ["One."] and name_of(documents) == "documents"


def test_passages_are_whole_sentences_of_about_the_wanted_length():
    found = passages("One two three four five. " * 30, words=20)
    assert {len(text.split()) for text in found} == {20, 10} and all(text.endswith("five.") for text in found)
    assert passages("Too short.") == []


def test_files_are_found_anywhere_and_named(write, tmp_path):
    for name in (
        "a/sts/STS12.tsv",
        "a/sts/STSB-train.tsv",
        "tales/validation.jsonl",
        "tales/sts.tsv",
        "cloze2016_val.tsv",
    ):
        write(name, "x")
    found = files(tmp_path, ("sts/*.tsv", "sts.tsv", "validation.jsonl", "cloze2016_val.tsv"))
    assert [name_of(path) for path in found] == ["STS12", "tales", "tales", "ROC"]  # training sets are left out
    assert [path.name for path in files(tmp_path / "tales", ("tales/sts.tsv",))] == ["sts.tsv"]
    with pytest.raises(ValueError, match="data='.*': has none of wiki.valid.raw. Add one"):
        files(tmp_path, ("wiki.valid.raw",))


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_stories, "", "data: is empty"),
        (read_stories, "no json", "data:1: is not JSON"),
        (read_stories, '{"text": "a."}', "data:1: has no column 'sentences'"),
        (read_stories, '["a."]', "data:1: has no column 'sentences'"),
        (read_stories, '{"sentences": ["a.", 3]}', "story 1: sentences .* must be lists of non-empty texts"),
        (read_stories, '{"sentences": []}', "story 1: sentences .* non-empty"),
        (read_stories, '{"sentences": ["a."], "paraphrases": ["b.", "c."]}', "story 1: must have as many paraphrases"),
        (read_graded_pairs, "1\ta\tb\n2\ta\n", "data:2: has 2 columns, or an empty one; needs 3"),
        (read_graded_pairs, "high\ta\tb\n", "could not convert string to float: 'high'"),
        (read_graded_pairs, "3\ta\tb\n3\tc\td\n", "all 2 pairs have the score 3. Use pairs with different scores"),
        (read_cloze, "a\tb", "data:1: has 2 columns, or an empty one; needs 8"),
        (read_cloze, "i\t1\t2\t3\t4\ta\tb\t3", "the number of the right ending is '3'; must be 1 or 2"),
        (read_conll, "EU NNP", "data:1: has 2 columns; needs word, part of speech, chunk and name"),
        (read_labelled, "label\tbody\nx\ty\n", "its header has no column 'text'"),
        (read_labelled, "class\ttext\nx\ty\n", "its header has no column 'label'"),
        (read_wikitext, "\n", "data: is empty"),
    ],
)
def test_bad_files_are_refused(reader, text, message, write):
    with pytest.raises(ValueError, match=message):
        reader(write("data", text))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "data").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="data: is not UTF-8"):
        read_conll(tmp_path / "data")


def test_evaluation_text_in_the_training_text_is_counted(write, tmp_path):
    told = "Mina slid a tray of rolls into her oven."
    story = [told, "She wrapped all of the rolls in foil.", "She ate."]  # three words say nothing
    training = write("texts.txt", f"A first line. {told.upper().replace('.', '!')} More.\n")
    row = {"text": [story[1]], "positive": ["Other words are in this one sentence."]}
    pairs = write("pairs.jsonl", json.dumps(row))
    write(
        "sets/tales/validation.jsonl",
        json.dumps({"sentences": story, "paraphrases": [*story[:2], "All ate it at once, all."]}),
    )
    write("sets/conll2003/valid.txt", "".join(f"{word} X X O\n" for word in told.replace(".", " .").split()))
    write("sets/clustering/news.tsv", "label\ttext\na\tOther words are in this one sentence\nb\tnone\n")
    write("sets/arc_easy.jsonl", json.dumps({"query": f"Question: {told}", "choices": [], "gold": 0}))
    settings = Settings(tmp_path / "sets")
    found = {
        "tales (validation.jsonl)": (1, 3),
        "conll2003 (valid.txt)": (1, 1),
        "news (news.tsv)": (0, 1),
        "arc_easy (arc_easy.jsonl)": (0, 1),
    }
    assert overlaps(settings, [training]) == found
    found |= {"tales (validation.jsonl)": (2, 3), "news (news.tsv)": (1, 1)}
    assert overlaps(settings, [training, pairs]) == found
    assert overlaps(settings, []) == {}


def test_a_checkpoint_tells_its_training_text(write, tmp_path):
    texts = write("texts.txt", "a")
    run = f"train_file: {texts}\npairs_file: {tmp_path / 'gone.jsonl'}\n"
    write("run/training_config.yaml", run)
    assert training_files(str(tmp_path / "run")) == [texts, tmp_path / "gone.jsonl"]
    write("run/training_config.yaml", "train_file: owner/name\npairs_file: null\n")
    assert training_files(str(tmp_path / "run")) == [Path("owner/name")] and training_files("gone") == []
