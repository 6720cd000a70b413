"""Likelihoods: of what was written, of what is given, of the text behind, and which fill they choose."""

from dataclasses import replace

import pytest
import torch
from test_infill_exact import TEXTS, next_logits, token_pieces
from transformers import AutoTokenizer

from modeling_magnet import Gap, InfillOutput, MagnetLlamaForCausalLM
from modeling_magnet.scoring_magnet import continuation_logprobs, cut_join_logprobs

TEXT = "<|gap|>".join(TEXTS)
FREE_OFFSET = 64


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def trained(base_model_path):
    folder = base_model_path.parent / "magnet-tiny"
    return MagnetLlamaForCausalLM.from_pretrained(folder, dtype="float64")


@torch.no_grad()
def base_logprobs(model, left, rest) -> list[float]:
    """Of each token of `rest`, by one causal forward of a model that never had an adapter."""
    logits = model(torch.tensor([left + rest]), attention_mode="causal").logits[0, len(left) - 1 : -1]
    return logits.log_softmax(-1)[range(len(rest)), rest].tolist()


@pytest.fixture(scope="module")
def without_adapter(text_magnet):
    return text_magnet(adapter=None)


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
            naive = next_logits(model, known, budgets, where, gap.token_ids[:n]).log_softmax(-1)[token]
            assert logprob == pytest.approx(float(naive), abs=1e-4)
        assert gap.end_logprob is None


def test_the_end_tokens_logprob(model, tokenizer):
    bias = {"sequence_bias": {(2,): 1e4}}
    (gap,) = model.infill("Tom was<|gap|> sad.", tokenizer, return_dict=True, **bias).gaps
    pieces = token_pieces(["Tom was", " sad."], tokenizer)
    naive = next_logits(model, pieces, [FREE_OFFSET], 0, []).log_softmax(-1)[2]
    assert (gap.token_ids, gap.finish_reason) == ([], "end_token")
    assert gap.end_logprob == pytest.approx(float(naive), abs=1e-4)


class Words:
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
            if length == 7:
                assert len(one.token_ids) == 7 and one.end_logprob is other.end_logprob is None
            else:
                assert len(one.token_ids) == 5 and other.finish_reason == "end_token"
                assert one.end_logprob == pytest.approx(other.end_logprob, abs=1e-5)


def test_a_fill_longer_than_the_offset_is_scored_as_it_was_written(text_magnet, tokenizer):
    model = text_magnet(infill_free_offsets=[4, 8])
    arguments = {"max_new_tokens": 20, "return_dict": True, "suppress_tokens": [2]}
    (written,) = model.infill("Tom was<|gap|>", tokenizer, logits_processor=[Words(tokenizer)], **arguments).gaps
    text = tokenizer.decode(written.token_ids)
    scored = model.score_infill("Tom was<|gap|>", [text], tokenizer, layout="free", max_new_tokens=20)
    assert scored.gaps[0].token_ids == written.token_ids and len(written.token_ids) == 20
    assert scored.gaps[0].token_logprobs == pytest.approx(written.token_logprobs, abs=1e-5)


@pytest.mark.parametrize("stop", [["e"], "word"])
def test_a_cut_through_a_token_keeps_logprobs(model, tokenizer, stop):
    settings = {"length": 8, "logits_processor": [Words(tokenizer)], "return_dict": True}
    (gap,) = model.infill("Tom was<|gap|> sad.", tokenizer, stop=stop, **settings).gaps
    assert gap.finish_reason == "stop" and gap.text
    scored = model.score_infill(["Tom was", Gap(), " sad."], [gap.text], tokenizer)
    assert gap.token_ids == scored.gaps[0].token_ids and len(gap.token_logprobs) == len(gap.token_ids)


# ------------------------------------------------------------------------------------------- scores of the base model


@pytest.mark.parametrize("causal_adapter", [False, True])
def test_join_and_joint_scores_are_the_base_models(text_magnet, without_adapter, tokenizer, causal_adapter):
    model = text_magnet(causal_adapter=causal_adapter)
    output = model.infill(TEXT, tokenizer, length=5, join_tokens=4, return_dict=True)
    pieces = token_pieces(TEXTS, tokenizer)
    first, second = output.gaps
    for gap, left, right in (
        (first, pieces[0], pieces[1]),
        (second, pieces[0] + first.token_ids + pieces[1], pieces[2]),
    ):
        each = base_logprobs(without_adapter, left, gap.token_ids + right[:4])
        assert gap.join_score == pytest.approx(sum(each[-4:]) / 4, abs=1e-5)
        assert gap.joint_score == pytest.approx(sum(each), abs=1e-4)
    given = model.score_infill(TEXT, [first.text, second.text], tokenizer, join_tokens=4)
    assert [gap.join_score is not None for gap in given.gaps] == [True, True]


