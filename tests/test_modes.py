"""The three attention modes, on every family and backend, against the brute-force rule, by perturbation, over a cache."""

import copy
import functools
import itertools
import shutil

import families
import pytest
import torch
from families import WINDOW, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import additive_mask, allowed_pairs, padding_mask, spans_of_mode
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_magnet import ATTENTION_MODES, span_attention_rule, span_ids_from_mask
from modeling_magnet.encoding_magnet import BOTH_WAYS, last_states, pack

build_base, build_magnet = map(
    functools.cache, (families.build_base, families.build_magnet)
)  # nothing here changes them
LENGTHS = [12, 9, 7]
WIDTH = 12
PADDINGS = ("none", "left", "right", "both")
EACH_PADDING = pytest.mark.parametrize(
    "impl, padding", [*(("sdpa", padding) for padding in PADDINGS), ("eager", "none"), ("eager", "both")]
)
# spans at the start, in the middle, at the end; two that touch; ids out of order
SPAN_RUNS = [
    [0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 3, 0],
    [2, 2, 0, 0, 0, 1, 1, 1, 0],
    [0, 0, 5, 5, 5, 5, 5],
]
NAMES = pytest.mark.parametrize("name", families.NAMES)
SLIDING = [name for name in families.NAMES if any(windows(build_base(name).config))]
assert SLIDING == ["mistral", "qwen2", "qwen3", "gemma3_text"]
BACKENDS = pytest.mark.parametrize("impl", ["eager", "sdpa"])
MODES = pytest.mark.parametrize("mode", ATTENTION_MODES)


def batch_of(padding: str, rows: int = 3):
    """Token ids, span ids and padding mask (None for 'none') of a batch; padding holds ids and span id 0."""
    lengths = LENGTHS if padding != "none" else [WIDTH] * 3
    mask = padding_mask(lengths, WIDTH, "right" if padding == "none" else padding)
    spans = torch.zeros(3, WIDTH, dtype=torch.long)
    for row, runs, real, length in zip(spans, SPAN_RUNS, mask.bool(), lengths):
        row[real] = torch.tensor((runs + [0] * WIDTH)[:length])
    ids = torch.randint(4, 97, (3, WIDTH), generator=torch.Generator().manual_seed(0))
    return ids[:rows], spans[:rows], None if padding == "none" else mask[:rows]


def real_positions(mask, shape) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()


def forward(model, ids, mode, spans, mask=None, **kwargs):
    given_spans = spans if mode == "hybrid" else None
    with torch.no_grad():
        return model(ids, attention_mask=mask, attention_mode=mode, span_ids=given_spans, **kwargs).logits


