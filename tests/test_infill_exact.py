"""infill() equals re-forwarding the whole text with the hybrid mask, token by token, without a cache."""

from concurrent.futures import ThreadPoolExecutor

import families
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from infilling import (
    ALL_KINDS,
    BATCH,
    FREE_OFFSET,
    TEXT,
    TEXTS,
    bare_tokenizer,
    fills_of,
    forwards_of,
    naive_beams,
    naive_fill,
    token_pieces,
)
from transformers import CompileConfig, set_seed

from modeling_magnet import Gap


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet("sdpa")


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def backend(request, text_magnet):
    return text_magnet(request.param)


def recorded_logits(model, call):
    """What `call()` returns, and the logits (steps, rows, V) that the head computed meanwhile."""
    steps = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: steps.append(output[:, -1]))
    try:
        return call(), torch.stack(steps)
    finally:
        handle.remove()


# ---------------------------------------------------------------------------------------------- one gap, several gaps


@pytest.mark.parametrize("texts", [TEXTS[:2], ["", TEXTS[1]], [TEXTS[0], ""]], ids=["both", "right", "left"])
def test_exact_length(backend, tokenizer, texts):
    expected, _ = naive_fill(backend, tokenizer, token_pieces(texts, tokenizer), [7], 0, steps=7)
    output = backend.infill("<|gap|>".join(texts), tokenizer, length=7, return_dict=True)
    assert fills_of(output) == [expected]


def test_free_length(backend, tokenizer):
    pieces = token_pieces(TEXTS[:2], tokenizer)
    whole, logits = naive_fill(backend, tokenizer, pieces, [FREE_OFFSET], 0, steps=12)
    # a bias under which END wins where it comes closest to winning, and nowhere else
    allowed = logits.clone()
    allowed[:, tokenizer.all_special_ids] = -torch.inf
    distance = allowed.max(-1).values - logits[:, tokenizer.eos_token_id]  # (steps,)
    bias = float(distance.sort().values[:2].mean())
    end = tokenizer.eos_token_id
    expected, _ = naive_fill(backend, tokenizer, pieces, [FREE_OFFSET], 0, steps=12, end=end, end_bias=bias)
    assert 0 < len(expected) < 12 and expected == whole[: len(expected)]
    text = "<|gap|>".join(TEXTS[:2])
    output = backend.infill(text, tokenizer, max_new_tokens=12, sequence_bias={(end,): bias}, return_dict=True)
    assert fills_of(output) == [expected] and output.gaps[0].finish_reason == "end_token"


