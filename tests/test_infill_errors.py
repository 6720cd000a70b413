"""What infill() refuses: each error names the parameter, the value and the way out, before anything is computed."""

import re

import pytest
from infilling import TEXT, bare_tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer

from modeling_magnet import Gap

ONE = "Tom was <|gap|> sad."


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture
def refused(model, tokenizer, monkeypatch):
    """Calls infill() and expects a ValueError that matches, before anything is computed."""

    def never(*args, **kwargs):
        raise AssertionError("the model was run")

    monkeypatch.setattr(model.model, "forward", never)

    def check(match, inputs=ONE, tokenizer=tokenizer, **arguments):
        with pytest.raises(ValueError, match=match):
            model.infill(inputs, tokenizer, **arguments)

    return check


# --------------------------------------------------------------------------------------------------- texts and gaps


@pytest.mark.parametrize(
    "inputs, match",
    [
        ("", r"inputs\[0\]: no gap\. Mark one with '<\|gap\|>', or use generate"),
        ("Tom was sad.", r"inputs\[0\]: no gap"),
        (r"Tom was \<|gap|> sad.", r"inputs\[0\]: no gap"),
        ([ONE, "no gap here"], r"inputs\[1\]: no gap"),
        ([ONE, []], r"inputs\[1\]: no gap"),
        ([["Tom"]], r"inputs\[0\]: no gap"),
        ("Tom <|gap|><|gap|> sad.", r"inputs\[0\]: two gaps touch.*put text between"),
        ([Gap(2), Gap(3), " sad."], r"inputs\[0\]: two gaps touch"),
        (["Tom ", Gap(2), "", Gap(3), " sad."], r"inputs\[0\]: two gaps touch"),
        ([ONE, "a<|gap|>b<|gap|><|gap|>"], r"inputs\[1\]: two gaps touch"),
        ("<|gap|>", r"inputs\[0\]: no text around the gap\. Use generate"),
        ([Gap()], r"inputs\[0\]: no text around the gap"),
        ([ONE, ["", Gap(), ""]], r"inputs\[1\]: no text around the gap"),
        (None, "inputs=None: must be a string"),
        (123, "inputs=123: must be a string"),
        ([None], r"inputs\[0\]: None is neither a string nor a list"),
        ([ONE, 123], r"inputs\[1\]: 123 is neither a string nor a list"),
        (["Tom ", Gap(), 123], r"inputs\[0\]=123: must be a string"),
        ([ONE, ["Tom ", Gap(), None]], r"inputs\[1\]=None: must be a string"),
        ("Tom \ud800 <|gap|>", r"inputs\[0\]: the character at 4 is half of a surrogate pair"),
        ("a <|gap:x|> b <|gap:x|>", r"inputs\[0\]: the gaps are named \['x', 'x'\]: a name may be there once"),
        ("a <|gap:my name|> b", r"<\|gap:my name\|>: a gap's name must be of letters"),
        ("a <|gap:|> b <|gap|>", r"<\|gap:\|>: a gap's name must be"),
    ],
)
def test_inputs(refused, inputs, match):
    refused(match, inputs, length=4)


@pytest.mark.parametrize(
    "gap, match",
    [
        (Gap(prefix=5), "prefix=5: must be a string"),
        (Gap(prefix="\ud800"), "character at 0 is half of a surrogate pair"),
        (Gap(length=1, prefix=" very very big"), "prefix=' very very big': its 3 tokens exceed the gap's 1"),
        (Gap(max_new_tokens=2, prefix=" very very big"), "its 3 tokens exceed the gap's 2"),
        (Gap(candidates=[]), r"candidates=\[\]: must be a list of strings"),
        (Gap(candidates="ab"), "candidates='ab': must be a list of strings"),
        (Gap(candidates=[1]), "candidates or prefix=1: must be a string"),
        (Gap(candidates=["\udfff"]), "half of a surrogate pair"),
        (Gap(candidates=["a"], prefix="a"), "prefix='a': the candidates are whole fills"),
        (Gap(candidates=["a", " very" * 600]), r"gaps of \[600\] positions exceed max_position_embeddings=512"),
    ],
)
def test_gaps(refused, gap, match):
    refused(r"inputs\[0\].*" + match, ["Tom was", gap, " sad."])


@pytest.mark.parametrize(
    "gaps, match",
    [
        ({"y": Gap()}, r"gaps: no gap is named \['y'\]; there are \['x'\]"),
        ({"x": 5}, "gaps={'x': 5}: must map the names of gaps to Gap objects"),
        ([Gap()], "gaps=.*must map the names"),
    ],
)
def test_named_gaps(refused, gaps, match):
    refused(match, "a <|gap:x|> b", gaps=gaps)


# --------------------------------------------------------------------------------------------------- lengths and room


