"""Causal mode is the base model, bit for bit, although an adapter that acts in the other modes is there."""

import pytest
import torch
from reference import padding_mask

BACKENDS = ["eager", "sdpa"]


@pytest.fixture(scope="module", params=BACKENDS)
def pair(request, tiny_llama, tiny_magnet):
    """A stock Llama and a MAGNET model over the very same weights."""
    llama = tiny_llama(request.param)
    magnet = tiny_magnet(llama=llama)
    assert magnet.config._attn_implementation == request.param
    return llama, magnet


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (3, 10), generator=torch.Generator().manual_seed(3))


def masks(width: int) -> dict:
    return {
        "none": None,
        "ones": torch.ones(3, width, dtype=torch.long),
        "left": padding_mask([width, width - 3, width - 6], width, "left"),
        "right": padding_mask([width, width - 3, width - 6], width, "right"),
    }


def test_the_adapter_acts_where_it_should(pair, ids):
    """Without this, every test below could pass on an adapter that does nothing."""
    llama, magnet = pair
    with torch.no_grad():
        with_adapter = magnet(ids, attention_mode="bidirectional").logits
        without = llama(ids, is_causal=False).logits
    assert (with_adapter - without).abs().max() > 0.1


@pytest.mark.parametrize("padding", ["none", "ones", "left", "right"])
def test_forward(pair, ids, padding):
    llama, magnet = pair
    kwargs = {"attention_mask": masks(10)[padding], "output_hidden_states": True}
    with torch.no_grad():
        expected, actual = llama(ids, **kwargs), magnet(ids, **kwargs)
    assert torch.equal(actual.logits, expected.logits)
    assert len(actual.hidden_states) == len(expected.hidden_states) == 4
    assert all(map(torch.equal, actual.hidden_states, expected.hidden_states))


def test_mode_named_in_the_call(pair, ids):
    llama, magnet = pair
    with torch.no_grad():
        assert torch.equal(magnet(ids, attention_mode="causal").logits, llama(ids).logits)


@pytest.mark.parametrize("use_cache", [True, False])
def test_position_ids_with_jumps(pair, ids, use_cache):
    """Whatever Llama makes of them (without a cache it takes the rows for packed documents), so does MAGNET."""
    llama, magnet = pair
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]).repeat(3, 1)
    kwargs = {"position_ids": positions, "use_cache": use_cache}
    with torch.no_grad():
        assert torch.equal(magnet(ids, **kwargs).logits, llama(ids, **kwargs).logits)


@pytest.mark.parametrize("padding", ["none", "left"])
def test_loss_and_its_gradient(pair, ids, padding):
    llama, magnet = pair
    labels = ids.masked_fill(torch.arange(10) % 4 == 0, -100)
    embeds = llama.model.embed_tokens(ids).detach()
    results = []
    for model in (llama, magnet):
        leaf = embeds.clone().requires_grad_()
        loss = model(inputs_embeds=leaf, attention_mask=masks(10)[padding], labels=labels).loss
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("keep", [1, 4, torch.tensor([0, 2, 7])])
def test_logits_to_keep(pair, ids, keep):
    llama, magnet = pair
    with torch.no_grad():
        assert torch.equal(magnet(ids, logits_to_keep=keep).logits, llama(ids, logits_to_keep=keep).logits)


def test_boolean_logits_to_keep_selects_positions(pair, ids):
    _, magnet = pair
    keep = torch.zeros(3, 10, dtype=torch.bool)
    keep[0, 2] = keep[1, 9] = keep[2, 0] = True
    with torch.no_grad():
        chosen, every = magnet(ids, logits_to_keep=keep).logits, magnet(ids).logits
    torch.testing.assert_close(chosen, every[keep], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="labels cannot be combined"):
        magnet(ids, logits_to_keep=keep, labels=ids)


def test_cached_forward(pair, ids):
    llama, magnet = pair
    results = []
    with torch.no_grad():
        for model in (llama, magnet):
            first = model(ids[:, :6], use_cache=True)
            second = model(ids[:, 6:], past_key_values=first.past_key_values)
            results.append((first.logits, second.logits))
    assert all(map(torch.equal, *results))


def test_generation_config_is_taken_over(tiny_llama, tiny_magnet):
    llama = tiny_llama()
    llama.generation_config.update(do_sample=True, temperature=0.6, eos_token_id=[2, 9])
    expected = llama.generation_config.to_dict()
    assert tiny_magnet(llama=llama).generation_config.to_dict() == expected


GENERATE = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 30},
    "beam sampling": {"do_sample": True, "num_beams": 2},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "no cache": {"do_sample": False, "use_cache": False},
    "processors": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


def generate(model, **kwargs):
    torch.manual_seed(7)
    return model.generate(max_new_tokens=8, **kwargs)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", GENERATE)
def test_generate(pair, ids, name, padding):
    llama, magnet = pair
    if name == "prompt lookup":  # takes one row only
        ids = ids[:1]
    kwargs = {"input_ids": ids, "attention_mask": masks(10)[padding], **GENERATE[name]}
    if kwargs["attention_mask"] is not None:
        kwargs["attention_mask"] = kwargs["attention_mask"][-len(ids) :]
    assert torch.equal(generate(magnet, **kwargs), generate(llama, **kwargs))


def test_generated_scores(pair, ids):
    llama, magnet = pair
    kwargs = {"input_ids": ids, "attention_mask": masks(10)["left"], "do_sample": False}
    kwargs |= {"return_dict_in_generate": True, "output_logits": True}
    expected, actual = generate(llama, **kwargs).logits, generate(magnet, **kwargs).logits
    assert len(actual) == len(expected) > 1
    assert all(map(torch.equal, actual, expected))


def test_generate_from_embeddings(pair, ids):
    llama, magnet = pair
    embeds = llama.model.embed_tokens(ids).detach()
    kwargs = {"inputs_embeds": embeds, "attention_mask": masks(10)["left"], "do_sample": False}
    actual = generate(magnet, **kwargs)
    assert actual.shape[1] >= 1
    assert torch.equal(actual, generate(llama, **kwargs))


def test_generate_after_calls_in_other_modes(pair, ids):
    llama, magnet = pair
    with torch.no_grad():
        magnet(ids, attention_mode="bidirectional")
        magnet(ids, attention_mode="hybrid", span_ids=torch.zeros_like(ids))
    assert torch.equal(
        generate(magnet, input_ids=ids, do_sample=False), generate(llama, input_ids=ids, do_sample=False)
    )
