"""Causal mode is the stock class, bit for bit, in every family, although an adapter that acts in the other modes is there."""

import gc

import families
import pytest
import torch
from families import build_base, build_magnet
from reference import padding_mask
from transformers import ContinuousBatchingConfig, GenerationConfig

WIDTH = 10  # longer than the sliding windows


@pytest.fixture(
    scope="module", params=[(name, impl) for name in families.NAMES for impl in ("eager", "sdpa")], ids="-".join
)
def pair(request):
    """A stock model and a MAGNET model over the very same weights."""
    base = build_base(*request.param)
    magnet = build_magnet(base=base)
    assert magnet.config._attn_implementation == request.param[1]
    return base, magnet


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (3, WIDTH), generator=torch.Generator().manual_seed(3))


MASKS = {
    "none": None,
    "ones": torch.ones(3, WIDTH, dtype=torch.long),
    "left": padding_mask([WIDTH, WIDTH - 3, WIDTH - 6], WIDTH, "left"),
    "right": padding_mask([WIDTH, WIDTH - 3, WIDTH - 6], WIDTH, "right"),
}


def leaves(output) -> list[torch.Tensor]:
    """All tensors of an output that hold no cache, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [leaf for part in parts for leaf in leaves(part)]


def assert_same(actual, expected, at_least: int = 1):
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected) >= at_least
    assert all(map(torch.equal, actual, expected))


def test_the_adapter_acts_where_it_should(pair, ids):
    """Without this, every test below could pass on an adapter that does nothing."""
    _, magnet = pair
    with torch.no_grad():
        adapted = magnet(ids, attention_mode="bidirectional").logits
        with magnet.adapter_disabled():
            plain = magnet(ids, attention_mode="bidirectional").logits
    assert (adapted - plain).abs().max() > 0.1


def test_causal_adapter_differs(pair, ids):
    base, magnet = pair
    paper = build_magnet(base=base, causal_adapter=True)
    with torch.no_grad():
        assert (paper(ids).logits - base(ids).logits).abs().max() > 0.1
        with paper.adapter_disabled():
            assert torch.equal(paper(ids).logits, base(ids).logits)


# ------------------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("padding", MASKS)
def test_forward(pair, ids, padding):
    base, magnet = pair
    kwargs = {"attention_mask": MASKS[padding], "output_hidden_states": True}
    with torch.no_grad():
        assert_same(magnet(ids, **kwargs), base(ids, **kwargs), at_least=5)


def test_attentions(pair, ids):
    """sdpa has none to give, and says so as the stock class does."""
    base, magnet = pair
    with torch.no_grad():
        expected, actual = base(ids, output_attentions=True), magnet(ids, output_attentions=True)
    assert len(actual.attentions) == len(expected.attentions)
    assert_same(actual, expected)


def test_tuples(pair, ids):
    base, magnet = pair
    kwargs = {"return_dict": False, "labels": ids, "output_hidden_states": True}
    with torch.no_grad():
        expected, actual = base(ids, **kwargs), magnet(ids, **kwargs)
        assert type(actual) is type(expected) is tuple
        assert_same(actual, expected, at_least=6)
        inner = magnet.model(ids, return_dict=False)
        assert type(inner) is tuple
        assert_same(inner, base.model(ids, return_dict=False))


def test_mode_named_in_the_call(pair, ids):
    base, magnet = pair
    with torch.no_grad():
        assert torch.equal(magnet(ids, attention_mode="causal").logits, base(ids).logits)


@pytest.mark.parametrize("use_cache", [True, False])
def test_position_ids_with_jumps(pair, ids, use_cache):
    """Whatever the base makes of them (without a cache it takes the rows for packed documents), so does MAGNET."""
    base, magnet = pair
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]).repeat(3, 1)
    kwargs = {"position_ids": positions, "use_cache": use_cache}
    with torch.no_grad():
        assert torch.equal(magnet(ids, **kwargs).logits, base(ids, **kwargs).logits)


@pytest.mark.parametrize("padding", ["none", "left"])
def test_loss_and_its_gradients(pair, ids, padding):
    base, magnet = pair  # they share their parameters
    labels = ids.masked_fill(torch.arange(WIDTH) % 4 == 0, -100)
    embeds = base.get_input_embeddings()(ids).detach()
    results = []
    for model in pair:
        leaf = embeds.clone().requires_grad_()
        loss = model(inputs_embeds=leaf, attention_mask=MASKS[padding], labels=labels).loss
        weights = [p for name, p in base.named_parameters() if "embed_tokens" not in name]
        results.append([loss, *torch.autograd.grad(loss, [leaf, *weights])])
    assert_same(*results, at_least=20)


@pytest.mark.parametrize("keep", [1, 4, torch.tensor([0, 2, 7])], ids=["last", "last 4", "chosen"])
def test_logits_to_keep(pair, ids, keep):
    base, magnet = pair
    with torch.no_grad():
        assert torch.equal(magnet(ids, logits_to_keep=keep).logits, base(ids, logits_to_keep=keep).logits)


def test_boolean_logits_to_keep_selects_positions(pair, ids):
    """Through the family's own head: softcap and scaling act on them too."""
    _, magnet = pair
    keep = torch.zeros(3, WIDTH, dtype=torch.bool)
    keep[0, 2] = keep[1, 9] = keep[2, 0] = True
    with torch.no_grad():
        for mode in ("causal", "bidirectional"):
            chosen = magnet(ids, logits_to_keep=keep, attention_mode=mode).logits
            torch.testing.assert_close(chosen, magnet(ids, attention_mode=mode).logits[keep], rtol=0, atol=1e-6)


