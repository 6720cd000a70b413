"""The studies of infill(): measures by hand, prompts and fills on tiny random models, the perplexity curve."""

import json
import math

import numpy as np
import pytest
import torch

from magnet_eval.research import free_length, tables
from magnet_eval.research.free_length import (
    Fill,
    best,
    fim_row_of,
    magnet_fills,
    magnet_systems,
    measure,
    one_way_fill,
    one_way_systems,
    perplexities,
    searched_fills,
    story_cases,
    summary,
    written_rows,
)
from magnet_eval.research.length_curve import curve, windows_of
from magnet_eval.research.measures import mean_interval, right_bits, rouge_l, write_report
from magnet_eval.stories import load, read_cloze

STORIES = [
    ["Tom was hungry.", "He went home.", "He made a sandwich.", "He ate it.", "He was full."],
    ["Ann had a dog.", "It ran off.", "She looked for it.", "It came back.", "She was glad."],
]


@pytest.fixture(scope="module")
def magnet(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def cases(magnet, tokenizer):
    return story_cases(STORIES, magnet.config, tokenizer)


def test_rouge_l_by_hand():
    assert rouge_l("the cat sat down", "the cat lay down") == pytest.approx(75)  # 3 of 4 in order, both ways
    assert rouge_l("the cat sat", "a dog") == 0


def test_interval_is_of_the_mean():
    assert mean_interval([2.0, 2.0]) == [2.0, 2.0, 2.0]
    mean, low, high = mean_interval(np.arange(100.0))
    assert mean == 49.5 and 40 < low < mean < high < 60


def test_report_keeps_what_it_says(tmp_path):
    report = {"a": {"b": [1.5, -2, None], "c": "[x\n y]"}, "d": [{"e": [1, 2]}]}
    write_report(str(tmp_path / "report.json"), report)
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text) == report and '"b": [ 1.5, -2, null ]' in text


