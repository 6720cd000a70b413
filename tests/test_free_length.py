"""Free-length measures by hand, prompts and pools on tiny random models, the perplexity curve against single forwards."""

import json
import math

import numpy as np
import pytest
import torch

from magnet_eval import fills, free_length_tables
from magnet_eval.fill_metrics import (
    copy_rate,
    joined,
    mean_interval,
    right_bits,
    rouge_l,
    target_logprobs,
    write_report,
)
from magnet_eval.free_length import differences, gold_row, magnet_systems, measure, one_way_systems, story_cases
from magnet_eval.infilling import GapExample, infill_perplexity
from magnet_eval.length_curve import chunked, chunked_perplexity, curve, windows_of
from magnet_eval.stories import load, read_cloze
from modeling_magnet import decoding_magnet

STORIES = [
    ["Tom was hungry.", "He went home.", "He made a sandwich.", "He ate it.", "He was full."],
    ["Ann had a dog.", "It ran off.", "She looked for it.", "It came back.", "She was glad."],
]


@pytest.fixture(scope="module")
def magnet(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def cases(tokenizer):
    return story_cases(STORIES, tokenizer)[0]


def test_rouge_l_and_copy_rate_by_hand():
    assert rouge_l("the cat sat down", "the cat lay down") == pytest.approx(75)  # 3 of 4 in order, both ways
    assert rouge_l("the cat sat", "a dog") == 0
    assert copy_rate("then Tom went home to eat", "Tom went home to eat", "", n=5) == pytest.approx(1 / 2)
    assert copy_rate("too short", "too short", "too short") == 0
    assert joined("a.", "", "b.") == "a. b."


def test_interval_is_of_the_mean_and_passes_over_missing_values():
    assert mean_interval([2.0, 2.0, math.nan]) == [2.0, 2.0, 2.0]
    mean, low, high = mean_interval(np.arange(100.0))
    assert mean == 49.5 and 40 < low < mean < high < 60


def test_report_keeps_what_it_says(tmp_path):
    report = {"a": {"b": [1.5, -2, None], "c": "[x\n y]"}, "d": [{"e": [1, 2]}]}
    write_report(str(tmp_path / "report.json"), report)
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text) == report and '"b": [ 1.5, -2, null ]' in text


