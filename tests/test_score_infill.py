"""Likelihoods: of what was written, of what is given, of the text behind; score_infill() gives those of infill()."""

from dataclasses import replace

import pytest
import torch
from infilling import FREE_OFFSET, TEXT, TEXTS, Write, next_logits, token_pieces
from transformers import AutoTokenizer, LlamaForCausalLM, LogitsProcessor

from modeling_magnet import Gap, InfillOutput, MagnetLlamaForCausalLM
from modeling_magnet.scoring_magnet import continuation_logprobs, token_logprobs


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def without_adapter(text_magnet):
    return text_magnet(adapter=None)


@torch.no_grad()
def base_logprobs(model, left, rest) -> list[float]:
    """Of each token of `rest`, by one causal forward of a model that never had an adapter."""
    logits = model(torch.tensor([left + rest])).logits[0, len(left) - 1 : -1]
    return logits.log_softmax(-1)[range(len(rest)), rest].tolist()


def test_token_logprobs_are_float32_at_least():
    logits = torch.randn(3, 5, 11, dtype=torch.float64)
    tokens = torch.randint(0, 11, (3, 5))
    exact = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(token_logprobs(logits, tokens), exact, rtol=0, atol=1e-12)
    for dtype in (torch.bfloat16, torch.float16):
        found = token_logprobs(logits.to(dtype), tokens)
        expected = logits.to(dtype).float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what was written


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("length, budget", [(6, 6), ("auto", FREE_OFFSET)])
def test_token_logprobs_are_those_of_the_hybrid_forward(model, tokenizer, order, length, budget):
    never_end = {} if length == 6 else {"suppress_tokens": [2], "max_new_tokens": 6}
    settings = {"do_sample": True, "temperature": 3.0, "top_k": 5}  # log-probabilities are those before them
    torch.manual_seed(0)
    output = model.infill(TEXT, tokenizer, length=length, order=order, return_dict=True, **never_end, **settings)
    pieces = token_pieces(TEXTS, tokenizer)
    for number, gap in enumerate(output.gaps):
        known, budgets, where = pieces, [budget] * 2, number
        if order == "sequential" and number == 1:
            known, budgets, where = [pieces[0] + output.gaps[0].token_ids + pieces[1], pieces[2]], [budget], 0
        for n, (token, logprob) in enumerate(zip(gap.token_ids, gap.token_logprobs, strict=True)):
            naive = next_logits(
                model, known, budgets, where, gap.token_ids[:n], ends=length == "auto" and n > 0
            ).log_softmax(-1)[token]
            assert logprob == pytest.approx(float(naive), abs=1e-4)
        assert gap.end_logprob is None


def test_token_logprobs_over_a_vocabulary_of_gemmas_size(tiny_llama, tiny_magnet, tokenizer):
    """torch loses digits in a sum of 262,144 probabilities in float32, unless they lie along the last dimension."""
    llama = tiny_llama("sdpa", vocab_size=262144, hidden_size=16, num_hidden_layers=1)
    model = tiny_magnet(llama=llama, infill_end_token_id=2, infill_free_offsets=[FREE_OFFSET])
    known = {"suppress_tokens": list(range(len(tokenizer), 262144))}  # the tokenizer has no more
    (gap,) = model.infill("Tom was<|gap|> sad.", tokenizer, length=6, return_dict=True, **known).gaps
    pieces = token_pieces(["Tom was", " sad."], tokenizer)
    logits = [next_logits(model, pieces, [6], 0, gap.token_ids[:n]) for n in range(6)]
    exact = [float(each.double().log_softmax(-1)[token]) for each, token in zip(logits, gap.token_ids)]
    assert gap.token_logprobs == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("fewest", [0, 1])
def test_the_end_tokens_logprob(model, tokenizer, fewest):
    bias = {"sequence_bias": {(2,): 1e4}, "min_new_tokens": fewest}
    (gap,) = model.infill("Tom was<|gap|> sad.", tokenizer, return_dict=True, **bias).gaps
    pieces = token_pieces(["Tom was", " sad."], tokenizer)
    logits = next_logits(model, pieces, [FREE_OFFSET], 0, gap.token_ids, ends=True)
    naive = logits.log_softmax(-1)[2]
    assert (len(gap.token_ids), gap.finish_reason) == (fewest, "end_token")
    assert gap.end_logprob == pytest.approx(float(naive), abs=1e-4)


