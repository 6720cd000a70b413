"""What infill() refuses: each error names the parameter, the value and the way out; no call falls into another mode."""

import re

import pytest

from modeling_magnet import Gap

TEXT = "Tom was <|gap|> sad."


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture
def refused(model, tokenizer, monkeypatch):
    """Calls infill() and expects a ValueError that matches, before anything is computed."""

    def never(*args, **kwargs):
        raise AssertionError("the model was run")

    monkeypatch.setattr(model.model, "forward", never)

    def check(match, inputs=TEXT, **arguments):
        with pytest.raises(ValueError, match=match):
            model.infill(inputs, tokenizer, **arguments)

    return check


@pytest.mark.parametrize(
    "inputs, match",
    [
        ("", r"inputs\[0\]: no gap\. Mark one with '<\|gap\|>', or use generate"),
        ("Tom was sad.", r"inputs\[0\]: no gap"),
        (r"Tom was \<|gap|> sad.", r"inputs\[0\]: no gap"),
        ([TEXT, "no gap here"], r"inputs\[1\]: no gap"),
        ([TEXT, []], r"inputs\[1\]: no gap"),
        ("Tom <|gap|><|gap|> sad.", r"inputs\[0\]: two gaps touch.*put text between"),
        (["Tom ", Gap(2), Gap(3), " sad."], r"inputs\[0\]: two gaps touch"),
        (["Tom ", Gap(2), "", Gap(3), " sad."], r"inputs\[0\]: two gaps touch"),
        ([TEXT, "a<|gap|>b<|gap|><|gap|>"], r"inputs\[1\]: two gaps touch"),
        ("<|gap|>", r"inputs\[0\]: no text around the gap\. Use generate"),
        ([Gap()], r"inputs\[0\]: no text around the gap"),
        ([TEXT, ["", Gap(), ""]], r"inputs\[1\]: no text around the gap"),
        (None, "inputs=None: must be a string"),
        (123, "inputs=123: must be a string"),
        ([None], r"inputs\[0\]: None is neither a string nor a list"),
        ([TEXT, 123], r"inputs\[1\]: 123 is neither a string nor a list"),
        (["Tom ", Gap(), 123], r"inputs\[0\]: 123 is neither a string nor a Gap"),
        ([TEXT, ["Tom ", Gap(), None]], r"inputs\[1\]: None is neither a string nor a Gap"),
        ("Tom \ud800 <|gap|>", r"inputs\[0\]: the character at 4 is half of a surrogate pair"),
    ],
)
def test_inputs(refused, inputs, match):
    refused(match, inputs, length=4)


@pytest.mark.parametrize("value", [0, -1, True, "5", 2.5, None, "long"])
def test_length(refused, value):
    message = re.escape(f"inputs[0]: length={value!r}: must be a positive integer")
    refused(message, length=value)
    if value is not None:  # None in a Gap means the call's
        refused(message, ["Tom was ", Gap(length=value), " sad."], length=4)
        refused(message.replace(r"\[0", r"\[1"), [TEXT, ["Tom was ", Gap(length=value), " sad."]], length=4)


@pytest.mark.parametrize("value", [0, -1, True, "5", 2.5, None])
def test_max_new_tokens(refused, value):
    message = re.escape(f"max_new_tokens={value!r}: must be a positive integer")
    refused(message, max_new_tokens=value)
    if value is not None:
        refused(re.escape("inputs[0]: ") + message, ["Tom was ", Gap(max_new_tokens=value), " sad."])


def test_a_budget_of_the_whole_offset_is_allowed(model, tokenizer):
    arguments = {"max_new_tokens": 64, "suppress_tokens": [2], "return_dict": True}
    assert len(model.infill(TEXT, tokenizer, **arguments).gaps[0].token_ids) == 64


def test_room(model, tokenizer):
    n_text = 1 + len(tokenizer("Tom was sad.", add_special_tokens=False)["input_ids"])
    room = 512 - n_text
    output = model.infill(TEXT, tokenizer, length=room, return_dict=True)
    assert len(output.gaps[0].token_ids) == room  # fits exactly
    for length in (room + 1, 10**9):
        with pytest.raises(ValueError, match=rf"inputs\[0\]: {n_text} tokens.*{room} positions are left.*Shorten"):
            model.infill(TEXT, tokenizer, length=length)


@pytest.mark.parametrize(
    "inputs, arguments, left",
    [
        (["Tom" + " was" * 299, Gap(100), ".", Gap(length=150)], {}, 210),  # [BOS] + 300 words, and a full stop
        (["Tom" + " was" * 449, Gap()], {"max_new_tokens": 5}, 61),  # a free gap takes its whole offset
        (["Tom" + " was" * 599, Gap(1)], {}, 0),
    ],
)
def test_room_of_all_gaps_together(refused, inputs, arguments, left):
    refused(
        rf"inputs\[1\]: .* exceed max_position_embeddings=512; {left} positions are left", [TEXT, inputs], **arguments
    )


def test_without_an_end_token(text_magnet, tokenizer):
    model = text_magnet(infill_end_token_id=None)
    with pytest.raises(ValueError, match=r"layout='free': this checkpoint was not trained to end a gap"):
        model.score_infill(TEXT, ["x"], tokenizer, layout="free")
    output = model.infill(TEXT, tokenizer, length=4, return_dict=True)  # the paper's layout needs none
    assert len(output.gaps[0].token_ids) == 4


@pytest.mark.parametrize("order", ["Parallel", "", None, "confident"])
def test_order(refused, order):
    refused(re.escape(f"order={order!r}: must be 'sequential' or 'parallel'"), length=4, order=order)


@pytest.mark.parametrize("value", [0, -1, True, "2", 1.0, None])
def test_num_return_sequences(refused, value):
    refused(
        re.escape(f"num_return_sequences={value!r}: must be a positive integer"), length=4, num_return_sequences=value
    )


@pytest.mark.parametrize("value", ["", None])
def test_gap_token(refused, value):
    refused(f"gap_token={value!r}: must not be empty; .* pass parts with Gap objects", length=4, gap_token=value)


@pytest.mark.parametrize(
    "name",
    ["past_key_values", "use_cache", "attention_mode", "span_ids", "eos_token_id", "max_length", "output_scores"],
)
def test_own_arguments(refused, name):
    refused(rf"\['{name}'\]: infill\(\) sets these itself; leave them out", length=4, **{name: None})


def test_greedy_search_gives_one_answer(model, tokenizer):
    with pytest.raises(ValueError, match="num_return_sequences"):  # transformers' own words
        model.infill(TEXT, tokenizer, length=4, num_return_sequences=2)


def test_misspelt_arguments(model, tokenizer):
    with pytest.raises(ValueError, match="temprature"):
        model.infill(TEXT, tokenizer, length=4, temprature=0.5)


def test_a_tokenizer_without_bos(model):
    class Bare:
        bos_token_id, is_fast = None, True

    with pytest.raises(ValueError, match="tokenizer: infill.. needs a fast tokenizer with a bos_token"):
        model.infill(TEXT, Bare(), length=4)