def test_target_logprobs_equal_one_forward_a_row(magnet):
    rows = [([1, 5, 9], [7, 8]), ([1], [4, 4, 4, 4]), ([1, 2], [])]
    for (context, targets), values in zip(rows, target_logprobs(magnet, rows, batch_size=2)):
        with torch.no_grad():
            logprobs = magnet(torch.tensor([context + targets])).logits[0].log_softmax(-1)
        expected = [logprobs[len(context) - 1 + n, target].item() for n, target in enumerate(targets)]
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_right_bits_are_those_of_the_right_side_alone(magnet, tokenizer):
    before, right = "Tom was hungry.", "He ate."
    whole = [1, *tokenizer(f"{before} {right}", add_special_tokens=False)["input_ids"]]
    split = 1 + len(tokenizer(before, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logprobs = magnet(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(logprobs[n - 1, whole[n]].item() for n in range(split, len(whole))) / math.log(2)
    bits = right_bits(magnet, tokenizer, [(before, right), (before, "")])
    assert bits[0] == pytest.approx(expected, rel=1e-5) and math.isnan(bits[1])


def test_each_story_misses_one_of_its_middle_sentences(cases, tokenizer):
    assert [case.gold for case in cases] == ["He went home.", "She looked for it."]
    assert (cases[0].left, cases[0].right) == ("Tom was hungry.", "He made a sandwich. He ate it. He was full.")
    whole = [1, *tokenizer(" ".join(STORIES[0]), add_special_tokens=False)["input_ids"]]
    assert (
        cases[0].left_ids == whole[: len(cases[0].left_ids)]
        and cases[0].right_ids == whole[-len(cases[0].right_ids) :]
    )
    assert len(cases[0].left_ids) + cases[0].length + len(cases[0].right_ids) == len(whole)


@pytest.mark.parametrize("spm", [False, True])
def test_fim_prompt_is_the_training_row_without_its_middle(cases, tokenizer, spm):
    examples = story_cases(STORIES, tokenizer)[1]
    (prompt, _), (row, _) = (
        fills.fim_prompts(cases, tokenizer, spm),
        fills.fim_examples(cases, examples, tokenizer, spm, True),
    )
    gold = examples[0].ids[examples[0].start : examples[0].start + examples[0].length]
    assert row.ids == prompt + gold + [tokenizer.eos_token_id]
    assert (row.start, row.length) == (len(prompt), len(gold) + 1)


def test_pick_prefers_what_has_ended():
    endless, short, long = (
        fills.Candidate("a", False, 9, {"join": 0.0}),
        fills.Candidate("b", True, 1, {"join": -2.0}),
        fills.Candidate("c", True, 2, {"join": -1.0}),
    )
    assert fills.pick([endless, short, long], "join") is long
    assert fills.pick([endless, short, long], None) is short
    assert fills.pick([endless], "join") is endless


def test_tokens_that_are_all_alike_end_a_gap_together(text_magnet):
    model = text_magnet(seed=3)
    assert fills.end_twins(model, 2) == [2] and fills.end_settings(model, 2) == {}
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        rows[[50, 51]] = rows[2].clone()
    assert fills.end_twins(model, 2) == [2, 50, 51]
    settings = fills.end_settings(model, 2)
    assert settings["suppress_tokens"] == [50, 51]
    logits = model(torch.tensor([[1, 7, 8]])).logits[0, -1].detach()
    together = logits.softmax(-1)[[2, 50, 51]].sum().item()
    changed = logits.clone()
    changed[2] += settings["sequence_bias"][0][1]
    changed[[50, 51]] = -math.inf
    assert changed.softmax(-1)[2].item() == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("bias", [None, {(2,): 1.0, (7, 8): 2.0}, [[[2], 1.0], [[7, 8], 2.0]]])
def test_infill_counts_the_twins_of_its_end_by_itself(text_magnet, tokenizer, monkeypatch, bias):
    model = text_magnet(seed=3)
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        rows[50:300] = rows[2].clone()
    given = {} if bias is None else {"sequence_bias": bias}
    texts = [f"{name} was very <|gap|> and went home." for name in ("Tom", "Mina", "Jorge", "Elif", "Sam")]
    found = model.infill(texts, tokenizer, return_dict=True, max_new_tokens=24, **given)
    settings = fills.end_settings(model, 2)
    monkeypatch.setattr(decoding_magnet, "end_twins", lambda model, end: [end])
    alone = model.infill(texts, tokenizer, return_dict=True, max_new_tokens=24, **given)
    own = 0.0 if bias is None else 1.0
    settings["sequence_bias"] = [[[2], settings["sequence_bias"][0][1] + own]] + ([[[7, 8], 2.0]] if bias else [])
    expected = model.infill(texts, tokenizer, return_dict=True, max_new_tokens=24, **settings)
    assert found == expected != alone
    assert not {token for output in found for token in output.gaps[0].token_ids} & set(range(50, 300))


def test_left_padded_rows_are_written_as_alone(magnet, tokenizer):
    prompts = [[1, 20, 30, 40, 50, 60], [1, 70]]
    together = fills.written_rows(magnet, tokenizer, prompts, batch_size=2)
    alone = [fills.written_rows(magnet, tokenizer, [prompt])[0] for prompt in prompts]
    for (row,), (expected,) in zip(together, alone):
        length = min(len(row), len(expected))
        assert length > 0 and row[:length] == expected[:length]


def test_the_base_stops_where_a_sentence_ends(cases, tokenizer):
    ids = tokenizer(" He sat down. Then he", add_special_tokens=False)["input_ids"]
    assert fills._one_way(ids, tokenizer.eos_token_id, True, cases[0], tokenizer).text == "He sat down."
    unended = fills._one_way(ids, tokenizer.eos_token_id, False, cases[0], tokenizer)
    assert unended.text == "He sat down. Then he" and not unended.finished
    ended = fills._one_way(ids + [tokenizer.eos_token_id] * 3, tokenizer.eos_token_id, False, cases[0], tokenizer)
    assert ended.finished and ended.tokens == len(ids)
    repeated = tokenizer(" He sat. He made a sandwich.", add_special_tokens=False)["input_ids"]
    assert fills._one_way(repeated, tokenizer.eos_token_id, False, cases[0], tokenizer).text == "He sat."


def test_join_scores_equal_those_of_infill(magnet, cases, tokenizer):
    (case, *_) = cases
    (gap,) = magnet.score_infill(f"{case.left} <|gap|> {case.right}", ["He ran home."], tokenizer).gaps
    candidate = fills.Candidate("He ran home.", True, 4)
    fills.score_joins(magnet, tokenizer, [case], [[candidate]])
    assert candidate.scores["join"] == pytest.approx(gap.join_score, rel=1e-4)
    assert candidate.scores["joint"] == pytest.approx(gap.joint_score, rel=1e-4)


def test_mixed_scores_by_hand():
    # a fill of 4 tokens that cost 8 nats, before 2 tokens that cost 1 nat each
    mixed = fills.mixed_scores(join=-1.0, joint=-10.0, tokens=4, behind=2)
    assert mixed["joint_bonus"] == -10 + 2 * 4 and mixed["join_own"] == pytest.approx(-1 - 0.3 * 2)


def test_tables_have_a_row_for_each_measured_system():
    columns = {key: [1.0, 0.5, 1.5] for key in free_length_tables.COLUMNS}
    table = free_length_tables.measured_rows({"magnet_free": columns, "unknown": columns}, free_length_tables.GREEDY)
    assert table.splitlines()[2:] == ["| **MAGNET**, greedy | 1.0 " + "| 1.0 (0.5 to 1.5) " * 6 + "|"]


def test_every_system_fills_every_gap(magnet, cases, tokenizer, monkeypatch):
    monkeypatch.setattr(fills, "MOST", 6)
    monkeypatch.setattr("magnet_eval.free_length.SAMPLES", 2)
    systems = {"gold": gold_row(cases)} | one_way_systems(magnet, magnet, tokenizer, cases)
    systems |= magnet_systems(magnet, tokenizer, cases)
    measured = measure(systems, cases, {"judge": (magnet, tokenizer)}, tokenizer)
    for row in measured.values():
        assert {len(values) for values in row.values()} == {len(cases)}
    assert measured["gold"]["rouge_l"].tolist() == [100, 100] and measured["gold"]["length_error"].tolist() == [0, 0]
    assert [fill.tokens for fill in systems["magnet_gold_length"]] == [case.length for case in cases]
    (mean, _, _) = differences(measured)["gold"]["fim_psm"]["rouge_l"]
    assert mean == pytest.approx((measured["gold"]["rouge_l"] - measured["fim_psm"]["rouge_l"]).mean(), abs=1e-3)


def test_search_and_cut_pools_hold_all_lengths(magnet, cases, tokenizer, monkeypatch):
    monkeypatch.setattr(fills, "SEARCHED", 4)
    for case, pool in zip(cases, fills.search_pools(magnet, tokenizer, cases)):
        assert sorted(candidate.tokens for candidate in pool) == [1, 2, 3, 4]
    assert magnet.config.infill_end_token_id == 2
    pool = fills.cut_pools(magnet, tokenizer, cases[:1], written=5)[0]
    assert [candidate.tokens for candidate in pool] == [1, 2, 3, 4, 5]
    ids, right = [50, 60, 70], cases[0].right_ids[: fills.JOIN]
    for count, candidate in enumerate(fills._cuts(magnet, tokenizer, cases[0], ids), start=1):
        (behind,) = target_logprobs(magnet, [(cases[0].left_ids + ids[:count], right)])
        (whole,) = target_logprobs(magnet, [(cases[0].left_ids, ids[:count] + right)])
        assert candidate.scores["join"] == pytest.approx(behind.mean(), rel=1e-4)
        assert candidate.scores["joint"] == pytest.approx(whole.sum(), rel=1e-4)
    ended = fills.at_sentence_end([[fills.Candidate("a", True, 1), fills.Candidate("b.", True, 1)], pool[:1]])
    assert [len(candidates) for candidates in ended] == [1, 1] and ended[0][0].text == "b."


def test_chunks_of_one_token_are_single_forwards(magnet):
    ids = [1, *range(10, 40)]
    example = GapExample(ids, 8, 3, 0)
    rows, scored = chunked([example], 2)
    assert [(row.start, row.length) for row in rows] == [(8, 3), (10, 1)] and scored.tolist() == [2, 1]
    whole = infill_perplexity(magnet, [example], "exact").nats
    np.testing.assert_allclose(chunked_perplexity(magnet, [example], 3).nats, whole, rtol=1e-5)
    expected = 0.0
    for begun in range(3):  # each token after the text before it and the text behind the gap has been read anew
        known, right = ids[: 8 + begun], ids[11:]
        positions = [*range(8 + begun), *range(11, 11 + len(right))]
        with torch.no_grad():
            logits = magnet(
                torch.tensor([known + right]),
                position_ids=torch.tensor([positions]),
                attention_mode="hybrid",
                span_ids=torch.zeros(1, len(positions), dtype=torch.long),
            ).logits[0, 7 + begun]
        expected -= logits.log_softmax(-1)[ids[8 + begun]].item()
    assert chunked_perplexity(magnet, [example], 1).nats[0] == pytest.approx(expected, rel=1e-4)


def test_curve_reaches_as_far_as_the_positions(magnet):
    ids = torch.randint(10, 90, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    for example in windows_of(ids, 1, (5, 8), 4, 100):
        assert 5 <= example.length <= 8 and len(example.ids) == 100 and example.ids[0] == 1
    rows = curve(magnet, ids, 1, count=2, chunk=48)
    assert [row["bucket"] for row in rows] == [[1, 4], [5, 8], [9, 16], [17, 32], [33, 64], [65, 128], [129, 256]]
    assert "free" in rows[4] and "free" not in rows[5]
    assert "exact, chunks" in rows[4] and "exact, chunks" not in rows[3]


@pytest.mark.shared
def test_real_stories_and_models(shared):
    base, tokenizer = load(str(shared / "models" / "stories3M"))
    stories = read_cloze(shared / "data" / "eval-only" / "roc" / "cloze2016_val.tsv")[:3]
    cases, examples = story_cases(stories, tokenizer)
    assert len(fills.end_twins(base, tokenizer.eos_token_id)) > 100  # byte tokens that its training never met
    (row, *_) = fills.one_way_pools(base, base, tokenizer, cases, [case.left_ids for case in cases], sentence=True)
    assert row[0].finished and row[0].text[-1] in '.!?"'
    assert right_bits(base, tokenizer, [(case.left, case.right) for case in cases]).max() < 0
