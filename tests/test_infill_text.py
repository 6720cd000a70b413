"""The text infill() returns: the caller's own characters verbatim, control tokens as text, seams that do not show."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM, StoppingCriteria

from modeling_magnet import Gap, InfilledGap, InfillOutput, MagnetLlamaForCausalLM
from modeling_magnet.gaps_magnet import split_at_gaps

MARKER = "<|gap|>"
NASTY = [
    "",
    " ",
    "  ",
    "\r\n",
    "\t",
    "\0",
    "_",
    "🎉👩‍👩‍👧",
    "é",
    "́",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "\\",
    "ab",
    " Tom.",
    "‏א",
]
TEXT = (
    st.lists(st.sampled_from(NASTY) | st.text(max_size=5), max_size=6).map("".join).filter(lambda s: MARKER not in s)
)


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


def given_ids(model, call) -> list[list[list[int]]]:
    """What `call()` makes the decoder read: the rows of token ids of each of its forwards."""
    seen = []

    def record(module, args, kwargs):
        seen.append((args[0] if args else kwargs["input_ids"]).tolist())

    handle = model.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        call()
    finally:
        handle.remove()
    return seen


# ------------------------------------------------------------------------------------------- the caller's characters


@settings(max_examples=80, deadline=None, derandomize=True)
@given(texts=st.tuples(TEXT, TEXT.filter(bool), TEXT).filter(any), order=st.sampled_from(["sequential", "parallel"]))
@example(texts=("a\r\n", "\t", "\0"), order="sequential")
@example(texts=("</s> <s>", "_", "<pad>"), order="parallel")
@example(texts=("", " ", ""), order="sequential")
@example(texts=("e", "́", "👩‍👧"), order="parallel")
def test_the_callers_characters_come_back(model, tokenizer, texts, order):
    parts = [texts[0], Gap(length=2), texts[1], Gap(length=3), texts[2]]
    output = model.infill(parts, tokenizer, order=order, return_dict=True)
    first, second = (gap.text for gap in output.gaps)
    assert output.text == texts[0] + first + texts[1] + second + texts[2]
    assert [len(gap.token_ids) for gap in output.gaps] == [2, 3]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.tuples(TEXT, TEXT).filter(any))
@example(texts=("_", "</s>"))
def test_an_empty_fill_gives_the_text_itself(model, tokenizer, texts):
    end_at_once = {"sequence_bias": {(2,): 1e4}}
    output = model.infill([texts[0], Gap(), texts[1]], tokenizer, return_dict=True, **end_at_once)
    assert output == InfillOutput("".join(texts), [InfilledGap("", [], "end_token", span=(len(texts[0]),) * 2)])


def escape(text, marker):
    """Makes every marker in a text a marker as text, and protects backslashes that stand before a real marker."""
    written = ""
    for piece in text.split(marker)[:-1]:
        written += protect(piece) + "\\" + marker
    return written + protect(text.split(marker)[-1])


def protect(piece):
    backslashes = len(piece) - len(piece.rstrip("\\"))
    return piece + "\\" * backslashes


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    left=st.lists(st.sampled_from(["\\", MARKER, "<|gap|", "a", "\n"]), max_size=6).map("".join),
    right=st.lists(st.sampled_from(["\\", MARKER, "gap|>", "a", "\n"]), max_size=6).map("".join),
)
def test_every_text_can_be_escaped(left, right):
    backslashes_at_the_end = len(right) - len(right.rstrip("\\"))
    written = escape(left, MARKER) + MARKER + escape(right, MARKER)
    written = written[: len(written) - backslashes_at_the_end]  # no marker follows those
    assert split_at_gaps(written, MARKER) == [left, Gap(), right]


@pytest.mark.parametrize(
    "text, parts",
    [
        (r"a \<|gap|> b<|gap|>", ["a <|gap|> b", Gap(), ""]),
        (r"a \\<|gap|> b", ["a \\", Gap(), " b"]),
        (r"a \\\<|gap|> b <|gap|>c", ["a \\<|gap|> b ", Gap(), "c"]),
        (r"C:\dir\\x <|gap|>", [r"C:\dir\\x ", Gap(), ""]),
    ],
)
def test_backslashes_escape_markers_only(model, tokenizer, text, parts):
    assert split_at_gaps(text, MARKER) == parts
    assert model.infill(text, tokenizer, length=3) == model.infill(parts, tokenizer, length=3)


@pytest.mark.parametrize("marker", ["____", "[MASK]", ".*", "</s>"])
def test_another_marker(model, tokenizer, marker):
    expected = model.infill(["Tom <|gap|> was ", Gap(), " and sad."], tokenizer, length=3)
    assert model.infill(f"Tom <|gap|> was {marker} and sad.", tokenizer, length=3, gap_token=marker) == expected


def test_a_gap_can_be_made_from_the_model(model, tokenizer):
    assert model.Gap is Gap
    output = model.infill(["Tom was ", model.Gap(length=2), " sad."], tokenizer, length=9, return_dict=True)
    assert len(output.gaps[0].token_ids) == 2


# -------------------------------------------------------------------------------------------------- control tokens


def test_control_tokens_of_the_text_never_become_control_ids(model, tokenizer):
    text = "Tom </s> was <s><pad> a_b <unk> <|gap|> </s><s> sad <pad>."
    forwards = given_ids(model, lambda: model.infill(text, tokenizer, length=4))
    context = forwards[0][0]
    assert context[0] == tokenizer.bos_token_id
    assert not set(context[1:]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(context[1:]) == text.replace(f" {MARKER}", "")
    assert len(forwards) == 5 and not {row[0] for step in forwards[1:] for row in step} & set(
        tokenizer.all_special_ids
    )


@pytest.mark.parametrize("length", [5, "auto"])
def test_control_tokens_never_appear_in_fills(model, tokenizer, length):
    wanted = {(token,): 1e4 for token in tokenizer.all_special_ids if length == 5 or token != tokenizer.eos_token_id}
    arguments = {"length": length, "max_new_tokens": 5, "do_sample": True, "num_return_sequences": 8}
    torch.manual_seed(0)
    outputs = model.infill("Tom <|gap|> sad.", tokenizer, sequence_bias=wanted, return_dict=True, **arguments)
    for output in outputs:
        assert len(output.gaps[0].token_ids) == 5
        assert not set(output.gaps[0].token_ids) & set(tokenizer.all_special_ids)


def test_an_end_token_that_is_no_control_token_of_the_tokenizer(text_magnet, tokenizer):
    model = text_magnet(infill_end_token_id=500)
    wanted = {"sequence_bias": {(500,): 1e4}, "return_dict": True}
    free = model.infill("Tom <|gap|> sad.", tokenizer, **wanted)
    assert (free.text, free.gaps[0].finish_reason) == ("Tom  sad.", "end_token")
    exact = model.infill("Tom <|gap|> sad.", tokenizer, length=4, **wanted)
    assert len(exact.gaps[0].token_ids) == 4 and 500 not in exact.gaps[0].token_ids


# -------------------------------------------------------------------------------------------------- how a gap ends


class StopAt(StoppingCriteria):
    """Ends a row when one of these tokens is written."""

    def __init__(self, tokens):
        self.tokens = torch.tensor(sorted(tokens))

    def __call__(self, input_ids, scores, **kwargs):
        return torch.isin(input_ids[:, -1], self.tokens)


@pytest.mark.parametrize("length", [6, "auto"])
def test_a_stopping_criterion_ends_each_row_by_itself(model, tokenizer, length):
    batch = ["Tom was <|gap|> sad.", "Then a dog <|gap|> ran.", "One <|gap|> two."]
    never_end = {"suppress_tokens": [2]} if length == "auto" else {}
    arguments = {"length": length, "max_new_tokens": 6, "return_dict": True, **never_end}
    whole = [output.gaps[0] for output in model.infill(batch, tokenizer, **arguments)]
    assert {gap.finish_reason for gap in whole} == {"exact_length" if length == 6 else "max_tokens"}
    stop = StopAt({whole[0].token_ids[2], whole[1].token_ids[0]})
    stopped = [output.gaps[0] for output in model.infill(batch, tokenizer, stopping_criteria=[stop], **arguments)]
    cuts = [next((i + 1 for i, t in enumerate(gap.token_ids) if t in stop.tokens), 6) for gap in whole]
    assert 1 < cuts[0] < 6 and cuts[1] == 1
    assert [gap.token_ids for gap in stopped] == [gap.token_ids[:cut] for gap, cut in zip(whole, cuts)]
    assert [gap.finish_reason for gap in stopped[:2]] == ["stop", "stop"]


def test_a_stop_string_ends_a_gap(model, tokenizer):
    free = model.infill("Tom was<|gap|> sad.", tokenizer, length=8, return_dict=True).gaps[0]
    string = max((tokenizer.decode(token).strip() for token in free.token_ids[1:-1]), key=len)
    stopped = model.infill("Tom was<|gap|> sad.", tokenizer, length=8, stop_strings=[string], return_dict=True).gaps[0]
    assert stopped.text == free.text[: free.text.index(string)] + string
    assert stopped.finish_reason == "stop" and len(stopped.token_ids) < 8


# --------------------------------------------------------------------------------------------------- result shapes


def test_shapes_of_the_result(model, tokenizer):
    text, parts = "Tom <|gap|> sad.", ["Tom ", Gap(), " sad."]
    two = {"num_beams": 2, "num_return_sequences": 2}

    def fill(inputs, **arguments):
        return model.infill(inputs, tokenizer, length=2, **arguments)

    one = fill(text)
    assert isinstance(one, str)
    assert fill(parts) == one
    assert fill([text]) == fill([parts]) == fill((text,)) == [one]
    assert fill([text, parts, "A<|gap|>"])[:2] == [one, one]
    output = fill(text, return_dict=True)
    assert isinstance(output, InfillOutput) and output.text == one
    assert fill([text], return_dict=True) == [output]
    alternatives = fill(text, **two)
    assert len(set(alternatives)) == 2 and all(isinstance(alternative, str) for alternative in alternatives)
    assert fill([text, parts], **two) == [alternatives, alternatives]
    assert [output.text for output in fill(text, return_dict=True, **two)] == alternatives
    assert fill([]) == fill([], **two) == []


# ----------------------------------------------------------------------------------------------------------- seams

# Natural texts: what stands left and right of the gap, and the whitespace the result has at its right seam.
SEAMS = [
    ("Tom was very ", ". He went home."),
    ("Tom was very", ". He went home."),
    ("The boy ran to the ", " and played."),
    ("The boy ran to the", " and played."),
    ("", " He was very happy."),
    ("Once upon a time, there was a ", ""),
    ("She said,", "\nThe end."),
]


def check_seams(model, tokenizer, left, right):
    """The whole text is what its tokens say: no space is missing at a seam, none is there twice."""
    output = model.infill(left + MARKER + right, tokenizer, length=4, return_dict=True)
    forwards = given_ids(model, lambda: model.infill(left + MARKER + right, tokenizer, length=4))
    context = forwards[0][0]
    n_left = len(tokenizer(left.removesuffix(" "), add_special_tokens=False)["input_ids"])
    ids = context[1 : 1 + n_left] + output.gaps[0].token_ids + context[1 + n_left :]
    assert context.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(context[1 + n_left :]).lstrip() == right.lstrip()
    assert output.text.strip() == tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
    assert output.text.startswith(left) and output.text.endswith(right) and "  " not in output.text


@pytest.fixture(scope="module")
def trained(base_model_path):
    return MagnetLlamaForCausalLM.from_llama(LlamaForCausalLM.from_pretrained(base_model_path, dtype="float32"))


@pytest.mark.parametrize("left, right", SEAMS)
def test_seams_of_a_byte_level_tokenizer(trained, tokenizer, left, right):
    check_seams(trained, tokenizer, left, right)


@pytest.fixture(scope="module")
def sentencepiece(shared):
    folder = shared / "models" / "stories3M"
    llama = LlamaForCausalLM.from_pretrained(folder, dtype="float32")
    return MagnetLlamaForCausalLM.from_llama(llama), AutoTokenizer.from_pretrained(folder)


@pytest.mark.shared
@pytest.mark.parametrize("left, right", SEAMS)
def test_seams_of_a_sentencepiece_tokenizer(sentencepiece, left, right):
    check_seams(*sentencepiece, left, right)


@pytest.mark.shared
@pytest.mark.parametrize(
    "left, right, tokens",
    [
        ("Tom was", "s sad.", ["▁Tom", "▁was", "s", "▁sad", "."]),  # no dummy space on the right
        ("Tom was", " sad.", ["▁Tom", "▁was", "▁sad", "."]),
        ("Tom was ", " sad.", ["▁Tom", "▁was", "▁sad", "."]),  # the fill's first token brings the space
        ("", "sad.", ["s", "ad", "."]),
    ],
)
def test_context_of_a_sentencepiece_tokenizer(sentencepiece, left, right, tokens):
    model, tokenizer = sentencepiece
    context = given_ids(model, lambda: model.infill(left + MARKER + right, tokenizer, length=1))[0][0]
    assert tokenizer.convert_ids_to_tokens(context) == ["<s>", *tokens]
