"""Bad inputs raise a ValueError that names the parameter, its value and the way out; odd but good ones work."""

import copy
import re

import families
import pytest
import torch
from families import build_magnet
from reference import padding_mask
from transformers.cache_utils import DynamicCache

from modeling_magnet import FAMILIES

LENGTH = 6
NAMES = pytest.mark.parametrize("name", families.NAMES)


@pytest.fixture(scope="module", params=[("llama", "eager"), ("gemma3_text", "sdpa")], ids="-".join)
def model(request):
    return build_magnet(*request.param)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (2, LENGTH), generator=torch.Generator().manual_seed(11))


def spans(*rows) -> torch.Tensor:
    return torch.tensor(rows)


GOOD = spans([0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 2])

# ----------------------------------------------------------------------------------------------------- modes and spans


@pytest.mark.parametrize("mode", ["bidirectonal", "", "Causal", 1, True, ["causal"]])
def test_unknown_mode(model, ids, mode):
    with pytest.raises(ValueError, match=r"attention_mode=.*must be one of \['causal', 'bidirectional', 'hybrid'\]"):
        model(ids, attention_mode=mode)


@pytest.mark.parametrize("misspelt, meant", [("attention_mod", "attention_mode"), ("span_id", "span_ids")])
@NAMES
def test_a_misspelt_argument_is_not_swallowed(name, ids, misspelt, meant):
    """A stock forward takes any keyword in silence: the call would be causal."""
    model = build_magnet(name)
    for module in (model, model.model):
        with pytest.raises(ValueError, match=f"{misspelt}=.*Did you mean '{meant}'"):
            module(ids, **{misspelt: "hybrid"})


def test_hybrid_without_spans(model, ids):
    with pytest.raises(ValueError, match="'hybrid' needs span_ids.*attention_mode='causal'"):
        model(ids, attention_mode="hybrid")


@pytest.mark.parametrize("mode", ["causal", "bidirectional", None])
@pytest.mark.parametrize("kwargs", [{"span_ids": GOOD}, {"span_mask": GOOD > 0}])
def test_spans_in_another_mode(model, ids, mode, kwargs):
    named = mode or "causal"
    with pytest.raises(ValueError, match=f"span_ids and span_mask mean nothing in attention_mode='{named}'"):
        model(ids, attention_mode=mode, **kwargs)


def test_both_kinds_of_spans(model, ids):
    with pytest.raises(ValueError, match="either span_ids or span_mask, not both"):
        model(ids, attention_mode="hybrid", span_ids=GOOD, span_mask=GOOD > 0)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (GOOD[:, :5], r"shape \(2, 5\).*= \(2, 6\)"),
        (GOOD[:1], r"shape \(1, 6\).*= \(2, 6\)"),
        (GOOD[0], r"shape \(6,\).*= \(2, 6\)"),
        (GOOD.float(), "dtype torch.float32.*integer"),
        (GOOD > 0, "dtype torch.bool.*span_mask="),
        (GOOD - 1, "negative.*0 for context"),
        (spans([0, 1, 0, 1, 0, 0], [0] * 6), r"row 0: a span is not contiguous.*\[0, 1, 0, 1, 0, 0\]"),
        (spans([0] * 6, [1, 1, 2, 2, 1, 0]), "row 1: a span is not contiguous.*id of its own"),
    ],
)
def test_wrong_span_ids(model, ids, wrong, message):
    with pytest.raises(ValueError, match=f"span_ids.*{message}"):
        model(ids, attention_mode="hybrid", span_ids=wrong)


@pytest.mark.parametrize("wrong", [GOOD, GOOD.float()])
def test_span_mask_that_is_not_boolean(model, ids, wrong):
    with pytest.raises(ValueError, match="span_mask has dtype.*torch.bool.*span_ids="):
        model(ids, attention_mode="hybrid", span_mask=wrong)


def test_span_mask_of_a_wrong_shape(model, ids):
    with pytest.raises(ValueError, match=r"span.* has shape \(2, 4\)"):
        model(ids, attention_mode="hybrid", span_mask=GOOD[:, :4] > 0)


@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (2, 5), (2, 9), (1, 6), (6,)])
@pytest.mark.parametrize("mode", ["bidirectional", "hybrid"])
def test_padding_mask_of_a_wrong_shape(model, ids, mode, shape):
    kwargs = {"span_ids": GOOD} if mode == "hybrid" else {}
    with pytest.raises(ValueError, match=rf"attention_mask has shape {re.escape(str(shape))}.*= \(2, 6\)"):
        model(ids, attention_mask=torch.ones(shape), attention_mode=mode, **kwargs)


