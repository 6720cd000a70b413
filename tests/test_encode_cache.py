"""encode(return_cache=True): infill() and generate() from its context equal reading the same text again."""

import copy
from functools import partial

import families
import numpy as np
import pytest
import torch
from infilling import FREE_OFFSET, TEXT, TEXTS, fills_of, forwards_of, naive_fill, next_logits, token_pieces

from modeling_magnet import Gap

PARTS = [TEXTS[0], Gap(length=6), TEXTS[1]]
BATCH = [PARTS, ["A", Gap(), ""], [TEXTS[1] * 3, Gap(length=4), TEXTS[2], Gap(length=3), " Then </s>"]]


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet("sdpa")


def family_model(name: str):
    """A random model; those that slide do it with a window far shorter than the texts."""
    base = families.build_base(name, "sdpa", vocab_size=4096, max_position_embeddings=512, pad_token_id=None)
    return families.build_magnet(base=base, infill_end_token_id=2, infill_free_offsets=[FREE_OFFSET])


def pieces_of(model, tokenizer, texts, instruction=None) -> list[list[int]]:
    """Tokens of each text as encode() reads them: `[BOS] instruction text`, ..., `text [EOS]`."""
    prompt = model.config.representation_prompt if instruction is None else instruction
    pieces = token_pieces([f"{prompt} {texts[0]}".strip(), *texts[1:]], tokenizer)
    return [*pieces[:-1], [*pieces[-1], tokenizer.eos_token_id]]