@pytest.mark.parametrize("length, budget", [(9, 9), ("auto", FREE_OFFSET)])
def test_logits_in_float64(text_magnet, tokenizer, length, budget):
    model = text_magnet("sdpa").double()  # eager attention takes its softmax in float32
    pieces = token_pieces(TEXTS, tokenizer)
    naive = [naive_fill(model, tokenizer, pieces, [budget] * 2, gap, steps=9)[1] for gap in (0, 1)]
    arguments = {"length": length, "max_new_tokens": 9, "order": "parallel"}
    never_end = {"suppress_tokens": [tokenizer.eos_token_id]} if length == "auto" else {}
    _, steps = recorded_logits(model, lambda: model.infill(TEXT, tokenizer, **arguments, **never_end))
    assert steps.shape == (9, 2, 4096) and steps.dtype == torch.float64
    torch.testing.assert_close(steps[:, 0], naive[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(steps[:, 1], naive[1], rtol=0, atol=1e-10)


def test_logits_in_float32(backend, tokenizer):
    _, naive = naive_fill(backend, tokenizer, token_pieces(TEXTS[:2], tokenizer), [9], 0, steps=9)
    text = "<|gap|>".join(TEXTS[:2])
    _, steps = recorded_logits(backend, lambda: backend.infill(text, tokenizer, length=9))
    torch.testing.assert_close(steps[:, 0], naive, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [(6, 6), (4, 8)])
def test_parallel_gaps_do_not_see_each_other(model, tokenizer, lengths):
    pieces = token_pieces(TEXTS, tokenizer)
    expected = [naive_fill(model, tokenizer, pieces, lengths, gap, steps=lengths[gap])[0] for gap in (0, 1)]
    parts = [TEXTS[0], Gap(lengths[0]), TEXTS[1], Gap(lengths[1]), TEXTS[2]]
    assert fills_of(model.infill(parts, tokenizer, order="parallel", return_dict=True)) == expected


@pytest.mark.parametrize("length, budget", [(6, 6), ("auto", FREE_OFFSET)])
def test_sequential_gaps_see_the_fills_before_them(model, tokenizer, length, budget):
    pieces = token_pieces(TEXTS, tokenizer)
    first, _ = naive_fill(model, tokenizer, pieces, [budget] * 2, 0, steps=6)
    second, _ = naive_fill(model, tokenizer, [pieces[0] + first + pieces[1], pieces[2]], [budget], 0, steps=6)
    free = {"max_new_tokens": 6, "suppress_tokens": [tokenizer.eos_token_id]} if length == "auto" else {}
    output = model.infill(TEXT, tokenizer, length=length, return_dict=True, **free)
    assert fills_of(output) == [first, second]
    apart, _ = naive_fill(model, tokenizer, pieces, [budget] * 2, 1, steps=6)
    assert apart != second  # else this test could not tell the two orders apart


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_text_of_one_token(model, tokenizer, monkeypatch, cache):
    """Some tokenizers drop some characters; [BOS] alone is then both the context and what the fill goes on from."""
    monkeypatch.setattr("modeling_magnet.infilling_magnet.context_ids", lambda *_: [[tokenizer.bos_token_id], []])
    expected, _ = naive_fill(model, tokenizer, [[tokenizer.bos_token_id], []], [4], 0, steps=4)
    output = model.infill("\0<|gap|>", tokenizer, length=4, return_dict=True, cache_implementation=cache)
    assert fills_of(output) == [expected]


# ------------------------------------------------------------------------------------------------- families of models


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(n, marks=() if n in ("llama", "qwen3", "gemma3_text") else pytest.mark.slow)
        for n in families.NAMES
    ],
)
def family(request):
    return family_model(request.param, vocab_size=4096)


def family_model(name: str, end: int = 2, **settings):
    """A random model; those that slide do it with a window far shorter than the texts."""
    base = families.build_base(name, "sdpa", max_position_embeddings=512, pad_token_id=None, **settings)
    return families.build_magnet(base=base, infill_end_token_id=end, infill_free_offsets=[FREE_OFFSET])


@pytest.mark.parametrize("order, length, budget", [("sequential", 5, 5), ("parallel", "auto", FREE_OFFSET)])
def test_families(family, tokenizer, order, length, budget):
    never_end = {"suppress_tokens": [2], "max_new_tokens": 5} if length == "auto" else {}
    output = family.infill(TEXT, tokenizer, length=length, order=order, return_dict=True, **never_end)
    pieces, budgets, where = token_pieces(TEXTS, tokenizer), [budget] * 2, 1
    fills = [naive_fill(family, tokenizer, pieces, budgets, 0, steps=5)]
    if order == "sequential":
        pieces, budgets, where = [pieces[0] + fills[0][0] + pieces[1], pieces[2]], [budget], 0
    fills.append(naive_fill(family, tokenizer, pieces, budgets, where, steps=5))
    for gap, (fill, logits) in zip(output.gaps, fills, strict=True):
        logits[: 1 if length == "auto" else None, 2] = -torch.inf  # no fill is empty, none of known length ends early
        expected = logits.log_softmax(-1)[range(len(fill)), fill].tolist()
        assert gap.token_ids == fill and gap.token_logprobs == pytest.approx(expected, abs=1e-4)


def test_families_beams_and_alternatives(family, tokenizer):
    """Cache slots of a window are not its positions, whatever generate() does with the rows."""
    pieces = token_pieces(TEXTS, tokenizer)
    expected = naive_beams(family, tokenizer, pieces, [4, 4], 1, beams=2)
    beams = {"num_beams": 2, "num_return_sequences": 2, "order": "parallel", "return_dict": True}
    assert [fills_of(output)[1] for output in family.infill(TEXT, tokenizer, length=4, **beams)] == expected
    arguments, batch = {"length": 4, "return_dict": True}, [BATCH[1], TEXT]
    together = family.infill(batch, tokenizer, **arguments)
    assert together == [family.infill([document], tokenizer, **arguments)[0] for document in batch]