class Words(LogitsProcessor):
    """Lets only whole words be written, whose tokens the tokenizer gives back as they are; END in place of the sixth."""

    def __init__(self, tokenizer, ends: bool = False):
        words = " the cat saw a dog and it ran to big red"
        self.ids, self.ends, self.prompt = tokenizer(words, add_special_tokens=False)["input_ids"], ends, None

    def __call__(self, input_ids, scores):
        length = input_ids.shape[1]
        self.prompt = length if self.prompt is None else self.prompt  # of this gap
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.ids] = scores[:, self.ids]
        if self.ends and length == self.prompt + 5:
            kept[:, 2] = 1e4
            self.prompt = None
        return kept


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("length", [7, "auto"])
def test_score_infill_gives_the_logprobs_of_a_generated_fill(model, tokenizer, order, length):
    batch = [TEXT, "Tom <|gap|> sad."]
    settings = {"length": length, "order": order, "return_dict": True}
    outputs = [
        model.infill(text, tokenizer, logits_processor=[Words(tokenizer, ends=length == "auto")], **settings)
        for text in batch
    ]
    layout = "exact" if length == 7 else "free"
    fills = [[gap.text for gap in output.gaps] for output in outputs]
    scored = model.score_infill(batch, fills, tokenizer, layout=layout, order=order)
    for given, written in zip(scored, outputs, strict=True):
        assert given == InfillOutput(written.text, [replace(g, finish_reason="candidate") for g in written.gaps])
        for one, other in zip(given.gaps, written.gaps):
            assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-5)
            assert one.join_score == pytest.approx(other.join_score, abs=1e-5)
            assert one.joint_score == pytest.approx(other.joint_score, abs=1e-4)
            if length == 7:
                assert len(one.token_ids) == 7 and one.end_logprob is other.end_logprob is None
            else:
                assert len(one.token_ids) == 5 and other.finish_reason == "end_token"
                assert one.end_logprob == pytest.approx(other.end_logprob, abs=1e-5)


@pytest.mark.parametrize("length", [8, (2, 8)])
def test_a_cut_through_a_token_keeps_logprobs(model, tokenizer, length):
    writing = [Write(tokenizer(" a dog saw the cat", add_special_tokens=False)["input_ids"])]
    settings = {"length": length, "logits_processor": writing, "return_dict": True}
    (gap,) = model.infill("Tom was<|gap|> sad.", tokenizer, stop=["w"], **settings).gaps
    assert gap.finish_reason == "stop" and gap.text == " a dog sa"
    layout = "exact" if length == 8 else "free"
    scored = model.score_infill(["Tom was", Gap(), " sad."], [gap.text], tokenizer, layout=layout, max_new_tokens=8)
    assert gap.token_ids == scored.gaps[0].token_ids and len(gap.token_logprobs) == len(gap.token_ids)
    if layout == "free":  # where the text behind stands does not depend on the fill's length
        assert gap.token_logprobs == pytest.approx(scored.gaps[0].token_logprobs, abs=1e-5)


# ------------------------------------------------------------------------------------------- scores of the base model


@pytest.mark.parametrize("causal_adapter", [False, True])
def test_join_and_joint_scores_are_the_base_models(text_magnet, without_adapter, tokenizer, causal_adapter):
    model = text_magnet(causal_adapter=causal_adapter)
    output = model.infill(TEXT, tokenizer, length=5, join_tokens=4, return_dict=True)
    pieces = token_pieces(TEXTS, tokenizer)
    first, second = output.gaps
    lefts = pieces[0], pieces[0] + first.token_ids + pieces[1]
    for gap, left, right in ((first, lefts[0], pieces[1]), (second, lefts[1], pieces[2])):
        each = base_logprobs(without_adapter, left, gap.token_ids + right[:4])
        assert gap.join_score == pytest.approx(sum(each[-4:]) / 4, abs=1e-5)
        assert gap.joint_score == pytest.approx(sum(each), abs=1e-4)


def test_behind_the_last_gap_there_may_be_no_text(model, tokenizer):
    gap = model.infill("Tom was<|gap|>", tokenizer, length=4, return_dict=True).gaps[0]
    assert gap.join_score is None and gap.joint_score < 0


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_continuations_equal_separate_forwards_in_float64(text_magnet, batch_size):
    model, base = text_magnet().double(), text_magnet(adapter=None).double()
    rows = [[50, 51, 52], [60], [], [70, 71]]
    found = continuation_logprobs(model, [1, 40, 41], rows, batch_size)
    for logprobs, row in zip(found, rows, strict=True):
        assert logprobs == pytest.approx(base_logprobs(base, [1, 40, 41], row) if row else [], rel=0, abs=1e-12)
    # where nothing opens a text, nothing predicts its first token
    for logprobs, row in zip(continuation_logprobs(model, [], rows, batch_size), rows, strict=True):
        expected = row and [0.0, *(base_logprobs(base, row[:1], row[1:]) if row[1:] else [])]
        assert logprobs == pytest.approx(expected, rel=0, abs=1e-12)
    assert continuation_logprobs(model, [1], []) == [] and continuation_logprobs(model, [1], [[], []]) == [[], []]


def test_long_left_contexts_are_shortened(text_magnet):
    model, base = text_magnet(), text_magnet(adapter=None)
    left, rest = [1, *range(100, 609)], [50, 51, 52, 53]
    (found,) = continuation_logprobs(model, left, [rest])
    assert found == pytest.approx(base_logprobs(base, left[-(512 - 4) :], rest), abs=1e-4)


# --------------------------------------------------------------------------------------------------- given fills


@pytest.fixture(scope="module")
def trained(base_model_path):
    return MagnetLlamaForCausalLM.from_pretrained(base_model_path.parent / "magnet-tiny", dtype="float64")