def test_the_last_gaps_join_score(model, tokenizer):
    gap = model.infill("Tom was<|gap|>", tokenizer, length=4, return_dict=True).gaps[0]
    assert gap.join_score is None and gap.joint_score < 0


@pytest.mark.parametrize("causal_adapter", [False, True])
def test_cut_scores_equal_separate_forwards_in_float64(text_magnet, causal_adapter):
    model, base = text_magnet(causal_adapter=causal_adapter).double(), text_magnet(adapter=None).double()
    left, fill, right = [1, 40, 41, 42], [50, 51, 52, 53, 54], [60, 61, 62]
    for k in (1, 3):
        cuts = cut_join_logprobs(model, left, fill, right[:k])
        naive = [sum(base_logprobs(base, left + fill[:t], right[:k])) for t in range(len(fill) + 1)]
        assert cuts == pytest.approx(naive, rel=0, abs=1e-12)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_continuations_equal_separate_forwards_in_float64(text_magnet, batch_size):
    model, base = text_magnet().double(), text_magnet(adapter=None).double()
    rows = [[50, 51, 52], [60], [], [70, 71]]
    found = continuation_logprobs(model, [1, 40, 41], rows, batch_size)
    for logprobs, row in zip(found, rows, strict=True):
        assert logprobs == pytest.approx(base_logprobs(base, [1, 40, 41], row) if row else [], rel=0, abs=1e-12)


def test_long_left_contexts_are_shortened_for_scoring_alone(text_magnet):
    model, base = text_magnet(), text_magnet(adapter=None)
    left, rest = [1, *range(100, 609)], [50, 51, 52, 53]
    shortened = [1, *left[-(512 - 5) :]]
    (found,) = continuation_logprobs(model, left, [rest])
    assert found == pytest.approx(base_logprobs(base, shortened, rest), abs=1e-4)
    cuts = cut_join_logprobs(model, left, rest[:2], rest[2:])
    assert cuts[2] == pytest.approx(sum(base_logprobs(base, [*shortened, *rest[:2]], rest[2:])), abs=1e-4)


# ---------------------------------------------------------------------------------------------------------- selection


def alternatives(model, tokenizer, text="Tom was<|gap|> sad and cried.", **arguments):
    torch.manual_seed(0)
    defaults = {"length": 3, "do_sample": True, "num_return_sequences": 5, "return_dict": True}
    return [output.gaps[0] for output in model.infill(text, tokenizer, **defaults | arguments)]


RULES = {
    "auto": lambda gap: gap.join_score,
    "join": lambda gap: gap.join_score,
    "joint": lambda gap: gap.joint_score,
    "mean_logprob": lambda gap: sum(gap.token_logprobs) / len(gap.token_logprobs),
}


@pytest.mark.parametrize("selection", [*RULES, lambda gap: -len(gap.text)])
def test_alternatives_are_sorted_by_what_was_asked_for(model, tokenizer, selection):
    found = alternatives(model, tokenizer, selection=selection)
    rule = selection if callable(selection) else RULES[selection]
    assert [gap.score for gap in found] == pytest.approx([rule(gap) for gap in found])
    assert sorted((gap.score for gap in found), reverse=True) == [gap.score for gap in found]
    assert len({gap.score for gap in found}) > 1
    best = alternatives(model, tokenizer, selection=selection, num_return_sequences=2, num_candidates=5)
    assert best == found[:2]  # the best of as many


def test_selection_by_the_end(model, tokenizer):
    arguments = {"length": "auto", "max_new_tokens": 3, "selection": "end", "sequence_bias": {(2,): 5.0}}
    found = alternatives(model, tokenizer, **arguments)
    scores = [-float("inf") if gap.end_logprob is None else gap.end_logprob for gap in found]
    assert scores == sorted(scores, reverse=True) == [gap.score for gap in found]
    assert {gap.finish_reason for gap in found} == {"end_token", "max_tokens"}


@pytest.mark.parametrize("selection", ["join", "joint"])
def test_at_the_end_of_a_text_an_empty_fill_comes_last(model, tokenizer, selection):
    arguments = {"length": "auto", "max_new_tokens": 4, "sequence_bias": {(2,): 8.0}, "selection": selection}
    found = alternatives(model, tokenizer, "Tom was<|gap|>", num_return_sequences=8, **arguments)
    empty = [not gap.text for gap in found]
    assert any(empty) and empty == sorted(empty) and not all(empty)
    assert [gap.score for gap in found if gap.text] == [
        gap.joint_score / len(gap.token_ids) for gap in found if gap.text
    ]


