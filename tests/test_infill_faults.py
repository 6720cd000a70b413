"""Faults 21 to 31: bad input to infill() is refused by name or handled; nothing shared is changed; seeds and threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_infill_exact import TEXTS
from test_infill_text import given_ids
from transformers import AutoModel, LlamaForCausalLM, set_seed

from modeling_magnet import Gap, InfilledGap, InfillOutput, MagnetLlamaForCausalLM
from modeling_magnet.seams_magnet import text_ids

TEXT = "<|gap|>".join(TEXTS)


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.mark.parametrize("inputs", ["<|gap|>", [Gap()], ["", Gap(), ""], ["a<|gap|>", "<|gap:x|>"]])
def test_21_no_text_on_either_side(model, tokenizer, inputs):
    with pytest.raises(ValueError, match=r"inputs\[[01]\]: no text around the gap\. Use generate\(\)"):
        model.infill(inputs, tokenizer)


@pytest.mark.parametrize("inputs", ["Tom was<|gap|>", "<|gap|> was sad.", ["\n", Gap()], [Gap(), " "]])
def test_22_text_on_one_side(model, tokenizer, inputs):
    for length in (4, (1, 4), "auto"):
        for order in ("sequential", "parallel"):
            output = model.infill(inputs, tokenizer, length=length, order=order, max_new_tokens=4, return_dict=True)
            (gap,) = output.gaps
            sides = inputs.split("<|gap|>") if isinstance(inputs, str) else [p for p in inputs if isinstance(p, str)]
            assert output.text[: gap.span[0]] + output.text[gap.span[1] :] == "".join(sides)


@pytest.mark.parametrize("inputs", ["", "Tom was sad.", r"Tom \<|gap|> sad.", ["a<|gap|>", "b"], [["Tom"]]])
def test_23_no_gap(model, tokenizer, inputs):
    with pytest.raises(ValueError, match=r"inputs\[[01]\]: no gap\. Mark one with '<\|gap\|>'"):
        model.infill(inputs, tokenizer)


def test_23_many_gaps(model, tokenizer):
    """There is no greatest number of gaps, but there is one of positions."""
    text = " and<|gap|>" * 60
    output = model.infill(text, tokenizer, length=1, order="parallel", return_dict=True, batch_size=100)
    assert [len(gap.token_ids) for gap in output.gaps] == [1] * 60
    with pytest.raises(
        ValueError, match=r"61 tokens of text and gaps of \[8, .*; 451 positions are left for the gaps"
    ):
        model.infill(text, tokenizer, length=8)


@pytest.mark.parametrize("inputs", ["a<|gap|><|gap|>b", ["a", Gap(), "", Gap(), "b"], [Gap(2), Gap(3), "b"]])
def test_24_gaps_that_touch(model, tokenizer, inputs):
    """Gaps stand between texts, so nothing else about their places can be wrong."""
    with pytest.raises(ValueError, match=r"inputs\[0\]: two gaps touch.*put text between"):
        model.infill(inputs, tokenizer)


@pytest.mark.parametrize("value", [0, -1, "5", True, 2.5, None])
def test_25_max_new_tokens(model, tokenizer, value):
    with pytest.raises(ValueError, match=rf"max_new_tokens={value!r}: must be a positive integer"):
        model.infill(TEXT, tokenizer, max_new_tokens=value)


def test_25_no_room(model, tokenizer):
    with pytest.raises(ValueError, match=r"exceed max_position_embeddings=512; \d+ positions are left"):
        model.infill(TEXT, tokenizer, max_new_tokens=600)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"do_sample": True, "temperature": 0}, "temperature=0: must be positive to sample"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature=nan: must be positive"),
        ({"top_p": 1.5}, "top_p=1.5: must lie above 0 and not above 1"),
        ({"top_p": 0.0}, "top_p=0.0: must lie"),
        ({"top_k": -1}, "top_k=-1: must be an integer of 0 or more"),
        ({"top_k": 2.5}, "top_k=2.5: must be an integer"),
        ({"num_beams": 0}, "num_beams=0: must be a positive integer"),
        ({"num_beams": 2.0}, "num_beams=2.0: must be a positive integer"),
        ({"chunk_size": 0}, "chunk_size=0: must be a positive integer"),
        ({"avoid_copy": 0}, "avoid_copy=0: must be a positive integer"),
        ({"batch_size": None}, "batch_size=None: must be a positive integer"),
        ({"join_tokens": 0}, "join_tokens=0: must be a positive integer"),
        ({"assistant_model": 1}, r"\['assistant_model'\]: infill\(\)"),
        ({"prompt_lookup_num_tokens": 2}, r"\['prompt_lookup_num_tokens'\]: infill\(\)"),
        ({"guidance_scale": 2.0}, r"\['guidance_scale'\]: infill\(\)"),
        ({"custom_generate": "x"}, r"\['custom_generate'\]: infill\(\)"),
    ],
)
def test_26_settings(model, tokenizer, arguments, match):
    with pytest.raises(ValueError, match=match):
        model.infill(TEXT, tokenizer, **arguments)


def test_27_control_tokens_in_a_text_are_text(model, tokenizer):
    hostile = "a_b <gap> </s> <s> <pad> <unk> <mask>"
    texts = [hostile, hostile, hostile]
    parts = [texts[0], Gap(7, prefix=" </s>"), texts[1], Gap(candidates=["</s>", "<pad>"]), texts[2]]
    forwards = given_ids(model, lambda: model.infill(parts, tokenizer, stop=["</s> x"], avoid_copy=2))
    rows = [row for forward in forwards for row in forward]
    control = set(tokenizer.all_special_ids)
    # [BOS] opens a context; rows that are finished are padded
    assert all(control.isdisjoint(row[1:]) for row in rows) and len(rows) > 5
    output = model.infill(parts, tokenizer, return_dict=True)
    for gap in output.gaps:
        assert gap.text.startswith((" </s>", "</s>", "<pad>")) and control.isdisjoint(gap.token_ids)


def test_27_control_tokens_stay_text_while_other_threads_tokenize(model, tokenizer):
    """The tokenizer holds that setting; a call without it, in another thread, changes it at any moment."""
    done = threading.Event()

    def disturb():
        while not done.is_set():
            tokenizer("</s>")

    others = [threading.Thread(target=disturb) for _ in range(3)]
    for other in others:
        other.start()
    try:
        assert not any(2 in text_ids("a </s> b", tokenizer) for _ in range(3000))
    finally:
        done.set()
        for other in others:
            other.join()


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_28_the_end_at_once(model, tokenizer, order, search):
    at_once = {"sequence_bias": {(2,): 1e4}}
    output = model.infill("a <|gap|> b<|gap|>", tokenizer, order=order, return_dict=True, **at_once, **search)
    first, second = InfilledGap("", [], "end_token", span=(2, 2)), InfilledGap("", [], "end_token", span=(4, 4))
    assert output == InfillOutput("a  b", [first, second])
    assert [gap.token_logprobs for gap in output.gaps] == [[], []]
    later = model.infill("a<|gap|> b", tokenizer, min_new_tokens=3, return_dict=True, **at_once, **search).gaps[0]
    assert len(later.token_ids) == 3


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_29_a_batch_is_each_of_its_texts(model, tokenizer, order):
    batch = [
        TEXT,
        "A<|gap|>",
        ["x", Gap(3), TEXTS[1] * 4, Gap((1, 9)), "."],
        ["", Gap(stop="word", max_new_tokens=12), "!", Gap(6, prefix=" so"), " Then", Gap(candidates=["a", " b c"])],
    ]
    arguments = {"length": (2, 7), "order": order, "return_dict": True, "sequence_bias": {(2,): 4.0}, "chunk_size": 4}
    together = model.infill(batch, tokenizer, **arguments)
    assert together == [model.infill([item], tokenizer, **arguments)[0] for item in batch]


def test_30_the_same_seed_gives_the_same_text(model, tokenizer):
    def fills(seed, seeded):
        seeded(seed)
        return model.infill(TEXT, tokenizer, length=8, do_sample=True, num_return_sequences=3)

    assert fills(1, torch.manual_seed) == fills(1, set_seed) != fills(2, set_seed)
    assert fills(1, set_seed) != model.infill(TEXT, tokenizer, length=8, do_sample=True, num_return_sequences=3)


def test_30_threads_give_what_one_thread_gives(model, tokenizer):
    causal = tokenizer("Once upon a time", return_tensors="pt").input_ids
    parts = [
        "Tom ",
        Gap(5, prefix="ver"),
        " and </s> ",
        Gap("auto", 9, stop="word"),
        " he ",
        Gap(candidates=["a", "b"]),
        ".",
    ]
    jobs = [
        lambda: model.infill(parts, tokenizer, return_dict=True),
        lambda: model.infill(parts, tokenizer, order="parallel", avoid_copy=2, chunk_size=3, return_dict=True),
        lambda: model.infill(TEXT, tokenizer, num_beams=3, length=5, num_return_sequences=2, return_dict=True),
        lambda: list(model.infill_stream(TEXT, tokenizer, length=6)),
        lambda: model.score_infill(TEXT, [" x", "</s>"], tokenizer),
        lambda: model.encode(TEXTS, tokenizer).tolist(),
        lambda: model.generate(causal, max_new_tokens=8, do_sample=False).tolist(),
    ]
    settings = model.config.to_dict(), model.generation_config.to_dict(), model.training
    expected = [job() for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(6):
            assert list(pool.map(lambda job: job(), jobs)) == expected
    assert settings == (model.config.to_dict(), model.generation_config.to_dict(), model.training)
    assert parts[1] == Gap(5, prefix="ver")  # what the caller passed is the caller's


def test_31_models_that_cannot_infill(tiny_llama, base_model_path):
    """A plain Llama, and the decoder that AutoModel gives, have no infill(); their own words say so."""
    with pytest.raises(AttributeError, match="'LlamaForCausalLM' object has no attribute 'infill'"):
        tiny_llama().infill(TEXT, None)
    decoder = AutoModel.from_pretrained(base_model_path.parent / "magnet-tiny")
    with pytest.raises(AttributeError, match="'MagnetLlamaModel' object has no attribute 'infill'"):
        decoder.infill(TEXT, None)


def test_31_a_model_without_infill_training(base_model_path, tokenizer):
    """Attention is chosen by the call: a mode in the configuration changes nothing. Without an end token it searches."""
    llama = LlamaForCausalLM.from_pretrained(base_model_path, dtype="float32")
    plain = MagnetLlamaForCausalLM.from_llama(llama)
    expected = plain.infill(TEXT, tokenizer, length=4)
    bidirectional = MagnetLlamaForCausalLM.from_llama(llama, attention_mode="bidirectional")
    assert bidirectional.infill(TEXT, tokenizer, length=4) == expected
    with pytest.raises(ValueError, match="selection='end': this checkpoint was not trained to end a gap"):
        plain.infill(TEXT, tokenizer, selection="end")


def test_training_mode_with_gradient_checkpointing(text_magnet, tokenizer):
    model = text_magnet()
    expected = model.infill(TEXT, tokenizer, length=3)
    model.gradient_checkpointing_enable()
    assert model.infill(TEXT, tokenizer, length=3) == expected  # in eval mode it is off
    model.train()
    for call in (model.infill, lambda *inputs: model.score_infill(inputs[0], ["a", "b"], inputs[1])):
        with pytest.raises(
            ValueError, match=r"gradient checkpointing switches off in training mode. Call model.eval\(\)"
        ):
            call(TEXT, tokenizer)
    model.gradient_checkpointing_disable()
    assert model.infill(TEXT, tokenizer, length=3) == expected and model.training  # these models have no dropout
