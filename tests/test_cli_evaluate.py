"""magnet evaluate: the figures of magnet_eval with an interval each, as a table, as JSON, and in a checkpoint's card."""

import json
import shutil

import pytest
from commands import Magnet, load

from magnet_cli.evaluate import is_story
from magnet_cli.model import SHIPPED
from magnet_eval.infilling import infill_perplexity, sentence_gaps
from magnet_hub.results import read_eval_results

STORIES = SHIPPED.parent / "everyday-stories"


@pytest.fixture
def magnet(monkeypatch, capsys):
    return Magnet(monkeypatch, capsys)


def test_figures_of_a_checkpoint(magnet, tmp_path):
    model, tokenizer = load(str(SHIPPED))
    flags = ["--stories", STORIES, "--limit", "4", "--one_gap", "--output", tmp_path / "new" / "results.json"]
    printed = magnet(["evaluate", *flags])
    found = json.loads((tmp_path / "new" / "results.json").read_text())["results"]
    assert [row["metric_name"] for row in found] == [
        "perplexity of the missing sentence, given length",
        "perplexity of the missing sentence and its end",
        "the same from the left alone, causal mode",
        "perplexity of whole stories, causal mode",
        "top-1, percent",
        "Spearman x 100",
    ]
    rows = [json.loads(line)["sentences"] for line in (STORIES / "validation.jsonl").read_text().splitlines()[:4]]
    exact = infill_perplexity(model, sentence_gaps(rows, model.config, tokenizer, every=False), "exact")
    assert found[0]["value"] == round(exact.value, 2)
    for row in found:
        low, high = row["interval"]
        assert low <= row["value"] <= high and row["dataset_name"] == "everyday-stories"
        assert f"{row['value']:.2f}" in printed and str(STORIES) not in row["command"]
        assert row["command"].endswith(" --stories everyday-stories --one_gap --limit 4")


def test_a_llama_is_read_from_left_to_right(magnet, base_model_path, tmp_path):
    flags = ["--stories", STORIES / "validation.jsonl", "--limit", "2", "--model_name_or_path", base_model_path]
    printed = magnet(["evaluate", *flags])
    assert "the same from the left alone" in printed and "given length" not in printed


def test_figures_go_into_the_card(magnet, tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "own")
    pairs = "\n".join((STORIES / "sts.tsv").read_text().splitlines()[:6])
    (tmp_path / "few.tsv").write_text(pairs)
    magnet(["evaluate", "--model_name_or_path", tmp_path / "own", "--sts", tmp_path / "few.tsv", "--update_card"])
    (result,) = [each for each in read_eval_results(tmp_path / "own") if each.dataset_name == "few"]
    assert (
        result.metric == "spearman"
        and result.command == "magnet evaluate --model_name_or_path own --dtype float32 --sts few"
    )
    assert "few" in (tmp_path / "own" / "README.md").read_text()
    (tmp_path / "own" / "README.md").write_text("by hand")
    with pytest.raises(SystemExit, match="update_card: the README.md of .* is not a generated card"):
        magnet(["evaluate", "--model_name_or_path", tmp_path / "own", "--sts", tmp_path / "few.tsv", "--update_card"])


def test_figures_of_a_part_stay_out_of_the_card(magnet, tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "own")
    before = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir() if path.is_file()}
    flags = ["--model_name_or_path", tmp_path / "own", "--sts", STORIES / "sts.tsv", "--limit", "30", "--update_card"]
    with pytest.raises(SystemExit, match="magnet evaluate: error: limit=30: a card tells of whole data sets"):
        magnet(["evaluate", *flags])
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir() if path.is_file()}


def test_grades_that_are_all_alike_are_refused(magnet, tmp_path):
    (tmp_path / "few.tsv").write_text("3.0\tA dog.\tA cat.\n3.0\tIt rained.\tIt snowed.\n")
    with pytest.raises(
        SystemExit, match="magnet evaluate: error: few: all 2 pairs have the grade 3. Measure pairs of"
    ):
        magnet(["evaluate", "--sts", tmp_path / "few.tsv"])


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("--stories", '{"sentences": ["a.", 3]}', "row 1 is not of the form"),
        ("--stories", '{"text": "a."}', "row 1 is not of the form"),
        ("--stories", "no json", "is not of the form"),
        ("--stories", "", "an empty file is not of the form"),
        ("--sts", "high\ta\tb", "is not of the form"),
        ("--cloze", "a\tb", "is not of the form"),
    ],
)
def test_data_of_another_form_is_refused(name, content, message, magnet, tmp_path):
    (tmp_path / "data").write_text(content)
    with pytest.raises(SystemExit, match=f"magnet evaluate: error: {name[2:]}='.*data': {message}"):
        magnet(["evaluate", name, tmp_path / "data"])


def test_nothing_to_measure(magnet):
    with pytest.raises(SystemExit, match="nothing to measure. Name --stories, --sts or --cloze"):
        magnet(["evaluate"])
    with pytest.raises(SystemExit, match="No such file"):
        magnet(["evaluate", "--sts", "gone.tsv"])


def test_stories_need_as_many_paraphrases():
    assert is_story({"sentences": ["a."], "paraphrases": ["b."]}) and is_story({"sentences": ["a."]})
    assert not is_story({"sentences": ["a."], "paraphrases": ["b.", "c."]}) and not is_story({"sentences": []})
    assert not is_story(["a."])