def test_families_static_cache(family, tokenizer):
    arguments = {"length": 6, "order": "parallel", "return_dict": True}
    if family.model.window is not None:
        with pytest.raises(ValueError, match="cache_implementation='static': a sliding window needs the default"):
            family.infill(BATCH, tokenizer, cache_implementation="static", **arguments)
        return
    static = family.infill(BATCH[2:], tokenizer, cache_implementation="static", **arguments)
    assert static == family.infill(BATCH[2:], tokenizer, **arguments)


# ---------------------------------------------------------------------------------- tokenizers that open a text or not


@pytest.fixture(scope="module")
def bare():
    """A model and a tokenizer that puts no token before a text."""
    tokenizer = bare_tokenizer()
    return family_model("qwen3", end=tokenizer.eos_token_id, vocab_size=len(tokenizer)), tokenizer


@pytest.mark.parametrize("start, length, budget", [(None, 7, 7), (0, 7, 7), (0, "auto", FREE_OFFSET)])
def test_what_opens_a_text(bare, monkeypatch, start, length, budget):
    model, tokenizer = bare
    monkeypatch.setattr(model.config, "text_start_token_id", start)
    pieces = token_pieces(TEXTS, tokenizer, start=[] if start is None else [start])
    never_end = {"suppress_tokens": [0], "max_new_tokens": 7} if length == "auto" else {}
    output = model.infill(TEXT, tokenizer, length=length, order="parallel", return_dict=True, **never_end)
    expected = [naive_fill(model, tokenizer, pieces, [budget] * 2, gap, steps=7)[0] for gap in (0, 1)]
    assert fills_of(output) == expected


def test_a_leading_gap_needs_a_token_that_opens_a_text(bare, monkeypatch):
    model, tokenizer = bare
    for inputs in ("<|gap|>" + TEXTS[1], ["T<|gap|>", ["", Gap(), "."]]):
        with pytest.raises(ValueError, match=r"inputs\[[01]\]: begins with a gap.*set config.text_start_token_id"):
            model.infill(inputs, tokenizer, length=4)
    monkeypatch.setattr(model.config, "text_start_token_id", 0)
    expected, _ = naive_fill(model, tokenizer, token_pieces(["", TEXTS[1]], tokenizer, start=[0]), [4], 0, steps=4)
    assert fills_of(model.infill("<|gap|>" + TEXTS[1], tokenizer, length=4, return_dict=True)) == [expected]
    assert model.infill("T<|gap|>", tokenizer, length=4).startswith("T")  # one token left of the gap, and no other


# --------------------------------------------------------------------------------------------- searching and sampling


def test_beams_equal_a_beam_search_by_hand(model, tokenizer):
    expected = naive_beams(model, tokenizer, token_pieces(TEXTS[:2], tokenizer), [5], 0, beams=3)[:2]
    text = "<|gap|>".join(TEXTS[:2])
    outputs = model.infill(text, tokenizer, length=5, return_dict=True, num_beams=3, num_return_sequences=2)
    assert [fills_of(output)[0] for output in outputs] == expected


def test_parallel_alternatives_do_not_see_each_other(model, tokenizer):
    """Alternatives of gaps of two lengths, which need two generate() calls over one and the same context."""
    budgets = (4, 9)
    parts = [TEXTS[0], Gap(budgets[0]), TEXTS[1], Gap(budgets[1]), TEXTS[2]]
    beams = {"num_beams": 3, "num_return_sequences": 2}
    outputs = model.infill(parts, tokenizer, order="parallel", return_dict=True, **beams)
    for gap in (0, 1):
        expected = naive_beams(model, tokenizer, token_pieces(TEXTS, tokenizer), budgets, gap, beams=3)[:2]
        assert [fills_of(output)[gap] for output in outputs] == expected


def test_sampling_equals_sampling_by_hand(model, tokenizer):
    text, pieces = "<|gap|>".join(TEXTS[:2]), token_pieces(TEXTS[:2], tokenizer)
    torch.manual_seed(3)
    draw = lambda scores: torch.multinomial((scores / 2).softmax(-1)[None], 1)  # noqa: E731
    expected, _ = naive_fill(model, tokenizer, pieces, [8], 0, steps=8, choose=draw)
    torch.manual_seed(3)
    sampling = {"do_sample": True, "temperature": 2.0, "top_k": 0}
    assert fills_of(model.infill(text, tokenizer, length=8, return_dict=True, **sampling)) == [expected]