@pytest.mark.parametrize("value", [0, -1, True, "5", 2.5, None, "long"])
def test_length(refused, value):
    message = re.escape(f"inputs[0]: length={value!r}: must be a positive integer")
    refused(message, length=value)
    if value is not None:  # None in a Gap means the call's
        refused(message, ["Tom was ", Gap(length=value), " sad."], length=4)
        refused(message.replace(r"\[0", r"\[1"), [ONE, ["Tom was ", Gap(length=value), " sad."]], length=4)


@pytest.mark.parametrize("length", [(5, 2), (0, 0), (-1, 2), (1, 2, 3), (1, True), (1.0, 2), ()])
def test_ranges(refused, length):
    refused(re.escape(f"inputs[0]: fewest and most tokens are {length!r} (length, or"), length=length)


@pytest.mark.parametrize("value", [0, -1, True, "5", 2.5])
def test_max_new_tokens(refused, value):
    message = re.escape(
        f"inputs[0]: fewest and most tokens are (1, {value!r}) (length, or min_new_tokens and max_new_"
    )
    refused(message, max_new_tokens=value)
    refused(message, ["Tom was ", Gap(max_new_tokens=value), " sad."])


@pytest.mark.parametrize("value", [65, -1, "5", True, None])
def test_min_new_tokens(refused, value):
    refused(re.escape(f"inputs[0]: fewest and most tokens are ({value!r}, 64)"), min_new_tokens=value)


@pytest.mark.parametrize("stop", ["paragraph", "word", 5, [], ["a", ""], ["a", 1], len])
def test_stop(refused, stop):
    refused(re.escape(f"stop={stop!r}: must be 'sentence', 'line' or a list of non-empty strings"), stop=stop)


@pytest.mark.parametrize(
    "arguments, match",
    [
        (
            {"max_new_tokens": 10**9},
            r"inputs\[0\]: a gap of up to 1000000000 tokens .*at most 64 .infill_free_offsets",
        ),
        ({"max_new_tokens": 65}, r"a gap of up to 65 tokens .*at most 64 .*Pass less, or an exact length"),
        ({"length": (1, 10**9)}, "a gap of up to 1000000000 tokens"),
        ({"length": 10**9}, r"inputs\[0\]: 5 tokens of text and gaps of \[1000000000\] positions exceed max_position"),
        ({"num_beams": 10**6}, "num_beams=1000000: more than there are tokens to begin with .vocab_size=4096"),
        ({"num_candidates": 10**6}, "num_candidates or num_return_sequences=1000000: more than there are tokens"),
        ({"num_return_sequences": 10**6, "do_sample": True}, "num_return_sequences=1000000: more than"),
    ],
)
def test_what_is_far_too_much(refused, arguments, match):
    refused(match.replace(".infill_free", ".config.infill_free"), **arguments)


def test_far_too_much_in_a_generation_config(text_magnet, tokenizer):
    model = text_magnet()
    model.generation_config.num_beams = 10**6
    with pytest.raises(ValueError, match="num_beams=1000000: more than there are tokens"):
        model.infill(ONE, tokenizer, length=4)


def test_far_too_much_without_an_end_token(text_magnet, tokenizer):
    model = text_magnet(infill_end_token_id=None)
    for arguments in ({"max_new_tokens": 10**9}, {"length": (1, 10**9)}, {"length": (1, 513)}):
        with pytest.raises(ValueError, match="a gap of up to .* tokens"):
            model.infill(ONE, tokenizer, **arguments)


@pytest.mark.parametrize(
    "inputs, arguments, left",
    [
        (["Tom" + " was" * 299, Gap(100), ".", Gap(length=150)], {}, 210),  # [BOS] + 300 words, and a full stop
        (["Tom" + " was" * 449, Gap()], {"max_new_tokens": 5}, 61),  # a free gap takes its whole offset
        (["Tom" + " was" * 599, Gap(1)], {}, 0),
        (" and<|gap|>" * 60, {"length": 8}, 451),
    ],
)
def test_room_of_all_gaps_together(refused, inputs, arguments, left):
    message = rf"inputs\[1\]: .* exceed max_position_embeddings=512; {left} positions are left for the gaps\. Shorten"
    refused(message, [ONE, inputs], **arguments)


# -------------------------------------------------------------------------------------------------- the call's settings


@pytest.mark.parametrize("name", ["batch_size", "join_tokens", "num_return_sequences", "num_beams", "num_candidates"])
@pytest.mark.parametrize("value", [0, -1, True, "2", 1.5])
def test_positive_integers(refused, name, value):
    if (name, value) == ("num_beams", 0):
        return  # generate()'s word for the default
    refused(re.escape(f"{name}={value!r}: must be a positive integer"), length=4, **{name: value})


