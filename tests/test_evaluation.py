"""Infilling perplexity against a loop over single tokens; embedding measures against hand-made vectors."""

import copy
import json

import numpy as np
import pytest
import torch

from magnet_eval.embedding import encode_causal, read_graded_pairs, retrieval_top1, sts_spearman
from magnet_eval.infill import document_gaps, main
from magnet_eval.infilling import (
    GapExample,
    Perplexity,
    causal_perplexity,
    infill_perplexity,
    sentence_gaps,
    with_right,
    with_the_right_of_another,
    without_right,
)
from magnet_eval.stories import infilling_row, read_cloze
from modeling_magnet import MagnetLlamaConfig, MagnetLlamaForCausalLM

STORIES = [["Tom was hungry.", "He ate a sandwich.", "He was full."], ["It rained.", "Ann stayed in."]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MagnetLlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        infill_end_token_id=2,
        infill_free_offsets=[64],
    )
    return MagnetLlamaForCausalLM(config).eval()


def test_sentence_gaps_are_slices_of_the_whole_tokenization(model, tokenizer):
    examples = sentence_gaps(STORIES, model.config, tokenizer)
    assert [example.story for example in examples] == [0, 0, 0, 1, 1]
    for example, sentence in zip(examples, [s for story in STORIES for s in story]):
        gap = example.ids[example.start : example.start + example.length]
        assert tokenizer.decode(gap).strip() == sentence
    whole = tokenizer(" ".join(STORIES[0]))["input_ids"]
    assert examples[0].ids == whole
    assert sum(example.length for example in examples[:3]) == len(whole) - 1


def test_one_gap_a_story_takes_the_sentences_in_turn(model, tokenizer):
    first, second = sentence_gaps(STORIES, model.config, tokenizer, every=False)
    assert (first.story, second.story) == (0, 1)
    assert first.start == 1 and second.start > 1


def brute_force(model, example, layout) -> float:
    """-log p of the span, one forward a token, on a text that ends where the rule lets a token look no further."""
    ids, start, end = example.ids, example.start, example.start + example.length
    total = 0.0
    targets = ids[start:end] + ([2] if layout == "free" else [])
    for t, target in enumerate(targets):
        if layout == "causal":
            logits = model(torch.tensor([ids[: start + t]])).logits[0, -1]
        else:  # the known part of the span stands in the text; what is missing is not there at all
            known, right = ids[: start + t], ids[end:]
            shift = 64 - example.length if layout == "free" else 0
            positions = [*range(start + t), *range(end + shift, end + shift + len(right))]
            spans = [0] * start + [1] * t + [0] * len(right)
            logits = model(
                torch.tensor([known + right]),
                position_ids=torch.tensor([positions]),
                attention_mode="hybrid",
                span_ids=torch.tensor([spans]),
            ).logits[0, start + t - 1]
        total -= torch.log_softmax(logits.double(), -1)[target].item()
    return total


@pytest.fixture(scope="module")
def bare(tokenizer):
    """A tokenizer that puts nothing before a text."""
    bare = copy.deepcopy(tokenizer)
    bare.add_bos_token = False
    return bare


