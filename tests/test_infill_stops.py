"""Where a fill begins and ends in characters: prefixes, words behind a space, stops."""

import pytest
import torch
from transformers import AutoTokenizer, LogitsProcessor

from modeling_magnet import Gap
from modeling_magnet.rules_magnet import start_tokens
from modeling_magnet.seams_magnet import close_seam, cut_at, text_ids

NEVER = {"sequence_bias": {(2,): -1e4}}


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


class Write(LogitsProcessor):
    """Makes one gap after the other begin with the next of these rows of tokens, then goes on as the model would."""

    def __init__(self, rows):
        self.rows, self.start = rows, None

    def __call__(self, input_ids, scores):
        self.start = input_ids.shape[1] if self.start is None else self.start
        step = input_ids.shape[1] - self.start
        if step < len(self.rows):
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self.rows[step]] = 0
        return scores


# -------------------------------------------------------------------------------------------------------- prefixes

PREFIXES = [  # left, prefix
    ("Tom was ", "ver"),
    ("Tom was ", "very "),
    ("Tom wa", "s"),
    ("Tom was", " "),
    ("Tom was ", " x"),
    ("", "Once"),
    ("", " x"),
    (" ", "x"),
    (" ", " x"),
    ("a ", "é🎉"),
    ("a🎉", "🎉e\u0301"),
    ("x", "<"),
    ("x", "</s>"),
    ("def f():\n    ", "return"),
    ("one\r\n", "\r\n\ttwo  "),
]


def check_prefix(model, tokenizer, left, prefix):
    for right in (prefix + " sad " + prefix, "" if left else "."):
        for options in (Gap(12), Gap("auto", 12, stop="word"), Gap((0, 12), stop=["e", " "])):
            options.prefix = prefix
            for more in ({"chunk_size": 3, "avoid_copy": 1}, {"do_sample": True, "temperature": 9.0}):
                end = {"sequence_bias": {(2,): 6.0}}
                output = model.infill([left, options, right], tokenizer, return_dict=True, **more, **end)
                assert output.gaps[0].text.startswith(prefix), (options, more)
                assert output.text == left + output.gaps[0].text + right
                assert len(output.gaps[0].token_ids) <= 12


@pytest.mark.parametrize("left, prefix", PREFIXES)
def test_a_fill_starts_with_its_prefix(model, tokenizer, left, prefix):
    check_prefix(model, tokenizer, left, prefix)


@pytest.mark.shared
@pytest.mark.parametrize("left, prefix", PREFIXES)
def test_a_fill_starts_with_its_prefix_in_sentencepiece(model, shared, left, prefix):
    check_prefix(model, AutoTokenizer.from_pretrained(shared / "models" / "stories3M"), left, prefix)


def test_a_prefix_keeps_the_space_at_its_end():
    assert close_seam("very ", " sad", "very ") == "very "
    assert close_seam("very big \n", " sad", "very ") == "very big"
    assert close_seam("very ", "sad") == "very "


def test_a_prefix_may_end_inside_a_token(tokenizer):
    very, ru = start_tokens(text_ids(" very ru", tokenizer), tokenizer)
    assert {tokenizer.decode(token) for token in very} == {" very"}
    last = {tokenizer.decode(token) for token in ru}
    assert {" ru", " run", " running"} & last and all(token.startswith(" ru") for token in last)


@pytest.mark.shared
def test_a_prefix_that_has_no_tokens(model, shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories3M")
    with pytest.raises(ValueError, match="prefix='▁x': the tokenizer has no tokens for it"):  # its sign for a space
        model.infill(["Tom ", Gap(prefix="▁x"), " sad."], tokenizer)


@pytest.mark.parametrize("left", ["Tom was ", "Tom was  ", "def f():\n    ", "one\t "])
def test_behind_a_space_a_fill_begins_a_word(model, tokenizer, left):
    torch.manual_seed(0)
    sampling = {"do_sample": True, "num_return_sequences": 16, "return_dict": True, "temperature": 5.0}
    for output in model.infill(left + "<|gap|> sad.", tokenizer, length=2, **sampling):
        first = tokenizer.convert_ids_to_tokens(output.gaps[0].token_ids[0])
        assert first.startswith("Ġ") and output.text.startswith(
            left + tokenizer.decode(output.gaps[0].token_ids[0])[1:]
        )


# ----------------------------------------------------------------------------------------------------------- stops

STOPS = [  # stop, what the model writes, the fill
    ("sentence", " He ran. Then", " He ran."),
    ("sentence", ' "Run!" he said.', ' "Run!"'),
    ("sentence", " 3.14 is pi. Yes", " 3.14 is pi."),
    ("sentence", "好。他", "好。"),
    ("line", " one\ntwo", " one"),
    ("line", "\r\n\n one\r\ntwo", "\r\n\n one"),
    ("word", " very happy", " very"),
    ("word", " - don't, no", " - don't"),
    ("word", " cafe\u0301 au", " cafe\u0301"),
    ("word", " हिन्दी में", " हिन्दी"),
    ("word", " 🎉 yes no", " 🎉 yes"),
    ([" and"], " red and blue", " red"),
    (["blue", "re"], " red and blue", " "),
    ([", big red house a"], " the, big red house and", " the"),
    (["ppy"], " unhappy dog", " unha"),
    (["\n\n"], " one\ntwo\n\nthree", " one\ntwo"),
    (lambda text: text.find("s") if "s" in text else None, " it was so", " it wa"),
    (lambda text: len(text) if len(text) > 5 else None, "abc def ghi", None),
]


@pytest.mark.parametrize("stop, written, fill", STOPS)
@pytest.mark.parametrize("length", [24, "auto"])
def test_stops(model, tokenizer, stop, written, fill, length):
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    arguments = {"length": length, "max_new_tokens": 24, "return_dict": True, "logits_processor": [Write(ids)]}
    output = model.infill(["Tom", Gap(stop=stop), "|"], tokenizer, **arguments)
    (gap,) = output.gaps
    assert gap.finish_reason == "stop"
    if fill is not None:
        assert (gap.text, output.text) == (fill, f"Tom{fill}|")
    assert tokenizer.decode(gap.token_ids) == gap.text and len(gap.token_logprobs) == len(gap.token_ids)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True}])
def test_stops_of_alternatives(model, tokenizer, how):
    torch.manual_seed(0)
    arguments = {"length": (1, 9), "num_return_sequences": 3, "return_dict": True, **NEVER}
    outputs = model.infill(["Tom", Gap(stop=["e", "a"]), " sad."], tokenizer, **arguments, **how)
    gaps = [output.gaps[0] for output in outputs]
    assert "stop" in {gap.finish_reason for gap in gaps}
    for gap in gaps:
        assert not {"e", "a"} & set(gap.text) and tokenizer.decode(gap.token_ids) == gap.text
        assert len(gap.token_logprobs) == len(gap.token_ids)


@pytest.mark.parametrize("cut", [True, -1, 99, "3", 2.0])
def test_a_stop_function_that_returns_no_cut(model, tokenizer, cut):
    with pytest.raises(ValueError, match=f"returned {cut!r} for a text of .* return the number of characters"):
        model.infill(["Tom", Gap(4, stop=lambda text: cut), "."], tokenizer)


def test_half_a_character_ends_no_word():
    assert cut_at("caf\ufffd", Gap(stop="word")) is None
    assert cut_at("café ", Gap(stop="word")) == 4
