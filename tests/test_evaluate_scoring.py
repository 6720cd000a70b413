"""The one scorer: the cost of missing tokens against a loop over single tokens, and the gaps of the two kinds of text."""

import copy
import math

import numpy as np
import pytest
import torch

from magnet_eval.infill import document_gaps, is_two_sided, windows, with_the_right_of_another, without_right
from magnet_eval.scoring import (
    GapExample,
    infill_perplexity,
    right_bits,
    sentence_gaps,
    span_costs,
    whole_texts,
)
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


def whole_perplexity(model, text, tokenizer) -> float:
    return infill_perplexity(model, whole_texts([text], model.config, tokenizer), "causal").value


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
            if layout == "exact" or t == 0:  # none of known length ends early, and none is empty
                logits[2] = -torch.inf
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
    assert whole_perplexity(model, "Tom was hungry.", bare) == pytest.approx(np.exp(loss), rel=1e-5)


@pytest.mark.parametrize("layout", ["causal", "exact", "free"])
@pytest.mark.parametrize("opens", [True, False])
def test_infill_perplexity_equals_one_forward_a_token(model, tokenizer, bare, opens, layout):
    examples = sentence_gaps(STORIES, model.config, tokenizer if opens else bare)
    with torch.no_grad():
        expected = [brute_force(model, example, layout) for example in examples]
    np.testing.assert_allclose(span_costs(model, examples, layout, batch_size=3), expected, rtol=1e-5)
    measured = infill_perplexity(model, examples, layout, batch_size=3)
    assert [len(column) for column in measured.columns] == [2, 2]  # stories are the units
    assert measured.value == pytest.approx(np.exp(sum(expected) / sum(e.length for e in examples)), rel=1e-5)


@pytest.mark.parametrize("layout", ["causal", "exact", "free"])
def test_several_gaps_do_not_see_each_other(model, layout):
    """Each costs what it costs alone in a text from which the others are taken out, at the same positions."""
    ids, spans = list(range(3, 40)), [(2, 4), (9, 3), (30, 7)]
    example = GapExample(ids, spans, 0)
    (found,) = span_costs(model, [example], layout)
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
            logits = model(row, position_ids=positions, **mode).logits[0].double()
        first = kept.index(start)
        if layout != "causal":
            barred = len(logits) if layout == "exact" else first  # none of known length ends early, and none is empty
            logits[first - 1 : barred, 2] = -torch.inf
        logprobs = logits.log_softmax(-1)
        targets = ids[start : start + length] + ([2] if layout == "free" else [])
        total -= sum(logprobs[first - 1 + n, target].item() for n, target in enumerate(targets))
    assert found == pytest.approx(total, rel=1e-5)
    assert infill_perplexity(model, [example], layout).tokens == 14


def test_rights_of_others_and_none(model, tokenizer):
    examples = [each for each in sentence_gaps(STORIES, model.config, tokenizer) if is_two_sided(each)]
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


def test_free_layout_needs_a_trained_end(model, tokenizer):
    model.config.infill_end_token_id = None
    try:
        with pytest.raises(ValueError, match="layout='free'.*layout='exact'"):
            infill_perplexity(model, sentence_gaps(STORIES, model.config, tokenizer), "free")
    finally:
        model.config.infill_end_token_id = 2


def test_causal_perplexity_equals_the_language_model_loss(model, tokenizer):
    ids = torch.tensor([tokenizer("Tom was hungry.")["input_ids"]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert whole_perplexity(model, "Tom was hungry.", tokenizer) == pytest.approx(np.exp(loss), rel=1e-5)


def test_gap_longer_than_the_offset_is_refused(model):
    with pytest.raises(ValueError, match="70 tokens exceeds infill_free_offsets"):
        infill_perplexity(model, [GapExample(list(range(3, 90)), [(5, 70)], 0)], "free")


def test_windows_have_one_gap_each_of_the_wanted_length():
    documents = [list(range(100)), list(range(1000, 1300)), list(range(2000, 2300))]
    examples = windows(documents, [1], (5, 8), 4, 100)
    assert [example.story for example in examples] == [0, 1, 2, 3]
    for n, example in enumerate(examples):
        assert 5 <= example.length <= 8 and len(example.ids) == 100 and example.ids[0] == 1
        assert set(example.ids[1:]) <= set(documents[1 + n % 2])  # the first document is too short
    assert windows(documents[:1], [1], (5, 8), 4, 100) == []


def test_right_bits_are_those_of_the_right_side_under_the_base(text_magnet, tokenizer):
    magnet, before, right = text_magnet(), "Tom was hungry.", "He ate."
    whole = [1, *tokenizer(f"{before} {right}", add_special_tokens=False)["input_ids"]]
    split = 1 + len(tokenizer(before, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logprobs = magnet(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(logprobs[n - 1, whole[n]].item() for n in range(split, len(whole))) / math.log(2)
    assert right_bits(magnet, tokenizer, [(before, right)])[0] == pytest.approx(expected, rel=1e-5)
