"""What infill() refuses beside the faults of test_faults.py: options of gaps and of the call, and tokenizers."""

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


@pytest.mark.parametrize("stop", ["paragraph", "word", 5, [], ["a", ""], ["a", 1], len])
def test_stop(refused, stop):
    refused(re.escape(f"stop={stop!r}: must be 'sentence', 'line' or a list of non-empty strings"), stop=stop)


@pytest.mark.parametrize(
    "arguments, match",
    [
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