def test_candidates_are_sorted_by_their_joint_likelihood(trained, base_model_path, tokenizer):
    words = [" rained", " ate an apple", "", " is blue", " ran home fast"]
    parts = ["Tom was hungry. He", Gap(candidates=words), ". He was full and happy."]
    outputs = trained.infill(parts, tokenizer, num_return_sequences=5, return_dict=True)
    gaps = [output.gaps[0] for output in outputs]
    assert sorted(gap.text for gap in gaps) == sorted(words) and {gap.finish_reason for gap in gaps} == {"candidate"}
    assert [gap.score for gap in gaps] == sorted((gap.joint_score for gap in gaps), reverse=True)
    left, right = token_pieces(["Tom was hungry. He", ". He was full and happy."], tokenizer)
    base = LlamaForCausalLM.from_pretrained(base_model_path, dtype="float64")
    for gap in gaps:
        ids = tokenizer(gap.text, add_special_tokens=False)["input_ids"]
        assert gap.token_ids == ids and len(gap.token_logprobs) == len(ids)
        assert gap.joint_score == pytest.approx(sum(base_logprobs(base, left, ids + right[:16])), abs=1e-4)
        scored = trained.score_infill(parts, [gap.text], tokenizer).gaps[0]
        assert gap.token_logprobs == pytest.approx(scored.token_logprobs, abs=1e-5)
    assert trained.infill(parts, tokenizer) == outputs[0].text


def test_score_infill_of_batches(model, tokenizer):
    batch, fills = ["A <|gap|> b", TEXT], [["cat"], [" x", " y"]]
    together = model.score_infill(batch, fills, tokenizer)
    assert together == [model.score_infill(text, fill, tokenizer) for text, fill in zip(batch, fills)]
    assert together[1].text == TEXTS[0] + " x" + TEXTS[1] + " y" + TEXTS[2]
    assert {gap.finish_reason for output in together for gap in output.gaps} == {"candidate"}
    empty = model.score_infill("A <|gap|> b", [""], tokenizer, layout="free").gaps[0]
    assert empty.token_logprobs == [] and empty.end_logprob < 0


def test_a_fill_above_its_budget_gets_its_own_length(model, tokenizer):
    budget = {"layout": "free", "max_new_tokens": 8}
    gap = model.score_infill("A<|gap|> b", [" cat" * 64], tokenizer, **budget).gaps[0]
    assert len(gap.token_logprobs) == 64 and gap.end_logprob < 0
    with pytest.raises(
        ValueError, match=r"inputs\[0\]: a gap of up to 65 tokens .*: this checkpoint was trained to end"
    ):
        model.score_infill("A<|gap|> b", [" cat" * 65], tokenizer, **budget)


@pytest.mark.parametrize(
    "inputs, fills, arguments, match",
    [
        (["A <|gap|> b", TEXT], [["cat"]], {}, "must be a list of 2 lists, one an input"),
        (TEXT, ["x"], {}, r"fills\[0\]=\['x'\]: must be a list of 2 strings, one a gap"),
        (TEXT, "xy", {}, r"fills\[0\]='xy': must be a list of 2 strings"),
        (TEXT, None, {}, r"fills\[0\]=None: must be a list of 2 strings"),
        ([TEXT], None, {}, "fills=None: must be a list of 1 lists"),
        (TEXT, ["x", None], {}, r"fills\[0\]=None: must be a string"),
        (TEXT, ["x", "\ud800"], {}, r"fills\[0\]: the character at 0 is half of a surrogate pair"),
        (TEXT, ["x", " very" * 600], {}, r"inputs\[0\]: .* exceed max_position_embeddings=512"),
        (TEXT, ["x", "y"], {"layout": "both"}, "layout='both': must be 'exact' or 'free'"),
        (TEXT, ["x", "y"], {"order": "free"}, "order='free': must be"),
        (TEXT, ["x", "y"], {"max_new_tokens": 0}, "max_new_tokens=0: must be a positive integer"),
        (TEXT, ["x", "y"], {"join_tokens": 0}, "join_tokens=0: must be a positive integer"),
    ],
)
def test_what_score_infill_refuses(model, tokenizer, inputs, fills, arguments, match):
    with pytest.raises(ValueError, match=match):
        model.score_infill(inputs, fills, tokenizer, **arguments)


def test_the_free_layout_needs_an_end_token(text_magnet, tokenizer):
    model = text_magnet(infill_end_token_id=None)
    with pytest.raises(ValueError, match="layout='free': this checkpoint was not trained to end a gap"):
        model.score_infill("A <|gap|> b", ["x"], tokenizer, layout="free")
    assert len(model.score_infill("A <|gap|> b", ["cat"], tokenizer).gaps[0].token_logprobs) == 1


@pytest.mark.shared
def test_score_infill_with_a_sentencepiece_tokenizer(model, shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories3M")
    output = model.score_infill("Tom was <|gap|> sad.", ["very"], tokenizer)
    assert output.text == "Tom was very sad."
    assert tokenizer.convert_ids_to_tokens(output.gaps[0].token_ids) == ["▁very"]