@pytest.mark.parametrize("mode", [None, "bidirectional"])
@pytest.mark.parametrize("value", [True, False])
def test_is_causal_is_refused(model, ids, mode, value):
    """Else `is_causal=False` would make causal mode bidirectional without the adapter, and race with other threads."""
    with pytest.raises(ValueError, match=f"is_causal={value}: pass attention_mode="):
        model(ids, is_causal=value, attention_mode=mode)


# -------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@NAMES
def test_both_or_neither_kind_of_input(name, ids, mode):
    model = build_magnet(name)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(attention_mode=mode)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids), attention_mode=mode)


@NAMES
def test_length_1_is_the_same_in_every_mode(name):
    one, model = torch.tensor([[5]]), build_magnet(name, "sdpa", causal_adapter=True)
    with torch.no_grad():
        causal = model(one).logits
        torch.testing.assert_close(model(one, attention_mode="bidirectional").logits, causal, rtol=0, atol=1e-6)
        for span_id in (0, 1):
            hybrid = model(one, attention_mode="hybrid", span_ids=torch.tensor([[span_id]])).logits
            torch.testing.assert_close(hybrid, causal, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "hybrid"])
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@NAMES
def test_a_row_of_nothing_but_padding_is_finite(name, impl, ids, mode):
    model = build_magnet(name, impl)
    kwargs = {"attention_mask": padding_mask([LENGTH, 0], LENGTH, "right"), "attention_mode": mode}
    if mode == "hybrid":
        kwargs["span_ids"] = GOOD * kwargs["attention_mask"]
    logits = model(ids, **kwargs).logits
    assert logits.isfinite().all()
    gradients = torch.autograd.grad(logits.sum(), list(model.parameters()), allow_unused=True)
    assert all(grad.isfinite().all() for grad in gradients if grad is not None)
    alone = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in kwargs.items()}
    with torch.no_grad():
        torch.testing.assert_close(logits[:1], model(ids[:1], **alone).logits, rtol=0, atol=1e-5)


@NAMES
def test_decoder_alone_runs_in_every_mode(name, ids):
    decoder = FAMILIES[name].decoder_class(build_magnet(name).config).eval()
    for kwargs in ({}, {"attention_mode": "bidirectional"}, {"attention_mode": "hybrid", "span_ids": GOOD}):
        assert decoder(ids, **kwargs).last_hidden_state.shape == (2, LENGTH, 64)


# ------------------------------------------------------------------------------------------------ caches and generate()


def filled_cache(model, ids):
    cache = DynamicCache()
    with torch.no_grad():
        model(ids, attention_mode="bidirectional", past_key_values=cache)
    assert cache.get_seq_length() == LENGTH
    return cache


def test_bidirectional_over_a_filled_cache(model, ids):
    with pytest.raises(ValueError, match="past_key_values is not empty.*'hybrid'"):
        model(ids, attention_mode="bidirectional", past_key_values=filled_cache(model, ids))


def test_hybrid_over_an_empty_cache(model, ids):
    with pytest.raises(ValueError, match="attention_mode='bidirectional' first.*infill"):
        model(ids, attention_mode="hybrid", past_key_values=DynamicCache())


def test_hybrid_over_a_cache_takes_no_spans(model, ids):
    with pytest.raises(ValueError, match="pass no span_ids"):
        model(ids, attention_mode="hybrid", span_ids=GOOD, past_key_values=filled_cache(model, ids))


@pytest.mark.parametrize("mode", ["bidirectional", "hybrid"])
@NAMES
def test_generate_in_another_mode(name, ids, mode):
    with pytest.raises(ValueError, match=f"attention_mode='{mode}' cannot generate.*infill"):
        build_magnet(name).generate(ids, attention_mode=mode, max_new_tokens=2)


def test_generate_with_a_mode_set_in_the_config(model, ids):
    model = copy.deepcopy(model)
    model.config.attention_mode = "bidirectional"
    with pytest.raises(ValueError, match="attention_mode='bidirectional' cannot generate"):
        model.generate(ids, max_new_tokens=2)
    assert model.generate(ids, attention_mode="causal", max_new_tokens=2).shape[1] > LENGTH


@pytest.mark.parametrize("given", [{}, {"use_cache": True}])
@NAMES
def test_only_causal_mode_makes_a_cache(name, ids, given):
    model = build_magnet(name)
    with torch.no_grad():
        assert model(ids, **given).past_key_values.get_seq_length() == LENGTH
        assert model(ids, **given, attention_mode="bidirectional").past_key_values is None
        assert model(ids, **given, attention_mode="hybrid", span_ids=GOOD).past_key_values is None
