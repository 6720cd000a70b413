"""infill() equals re-forwarding the whole text with the hybrid mask, token by token, without a cache."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modeling_magnet import Gap

TEXTS = ["Tom was very hungry.", " He went to the kitchen and ate", " his bed. Good night!"]
FREE_OFFSET = 64  # text_magnet's


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, text_magnet):
    return text_magnet(request.param)


@pytest.fixture(scope="module")
def sdpa_model(text_magnet):
    return text_magnet("sdpa")


def token_pieces(texts, tokenizer) -> list[list[int]]:
    """[BOS] and the tokens of each text; byte-level texts without a space at a seam need no further care."""
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [[tokenizer.bos_token_id, *pieces[0]], *pieces[1:]]


@torch.no_grad()
def next_logits(model, pieces, budgets, gap, fill) -> torch.Tensor:
    """Logits (V,) of the token behind `fill` in gap number `gap`; the other gaps stay open, `budgets[i]` wide."""
    ids, spans, positions, here, start = [], [], [], 0, 0
    for number, piece in enumerate(pieces):
        ids += piece
        spans += [0] * len(piece)
        positions += range(start, start + len(piece))
        start += len(piece)
        if number == gap:
            ids += fill
            spans += [1] * len(fill)
            positions += range(start, start + len(fill))
            here = len(ids) - 1
        if number < len(budgets):
            start += budgets[number]
    row = {
        "input_ids": torch.tensor([ids]),
        "span_ids": torch.tensor([spans]),
        "position_ids": torch.tensor([positions]),
    }
    return model(**row, attention_mode="hybrid", use_cache=False).logits[0, here]


def naive_fill(model, tokenizer, pieces, budgets, gap, steps, end=None, end_bias=0.0):
    """Greedy tokens of a gap and their raw logits (steps, V); control tokens are forbidden, `end` ends the gap."""
    forbidden = [token for token in tokenizer.all_special_ids if token != end]
    fill, recorded = [], []
    while len(fill) < steps:
        logits = next_logits(model, pieces, budgets, gap, fill)
        recorded.append(logits)
        scores = logits.clone()
        scores[forbidden] = -torch.inf
        if end is not None:
            scores[end] += end_bias
        token = int(scores.argmax())
        if token == end:
            break
        fill.append(token)
    return fill, torch.stack(recorded)


def fills_of(output) -> list[list[int]]:
    return [gap.token_ids for gap in output.gaps]


def recorded_logits(model, call):
    """What `call()` returns, and the logits (steps, rows, V) that the head computed meanwhile."""
    steps = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: steps.append(output[:, -1]))
    try:
        return call(), torch.stack(steps)
    finally:
        handle.remove()


@pytest.mark.parametrize("texts", [TEXTS[:2], ["", TEXTS[1]], [TEXTS[0], ""]], ids=["both", "right", "left"])
def test_exact_length_equals_the_hybrid_forward(model, tokenizer, texts):
    expected, _ = naive_fill(model, tokenizer, token_pieces(texts, tokenizer), [7], 0, steps=7)
    output = model.infill("<|gap|>".join(texts), tokenizer, length=7, return_dict=True)
    assert fills_of(output) == [expected]


def test_free_length_equals_the_hybrid_forward(model, tokenizer):
    pieces = token_pieces(TEXTS[:2], tokenizer)
    whole, logits = naive_fill(model, tokenizer, pieces, [FREE_OFFSET], 0, steps=20)
    # a bias under which END wins where it comes closest to winning, and nowhere else
    allowed = logits.clone()
    allowed[:, tokenizer.all_special_ids] = -torch.inf
    distance = allowed.max(-1).values - logits[:, tokenizer.eos_token_id]  # (steps,)
    bias = float(distance.sort().values[:2].mean())
    end = tokenizer.eos_token_id
    expected, _ = naive_fill(model, tokenizer, pieces, [FREE_OFFSET], 0, steps=20, end=end, end_bias=bias)
    assert 0 < len(expected) < 20 and expected == whole[: len(expected)]
    text = "<|gap|>".join(TEXTS[:2])
    output = model.infill(text, tokenizer, max_new_tokens=20, sequence_bias={(end,): bias}, return_dict=True)
    assert fills_of(output) == [expected] and output.gaps[0].finish_reason == "end_token"


@pytest.mark.parametrize("length, budget", [(9, 9), ("auto", FREE_OFFSET)])
def test_logits_equal_the_hybrid_forward_in_float64(text_magnet, tokenizer, length, budget):
    model = text_magnet("sdpa").double()  # eager attention takes its softmax in float32
    pieces = token_pieces(TEXTS, tokenizer)
    naive = [naive_fill(model, tokenizer, pieces, [budget] * 2, gap, steps=9)[1] for gap in (0, 1)]
    arguments = {"length": length, "max_new_tokens": 9, "order": "parallel"}
    text = "<|gap|>".join(TEXTS)
    never_end = {"suppress_tokens": [tokenizer.eos_token_id]} if length == "auto" else {}
    _, steps = recorded_logits(model, lambda: model.infill(text, tokenizer, **arguments, **never_end))
    assert steps.shape == (9, 2, 4096) and steps.dtype == torch.float64
    torch.testing.assert_close(steps[:, 0], naive[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(steps[:, 1], naive[1], rtol=0, atol=1e-10)


def test_logits_equal_the_hybrid_forward_in_float32(model, tokenizer):
    _, naive = naive_fill(model, tokenizer, token_pieces(TEXTS[:2], tokenizer), [9], 0, steps=9)
    text = "<|gap|>".join(TEXTS[:2])
    _, steps = recorded_logits(model, lambda: model.infill(text, tokenizer, length=9))
    torch.testing.assert_close(steps[:, 0], naive, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [(6, 6), (4, 9), (9, 4)])
def test_parallel_gaps_do_not_see_each_other(model, tokenizer, lengths):
    pieces = token_pieces(TEXTS, tokenizer)
    expected = [naive_fill(model, tokenizer, pieces, lengths, gap, steps=lengths[gap])[0] for gap in (0, 1)]
    parts = [TEXTS[0], Gap(lengths[0]), TEXTS[1], Gap(lengths[1]), TEXTS[2]]
    assert fills_of(model.infill(parts, tokenizer, order="parallel", return_dict=True)) == expected


def test_parallel_alternatives_do_not_see_each_other(sdpa_model, tokenizer):
    """Alternatives of gaps of two lengths, which need two generate() calls over one and the same context."""
    budgets = (4, 9)
    parts = [TEXTS[0], Gap(budgets[0]), TEXTS[1], Gap(budgets[1]), TEXTS[2]]
    beams = {"num_beams": 3, "num_return_sequences": 2}
    outputs = sdpa_model.infill(parts, tokenizer, order="parallel", return_dict=True, **beams)
    for gap in (0, 1):
        expected = naive_beams(sdpa_model, tokenizer, token_pieces(TEXTS, tokenizer), budgets, gap, beams=3)[:2]
        assert [fills_of(output)[gap] for output in outputs] == expected


@pytest.mark.parametrize("length, budget", [(6, 6), ("auto", FREE_OFFSET)])
def test_sequential_gaps_see_the_fills_before_them(model, tokenizer, length, budget):
    pieces = token_pieces(TEXTS, tokenizer)
    first, _ = naive_fill(model, tokenizer, pieces, [budget] * 2, 0, steps=6)
    second, _ = naive_fill(model, tokenizer, [pieces[0] + first + pieces[1], pieces[2]], [budget], 0, steps=6)
    free = {"max_new_tokens": 6, "suppress_tokens": [tokenizer.eos_token_id]} if length == "auto" else {}
    output = model.infill("<|gap|>".join(TEXTS), tokenizer, length=length, return_dict=True, **free)
    assert fills_of(output) == [first, second]
    apart, _ = naive_fill(model, tokenizer, pieces, [budget] * 2, 1, steps=6)
    assert apart != second  # else this test could not tell the two orders apart


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}])
def test_ragged_batch_equals_one_at_a_time(model, tokenizer, order, search):
    batch = [
        "<|gap|>".join(TEXTS),
        [TEXTS[0], Gap(length=3), TEXTS[1] * 5],
        "A<|gap|>",
        ["", Gap(), "." + TEXTS[2], Gap(length=7), " Then", Gap(length="auto", max_new_tokens=5)],
    ]
    arguments = {"length": 6, "order": order, "return_dict": True, **search}
    together = model.infill(batch, tokenizer, **arguments)
    assert together == [model.infill([document], tokenizer, **arguments)[0] for document in batch]
    assert [len(output.gaps) for output in together] == [2, 1, 1, 3]


def naive_beams(model, tokenizer, pieces, budgets, gap, beams) -> list[list[int]]:
    """Beam search by hand, the best sequence first. All have one length, so no length penalty matters."""
    kept = [([], 0.0)]
    for _ in range(budgets[gap]):
        candidates = []
        for fill, score in kept:
            logprobs = next_logits(model, pieces, budgets, gap, fill).log_softmax(-1)
            logprobs[tokenizer.all_special_ids] = -torch.inf
            best = logprobs.topk(beams)
            candidates += [([*fill, int(t)], score + float(p)) for p, t in zip(best.values, best.indices)]
        kept = sorted(candidates, key=lambda candidate: -candidate[1])[:beams]
    return [fill for fill, _ in kept]


def test_beams_equal_a_beam_search_by_hand(sdpa_model, tokenizer):
    expected = naive_beams(sdpa_model, tokenizer, token_pieces(TEXTS[:2], tokenizer), [5], 0, beams=3)[:2]
    text = "<|gap|>".join(TEXTS[:2])
    beams = {"num_beams": 3, "num_return_sequences": 2}
    outputs = sdpa_model.infill(text, tokenizer, length=5, return_dict=True, **beams)
    assert [fills_of(output)[0] for output in outputs] == expected


def test_sampling_is_reproducible_and_differs_between_alternatives(sdpa_model, tokenizer):
    def sample(seed):
        torch.manual_seed(seed)
        batch = ["<|gap|>".join(TEXTS), "One<|gap|> two"]
        return sdpa_model.infill(batch, tokenizer, length=6, do_sample=True, num_return_sequences=3)

    first = sample(seed=3)
    assert first == sample(seed=3) and first != sample(seed=4)
    assert [len(set(alternatives)) for alternatives in first] == [3, 3]


def test_sampling_from_the_best_token_alone_is_greedy(sdpa_model, tokenizer):
    text = "<|gap|>".join(TEXTS)
    sampled = sdpa_model.infill(text, tokenizer, length=6, do_sample=True, top_k=1, num_return_sequences=2)
    assert sampled == [sdpa_model.infill(text, tokenizer, length=6)] * 2


@pytest.mark.parametrize("alternatives", [1, 2])
def test_one_prefill_per_document_then_one_token_a_step(sdpa_model, tokenizer, alternatives):
    shapes = []

    def record(module, args, kwargs):
        shapes.append(tuple((args[0] if args else kwargs["input_ids"]).shape))

    batch = ["<|gap|>".join(TEXTS), TEXTS[0] + "<|gap|>"]
    longest = sum(map(len, token_pieces(TEXTS, tokenizer)))
    handle = sdpa_model.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        sampling = {"do_sample": True, "num_return_sequences": alternatives}
        sdpa_model.infill(batch, tokenizer, length=5, order="parallel", **sampling)
    finally:
        handle.remove()
    assert shapes[:6] == [(2, longest)] + [(3 * alternatives, 1)] * 5  # 2 documents, 3 gaps
    assert len(shapes) == 6 + (alternatives > 1) * 3 * 2  # alternatives are ranked: a text and what goes on, a gap


def test_nothing_shared_is_changed(sdpa_model, tokenizer):
    def settings():
        return sdpa_model.config.to_dict(), sdpa_model.generation_config.to_dict(), sdpa_model.training

    before = settings()
    sdpa_model.infill("<|gap|>".join(TEXTS), tokenizer, length=4, num_beams=2)
    sdpa_model.infill("<|gap|>".join(TEXTS), tokenizer, max_new_tokens=4, do_sample=True, temperature=0.5)
    with pytest.raises(ValueError, match="do_sample"):
        sdpa_model.infill("<|gap|>".join(TEXTS), tokenizer, length=4, num_return_sequences=2)
    assert settings() == before


def test_settings_of_a_generation_config_hold(text_magnet, tokenizer):
    model, text = text_magnet(), "<|gap|>".join(TEXTS)
    greedy, beams = (model.infill(text, tokenizer, length=5, num_beams=n) for n in (1, 3))
    assert greedy != beams
    model.generation_config.num_beams = 3
    model.generation_config.return_dict_in_generate = True
    model.generation_config.use_cache = False
    assert model.infill(text, tokenizer, length=5) == beams
    assert model.infill(text, tokenizer, length=5, num_beams=1) == greedy


def test_threads_give_the_results_of_one_thread(sdpa_model, tokenizer):
    causal_ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    jobs = [
        lambda n=n: sdpa_model.infill("<|gap|>".join(TEXTS[: 2 + n % 2]), tokenizer, length=3 + n) for n in range(6)
    ]
    jobs += [lambda: sdpa_model.encode(TEXTS, tokenizer).tolist()] * 3  # other modes at the same time
    jobs += [lambda: sdpa_model.generate(causal_ids, max_new_tokens=8, do_sample=False).tolist()] * 3
    expected = [job() for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            assert list(pool.map(lambda job: job(), jobs)) == expected
