"""infill() in a server: static cache, compiled model, and what K gaps hold in memory."""

import pytest
import torch
from transformers import CompileConfig

from modeling_magnet import Gap

TEXTS = ["Tom was very hungry.", " He went to the kitchen and ate", " his bed. Good night!"]
BATCH = [
    "<|gap|>".join(TEXTS),
    [TEXTS[0], Gap(length=3), TEXTS[1] * 5],
    "A<|gap|>",
    ["", Gap(), "." + TEXTS[2], Gap(length=7), " Then", Gap(length="auto", max_new_tokens=5)],
]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, text_magnet):
    return text_magnet(request.param)


@pytest.fixture(scope="module")
def sdpa_model(text_magnet):
    return text_magnet("sdpa")


def caches_of(model, call) -> list:
    """The caches that the decoder's forwards were given."""
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("past_key_values")), with_kwargs=True
    )
    try:
        call()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_static_cache_equals_the_dynamic_one(model, tokenizer, order, search):
    arguments = {"length": 6, "order": order, "return_dict": True, **search}
    static = model.infill(BATCH, tokenizer, cache_implementation="static", **arguments)
    assert static == model.infill(BATCH, tokenizer, **arguments)


def test_static_cache_with_chunks_and_candidates(sdpa_model, tokenizer):
    arguments = {"length": 20, "chunk_size": 7, "return_dict": True}
    static = sdpa_model.infill(BATCH[0], tokenizer, cache_implementation="static", **arguments)
    assert static == sdpa_model.infill(BATCH[0], tokenizer, **arguments)
    given = ["Tom", Gap(candidates=[" ate", " slept"]), " and", Gap(length=4), "."]
    static = sdpa_model.infill(given, tokenizer, cache_implementation="static")
    assert static == sdpa_model.infill(given, tokenizer)


def test_static_cache_holds_rounded_lengths_or_as_many_as_asked(sdpa_model, tokenizer):
    def lengths(**arguments):
        call = {"length": 6, "cache_implementation": "static"} | arguments
        seen = caches_of(sdpa_model, lambda: sdpa_model.infill(BATCH[0], tokenizer, order="parallel", **call))
        return [type(cache).__name__ for cache in seen], {cache.layers[0].keys.shape[2] for cache in seen[1:]}

    assert lengths() == (["DynamicCache"] + ["StaticCache"] * 6, {64})
    assert lengths(length=60) == (["DynamicCache"] + ["StaticCache"] * 60, {128})
    assert lengths(max_cache_len=200)[1] == {200}


def test_a_generation_config_may_ask_for_a_static_cache(text_magnet, tokenizer):
    model = text_magnet()
    expected = model.infill(BATCH[0], tokenizer, length=6)
    model.generation_config.cache_implementation = "static"
    seen = caches_of(model, lambda: model.infill(BATCH[0], tokenizer, length=6))
    assert type(seen[1]).__name__ == "StaticCache"
    assert model.infill(BATCH[0], tokenizer, length=6) == expected
    dynamic = caches_of(model, lambda: model.infill(BATCH[0], tokenizer, length=6, cache_implementation="dynamic"))
    assert type(dynamic[1]).__name__ == "DynamicCache"


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_text_that_has_no_tokens(model, tokenizer, monkeypatch, cache):
    """Some tokenizers drop some characters; [BOS] alone is then both the context and what the fill goes on from."""
    monkeypatch.setattr("modeling_magnet.infilling_magnet.context_ids", lambda *_: [[tokenizer.bos_token_id], []])
    expected = [tokenizer.bos_token_id]
    for _ in range(4):
        spans = torch.tensor([[0] + [1] * (len(expected) - 1)])
        logits = model(torch.tensor([expected]), attention_mode="hybrid", span_ids=spans).logits[0, -1]
        logits[tokenizer.all_special_ids] = -torch.inf
        expected.append(int(logits.argmax()))
    arguments = {"length": 4, "return_dict": True, "cache_implementation": cache}
    assert model.infill("\0<|gap|>", tokenizer, **arguments).gaps[0].token_ids == expected[1:]


@pytest.mark.parametrize("value", ["quantized", "offloaded", "paged", "hybrid", True])
def test_other_caches_are_refused(sdpa_model, tokenizer, value):
    with pytest.raises(ValueError, match=f"cache_implementation={value!r}: must be 'dynamic' or 'static'"):
        sdpa_model.infill(BATCH[0], tokenizer, length=4, cache_implementation=value)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("gaps, copies", [(1, 1), (4, 1), (3, 2)])
def test_memory_is_that_of_the_formula(sdpa_model, tokenizer, static, gaps, copies):
    """docs/infilling.md: 2 x layers x key-value heads x head size x bytes x rows x (context + longest)."""
    parts = [part for n in range(gaps) for part in ("Tom was very hungry.", Gap(length=5 + n))]
    arguments = {"order": "parallel", "do_sample": True, "num_return_sequences": copies}
    arguments |= {"cache_implementation": "static"} if static else {}
    seen = caches_of(sdpa_model, lambda: sdpa_model.infill(parts, tokenizer, **arguments))
    cache = seen[5 + gaps - 1]  # the last token's
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    context = 1 + gaps * len(tokenizer("Tom was very hungry.", add_special_tokens=False)["input_ids"])
    length = 64 if static else context + (5 + gaps - 1) - 1  # the last token is predicted, not read
    config = sdpa_model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert held == per_token * gaps * copies * length


def compiled_arguments(backend: str) -> dict:
    config = CompileConfig(backend=backend, mode="default" if backend == "inductor" else None, fullgraph=True)
    config._compile_all_devices = True  # generate() compiles by itself on accelerators only
    return {"cache_implementation": "static", "compile_config": config}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_by_generate(text_magnet, tokenizer, backend):
    """One graph for one row, one for several, no break in either, none for new lengths or new caches."""
    model = text_magnet()
    calls = [
        {"inputs": BATCH[0], "length": 6},
        {"inputs": BATCH[2], "length": 9},
        {"inputs": BATCH, "length": 6, "order": "parallel"},
        {"inputs": BATCH[::-1], "length": 8, "order": "parallel"},
        {"inputs": TEXTS[0] * 9 + "<|gap|>", "length": 5, "do_sample": True, "top_k": 1},
    ]
    expected = [model.infill(tokenizer=tokenizer, **call) for call in calls]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = [model.infill(tokenizer=tokenizer, **call, **compiled_arguments(backend)) for call in calls]
    assert compiled == expected
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"cache_implementation": "static"}])
def test_compiled_in_place(text_magnet, tokenizer, arguments):
    model = text_magnet()
    expected = model.infill(BATCH, tokenizer, length=6)
    torch._dynamo.reset()
    model.compile(backend="eager")
    assert model.infill(BATCH, tokenizer, length=6, **arguments) == expected
