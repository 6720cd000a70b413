"""The attention rule on every backend, against the brute-force reference and against stock Llama."""

import itertools
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import additive_mask, allowed_pairs, padding_mask, spans_of_mode
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_bidirectional_mask

from modeling_magnet import ATTENTION_MODES, span_attention_rule, span_ids_from_mask

LENGTHS = [12, 9, 7]
WIDTH = 12
PADDINGS = ("none", "left", "right")
# spans at the start, in the middle, at the end; two that touch; ids out of order
SPAN_RUNS = [
    [0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 3, 0],
    [2, 2, 0, 0, 0, 1, 1, 1, 0],
    [0, 0, 5, 5, 5, 5, 5],
]


def batch_of(padding: str, rows: int = 3):
    """Token ids, span ids and padding mask (None for 'none') of a batch; padding holds ids and span id 0."""
    lengths = LENGTHS if padding != "none" else [WIDTH] * 3
    runs = [(runs + [0] * WIDTH)[:n] for runs, n in zip(SPAN_RUNS, lengths)]
    fill = [[0] * (WIDTH - n) for n in lengths]
    spans = torch.tensor([f + r if padding == "left" else r + f for r, f in zip(runs, fill)])
    ids = torch.randint(4, 97, (3, WIDTH), generator=torch.Generator().manual_seed(0))
    mask = None if padding == "none" else padding_mask(lengths, WIDTH, padding)
    return ids[:rows], spans[:rows], mask if mask is None else mask[:rows]


def real_positions(mask, shape) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()


def forward(model, ids, mode, spans, mask=None, **kwargs):
    given_spans = spans if mode == "hybrid" else None
    with torch.no_grad():
        return model(ids, attention_mask=mask, attention_mode=mode, span_ids=given_spans, **kwargs).logits


# ------------------------------------------------------------------------------------------------ the rule by itself


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


@pytest.mark.parametrize("padding", PADDINGS)
def test_mask_of_sdpa_matches_brute_force(padding, tiny_llama):
    _, spans, mask = batch_of(padding)
    config = tiny_llama("sdpa").config
    embeds = torch.zeros(*spans.shape, config.hidden_size)
    built = create_bidirectional_mask(
        config=config, inputs_embeds=embeds, attention_mask=mask, and_mask_function=span_attention_rule(spans)
    )
    assert torch.equal(built[:, 0], allowed_pairs(spans.tolist(), real_positions(mask, spans.shape).tolist()))


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


# ------------------------------------------------------------------------------------ the model against stock Llama


@pytest.mark.parametrize("mode", ATTENTION_MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_forward_equals_stock_llama_with_brute_force_mask(impl, padding, mode, tiny_llama, tiny_magnet):
    ids, spans, mask = batch_of(padding)
    real = real_positions(mask, ids.shape)
    with torch.no_grad():
        expected = tiny_llama("eager")(ids, attention_mask=additive_mask(spans_of_mode(mode, spans), real)).logits
    actual = forward(tiny_magnet(impl, adapter=None), ids, mode, spans, mask)
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="flex_attention on CPU is compiled by gcc")
@pytest.mark.parametrize("padding", [pytest.param("none", marks=pytest.mark.slow), "left"])
def test_flex_hybrid_equals_stock_llama_with_brute_force_mask(padding, tiny_llama, tiny_magnet):
    ids, spans, mask = batch_of(padding)
    real = real_positions(mask, ids.shape)
    with torch.no_grad():
        expected = tiny_llama("eager")(ids, attention_mask=additive_mask(spans, real)).logits
    actual = forward(tiny_magnet("flex_attention", adapter=None), ids, "hybrid", spans, mask)
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_bidirectional_equals_stock_llama_with_is_causal_false(impl, padding, tiny_llama, tiny_magnet):
    ids, _, mask = batch_of(padding)
    with torch.no_grad():
        expected = tiny_llama(impl)(ids, attention_mask=mask, is_causal=False).logits
    assert torch.equal(forward(tiny_magnet(impl, adapter=None), ids, "bidirectional", None, mask), expected)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_hybrid_of_one_kind_of_token_is_a_pure_mode(impl, padding, tiny_magnet):
    model = tiny_magnet(impl, causal_adapter=True)  # the adapter acts in every mode, so modes are comparable
    ids, spans, mask = batch_of(padding)
    real = real_positions(mask, ids.shape)  # a padding query is of no mode
    all_span = forward(model, ids, "hybrid", torch.ones_like(spans), mask)
    all_context = forward(model, ids, "hybrid", torch.zeros_like(spans), mask)
    assert torch.equal(all_span[real], forward(model, ids, "causal", None, mask)[real])
    assert torch.equal(all_context[real], forward(model, ids, "bidirectional", None, mask)[real])
    assert not torch.equal(all_span[real], all_context[real])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_span_ids_of_any_integer_type(dtype, tiny_magnet):
    model, (ids, spans, _) = tiny_magnet(), batch_of("none")
    assert torch.equal(forward(model, ids, "hybrid", spans.to(dtype)), forward(model, ids, "hybrid", spans))