def test_a_seed_decides_what_is_sampled(model, tokenizer):
    def sample(seed, seeded=set_seed):
        seeded(seed)
        batch = [TEXT, "One<|gap|> two"]
        return model.infill(batch, tokenizer, length=6, do_sample=True, num_return_sequences=3)

    first = sample(seed=3)
    assert first == sample(seed=3, seeded=torch.manual_seed) and first != sample(seed=4)
    assert [len(set(alternatives)) for alternatives in first] == [3, 3]
    greedy = model.infill(TEXT, tokenizer, length=6)
    assert model.infill(TEXT, tokenizer, length=6, do_sample=True, top_k=1) == greedy


# --------------------------------------------------------------------------------------- batches, threads, what is kept


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}])
def test_a_ragged_batch_equals_one_at_a_time(model, tokenizer, order, search):
    arguments = {"length": 6, "order": order, "return_dict": True, **search}
    together = model.infill(BATCH, tokenizer, **arguments)
    assert together == [model.infill([document], tokenizer, **arguments)[0] for document in BATCH]
    assert [len(output.gaps) for output in together] == [2, 1, 1, 3]


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_a_batch_of_gaps_of_all_kinds_equals_one_at_a_time(model, tokenizer, order):
    kinds = [Gap(6), Gap("auto", 9), Gap((2, 4)), Gap(5, prefix=" ver"), Gap((0, 12), stop="sentence")]
    kinds += [Gap(8, stop=["e", "a"]), Gap(candidates=[" a", " b c"])]
    parts = ["Tom "]
    for kind in kinds:
        parts += [kind, " and then he was "]
    batch = [parts, [TEXTS[0], Gap(3), TEXTS[1]]]
    arguments = {"order": order, "return_dict": True, "sequence_bias": {(2,): 3.0}}
    together = model.infill(batch, tokenizer, **arguments)
    assert together == [model.infill([document], tokenizer, **arguments)[0] for document in batch]
    assert together == model.infill(batch, tokenizer, batch_size=1, **arguments)


@pytest.mark.parametrize("alternatives", [1, 2])
def test_one_prefill_per_document_then_one_token_a_step(model, tokenizer, alternatives):
    batch = [TEXT, TEXTS[0] + "<|gap|>"]
    sampling = {"do_sample": True, "num_return_sequences": alternatives}
    call = {"length": 5, "order": "parallel"} | sampling
    shapes = [tuple(f["input_ids"].shape) for f in forwards_of(model, lambda: model.infill(batch, tokenizer, **call))]
    longest = sum(map(len, token_pieces(TEXTS, tokenizer)))
    assert shapes[:6] == [(2, longest)] + [(3 * alternatives, 1)] * 5  # 2 documents, 3 gaps
    assert len(shapes) == 6 + (alternatives > 1) * 3 * 2  # alternatives are ranked: a text and what goes on, a gap


def test_threads_give_what_one_thread_gives(model, tokenizer):
    """Beside other modes, and nothing that is shared is changed."""
    causal = tokenizer("Once upon a time", return_tensors="pt").input_ids
    jobs = [
        lambda: model.infill(ALL_KINDS, tokenizer, return_dict=True),
        lambda: model.infill(ALL_KINDS, tokenizer, order="parallel", return_dict=True),
        lambda: model.infill(TEXT, tokenizer, num_beams=3, length=5, num_return_sequences=2, return_dict=True),
        lambda: model.infill(TEXT, tokenizer, length=6, cache_implementation="static"),
        lambda: model.score_infill(TEXT, [" x", "</s>"], tokenizer),
        lambda: model.encode(TEXTS, tokenizer).tolist(),
        lambda: model.generate(causal, max_new_tokens=8, do_sample=False).tolist(),
    ]
    state = lambda: (model.config.to_dict(), model.generation_config.to_dict(), model.training)  # noqa: E731
    before, expected = state(), [job() for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda job: job(), jobs)) == expected
    assert before == state()
    assert ALL_KINDS[1] == Gap(5, prefix="ver")  # what the caller passed is the caller's


def test_settings_of_a_generation_config_hold(text_magnet, tokenizer):
    model = text_magnet()
    greedy, beams = (model.infill(TEXT, tokenizer, length=9, num_beams=n) for n in (1, 3))
    assert greedy != beams
    model.generation_config.num_beams = 3
    model.generation_config.return_dict_in_generate = True
    model.generation_config.use_cache = False
    assert model.infill(TEXT, tokenizer, length=9) == beams
    assert model.infill(TEXT, tokenizer, length=9, num_beams=1) == greedy


