"""Bad inputs raise a ValueError that names the parameter, its value and the way out; odd but good ones work."""

import copy
import re

import pytest
import torch
from reference import padding_mask
from transformers.cache_utils import DynamicCache

from modeling_magnet import (
    MagnetLlamaForSequenceClassification,
    MagnetLlamaForTokenClassification,
    MagnetLlamaModel,
)

LENGTH = 6


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, tiny_magnet):
    return tiny_magnet(request.param)


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


@pytest.mark.parametrize("backend", ["flash_attention_2", "kernels-community/flash-attn3"])
def test_hybrid_on_flash_attention(model, ids, backend):
    flash = copy.deepcopy(model)  # no kernel is needed: it must be refused before one is called
    flash.config._attn_implementation_internal = backend
    flash.model.config._attn_implementation_internal = backend
    with pytest.raises(ValueError, match=f"'{backend}' ignores attention_mode='hybrid'. Use 'sdpa'"):
        flash(ids, attention_mode="hybrid", span_ids=GOOD)


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


# ------------------------------------------------------------------------------------------------------- token ids


@pytest.mark.parametrize("wrong", [97, 10**6, -1, -100])
def test_token_id_outside_the_vocabulary(model, ids, wrong):
    bad = ids.clone()
    bad[1, 4] = wrong
    with pytest.raises(ValueError, match=rf"input_ids\[1, 4\]={wrong}: outside the vocabulary, 0\.\.96"):
        model(bad)


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_length_0(model, mode):
    with pytest.raises(ValueError, match="input_ids has length 0"):
        model(torch.zeros(1, 0, dtype=torch.long), attention_mode=mode)


def test_both_or_neither_kind_of_input(model, ids):
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=model.model.embed_tokens(ids))


def test_length_1_is_the_same_in_every_mode(model):
    one = torch.tensor([[5]])
    model = copy.deepcopy(model)
    model.config.causal_adapter = True
    with torch.no_grad():
        causal = model(one).logits
        assert torch.equal(model(one, attention_mode="bidirectional").logits, causal)
        for span_id in (0, 1):
            hybrid = model(one, attention_mode="hybrid", span_ids=torch.tensor([[span_id]])).logits
            torch.testing.assert_close(hybrid, causal, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "hybrid"])
def test_a_row_of_nothing_but_padding_is_finite(model, ids, mode):
    kwargs = {"attention_mask": padding_mask([LENGTH, 0], LENGTH, "right"), "attention_mode": mode}
    if mode == "hybrid":
        kwargs["span_ids"] = GOOD * kwargs["attention_mask"]
    logits = model(ids, **kwargs).logits
    assert logits.isfinite().all()
    gradients = torch.autograd.grad(
        logits.sum(), [p for p in model.parameters() if p.requires_grad], allow_unused=True
    )
    assert all(grad.isfinite().all() for grad in gradients if grad is not None)
    alone = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in kwargs.items()}
    with torch.no_grad():
        torch.testing.assert_close(logits[:1], model(ids[:1], **alone).logits, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ caches and generate()


def filled_cache(model, ids):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, attention_mode="bidirectional", past_key_values=cache)
    assert cache.get_seq_length() == LENGTH
    return cache


def test_bidirectional_over_a_filled_cache(model, ids):
    with pytest.raises(ValueError, match="past_key_values is not empty.*'hybrid'"):
        model(ids, attention_mode="bidirectional", past_key_values=filled_cache(model, ids))


def test_hybrid_over_an_empty_cache(model, ids):
    with pytest.raises(ValueError, match="attention_mode='bidirectional' first.*infill"):
        model(ids, attention_mode="hybrid", past_key_values=DynamicCache(config=model.config))


def test_hybrid_over_a_cache_takes_no_spans(model, ids):
    with pytest.raises(ValueError, match="pass no span_ids"):
        model(ids, attention_mode="hybrid", span_ids=GOOD, past_key_values=filled_cache(model, ids))


@pytest.mark.parametrize("mode", ["bidirectional", "hybrid"])
def test_generate_in_another_mode(model, ids, mode):
    with pytest.raises(ValueError, match=f"attention_mode='{mode}' cannot generate.*infill"):
        model.generate(ids, attention_mode=mode, max_new_tokens=2)


def test_generate_with_a_mode_set_in_the_config(model, ids):
    model = copy.deepcopy(model)
    model.config.attention_mode = "bidirectional"
    with pytest.raises(ValueError, match="attention_mode='bidirectional' cannot generate"):
        model.generate(ids, max_new_tokens=2)
    assert model.generate(ids, attention_mode="causal", max_new_tokens=2).shape[1] > LENGTH