@pytest.mark.parametrize("text", ["Tom was<|gap|> sad and cried.", "Tom was<|gap|>"])
@pytest.mark.parametrize("selection", ["auto", "join", "joint", "mean_logprob"])
def test_return_dict_changes_no_choice(model, tokenizer, text, selection):
    arguments = {"length": "auto", "max_new_tokens": 4, "sequence_bias": {(2,): 8.0}, "selection": selection}
    outputs = {}
    for return_dict in (False, True):
        torch.manual_seed(1)
        sampling = {"do_sample": True, "num_candidates": 6, "return_dict": return_dict}
        outputs[return_dict] = model.infill(text, tokenizer, **arguments, **sampling)
    assert outputs[False] == outputs[True].text


def test_beams_keep_their_order_and_may_be_selected_from(model, tokenizer):
    text = "Tom was<|gap|> sad."
    beams = {"num_beams": 4, "return_dict": True, "length": 4}
    kept = [output.gaps[0] for output in model.infill(text, tokenizer, num_return_sequences=4, **beams)]
    totals = [sum(gap.token_logprobs) for gap in kept]
    assert totals == sorted(totals, reverse=True)
    selected = model.infill(text, tokenizer, num_candidates=4, selection="join", **beams).gaps[0]
    assert selected.join_score == max(gap.join_score for gap in kept)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"num_candidates": 3}, "num_candidates=3: greedy search writes one fill.*do_sample=True"),
        ({"num_candidates": 3, "num_beams": 2}, "num_candidates=3: more than num_beams=2"),
        ({"num_candidates": 2, "num_return_sequences": 3}, "num_candidates=2: must not be below"),
        ({"selection": "best"}, "selection='best': must be one of"),
    ],
)
def test_what_cannot_be_selected_from(model, tokenizer, arguments, match):
    with pytest.raises(ValueError, match=match):
        model.infill("Tom was<|gap|> sad.", tokenizer, length=3, **arguments)


# ------------------------------------------------------------------------------------- search, without an end token


@pytest.fixture(scope="module")
def endless(text_magnet):
    return text_magnet(infill_end_token_id=None)


def test_a_search_takes_the_length_behind_which_the_text_goes_on_best(endless, tokenizer):
    text = "Tom was<|gap|> sad."
    lengths = [2, 3, 4, 5]
    each = [endless.infill(text, tokenizer, length=n, return_dict=True).gaps[0] for n in lengths]
    best = max(each, key=lambda gap: gap.join_score)
    found = endless.infill(text, tokenizer, length=(2, 5), return_dict=True).gaps[0]
    assert (found.token_ids, found.finish_reason) == (best.token_ids, "exact_length")
    assert endless.infill(text, tokenizer, length=(2, 5)) == f"Tom was{best.text} sad."
    several = endless.infill(text, tokenizer, length=(2, 5), num_return_sequences=4, return_dict=True)
    assert sorted(len(output.gaps[0].token_ids) for output in several) == lengths
    assert endless.infill(text, tokenizer, max_new_tokens=3, min_new_tokens=3, return_dict=True).gaps == [each[1]]


def test_a_search_of_several_gaps(endless, tokenizer):
    for order in ("sequential", "parallel"):
        output = endless.infill(TEXT, tokenizer, length=(1, 4), order=order, return_dict=True)
        assert all(1 <= len(gap.token_ids) <= 4 for gap in output.gaps)
    parts = ["Tom was", Gap((1, 6), prefix=" very very big"), " sad."]
    prefixed = endless.infill(parts, tokenizer, num_return_sequences=4, return_dict=True)
    assert sorted(len(output.gaps[0].token_ids) for output in prefixed) == [3, 4, 5, 6]  # as many as the prefix needs
    assert all(output.text.startswith("Tom was very very big") for output in prefixed)


def test_a_search_refuses(endless, tokenizer):
    with pytest.raises(ValueError, match="selection='end': this checkpoint was not trained to end a gap"):
        endless.infill(TEXT, tokenizer, selection="end")
    with pytest.raises(ValueError, match="num_return_sequences=3: gap 0 has only 2 candidates"):
        endless.infill(TEXT, tokenizer, length=(1, 2), num_return_sequences=3)


# --------------------------------------------------------------------------------------------------- given fills