@pytest.mark.parametrize("mode", ["bidirectional", "hybrid"])
def test_a_mode_in_the_configuration_changes_nothing(text_magnet, tokenizer, mode):
    expected = text_magnet().infill(TEXT, tokenizer, length=4)
    assert text_magnet(attention_mode=mode).infill(TEXT, tokenizer, length=4) == expected


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    words=st.integers(1, 30),
    gaps=st.lists(st.sampled_from([4, 11, (1, 7), "auto"]), min_size=1, max_size=3),
    most=st.integers(1, 9),
    order=st.sampled_from(["sequential", "parallel"]),
)
def test_positions_never_exceed_the_limit(text_magnet, tokenizer, words, gaps, most, order):
    model = text_magnet(infill_free_offsets=[4, 8], max_position_embeddings=40)
    parts, errors = ["a" + " the" * words], []
    for length in gaps:
        parts += [Gap(length, most), " the"]

    def call():
        try:
            model.infill(parts, tokenizer, order=order, suppress_tokens=[2])
        except ValueError as error:
            errors.append(str(error))

    seen = forwards_of(model, call)
    assert all(int(forward["position_ids"].max()) < 40 for forward in seen)
    for error in errors:
        assert not seen and ("exceed max_position_embeddings=40" in error or "a gap of up to 9 tokens" in error)
    assert bool(seen) != bool(errors)


# ------------------------------------------------------------------------------------------------------- static caches


@pytest.mark.parametrize(
    "order, search", [("sequential", {}), ("parallel", {"num_beams": 3, "num_return_sequences": 2})]
)
def test_static_cache_equals_the_dynamic_one(backend, tokenizer, order, search):
    arguments = {"length": 6, "order": order, "return_dict": True, **search}
    static = backend.infill(BATCH, tokenizer, cache_implementation="static", **arguments)
    assert static == backend.infill(BATCH, tokenizer, **arguments)


def caches_of(model, tokenizer, inputs=TEXT, **arguments):
    """The caches that the forwards of a call were given: of the reading of the text, and of each step."""
    return [f["cache"] for f in forwards_of(model, lambda: model.infill(inputs, tokenizer, **arguments))]


def test_a_static_cache_holds_rounded_lengths_or_as_many_as_asked(model, tokenizer):
    def lengths(**arguments):
        call = {"length": 6, "cache_implementation": "static", "order": "parallel"} | arguments
        seen = caches_of(model, tokenizer, **call)
        return [type(cache).__name__ for cache in seen], {cache.layers[0].keys.shape[2] for cache in seen[1:]}

    assert lengths() == (["DynamicCache"] + ["StaticCache"] * 6, {64})
    assert lengths(length=60) == (["DynamicCache"] + ["StaticCache"] * 60, {128})
    assert lengths(max_cache_len=200)[1] == {200}


def test_a_generation_config_may_ask_for_a_static_cache(text_magnet, tokenizer):
    model = text_magnet()
    expected = model.infill(TEXT, tokenizer, length=6)
    model.generation_config.cache_implementation = "static"
    assert type(caches_of(model, tokenizer, length=6)[1]).__name__ == "StaticCache"
    assert model.infill(TEXT, tokenizer, length=6) == expected
    dynamic = caches_of(model, tokenizer, length=6, cache_implementation="dynamic")
    assert type(dynamic[1]).__name__ == "DynamicCache"


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("gaps, copies", [(1, 1), (4, 1), (3, 2)])
def test_memory_is_that_of_the_formula(model, tokenizer, static, gaps, copies):
    """docs/infill.md: 2 x layers x key-value heads x head size x bytes x rows x (context + longest)."""
    parts = [part for n in range(gaps) for part in ("Tom was very hungry.", Gap(length=5 + n))]
    arguments = {"order": "parallel", "do_sample": True, "num_return_sequences": copies}
    arguments |= {"cache_implementation": "static"} if static else {}
    cache = caches_of(model, tokenizer, parts, **arguments)[5 + gaps - 1]  # the last token's
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    context = 1 + gaps * len(tokenizer("Tom was very hungry.", add_special_tokens=False)["input_ids"])
    length = 64 if static else context + (5 + gaps - 1) - 1  # the last token is predicted, not read
    config = model.config
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