def test_only_causal_mode_makes_a_cache(model, ids):
    with torch.no_grad():
        assert model(ids, use_cache=True).past_key_values.get_seq_length() == LENGTH
        assert model(ids, use_cache=True, attention_mode="bidirectional").past_key_values is None
        assert model(ids, use_cache=True, attention_mode="hybrid", span_ids=GOOD).past_key_values is None


# -------------------------------------------------------------------------------------------------- classification heads


@pytest.fixture(scope="module", params=["left", "right"])
def padded(request, ids):
    return {"input_ids": ids, "attention_mask": padding_mask([LENGTH, LENGTH - 2], LENGTH, request.param)}


def head(cls, model, **settings):
    """A classification head over the decoder of `model`, whose weights it shares."""
    config = copy.deepcopy(model.config)
    config.num_labels = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        head = cls(config)
    head.model = model.model
    return head.eval()


def test_token_head_reads_the_output_left_of_a_token(model, padded):
    classifier = head(MagnetLlamaForTokenClassification, model)
    real = padded["attention_mask"].bool()
    with torch.no_grad():
        states = model.model(**padded, attention_mode="bidirectional").last_hidden_state
        logits, by_token = classifier(**padded).logits, classifier.score(states)
    assert logits.shape == (2, LENGTH, 3)
    for row in range(2):
        tokens = real[row].nonzero().flatten().tolist()
        torch.testing.assert_close(logits[row, tokens[0]], by_token[row, tokens[0]], rtol=0, atol=1e-6)
        torch.testing.assert_close(logits[row, tokens[1:]], by_token[row, tokens[:-1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode, reaches", [({}, True), ({"attention_mode": "causal"}, False)])
@pytest.mark.parametrize("cls", [MagnetLlamaForTokenClassification, MagnetLlamaForSequenceClassification])
def test_heads_are_bidirectional_unless_told_otherwise(model, ids, cls, mode, reaches):
    """A head must not change with the config's mode, which is the generator's."""
    classifier = head(cls, model)
    assert classifier.config.attention_mode == "causal"
    states = []
    classifier.model.norm.register_forward_hook(lambda *call: states.append(call[-1]))
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 97
    with torch.no_grad():
        classifier(ids, **mode), classifier(changed, **mode)
    assert torch.equal(states[0][:, 0], states[1][:, 0]) is not reaches


def test_sequence_head_reads_the_last_real_token(model, padded):
    classifier = head(MagnetLlamaForSequenceClassification, model)
    inputs = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, classifier.config.pad_token_id)
    padded = padded | {"input_ids": inputs}
    with torch.no_grad():
        states = model.model(**padded, attention_mode="bidirectional").last_hidden_state
        logits = classifier(**padded).logits
    last = [mask.nonzero().max() for mask in padded["attention_mask"]]
    expected = torch.stack([classifier.score(states[row, last[row]]) for row in range(2)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "cls, labels",
    [
        (MagnetLlamaForTokenClassification, torch.tensor([[0, 1, 2, -100, 1, 0]] * 2)),
        (MagnetLlamaForSequenceClassification, torch.tensor([0, 2])),
    ],
)
def test_heads_train(model, padded, cls, labels):
    classifier = head(cls, copy.deepcopy(model))
    classifier(**padded, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in classifier.named_parameters() if "lora" in name or "score" in name}
    assert any("lora" in name for name in gradients) and any("score" in name for name in gradients)
    assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in gradients.values())


def test_token_loss_is_cross_entropy_over_labelled_tokens(model, ids):
    classifier = head(MagnetLlamaForTokenClassification, model)
    labels = torch.tensor([[0, 1, 2, -100, 1, 0], [-100, 1, 1, 2, 2, 0]])
    with torch.no_grad():
        output = classifier(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output.loss, expected)


def test_decoder_alone_runs_in_every_mode(tiny_magnet, ids):
    config = tiny_magnet().config
    decoder = MagnetLlamaModel(config).eval()
    for kwargs in ({}, {"attention_mode": "bidirectional"}, {"attention_mode": "hybrid", "span_ids": GOOD}):
        assert decoder(ids, **kwargs).last_hidden_state.shape == (2, LENGTH, 64)


@pytest.mark.parametrize("misspelt, meant", [("attention_mod", "attention_mode"), ("span_id", "span_ids")])
def test_a_misspelt_argument_is_not_swallowed(tiny_magnet, misspelt, meant):
    with pytest.raises(ValueError, match=f"{misspelt}=.*Did you mean '{meant}'"):
        tiny_magnet()(torch.tensor([[1, 5, 6]]), **{misspelt: "hybrid"})