def test_span_mask_is_read_as_runs(tiny_magnet):
    model, (ids, _, _) = tiny_magnet(), batch_of("none")
    spans = torch.tensor([[0, 1, 1, 0, 0, 2, 2, 2, 0, 3, 0, 0]]).repeat(3, 1)
    with torch.no_grad():
        by_mask = model(ids, attention_mode="hybrid", span_mask=spans > 0).logits
    assert torch.equal(by_mask, forward(model, ids, "hybrid", spans))


def test_padding_mask_may_be_boolean(tiny_magnet):
    model, (ids, spans, mask) = tiny_magnet("sdpa"), batch_of("left")
    for mode in ATTENTION_MODES:
        assert torch.equal(forward(model, ids, mode, spans, mask.bool()), forward(model, ids, mode, spans, mask))


# ------------------------------------------------------------------------------------------------------ reachability


def moved_by(model, ids, mode, spans, mask, position_ids=None) -> torch.Tensor:
    """`moved[b, q, k]`: does output q of row b change when token k of row b does? Fails if another row moves."""
    embeds = model.model.embed_tokens(ids).detach()

    def outputs(embeds):
        extra = {} if position_ids is None else {"position_ids": position_ids}
        return forward(model, None, mode, spans, mask, inputs_embeds=embeds, **extra)

    before = outputs(embeds)
    moved = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool)
    for b, k in itertools.product(*map(range, ids.shape)):
        changed = embeds.clone()
        changed[b, k] += torch.linspace(-0.5, 0.5, embeds.shape[-1])
        differs = (outputs(changed) != before).any(-1)  # (B, L)
        moved[b, :, k] = differs[b]
        differs[b] = False
        assert not differs.any(), f"token {k} of row {b} reaches another row"
    return moved


@pytest.mark.parametrize("mode", ATTENTION_MODES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_reachability(impl, padding, rows, mode, tiny_magnet):
    """The rule is transitive, so over any number of layers a token reaches exactly those that may attend to it."""
    ids, spans, mask = batch_of(padding, 3)
    if rows == 1:  # a row that has padding, where there is any
        ids, spans, mask = ids[1:2], spans[1:2], None if mask is None else mask[1:2]
    real = real_positions(mask, ids.shape)
    expected = allowed_pairs(spans_of_mode(mode, spans).tolist(), real.tolist())
    moved = moved_by(tiny_magnet(impl), ids, mode, spans, mask)
    assert torch.equal(moved[real], expected[real])


@pytest.mark.parametrize("mode", ["bidirectional", "hybrid"])
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_attention_crosses_jumps_of_position_ids(impl, mode, tiny_llama, tiny_magnet):
    """A free gap reserves positions; transformers would take the jump for the border of two packed documents."""
    ids, spans, _ = batch_of("none", 2)
    positions = torch.arange(WIDTH).repeat(2, 1)
    positions[0, 5:] += 120
    positions[1, 3:] += 40
    expected = allowed_pairs(spans_of_mode(mode, spans).tolist(), torch.ones(2, WIDTH).tolist())
    assert torch.equal(moved_by(tiny_magnet(impl), ids, mode, spans, None, positions), expected)

    mask = additive_mask(spans_of_mode(mode, spans), torch.ones(2, WIDTH))
    with torch.no_grad():
        stock = tiny_llama("eager")(ids, attention_mask=mask, position_ids=positions).logits
    actual = forward(tiny_magnet(impl, adapter=None), ids, mode, spans, position_ids=positions)
    torch.testing.assert_close(actual, stock, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ATTENTION_MODES)
def test_what_the_attention_layers_are_told(mode, tiny_magnet):
    """Flash attention reads packed documents off position_ids, and its direction off is_causal, having no mask."""
    model, (ids, spans, _), told = tiny_magnet(), batch_of("none"), []
    layer = model.model.layers[0].self_attn
    layer.register_forward_pre_hook(lambda *call: told.append(call[-1]), with_kwargs=True)
    forward(model, ids, mode, spans, position_ids=torch.arange(WIDTH)[None])
    assert (told[0].get("position_ids") is not None) is (mode == "causal")
    assert told[0].get("is_causal", True) is (mode == "causal")


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_span_over_cached_context_equals_full_hybrid_forward(impl, tiny_magnet):
    """What infill() rests on: context states do not depend on the span, so they can be computed first."""
    model = tiny_magnet(impl)
    ids = batch_of("none", 1)[0]
    spans = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]])
    positions, context = torch.arange(WIDTH)[None], spans[0] == 0
    cache = DynamicCache(config=model.config)
    forward(model, ids[:, context], "bidirectional", None, position_ids=positions[:, context], past_key_values=cache)
    continued = forward(
        model, ids[:, ~context], "hybrid", None, position_ids=positions[:, ~context], past_key_values=cache
    )
    torch.testing.assert_close(continued, forward(model, ids, "hybrid", spans)[:, ~context], rtol=0, atol=1e-5)