def test_cached_forward(pair, ids):
    results = []
    with torch.no_grad():
        for model in pair:
            first = model(ids[:, :6], use_cache=True)
            second = model(ids[:, 6:], cache=first.cache)
            results.append((first.logits, second.logits))
    assert_same(*results)


# ---------------------------------------------------------------------------------------------------------- generate()

GENERATE = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 30, "num_return_sequences": 2},
    "beam sampling": {"do_sample": True, "num_beams": 2},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "no cache": {"do_sample": False, "use_cache": False},
    "processors": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


def generate(model, **kwargs):
    torch.manual_seed(7)
    return model.generate(max_new_tokens=6, **kwargs)


@pytest.mark.parametrize("name", GENERATE)
def test_generate(pair, ids, name):
    base, magnet = pair
    rows = 1 if name == "prompt lookup" else 3  # it takes one row only
    kwargs = {"input_ids": ids[-rows:], "attention_mask": MASKS["left"][-rows:], **GENERATE[name]}
    actual = generate(magnet, **kwargs)
    assert actual.shape[1] > WIDTH
    assert torch.equal(actual, generate(base, **kwargs))


def test_generated_logits_states_and_attentions(pair, ids):
    base, magnet = pair
    kwargs = {"input_ids": ids, "attention_mask": MASKS["left"], "do_sample": False, "return_dict_in_generate": True}
    kwargs |= {"output_logits": True, "output_hidden_states": True}
    kwargs |= {"output_attentions": True} if base.config._attn_implementation == "eager" else {}
    assert_same(generate(magnet, **kwargs), generate(base, **kwargs), at_least=6)


def test_generate_from_embeddings(pair, ids):
    base, magnet = pair
    embeds = base.get_input_embeddings()(ids).detach()
    kwargs = {"inputs_embeds": embeds, "attention_mask": MASKS["left"], "do_sample": False}
    actual = generate(magnet, **kwargs)
    assert actual.shape[1] >= 1
    assert torch.equal(actual, generate(base, **kwargs))


def test_generate_goes_on_from_its_own_cache(pair, ids):
    results = []
    for model in pair:
        first = generate(model, input_ids=ids, do_sample=False, return_dict_in_generate=True)
        more = generate(model, input_ids=first.sequences, cache=first.cache, do_sample=False)
        results.append(more)
    assert results[0].shape[1] > WIDTH + 6
    assert torch.equal(*results)


def test_an_assistant_drafts_for_it(pair, ids):
    base, magnet = pair
    kwargs = {"input_ids": ids[:1], "do_sample": False}
    drafted = generate(magnet, assistant_model=build_base(base.config.model_type, seed=1), **kwargs)
    assert torch.equal(drafted, generate(base, **kwargs))


def test_generate_refuses_what_no_signature_names(pair, ids):
    for model in pair:
        with pytest.raises(ValueError, match="not used by the model: .'temprature'"):
            generate(model, input_ids=ids, temprature=0.5)


def test_generate_after_calls_in_other_modes(pair, ids):
    base, magnet = pair
    with torch.no_grad():
        magnet(ids, attention_mode="bidirectional")
        magnet(ids, attention_mode="hybrid", span_ids=torch.zeros_like(ids))
    kwargs = {"input_ids": ids, "do_sample": False}
    assert torch.equal(generate(magnet, **kwargs), generate(base, **kwargs))


@pytest.mark.parametrize("name", families.NAMES)
def test_continuous_batching(name, ids):
    """transformers' own server: it passes `is_causal` with masks of its own, and runs the model in a thread."""
    base = build_base(name, "sdpa")
    prompts = [ids[0].tolist(), ids[1, :6].tolist(), ids[2, :8].tolist()]
    sizes = {"num_blocks": 16, "page_size": 16, "max_batch_tokens": 64, "max_requests_per_batch": 4}
    gc.freeze()  # it collects garbage twice a call, which takes longer than all else where a test suite is loaded
    try:
        first, second = (
            model.generate_batch(
                inputs=prompts,
                generation_config=GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=3),
                continuous_batching_config=ContinuousBatchingConfig(**sizes),
            )
            for model in (base, build_magnet(base=base))
        )
    finally:
        gc.unfreeze()
    assert [answer.error for answer in second.values()] == [None] * 3
    assert [a.generated_tokens for a in second.values()] == [a.generated_tokens for a in first.values()]


def test_generation_config_is_taken_over():
    base = build_base()
    base.generation_config.update(do_sample=True, temperature=0.6, eos_token_id=[2, 9])
    expected = base.generation_config.to_dict()
    assert build_magnet(base=base).generation_config.to_dict() == expected