def test_candidates_are_sorted_by_their_joint_likelihood(trained, tokenizer):
    words = [" rained", " ate an apple", "", " is blue", " ran home fast"]
    parts = ["Tom was hungry. He", Gap(candidates=words), ". He was full and happy."]
    outputs = trained.infill(parts, tokenizer, num_return_sequences=5, return_dict=True)
    gaps = [output.gaps[0] for output in outputs]
    assert sorted(gap.text for gap in gaps) == sorted(words) and {gap.finish_reason for gap in gaps} == {"candidate"}
    assert [gap.score for gap in gaps] == sorted((gap.joint_score for gap in gaps), reverse=True)
    left = token_pieces(["Tom was hungry. He", ". He was full and happy."], tokenizer)
    base = MagnetLlamaForCausalLM.from_pretrained(trained.name_or_path, dtype="float64")
    for gap in gaps:
        ids = tokenizer(gap.text, add_special_tokens=False)["input_ids"]
        assert gap.token_ids == ids and len(gap.token_logprobs) == len(ids)
        naive = base_logprobs(base, left[0], ids + left[1][:16])
        assert gap.joint_score == pytest.approx(sum(naive), abs=1e-4)
        scored = trained.score_infill(parts, [gap.text], tokenizer).gaps[0]
        assert gap.token_logprobs == pytest.approx(scored.token_logprobs, abs=1e-5)
    assert trained.infill(parts, tokenizer) == outputs[0].text


def test_candidates_have_no_end_to_be_sorted_by(model, tokenizer):
    parts = ["Tom was", Gap(candidates=[" a", " the big", " red", " cat"]), " sad."]
    arguments = {"num_return_sequences": 4, "return_dict": True}
    by_end = model.infill(parts, tokenizer, selection="end", **arguments)
    assert by_end == model.infill(parts, tokenizer, selection="joint", **arguments)
    assert by_end[0].gaps[0].score == by_end[0].gaps[0].joint_score


@pytest.mark.parametrize("right", [" sad.", ""])
def test_candidates_beside_other_gaps(model, tokenizer, right):
    parts = [
        "A ",
        Gap(candidates=["red", "blue"]),
        " cat and ",
        Gap(3),
        " dog",
        Gap(candidates=[" ran", " sat"]),
        right,
    ]
    for order in ("sequential", "parallel"):
        output = model.infill(parts, tokenizer, order=order, return_dict=True)
        assert output.gaps[0].text in ("red", "blue") and output.gaps[2].text in (" ran", " sat")
        assert output.text[slice(*output.gaps[2].span)] == output.gaps[2].text
        assert output.text == model.infill(parts, tokenizer, order=order)
    with pytest.raises(ValueError, match="num_return_sequences=3: gap 0 has only 2 candidates"):
        model.infill(parts, tokenizer, num_return_sequences=3, do_sample=True)


# ------------------------------------------------------------------------------------------------------ score_infill


def test_score_infill_of_batches_and_what_it_refuses(model, tokenizer):
    batch, fills = ["A <|gap|> b", TEXT], [["cat"], [" x", " y"]]
    together = model.score_infill(batch, fills, tokenizer)
    assert together == [model.score_infill(text, fill, tokenizer) for text, fill in zip(batch, fills)]
    assert together[1].text == TEXTS[0] + " x" + TEXTS[1] + " y" + TEXTS[2]
    empty = model.score_infill("A <|gap|> b", [""], tokenizer, layout="free").gaps[0]
    assert empty.token_logprobs == [] and empty.end_logprob < 0
    for inputs, given, match in (
        (batch, [["cat"]], "must be a list of 2 lists, one an input"),
        (TEXT, ["x"], r"fills\[0\]=\['x'\]: must be a list of 2 strings, one a gap"),
        (TEXT, "xy", r"fills\[0\]='xy': must be a list of 2 strings"),
        (TEXT, ["x", None], r"fills\[0\]=\['x', None\]: must be a list of 2 strings"),
        (TEXT, ["x", "\ud800"], r"fills\[0\]: the character at 0 is half of a surrogate pair"),
    ):
        with pytest.raises(ValueError, match=match):
            model.score_infill(inputs, given, tokenizer)
    with pytest.raises(ValueError, match="layout='both': must be 'exact' or 'free'"):
        model.score_infill(TEXT, ["x", "y"], tokenizer, layout="both")


@pytest.mark.shared
def test_score_infill_with_a_sentencepiece_tokenizer(text_magnet, shared):
    model, tokenizer = text_magnet(), AutoTokenizer.from_pretrained(shared / "models" / "stories3M")
    output = model.score_infill("Tom was <|gap|> sad.", ["very"], tokenizer)
    assert output.text == "Tom was very sad."
    assert tokenizer.convert_ids_to_tokens(output.gaps[0].token_ids) == ["▁very"]