def logits_of(model, call) -> torch.Tensor:
    """The logits (forwards, rows, V) behind the last token, as the model computes them during `call()`."""
    steps = []
    handle = model.register_forward_hook(lambda module, inputs, output: steps.append(output.logits[:, -1]))
    call()
    handle.remove()
    return torch.stack(steps)


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry."""
    torch.testing.assert_close(actual / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=tolerance)


# --------------------------------------------------------------------------------------------------------- the vectors


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_the_vectors_are_those_of_encode(model, tokenizer, monkeypatch, pooling):
    monkeypatch.setattr(model.config, "pooling", pooling)
    texts = [TEXTS[0], "", "<|gap|>" + TEXTS[1] * 3]  # a marker in a string is text
    for settings in ({}, {"instruction": "", "normalize": False}):
        vectors, _ = model.encode(texts, tokenizer, return_cache=True, **settings)
        np.testing.assert_allclose(vectors, model.encode(texts, tokenizer, **settings), rtol=0, atol=1e-5)
    single, context = model.encode(TEXTS[0], tokenizer, return_cache=True)
    assert single.shape == (64,) and len(context["input_ids"]) == 1


def test_a_gap_leaves_its_positions_free(model, tokenizer):
    vector, context = model.encode(PARTS, tokenizer, return_cache=True)
    left, right = pieces_of(model, tokenizer, TEXTS[:2])
    assert context["input_ids"].tolist() == [left + right]
    positions = [*range(len(left)), *range(len(left) + 6, len(left) + 6 + len(right))]
    assert context["position_ids"].tolist() == [positions]
    with torch.no_grad():
        hidden = model.model(
            torch.tensor([left + right]), position_ids=torch.tensor([positions]), attention_mode="bidirectional"
        ).last_hidden_state[0, -1]
    np.testing.assert_allclose(vector, hidden / hidden.norm(), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ infill()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("texts", [TEXTS[:2], [TEXTS[0], ""], ["", TEXTS[1]]], ids=["inside", "at the end", "first"])
@pytest.mark.parametrize("family", families.EACH)
def test_a_fill_equals_one_without_a_cache(tokenizer, family, texts, dtype, tolerance):
    """At the end of a text it is a continuation of a bidirectional prompt."""
    model = family_model(family).to(dtype)
    parts = [texts[0], Gap(length=6), texts[1]]
    _, context = model.encode(parts, tokenizer, return_cache=True)
    expected, naive = naive_fill(model, tokenizer, pieces_of(model, tokenizer, texts), [6], 0, steps=6)
    fills = []
    write = partial(model.infill, parts, tokenizer, context=context, return_dict=True)
    steps = logits_of(model, lambda: fills.extend(fills_of(write())))
    assert fills == [expected]
    assert_close(steps[:6, 0], naive, tolerance)
    assert "bidirectional" not in [forward.get("attention_mode") for forward in forwards_of(model, write)]


@pytest.mark.parametrize("instruction", ["", "Topic:"])
def test_fills_read_the_instruction_of_the_vectors(model, tokenizer, instruction):
    pieces = pieces_of(model, tokenizer, TEXTS[:2], instruction)
    expected, _ = naive_fill(model, tokenizer, pieces, [6], 0, steps=6)
    _, context = model.encode(PARTS, tokenizer, instruction=instruction, return_cache=True)
    assert fills_of(model.infill(PARTS, tokenizer, context=context, return_dict=True)) == [expected]


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("batch_size", [3, 2, 1])
def test_a_batch_gives_what_its_texts_give_alone(model, tokenizer, order, batch_size):
    options = {"order": order, "return_dict": True}
    alone = []
    for parts in BATCH:
        _, context = model.encode(parts, tokenizer, return_cache=True)
        alone.append(model.infill(parts, tokenizer, context=context, **options))
    _, context = model.encode(BATCH, tokenizer, return_cache=True)
    assert model.infill(BATCH, tokenizer, context=context, batch_size=batch_size, **options) == alone


def test_later_gaps_see_earlier_fills(model, tokenizer):
    pieces = pieces_of(model, tokenizer, TEXTS)
    first, _ = naive_fill(model, tokenizer, pieces, [6, 6], 0, steps=6)
    second, _ = naive_fill(model, tokenizer, [pieces[0] + first + pieces[1], pieces[2]], [6], 0, steps=6)
    parts = [TEXTS[0], Gap(length=6), TEXTS[1], Gap(length=6), TEXTS[2]]
    _, context = model.encode(parts, tokenizer, return_cache=True)
    # a string with markers is the same text
    assert fills_of(model.infill(TEXT, tokenizer, length=6, context=context, return_dict=True)) == [first, second]


@pytest.mark.parametrize(
    "settings", [{"num_beams": 3}, {"cache_implementation": "static"}, {"num_return_sequences": 2}]
)
def test_the_context_is_read_any_number_of_times(model, tokenizer, settings):
    _, context = model.encode(PARTS, tokenizer, return_cache=True)
    before = copy.deepcopy(context["cache"])
    sampled = {"do_sample": True} if "num_return_sequences" in settings else {}
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(model.infill(PARTS, tokenizer, context=context, **settings, **sampled))
    assert results[0] == results[1]
    for layer, same in zip(context["cache"].layers, before.layers):
        assert torch.equal(layer.keys, same.keys) and torch.equal(layer.values, same.values)


# ---------------------------------------------------------------------------------------------------------- generate()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("family", families.EACH)
def test_generate_continues_an_encoded_prompt(tokenizer, family, dtype, tolerance):
    """Padded beside a longer text, or alone: what follows the prompt sees all of it and its own past."""
    model = family_model(family).to(dtype)
    question = tokenizer(" He ate", add_special_tokens=False, return_tensors="pt")["input_ids"]
    texts = [TEXTS[0], TEXTS[1] * 2]
    _, context = model.encode(texts, tokenizer, return_cache=True)
    ids = torch.cat([context["input_ids"], question.expand(2, -1)], dim=1)
    mask = torch.cat([context["attention_mask"], torch.ones_like(question).expand(2, -1)], dim=1)
    written = []
    arguments = {"attention_mask": mask, "cache": context["cache"], "attention_mode": "hybrid"}
    arguments |= {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    steps = logits_of(model, lambda: written.extend(model.generate(ids, **arguments)[:, -4:].tolist()))
    for row, text in enumerate(texts):
        pieces = pieces_of(model, tokenizer, [text])
        for step in range(4):
            span = [*question[0].tolist(), *written[row][:step]]
            assert_close(steps[step, row], next_logits(model, pieces, [], 0, span, ends=True), tolerance)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "encoded, inputs, row",
    [
        (PARTS, ["Tom was not hungry.", *PARTS[1:]], 0),
        (PARTS, [*PARTS[:2], TEXTS[2]], 0),
        (PARTS, [PARTS[0], Gap(length=7), PARTS[2]], 0),
        (PARTS, [PARTS[0], Gap(), PARTS[2]], 0),
        ([PARTS, BATCH[2]], [PARTS, PARTS], 1),
        ([PARTS], [PARTS, PARTS], 1),
        ([PARTS, PARTS], [PARTS], 1),
        (["".join(TEXTS[:2])], [PARTS], 0),
    ],
)
def test_another_text_is_refused(model, tokenizer, encoded, inputs, row):
    _, context = model.encode(encoded, tokenizer, return_cache=True)
    with pytest.raises(ValueError, match=rf"context: its row {row} is not inputs\[{row}\].*the same texts"):
        model.infill(inputs, tokenizer, context=context)


@pytest.mark.parametrize(
    "texts, settings, match",
    [
        ([TEXTS[0]] * 3, {"batch_size": 2}, "from 1 to batch_size=2, not 3"),
        ([], {}, "from 1 to batch_size=32, not 0"),
        (["a", None], {}, r"texts\[1\]: None is neither a string nor a list"),
        ("a " * 600, {}, r"texts\[0\]: \d+ tokens of text .* exceed max_position_embeddings=512"),
        (PARTS, {"return_cache": False}, r"texts\[1\]=Gap\(.*must be a string"),
    ],
)
def test_what_cannot_be_cached_is_refused(model, tokenizer, texts, settings, match):
    with pytest.raises(ValueError, match=match):
        model.encode(texts, tokenizer, **{"return_cache": True, **settings})


def test_drafts_are_not_ranked_by_the_end_that_encode_reads(model, tokenizer):
    """[EOS] is no text behind a gap, whether it stands alone or behind a few words."""
    for parts in ([TEXTS[0], Gap(length=4)], [TEXTS[0], Gap(length=4), " He ran."]):
        _, context = model.encode([parts], tokenizer, instruction="", return_cache=True)
        settings = {"tokenizer": tokenizer, "num_candidates": 3, "num_beams": 3, "return_dict": True}
        (output,) = model.infill([parts], context=context, **settings)
        gap, behind = output.gaps[0], "".join(parts[2:])
        scored = model.score_infill([parts[0], Gap(), behind], [gap.text], tokenizer).gaps[0]
        assert gap.join_score == pytest.approx(scored.join_score, abs=1e-5) if behind else gap.join_score is None