def test_right_bits_are_those_of_the_right_side_under_the_base(magnet, tokenizer):
    before, right = "Tom was hungry.", "He ate."
    whole = [1, *tokenizer(f"{before} {right}", add_special_tokens=False)["input_ids"]]
    split = 1 + len(tokenizer(before, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logprobs = magnet(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(logprobs[n - 1, whole[n]].item() for n in range(split, len(whole))) / math.log(2)
    assert right_bits(magnet, tokenizer, [(before, right)])[0] == pytest.approx(expected, rel=1e-5)


def test_each_story_misses_one_of_its_middle_sentences(cases, tokenizer):
    assert [case.gold for case in cases] == ["He went home.", "She looked for it."]
    assert (cases[0].left, cases[0].right) == ("Tom was hungry.", "He made a sandwich. He ate it. He was full.")
    whole = [1, *tokenizer(" ".join(STORIES[0]), add_special_tokens=False)["input_ids"]]
    left, right = cases[0].left_ids, cases[0].right_ids
    assert left == whole[: len(left)] and right == whole[-len(right) :]
    assert len(left) + cases[0].example.length + len(right) == len(whole)
    assert [case.example.story for case in cases] == [0, 1]


@pytest.mark.parametrize("spm", [False, True])
def test_fim_prompt_is_the_training_row_without_its_middle(cases, tokenizer, spm):
    gold = cases[0].example.ids[cases[0].example.start :][: cases[0].example.length]
    (prompt, begun), (row, start) = (fim_row_of(cases[0], [1], middle, tokenizer, spm) for middle in ([], gold))
    assert begun == start and row == prompt[:start] + gold + [tokenizer.eos_token_id]
    assert row[0] == 1 and row.count(1) == 1


def test_left_padded_rows_are_written_as_alone(magnet, tokenizer):
    prompts = [[1, 20, 30, 40, 50, 60], [1, 70]]
    together = written_rows(magnet, tokenizer, prompts, batch_size=2)
    alone = [written_rows(magnet, tokenizer, [prompt])[0] for prompt in prompts]
    for (row,), (expected,) in zip(together, alone):
        length = min(len(row), len(expected))
        assert length > 0 and row[:length] == expected[:length]


def test_a_one_way_fill_ends_and_repeats_nothing(cases, tokenizer):
    def fill(text, end=0, sentence=False):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * end
        return one_way_fill(ids, cases[0], tokenizer, sentence)

    assert fill(" He sat down. Then he", sentence=True) == Fill("He sat down.", True)
    assert fill(" He sat down. Then he") == Fill("He sat down. Then he", False)
    assert fill(" He sat down. Then he", end=3) == Fill("He sat down. Then he", True)
    assert fill(" He sat. He made a sandwich.", end=1).text == "He sat."


def test_the_best_of_several_is_that_of_infill(magnet, cases, tokenizer):
    (case, *_) = cases
    texts = ["He ran home.", "It rained.", "Tom"]
    scored = [magnet.score_infill(f"{case.left} <|gap|> {case.right}", [text], tokenizer).gaps[0] for text in texts]
    first = max(scored, key=lambda gap: gap.join_score).text
    assert best([Fill(text, True) for text in texts], case, magnet, tokenizer).text == first
    other = next(text for text in texts if text != first)
    assert best([Fill(first, False), Fill(other, True)], case, magnet, tokenizer).text == other
    assert best([Fill(first, False), Fill(other, False)], case, magnet, tokenizer).text == first


def test_every_system_fills_every_gap(magnet, cases, tokenizer, monkeypatch):
    monkeypatch.setattr(free_length, "MOST", 6)
    monkeypatch.setattr(free_length, "SAMPLES", 2)
    systems = {"gold": [Fill(case.gold, True) for case in cases]} | magnet_systems(magnet, tokenizer, cases)
    systems |= {"magnet_search": searched_fills(magnet, tokenizer, cases)}
    systems |= one_way_systems(magnet, magnet, tokenizer, cases)
    assert set(systems) == set(tables.SYSTEMS)
    assert magnet.config.infill_end_token_id == 2  # the search has put it back
    measured = measure(systems, cases, {"judge": (magnet, tokenizer)}, tokenizer)
    for row in measured.values():
        assert {len(values) for values in row.values()} == {len(cases)}
    assert measured["gold"]["rouge_l"].tolist() == [100, 100] and measured["gold"]["length_error"].tolist() == [0, 0]
    assert measured["magnet_free"]["length"].max() <= 6
    (mean, _, _) = summary(measured)["differences"]["gold"]["fim_psm"]["rouge_l"]
    assert mean == pytest.approx((measured["gold"]["rouge_l"] - measured["fim_psm"]["rouge_l"]).mean(), abs=1e-3)


def test_a_told_length_is_kept(magnet, cases, tokenizer):
    (whole,) = magnet.infill(
        [f"{cases[0].left} <|gap|> {cases[0].right}"], tokenizer, length=cases[0].example.length, return_dict=True
    )
    assert magnet_fills(magnet, tokenizer, cases[:1], told_length=True) == [Fill(whole.gaps[0].text.strip(), True)]


def test_the_end_of_a_gap_is_paid_for(magnet, cases, tokenizer):
    found = perplexities(magnet, magnet, magnet, tokenizer, cases)
    assert set(found) == {"base_left_to_right", "magnet_exact", "magnet_free_end"} | {
        f"fim_{order}{end}" for order in ("psm", "spm") for end in ("", "_end")
    }
    assert all(found[f"fim_{order}_end"][0] > found[f"fim_{order}"][0] for order in ("psm", "spm"))


def test_tables_have_a_row_for_each_measured_system():
    columns = {key: [1.0, 0.5, 1.5] for key in tables.COLUMNS}
    table = tables.measured_rows({"magnet_free": columns, "unknown": columns}, tables.SYSTEMS)
    assert table.splitlines()[2:] == ["| **MAGNET**, greedy | 1.0 " + "| 1.0 (0.5 to 1.5) " * 5 + "|"]


def test_curve_reaches_as_far_as_the_positions(magnet):
    ids = torch.randint(10, 90, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    for example in windows_of(ids, [1], (5, 8), 4, 100):
        assert 5 <= example.length <= 8 and len(example.ids) == 100 and example.ids[0] == 1
    rows = curve(magnet, ids, [1], count=2)
    assert [row["bucket"] for row in rows] == [[1, 4], [5, 8], [9, 16], [17, 32], [33, 64], [65, 128], [129, 256]]
    assert "free" in rows[4] and "free" not in rows[5]


@pytest.mark.shared
def test_real_stories_and_models(shared):
    base, tokenizer = load(str(shared / "models" / "stories3M"))
    stories = read_cloze(shared / "data" / "eval-only" / "roc" / "cloze2016_val.tsv")[:3]
    cases = story_cases(stories, base.config, tokenizer)
    (fill, *_) = free_length.one_way_fills(
        base, base, tokenizer, cases, [case.left_ids for case in cases], sentence=True
    )
    assert fill.finished and fill.text[-1] in '.!?"'
    assert right_bits(base, tokenizer, [(case.left, case.right) for case in cases]).max() < 0