def stock_forward(base, ids, spans, real, positions=None):
    """A stock model that is handed the brute-force mask: one tensor, or one a kind of layers."""
    near, far = (additive_mask(spans, real, window, positions) for window in (families.WINDOW, None))
    if hasattr(base.config, "layer_types"):
        mask = {"sliding_attention": near, "full_attention": far}
    else:
        mask = near if windows(base.config)[0] else far
    with torch.no_grad():
        return base(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


# ---------------------------------------------------------------------------------------------------- the rule by itself


@st.composite
def spans_and_padding(draw):
    length, batch = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    row = st.lists(st.integers(0, 3), min_size=length, max_size=length)
    real = st.lists(st.booleans(), min_size=length, max_size=length)
    return draw(st.lists(row, min_size=batch, max_size=batch)), draw(st.lists(real, min_size=batch, max_size=batch))


@given(spans_and_padding())
@settings(max_examples=200, deadline=None)
def test_rule_matches_brute_force(case):
    spans, real = case
    b, q, k = torch.meshgrid(*(torch.arange(n) for n in (len(spans), len(spans[0]), len(spans[0]))), indexing="ij")
    allowed = span_attention_rule(torch.tensor(spans))(b, 0, q, k) & torch.tensor(real)[b, k]
    assert torch.equal(allowed, allowed_pairs(spans, real))


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_span_ids_from_mask_numbers_the_runs(rows):
    expected = []
    for row in rows:
        ids, run = [], 0
        for is_span, group in itertools.groupby(row):
            run += is_span
            ids += [run if is_span else 0] * len(list(group))
        expected.append(ids)
    assert span_ids_from_mask(torch.tensor(rows)).tolist() == expected


# ------------------------------------------------------------------------- against a stock model with a brute-force mask


@MODES
@EACH_PADDING
@NAMES
def test_forward_equals_stock_with_the_brute_force_mask(name, impl, padding, mode):
    ids, spans, mask = batch_of(padding)
    real = real_positions(mask, ids.shape)
    expected = stock_forward(build_base(name), ids, spans_of_mode(mode, spans), real)
    actual = forward(build_magnet(name, impl, adapter=None), ids, mode, spans, mask)
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["bidirectional", "hybrid"])
@BACKENDS
@NAMES
def test_jumps_of_position_ids(name, impl, mode):
    """A free gap reserves positions: attention crosses it, which transformers would take for the border of two packed
    texts; a sliding window counts positions, not tokens."""
    ids, spans, _ = batch_of("none")
    positions = torch.arange(WIDTH).repeat(3, 1)
    positions[0, 5:] += 120
    positions[1, 3:] += 2
    expected = stock_forward(build_base(name), ids, spans_of_mode(mode, spans), torch.ones(3, WIDTH), positions)
    actual = forward(build_magnet(name, impl, adapter=None), ids, mode, spans, position_ids=positions)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.fixture(params=["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def flex(request):
    """flex_attention as its own eager code runs it; compiled, as transformers runs it, it takes minutes on a CPU."""
    if request.param == "compiled" and shutil.which("gcc") is None:
        pytest.skip("flex_attention on CPU is compiled by gcc")
    torch._dynamo.reset()
    with torch.compiler.set_stance("force_eager" if request.param == "eager" else "default"):
        yield


@NAMES
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention(name, flex):
    ids, spans, mask = batch_of("both")
    real = real_positions(mask, ids.shape)
    expected = stock_forward(build_base(name), ids, spans, real)
    actual = forward(build_magnet(name, "flex_attention", adapter=None), ids, "hybrid", spans, mask)
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- pure modes, exact


@pytest.mark.parametrize("padding", PADDINGS)
@BACKENDS
@pytest.mark.parametrize("name", [name for name in families.NAMES if name not in SLIDING])
def test_bidirectional_equals_stock_with_is_causal_false(name, impl, padding):
    """Not where windows slide: transformers' bidirectional window is one token wider than its causal one."""
    ids, _, mask = batch_of(padding)
    base = build_base(name, impl)
    with torch.no_grad():
        expected = base(ids, attention_mask=mask, is_causal=False).logits
    assert torch.equal(forward(build_magnet(name, impl, adapter=None), ids, "bidirectional", None, mask), expected)


@EACH_PADDING
@NAMES
def test_hybrid_of_one_kind_of_token_is_a_pure_mode(name, impl, padding):
    model = build_magnet(name, impl, causal_adapter=True)  # the adapter acts in every mode, so modes are comparable
    ids, spans, mask = batch_of(padding)
    real = real_positions(mask, ids.shape)  # a padding query is of no mode
    all_span = forward(model, ids, "hybrid", torch.ones_like(spans), mask)
    all_context = forward(model, ids, "hybrid", torch.zeros_like(spans), mask)
    assert torch.equal(all_span[real], forward(model, ids, "causal", None, mask)[real])
    assert torch.equal(all_context[real], forward(model, ids, "bidirectional", None, mask)[real])
    assert not torch.equal(all_span[real], all_context[real])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_span_ids_of_any_integer_type(dtype):
    model, (ids, spans, _) = build_magnet(), batch_of("none")
    assert torch.equal(forward(model, ids, "hybrid", spans.to(dtype)), forward(model, ids, "hybrid", spans))


def test_span_mask_is_read_as_runs():
    model, (ids, _, _) = build_magnet(), batch_of("none")
    spans = torch.tensor([[0, 1, 1, 0, 0, 2, 2, 2, 0, 3, 0, 0]]).repeat(3, 1)
    with torch.no_grad():
        by_mask = model(ids, attention_mode="hybrid", span_mask=spans > 0).logits
    assert torch.equal(by_mask, forward(model, ids, "hybrid", spans))


@BACKENDS
def test_padding_mask_may_be_boolean(impl):
    model, (ids, spans, mask) = build_magnet("mistral", impl), batch_of("left")
    for mode in ATTENTION_MODES:
        assert torch.equal(forward(model, ids, mode, spans, mask.bool()), forward(model, ids, mode, spans, mask))


# ---------------------------------------------------------------------------------------------------------- reachability


def moved_by(model, ids, mode, spans, mask, positions=None) -> torch.Tensor:
    """`moved[l, b, q, k]`: does the state of query q behind layer l change when token k of its row b does?"""
    rows, length = ids.shape
    embeds = model.get_input_embeddings()(ids).detach().repeat(length + 1, 1, 1)  # a copy as it is, and one for each k
    copies = embeds.view(length + 1, rows, length, -1)
    for k in range(length):
        copies[k + 1, :, k] += torch.linspace(-0.5, 0.5, embeds.shape[-1])

    def repeated(tensor):
        return tensor if tensor is None else tensor.repeat(length + 1, 1)

    given = {"attention_mode": mode, "span_ids": repeated(spans) if mode == "hybrid" else None}
    given |= {"attention_mask": repeated(mask), "position_ids": repeated(positions), "output_hidden_states": True}
    with torch.no_grad():
        states = torch.stack(model.model(inputs_embeds=embeds, **given).hidden_states[1:])
    states = states.view(len(states), length + 1, rows, length, -1)
    change = (states[:, 1:] - states[:, :1]).abs().amax(-1)  # (layers, k, B, q)
    assert not ((change > 1e-5) & (change < 1e-4)).any(), "no telling a change from rounding"
    return (change > 1e-5).permute(0, 2, 3, 1)


def reach(config, mode, spans, real, positions=None) -> torch.Tensor:
    """The same by brute force: each layer's rule after those before, and the residual stream."""
    spans = spans_of_mode(mode, spans).tolist()
    reached, behind = torch.eye(len(spans[0])).repeat(len(spans), 1, 1), []
    for window in windows(config):
        layer = allowed_pairs(spans, real.tolist(), window, positions if positions is None else positions.tolist())
        reached = (layer.float() @ reached + reached).clamp(max=1)  # (B, L, L)
        behind.append(reached.bool())
    return torch.stack(behind)


@MODES
@pytest.mark.parametrize("impl, padding", [("eager", "both"), ("sdpa", "none")])
@NAMES
def test_reachability(name, impl, padding, mode):
    model, (ids, spans, mask) = build_magnet(name, impl), batch_of(padding)
    real = real_positions(mask, ids.shape)
    moved = moved_by(model, ids, mode, spans, mask)
    assert torch.equal(moved[:, real], reach(model.config, mode, spans, real)[:, real])


@NAMES
def test_reachability_over_jumps_of_position_ids(name):
    model, (ids, spans, _) = build_magnet(name, "sdpa"), batch_of("none")
    positions = torch.arange(WIDTH).repeat(3, 1)
    positions[0, 5:] += 120
    positions[1, 3:] += 2
    real = torch.ones(3, WIDTH)
    moved = moved_by(model, ids, "hybrid", spans, None, positions)
    assert torch.equal(moved, reach(model.config, "hybrid", spans, real, positions))
    assert torch.equal(moved, reach(model.config, "hybrid", spans, real)) is (name not in SLIDING)


# ------------------------------------------------------------------------------------------------ spans over a cached context

PLACES = [3, 4, 5, 6, 40, 41, 42, 43, 44, 45]  # of a context with a gap of free length behind its fourth token
LEFT, SPAN = 3, 5  # the context token left of the gap, and the span's length: both longer and shorter than the window
SCORED = list(range(LEFT, LEFT + 1 + SPAN))


def hybrid_at_once(model, context, span):
    """Logits (B, 1 + SPAN, V) of the token left of the gap and of the span, by one forward over everything."""
    ids = torch.cat([context[:, : LEFT + 1], span, context[:, LEFT + 1 :]], dim=1)
    places = PLACES[: LEFT + 1] + [PLACES[LEFT] + i for i in range(1, SPAN + 1)] + PLACES[LEFT + 1 :]
    spans = torch.zeros_like(ids)
    spans[:, LEFT + 1 : LEFT + 1 + SPAN] = 1
    places = torch.tensor(places).expand(ids.shape)
    return forward(model, ids, "hybrid", spans, position_ids=places)[:, SCORED]


def hybrid_over_a_cache(model, context, span, steps: list[int], order: list[int], mask=None, cache=None):
    """The same, as infill() does: the context is read first, then the token left of the gap again and the span behind it."""
    rows, cache = len(context), DynamicCache() if cache is None else cache
    positions = torch.tensor(PLACES).expand(rows, -1)
    given = {"position_ids": positions, "cache": cache}
    forward(model, context, "bidirectional", None, mask, **given)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, order], layer.values[:, :, order]
    new = torch.cat([context[:, LEFT : LEFT + 1], span], dim=1)
    found, at = [], 0
    for step in steps:
        places = PLACES[LEFT] + torch.arange(at, at + step).expand(rows, -1)
        given |= {"position_ids": places, "context_position_ids": positions[:, order]}
        seen = mask if mask is None else torch.cat([mask[:, order], mask.new_ones(rows, at + step)], dim=1)
        found.append(forward(model, new[:, at : at + step], "hybrid", None, seen, **given))
        at += step
    return torch.cat(found, dim=1)


KEPT = [slot for slot in range(len(PLACES)) if slot != LEFT]
SHUFFLED = [8, 1, 0, 5, 9, 2, 7, 4, 6]


@pytest.fixture(scope="module")
def context():
    return torch.randint(4, 97, (2, len(PLACES)), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def span():
    return torch.randint(4, 97, (2, SPAN), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("steps, order", [([1] * 6, KEPT), ([6], KEPT), ([2, 1, 1, 1, 1], SHUFFLED)])
@BACKENDS
@NAMES
def test_decoding_over_a_cache_equals_the_hybrid_forward(name, impl, steps, order, context, span):
    """Context states do not depend on the span, so they can be computed first; in whatever order they lie."""
    model = copy.deepcopy(build_magnet(name, impl)).double()
    expected = hybrid_at_once(model, context, span)
    # Some families compute their norms and rotations in float32, whatever the model's dtype
    torch.testing.assert_close(hybrid_over_a_cache(model, context, span, steps, order), expected, rtol=0, atol=1e-5)


@NAMES
def test_decoding_over_a_padded_cache(name, context, span):
    model, mask = build_magnet(name, "sdpa"), torch.ones(2, len(PLACES), dtype=torch.long)
    mask[1, [0, 8, 9]] = 0  # on both sides
    found = hybrid_over_a_cache(model, context, span, [1] * 6, SHUFFLED, mask)
    other = context.clone()
    other[1, [0, 8, 9]] = 50  # what stands in padding has no effect
    assert torch.equal(hybrid_over_a_cache(model, other, span, [1] * 6, SHUFFLED, mask), found)
    alone = hybrid_at_once(model, context[:1], span[:1])
    torch.testing.assert_close(found[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SLIDING)
def test_a_cache_that_forgets_is_refused(name, context, span):
    """Its window is one of slots: what stands left of the gap would be lost with what the context's end has passed."""
    model = build_magnet(name, "sdpa")
    with pytest.raises(ValueError, match=r"cache: this one forgets.*use DynamicCache\(\), without config="):
        hybrid_over_a_cache(model, context, span, [6], KEPT, cache=DynamicCache(config=model.config))


# ----------------------------------------------------------------------------------------------------------- packed texts


@BACKENDS
@pytest.mark.parametrize("mode", ["bidirectional", "hybrid"])
@NAMES
def test_packed_texts_do_not_see_each_other(name, mode, impl):
    """Windows and rotations too: each text's logits are those of the text alone."""
    ids, spans, mask = batch_of("both")
    model = build_magnet(name, impl)
    numbered = torch.where(spans > 0, spans + 10 * torch.arange(3)[:, None], 0)
    packed, unpack = pack({"input_ids": ids, "span_ids": numbered}, mask, width=22)
    assert packed["input_ids"].shape == (2, 21) and (packed["document_ids"] == -1).sum() == 42 - mask.sum()
    runs = packed.pop("span_ids")
    found = unpack(forward(model, packed.pop("input_ids"), mode, runs, **packed))
    for row, real in enumerate(mask.bool()):
        alone = forward(model, ids[row, real][None], mode, spans[row, real][None])
        torch.testing.assert_close(found[row, real], alone[0], rtol=0, atol=1e-5)
    assert (found[~mask.bool()] == 0).all()


@pytest.mark.parametrize(
    "call",
    [
        {"attention_mode": "causal"},
        {"attention_mode": "bidirectional", "attention_mask": torch.ones(1, 4)},
        {"attention_mode": "bidirectional", "cache": DynamicCache()},
    ],
)
def test_documents_are_refused_where_they_would_not_count(call):
    with pytest.raises(
        ValueError, match="document_ids: are for bidirectional and hybrid mode, with no attention_mask"
    ):
        build_magnet()(torch.tensor([[5, 6, 7, 8]]), document_ids=torch.tensor([[0, 0, 1, 1]]), **call)


# ---------------------------------------------------------------------------------------------------------- flash attention


@MODES
def test_what_the_attention_layers_are_told(mode):
    """Flash attention reads packed documents off position_ids, and its direction off is_causal, having no mask."""
    model, (ids, spans, _), told = families.build_magnet(), batch_of("none"), []
    layer = model.model.layers[0].self_attn
    layer.register_forward_pre_hook(lambda *call: told.append(call[-1]), with_kwargs=True)
    forward(model, ids, mode, spans, position_ids=torch.arange(WIDTH)[None])
    assert (told[0].get("position_ids") is not None) is (mode == "causal")
    assert told[0].get("is_causal", True) is (mode == "causal")


def flash_like(module, query, key, value, attention_mask, scaling, sliding_window=None, is_causal=None, **kwargs):
    """What flash attention makes of its arguments: windows over slots, packed texts, queries at the keys' end."""
    causal = module.is_causal if is_causal is None else is_causal
    slots = torch.arange(key.shape[2])
    distance = slots[-query.shape[2] :, None] - slots  # (Q, K)
    allowed = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if sliding_window is not None:
        allowed = allowed & (distance.abs() < sliding_window)
    allowed = allowed[None, None].repeat(len(query), 1, 1, 1)
    if attention_mask is not None:
        allowed &= attention_mask[:, None, None, :].bool()
    elif kwargs.get("cu_seq_lens_q") is not None:
        offsets, slots = kwargs["cu_seq_lens_q"], torch.arange(len(query) * query.shape[2])
        assert offsets[-1] == len(slots) and kwargs["max_length_q"] == offsets.diff().max()
        text = torch.bucketize(slots, offsets, right=True).view(len(query), -1)
        allowed &= text[:, None, :, None] == text[:, None, None, :]
    elif kwargs.get("position_ids") is not None and query.shape[2] == key.shape[2]:
        text = (kwargs["position_ids"].diff(prepend=kwargs["position_ids"][:, :1] - 1) != 1).cumsum(-1)
        allowed &= text[:, None, :, None] == text[:, None, None, :]
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
    weights = (query @ key.transpose(2, 3) * scaling + bias).softmax(-1)
    return (weights @ value).transpose(1, 2), None


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash_like)

    def build(name, **settings):
        model = copy.deepcopy(build_magnet(name, **settings))
        for config in {
            id(module.config): module.config for module in model.modules() if hasattr(module, "config")
        }.values():
            config._attn_implementation_internal = "flash_attention_2"
        return model

    return build


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@NAMES
def test_flash_attention_serves_the_pure_modes(name, padding, mode, flash):
    """On a stand-in with its interface: no kernel runs on a CPU."""
    ids, spans, mask = batch_of(padding)
    real = real_positions(mask, ids.shape)
    expected = stock_forward(build_base(name), ids, spans_of_mode(mode, spans), real)
    actual = forward(flash(name, adapter=None), ids, mode, spans, mask)
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)


@NAMES
def test_flash_attention_over_jumps_and_caches(name, flash, context, span):
    """Right where it can be; where it would slide over slots, refused by name and length."""
    model = flash(name)
    if name in SLIDING:
        with pytest.raises(
            ValueError, match=f"'flash_attention_2' slides.*longer than sliding_window={WINDOW} needs 'sdpa'"
        ):
            hybrid_over_a_cache(model, context, span, [1] * 6, KEPT)
    else:
        expected = hybrid_at_once(build_magnet(name), context, span)
        found = hybrid_over_a_cache(model, context, span, [1] * 6, KEPT)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SLIDING)
def test_flash_attention_over_jumps_of_a_text_within_the_window(name, flash):
    ids, positions = batch_of("none")[0][:, :3], torch.tensor([[0, 2, 3]])
    found = forward(flash(name), ids, "bidirectional", None, position_ids=positions)
    expected = forward(build_magnet(name), ids, "bidirectional", None, position_ids=positions)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@NAMES
def test_flash_attention_is_refused_in_hybrid_mode(name, flash):
    ids, spans, _ = batch_of("none")
    with pytest.raises(ValueError, match="'flash_attention_2' ignores attention_mode='hybrid'. Use 'sdpa'"):
        forward(flash(name), ids, "hybrid", spans)


@NAMES
def test_flash_attention_encodes_without_padding(name, flash):
    rows, calls = [list(range(10, 10 + length)) for length in LENGTHS], []
    model = flash(name).model
    model.register_forward_pre_hook(lambda *call: calls.append(call[-1]["input_ids"].shape), with_kwargs=True)
    found = {
        row: state
        for batch, states, _ in last_states(model, rows, 3, **BOTH_WAYS)
        for row, state in zip(batch, states)
    }
    assert calls == [(1, sum(LENGTHS))]
    for row, ids in enumerate(rows):
        alone = build_magnet(name).model(torch.tensor([ids]), **BOTH_WAYS).last_hidden_state[0]
        torch.testing.assert_close(found[row][: len(ids)], alone, rtol=0, atol=1e-5)