def test_without_an_opening_token_the_first_sentence_is_never_missing(model, tokenizer, bare):
    examples, opened = (sentence_gaps(STORIES, model.config, each) for each in (bare, tokenizer))
    assert [(each.start + 1, each.length) for each in examples] == [
        (each.start, each.length) for each in opened if each.start > 1
    ]
    assert all([tokenizer.bos_token_id, *each.ids] in [other.ids for other in opened] for each in examples)
    ids = torch.tensor([bare("Tom was hungry.")["input_ids"]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert causal_perplexity(model, ["Tom was hungry."], bare) == pytest.approx(np.exp(loss), rel=1e-5)


@pytest.mark.parametrize("layout", ["causal", "exact", "free"])
@pytest.mark.parametrize("opens", [True, False])
def test_infill_perplexity_equals_one_forward_a_token(model, tokenizer, bare, opens, layout):
    examples = sentence_gaps(STORIES, model.config, tokenizer if opens else bare)
    measured = infill_perplexity(model, examples, layout, batch_size=3)
    with torch.no_grad():
        expected = [brute_force(model, example, layout) for example in examples]
    np.testing.assert_allclose(measured.nats, expected, rtol=1e-5)
    assert measured.value == pytest.approx(np.exp(sum(expected) / sum(e.length for e in examples)), rel=1e-5)


@pytest.mark.parametrize("layout", ["causal", "exact", "free"])
def test_several_gaps_do_not_see_each_other(model, layout):
    """Each costs what it costs alone in a text from which the others are taken out, at the same positions."""
    ids, spans = list(range(3, 40)), [(2, 4), (9, 3), (30, 7)]
    measured = infill_perplexity(model, [GapExample(ids, spans, 0)], layout)
    shifts, places = dict.fromkeys(range(len(ids)), 0), list(range(len(ids)))
    if layout == "free":
        for start, length in spans:
            for place in range(start + length, len(ids)):
                shifts[place] += 64 - length
    total = 0.0
    for start, length in spans:
        others = {place for s, n in spans if s != start for place in range(s, s + n)} if layout != "causal" else set()
        kept = [place for place in places if place not in others]
        row, inside = (
            torch.tensor([[ids[place] for place in kept]]),
            [start <= place < start + length for place in kept],
        )
        positions = torch.tensor([[place + shifts[place] for place in kept]])
        mode = {} if layout == "causal" else {"attention_mode": "hybrid", "span_ids": torch.tensor([inside]).long()}
        with torch.no_grad():
            logprobs = model(row, position_ids=positions, **mode).logits[0].double().log_softmax(-1)
        first = kept.index(start)
        targets = ids[start : start + length] + ([2] if layout == "free" else [])
        total -= sum(logprobs[first - 1 + n, target].item() for n, target in enumerate(targets))
    assert measured.nats[0] == pytest.approx(total, rel=1e-5)
    assert measured.tokens[0] == 14


def test_rights_of_others_and_none(model, tokenizer):
    examples = with_right(sentence_gaps(STORIES, model.config, tokenizer))
    assert [example.story for example in examples] == [0, 0, 1]  # the last sentence of each has nothing behind it
    texts = [tokenizer.decode(example.ids[1:]) for example in with_the_right_of_another(examples)]
    first, second = STORIES
    assert texts == [
        f"{first[0]} {second[1]}",
        f"{first[0]} {first[1]} {second[1]}",
        f"{second[0]} {first[1]} {first[2]}",
    ]
    for example, bare in zip(examples, without_right(examples)):
        assert bare.ids == example.ids[: example.start + example.length] and bare.spans == example.spans


def test_document_gaps_are_the_papers(model, tokenizer):
    text = "Mina found an old map in the attic of the house. She showed it to her brother, who laughed. " * 40
    examples = document_gaps([text, text], model.config, tokenizer, per_document=3)
    assert [example.story for example in examples] == [0, 0, 0, 1, 1, 1]
    for example in examples:
        ends = [1] + [start + length for start, length in example.spans]
        assert all(8 <= length <= 32 for _, length in example.spans) and len(example.spans) == 3
        assert all(start > end for (start, _), end in zip(example.spans, ends)) and ends[-1] < len(example.ids)
        assert tokenizer.decode(example.ids[1:]).strip() in text
    assert document_gaps(["Too short."], model.config, tokenizer) == []


def test_the_table_of_a_model_and_its_base(model, tokenizer, monkeypatch, tmp_path, capsys):
    tiny = copy.deepcopy(model)
    tiny.config.causal_adapter = True  # as one whose adapter was merged
    models = {"tiny": tiny, "base": model}
    monkeypatch.setattr("magnet_eval.infill.load", lambda path: (models[path], tokenizer))
    (tmp_path / "stories").mkdir()
    rows = "".join(json.dumps({"sentences": story}) + "\n" for story in STORIES)
    (tmp_path / "stories" / "validation.jsonl").write_text(rows)
    (tmp_path / "wiki.txt").write_text("Seen in training.\n" + "The bridge was built in 1932 and closed. " * 40 + "\n")
    command = [
        "infill",
        "--model",
        "tiny",
        "--baseline",
        "base",
        "--stories",
        str(tmp_path / "stories/validation.jsonl"),
    ]
    command += ["--documents", str(tmp_path / "wiki.txt"), "--skip", "1", "--output", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", command)
    main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found == json.loads(capsys.readouterr().out) and found.keys() == {"stories", "documents"}
    row = found["stories"]
    assert row["gaps"] == 5 and row["perplexity"].keys() == {"tiny", "base"}
    assert row["perplexity"]["base"].keys() == {"causal"}
    examples = sentence_gaps(STORIES, model.config, tokenizer)
    for layout in ("causal", "exact", "free"):
        assert row["perplexity"]["tiny"][layout][0] == round(infill_perplexity(model, examples, layout).value, 2)
    assert row["ratios"].keys() == {
        "exact / tiny",
        "exact / base",
        "free / tiny",
        "free / base",
        "own / another's",
        "own / none",
    }
    assert row["ratios"]["exact / base"][1] <= row["ratios"]["exact / base"][0] <= row["ratios"]["exact / base"][2]
    own, other = (
        infill_perplexity(model, each(with_right(examples)), "exact").value
        for each in (list, with_the_right_of_another)
    )
    assert row["ratios"]["own / another's"][0] == round(own / other, 3)


def test_free_layout_needs_a_trained_end(model, tokenizer):
    model.config.infill_end_token_id = None
    try:
        with pytest.raises(ValueError, match="layout='free'.*layout='exact'"):
            infill_perplexity(model, sentence_gaps(STORIES, model.config, tokenizer), "free")
    finally:
        model.config.infill_end_token_id = 2


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({}, {"causal", "exact", "free"}),
        ({"causal_adapter": True, "infill_end_token_id": None}, {"causal", "exact"}),  # recipe `paper`
        ({"causal_adapter": True, "adapter": None}, {"causal", "exact", "free"}),  # form `merged`
        ({"adapter": None}, {"causal"}),  # a base
    ],
)
def test_hybrid_mode_is_measured_of_every_adapted_model(text_magnet, tokenizer, settings, measured):
    row = infilling_row(text_magnet(**settings), tokenizer, STORIES)
    assert {key.removeprefix("infill_") for key in row if key.startswith("infill_") and key[-3:] != "_95"} == measured


def test_causal_perplexity_equals_the_language_model_loss(model, tokenizer):
    ids = torch.tensor([tokenizer("Tom was hungry.")["input_ids"]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert causal_perplexity(model, ["Tom was hungry."], tokenizer) == pytest.approx(np.exp(loss), rel=1e-5)


def test_interval_holds_the_value_and_shrinks_to_it():
    same = Perplexity(np.full(20, 6.0), np.full(20, 3), np.arange(20))
    assert same.interval() == pytest.approx((same.value, same.value))
    rng = np.random.default_rng(0)
    mixed = Perplexity(rng.uniform(3, 9, 50), np.full(50, 3), np.arange(50))
    low, high = mixed.interval()
    assert low < mixed.value < high
    halved = Perplexity(mixed.nats - 3 * np.log(2), mixed.tokens, mixed.stories)
    assert halved.ratio_interval(mixed) == pytest.approx((0.5, 0.5))  # paired: the stories' differences cancel


def test_spearman_and_retrieval():
    table = {"a": [1.0, 0.0], "b": [0.9, np.sqrt(0.19)], "c": [0.0, 1.0], "d": [-1.0, 0.0]}

    def encode(texts):
        return np.array([table[text] for text in texts])

    assert sts_spearman(encode, [(5, "a", "b"), (3, "a", "c"), (0, "a", "d")]) == pytest.approx(100)
    assert sts_spearman(encode, [(0, "a", "b"), (3, "a", "c"), (5, "a", "d")]) == pytest.approx(-100)
    assert retrieval_top1(encode, ["a", "c"], ["b", "d"]) == 100
    assert retrieval_top1(encode, ["a", "c"], ["b", "b"]) == 50


def test_encode_causal_reads_the_last_token(model, tokenizer):
    prompt = model.config.representation_prompt
    ids = torch.tensor([[1, *tokenizer(f"{prompt} It rained.", add_special_tokens=False)["input_ids"], 2]])
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0]
    vectors = encode_causal(model, ["It rained.", "Ann stayed in all day long."], tokenizer)
    np.testing.assert_allclose(vectors[0], torch.nn.functional.normalize(hidden[-1], dim=0), atol=1e-5)
    means = encode_causal(model, ["It rained.", "Ann stayed in all day long."], tokenizer, pooling="mean")
    np.testing.assert_allclose(means[0], torch.nn.functional.normalize(hidden.mean(0), dim=0), atol=1e-5)


def test_readers(tmp_path):
    (tmp_path / "sts.tsv").write_text("4.5\tA b.\tC d.\n", encoding="utf-8")
    assert read_graded_pairs(tmp_path / "sts.tsv") == [(4.5, "A b.", "C d.")]
    (tmp_path / "cloze.tsv").write_text(
        "id\t1\t2\t3\t4\tright\twrong\t1\nid\t1\t2\t3\t4\twrong\tright\t2\n", encoding="utf-8"
    )
    assert read_cloze(tmp_path / "cloze.tsv") == [["1", "2", "3", "4", "right"]] * 2


def test_gap_longer_than_the_offset_is_refused(model):
    with pytest.raises(ValueError, match="70 tokens exceeds infill_free_offsets"):
        infill_perplexity(model, [GapExample(list(range(3, 90)), [(5, 70)], 0)], "free")