@pytest.mark.parametrize(
    "arguments, match",
    [
        (
            {"num_candidates": 2, "num_return_sequences": 3},
            "num_candidates=2: must not be below num_return_sequences=3",
        ),
        ({"order": "Parallel"}, "order='Parallel': must be 'sequential' or 'parallel'"),
        ({"order": None}, "order=None: must be"),
        ({"gap_token": ""}, "gap_token='': must not be empty; .* pass parts with Gap objects"),
        ({"cache_implementation": "quantized"}, "cache_implementation='quantized': must be 'dynamic' or 'static'"),
        ({"cache_implementation": True}, "cache_implementation=True: must be"),
        ({"past_key_values": None}, r"\['past_key_values'\]: infill\(\) sets these itself; leave them out"),
        ({"use_cache": False}, r"\['use_cache'\]: infill\(\) sets"),
        ({"attention_mode": "causal", "span_ids": None}, r"\['attention_mode', 'span_ids'\]: infill\(\) sets"),
        ({"eos_token_id": 2}, r"\['eos_token_id'\]: infill\(\) sets"),
        ({"max_length": 9}, r"\['max_length'\]: infill\(\) sets"),
        ({"output_scores": True}, r"\['output_scores'\]: infill\(\) sets"),
        ({"assistant_model": 1}, r"\['assistant_model'\]: infill\(\) has no prompt to be read from left to right"),
        ({"prompt_lookup_num_tokens": 2}, r"\['prompt_lookup_num_tokens'\]: infill\(\) has no prompt"),
        ({"guidance_scale": 2.0}, r"\['guidance_scale'\]: infill\(\) has no prompt"),
        ({"custom_generate": "x"}, r"\['custom_generate'\]: infill\(\) has no prompt"),
    ],
)
def test_settings(refused, arguments, match):
    refused(match, **{"length": 4} | arguments)


@pytest.mark.parametrize("gone", ["chunk_size", "avoid_copy", "selection", "temprature"])
def test_what_neither_infill_nor_generate_knows(model, tokenizer, gone):
    with pytest.raises(ValueError, match=gone):  # generate()'s own words
        model.infill(ONE, tokenizer, length=4, **{gone: 3})


def test_greedy_search_gives_one_answer(model, tokenizer):
    with pytest.raises(ValueError, match="num_return_sequences"):  # generate()'s own words
        model.infill(ONE, tokenizer, length=4, num_return_sequences=2)


def test_training_mode_with_gradient_checkpointing(text_magnet, tokenizer):
    model = text_magnet()
    expected = model.infill(TEXT, tokenizer, length=3)
    model.gradient_checkpointing_enable()
    assert model.infill(TEXT, tokenizer, length=3) == expected  # in eval mode it is off
    model.train()
    for call in (model.infill, lambda *inputs: model.score_infill(inputs[0], ["a", "b"], inputs[1])):
        with pytest.raises(ValueError, match=r"gradient checkpointing switches off in training mode. Call model.eval"):
            call(TEXT, tokenizer)
    model.gradient_checkpointing_disable()
    assert model.infill(TEXT, tokenizer, length=3) == expected and model.training  # these models have no dropout


# ------------------------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("call", ["infill", "encode", "encode_words", "score_infill"])
@pytest.mark.parametrize(
    "wrong, match",
    [
        (lambda path: None, "tokenizer=None: must be the checkpoint's tokenizer, AutoTokenizer.from_pretrained"),
        (lambda path: str(path), "tokenizer='.*: must be the checkpoint's tokenizer"),
        (lambda path: ByT5Tokenizer(), "tokenizer: ByT5Tokenizer is a slow one; load it with AutoTokenizer"),
        ("larger", "tokenizer: has 4097 tokens, the model vocab_size=4096.*resize_token_embeddings"),
        ("endless", "tokenizer: has no eos_token, which ends what is encoded and what is infilled"),
    ],
)
def test_tokenizers(model, base_model_path, call, wrong, match):
    if wrong == "larger":
        tokenizer = AutoTokenizer.from_pretrained(base_model_path)
        tokenizer.add_tokens(["a token that the model lacks"])
    elif wrong == "endless":
        tokenizer = bare_tokenizer()
        tokenizer.eos_token = None
    else:
        tokenizer = wrong(base_model_path)
    calls = {
        "infill": lambda: model.infill(ONE, tokenizer),
        "encode": lambda: model.encode(["Tom"], tokenizer),
        "encode_words": lambda: model.encode_words([["Tom"]], tokenizer),
        "score_infill": lambda: model.score_infill(ONE, ["very"], tokenizer),
    }
    with pytest.raises(ValueError, match=match):
        calls[call]()


def test_a_tokenizer_and_a_text_that_are_swapped(model, tokenizer):
    for call in (model.infill, model.encode, model.encode_words):
        with pytest.raises(ValueError, match="tokenizer='Tom was <|gap|> sad.': must be the checkpoint's tokenizer"):
            call(tokenizer, ONE)
    with pytest.raises(ValueError, match=r"tokenizer=\['very'\]: must be the checkpoint's tokenizer"):
        model.score_infill(ONE, tokenizer, ["very"])
