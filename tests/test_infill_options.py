"""What a caller may ask of infill(): lengths, names, alternatives and their order, candidates, a stream; what comes back."""

import pytest
import torch
from infilling import BATCH, TEXT, TEXTS, Write, fills_of, token_pieces
from transformers import StoppingCriteria, TextIteratorStreamer, TextStreamer

from modeling_magnet import Gap, InfillOutput
from modeling_magnet.encoding_magnet import text_ids
from modeling_magnet.scoring_magnet import continuation_logprobs

NEVER, AT_ONCE = {"sequence_bias": {(2,): -1e4}}, {"sequence_bias": {(2,): 1e4}}


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def endless(text_magnet):
    """A model that was not trained to end a gap."""
    return text_magnet(infill_end_token_id=None)


# -------------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    "length, bias, tokens, reason",
    [
        (5, AT_ONCE, 5, "exact_length"),
        ((2, 5), AT_ONCE, 2, "end_token"),
        ((2, 5), NEVER, 5, "max_tokens"),
        ([2, 5], AT_ONCE, 2, "end_token"),
        ((0, 5), AT_ONCE, 0, "end_token"),
        ((5, 5), AT_ONCE, 5, "max_tokens"),
        ("auto", AT_ONCE, 3, "end_token"),
        ("auto", NEVER, 7, "max_tokens"),
    ],
)
def test_lengths(model, tokenizer, length, bias, tokens, reason):
    limits = {"min_new_tokens": 3, "max_new_tokens": 7}
    (gap,) = model.infill("Tom was<|gap|> sad.", tokenizer, length=length, return_dict=True, **limits, **bias).gaps
    assert (len(gap.token_ids), gap.finish_reason) == (tokens, reason)
    of_the_gap = ["Tom was", Gap(length, 7, 3), " sad."]
    assert model.infill(of_the_gap, tokenizer, length=1, return_dict=True, **bias).gaps == [gap]


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}, {"do_sample": True}])
@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_a_fill_has_a_token_unless_fewer_are_allowed(model, tokenizer, order, search):
    arguments = {"order": order, "return_dict": True} | AT_ONCE | search
    output = model.infill("a <|gap|> b<|gap|>", tokenizer, **arguments)
    assert [(len(gap.token_ids), gap.finish_reason) for gap in output.gaps] == [(1, "end_token")] * 2
    for gap in output.gaps:
        assert gap.end_logprob < 0 and len(gap.token_logprobs) == 1
    empty = model.infill("a <|gap|> b<|gap|>", tokenizer, min_new_tokens=0, **arguments)
    assert empty.text == "a  b" and fills_of(empty) == [[], []]
    mixed = ["a", Gap(), " b", Gap(min_new_tokens=0), " c", Gap((0, 3))]
    assert [len(fill) for fill in fills_of(model.infill(mixed, tokenizer, **arguments))] == [1, 0, 0]


def test_a_budget_of_the_whole_offset(model, tokenizer):
    (gap,) = model.infill("Tom was <|gap|> sad.", tokenizer, max_new_tokens=64, return_dict=True, **NEVER).gaps
    assert (len(gap.token_ids), gap.finish_reason) == (64, "max_tokens")


@pytest.mark.parametrize("offsets, budget", [([16], 16), ([16, 48], 48), ([200], 64)])
def test_a_budget_that_nobody_named_is_what_was_trained(text_magnet, tokenizer, offsets, budget):
    model = text_magnet(infill_free_offsets=offsets)
    (gap,) = model.infill("Tom was <|gap|> sad.", tokenizer, return_dict=True, **NEVER).gaps
    assert (len(gap.token_ids), gap.finish_reason) == (budget, "max_tokens")


def test_the_room_that_is_left(text_magnet, tokenizer):
    model = text_magnet(max_position_embeddings=40)
    room = 40 - sum(map(len, token_pieces(["Tom was", " sad."], tokenizer)))
    (gap,) = model.infill("Tom was<|gap|> sad.", tokenizer, length=room, return_dict=True).gaps
    assert len(gap.token_ids) == room
    with pytest.raises(ValueError, match=rf"exceed max_position_embeddings=40; {room} positions are left"):
        model.infill("Tom was<|gap|> sad.", tokenizer, length=room + 1)


def test_gaps_of_all_kinds_are_written_side_by_side(model, tokenizer, monkeypatch):
    rows, generate = [], model.generate

    def counted(**arguments):
        rows.append(len(arguments["input_ids"]))
        return generate(**arguments)

    monkeypatch.setattr(model, "generate", counted)
    parts = ["Tom "]
    for kind in (Gap(6), Gap("auto", 9), Gap((2, 4)), Gap(5, prefix=" ver"), Gap(8, stop=["e", "a"])):
        parts += [kind, " and then he was "]
    batch = [parts, [TEXTS[0], Gap(3), TEXTS[1]]]
    (first, _) = model.infill(batch, tokenizer, order="parallel", return_dict=True)
    assert rows == [6]
    assert len(first.gaps[0].token_ids) == 6 and first.gaps[3].text.startswith(" ver")
    model.infill(batch, tokenizer, order="sequential")
    assert rows == [6] + [2, 1, 1, 1, 1]
    model.infill(batch, tokenizer, order="parallel", batch_size=4)
    assert rows[6:] == [4, 2]


def test_many_gaps(model, tokenizer):
    output = model.infill(" and<|gap|>" * 60, tokenizer, length=1, order="parallel", return_dict=True, batch_size=100)
    assert [len(fill) for fill in fills_of(output)] == [1] * 60


# ---------------------------------------------------------------------------------------------------------- names


def test_named_gaps(model, tokenizer):
    text = "<|gap:who|> was <|gap:how|> and <|gap|>."
    named = {"who": Gap(2), "how": Gap(3, prefix="ver")}
    output = model.infill(text, tokenizer, length=4, gaps=named, return_dict=True)
    assert [gap.name for gap in output.gaps] == ["who", "how", None]
    assert [len(gap.token_ids) for gap in output.gaps] == [2, 3, 4] and output["how"].text.startswith("ver")
    assert output["who"] is output.gaps[0]
    with pytest.raises(KeyError, match=r"no gap is named 'what'; there are \['who', 'how'\]"):
        output["what"]
    parts = [Gap(name="who"), " was ", Gap(name="how"), " and ", Gap(), "."]
    assert model.infill(parts, tokenizer, length=4, gaps=named, return_dict=True) == output
    own = [Gap(5, name="who"), " was sad."]  # what the gap itself says goes first
    assert len(model.infill(own, tokenizer, gaps={"who": Gap(2)}, return_dict=True).gaps[0].token_ids) == 5


# ----------------------------------------------------------------------------------------------- what generate() takes


class StopAt(StoppingCriteria):
    """Ends a row when one of these tokens is written."""

    def __init__(self, tokens):
        self.tokens = torch.tensor(sorted(tokens))

    def __call__(self, input_ids, scores, **kwargs):
        return torch.isin(input_ids[:, -1], self.tokens)


@pytest.mark.parametrize("length", [6, "auto"])
def test_a_stopping_criterion_ends_each_row_by_itself(model, tokenizer, length):
    batch = ["Tom was <|gap|> sad.", "Then a dog <|gap|> ran.", "One <|gap|> two."]
    arguments = {"length": length, "max_new_tokens": 6, "return_dict": True} | NEVER
    whole = [output.gaps[0] for output in model.infill(batch, tokenizer, **arguments)]
    assert {gap.finish_reason for gap in whole} == {"exact_length" if length == 6 else "max_tokens"}
    ids = whole[0].token_ids
    stop = StopAt({next(token for token in ids[1:] if token != ids[0]), whole[1].token_ids[0]})
    stopped = [output.gaps[0] for output in model.infill(batch, tokenizer, stopping_criteria=[stop], **arguments)]
    cuts = [next((i + 1 for i, t in enumerate(gap.token_ids) if t in stop.tokens), 6) for gap in whole]
    assert 1 < cuts[0] < 6 and cuts[1] == 1
    assert [gap.token_ids for gap in stopped] == [gap.token_ids[:cut] for gap, cut in zip(whole, cuts)]
    assert [gap.finish_reason for gap in stopped[:2]] == ["stop", "stop"]
    assert [gap.end_logprob for gap in stopped] == [None] * 3


def test_a_stop_string_of_generate_ends_a_gap(model, tokenizer):
    free = model.infill("Tom was<|gap|> sad.", tokenizer, length=8, return_dict=True).gaps[0]
    string = max((tokenizer.decode(token).strip() for token in free.token_ids[1:-1]), key=len)
    stopped = model.infill("Tom was<|gap|> sad.", tokenizer, length=8, stop_strings=[string], return_dict=True).gaps[0]
    assert stopped.text == free.text[: free.text.index(string)] + string
    assert stopped.finish_reason == "stop" and len(stopped.token_ids) < 8


def test_a_text_streamer_prints_the_fill(model, tokenizer, capsys):
    ids = text_ids(" very happy and went home", tokenizer)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    writing = {"max_new_tokens": 12, "logits_processor": [Write([*ids, 2])]}
    text = model.infill("Tom was<|gap|>. He slept.", tokenizer, streamer=streamer, **writing)
    assert text == "Tom was very happy and went home. He slept."
    assert capsys.readouterr().out == " very happy and went home\n"


def test_an_iterator_streams_while_the_fill_is_written(model, tokenizer):
    expected = model.infill("Tom was<|gap|> sad.", tokenizer, length=8, return_dict=True).gaps[0]
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    sampled = {"do_sample": True, "top_k": 1}
    model.infill("Tom was<|gap|> sad.", tokenizer, length=8, streamer=streamer, **sampled)
    pieces = [piece for piece in streamer if piece]
    assert "".join(pieces) == tokenizer.decode(expected.token_ids) and len(pieces) > 3


@pytest.mark.parametrize(
    "inputs, arguments",
    [
        (TEXT, {}),  # two gaps
        (["a<|gap|>", "b<|gap|>"], {}),
        ("a<|gap|>", {"num_return_sequences": 2, "do_sample": True}),
        ("a<|gap|>", {"num_candidates": 2, "do_sample": True}),
        (["a", Gap(candidates=["b", "c"])], {}),
        ([], {}),
    ],
)
def test_what_cannot_be_streamed(model, tokenizer, inputs, arguments):
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    with pytest.raises(ValueError, match="streamer: one text with one gap can be streamed, and one fill of it"):
        model.infill(inputs, tokenizer, streamer=streamer, length=3, **arguments)


def test_a_search_cannot_be_streamed(model, endless, tokenizer):
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    for length in ("auto", (1, 4)):
        for parts in (["a", Gap(length), " b"], "a<|gap|> b"):
            with pytest.raises(ValueError, match="streamer: one text with one gap"):
                endless.infill(parts, tokenizer, length=length, streamer=streamer)
    with pytest.raises(ValueError, match="streamer.*beam search"):  # transformers' own words
        model.infill("a<|gap|> b", tokenizer, length=3, num_beams=2, streamer=streamer)


# ------------------------------------------------------------------------------------------------- alternatives


def alternatives(model, tokenizer, text="Tom was<|gap|> sad and cried.", **arguments):
    torch.manual_seed(0)
    defaults = {"length": 3, "do_sample": True, "num_return_sequences": 5, "return_dict": True}
    return [output.gaps[0] for output in model.infill(text, tokenizer, **defaults | arguments)]


def test_alternatives_are_sorted_by_how_the_text_goes_on(model, tokenizer):
    found = alternatives(model, tokenizer)
    assert [gap.score for gap in found] == [gap.join_score for gap in found]
    assert sorted((gap.score for gap in found), reverse=True) == [gap.score for gap in found]
    assert len({gap.score for gap in found}) > 1
    best = alternatives(model, tokenizer, num_return_sequences=2, num_candidates=5)
    assert best == found[:2]  # the best of as many


def test_at_the_end_of_a_text_an_empty_fill_comes_last(model, tokenizer):
    free = {"length": "auto", "max_new_tokens": 4, "min_new_tokens": 0, "sequence_bias": {(2,): 8.0}}
    found = alternatives(model, tokenizer, "Tom was<|gap|>", num_return_sequences=8, **free)
    empty = [not gap.text for gap in found]
    assert any(empty) and empty == sorted(empty) and not all(empty)
    written = [gap for gap in found if gap.text]
    assert [gap.score for gap in written] == [gap.joint_score / len(gap.token_ids) for gap in written]


@pytest.mark.parametrize("text", ["Tom was<|gap|> sad and cried.", "Tom was<|gap|>"])
def test_return_dict_changes_no_choice(model, tokenizer, text):
    free = {"length": "auto", "max_new_tokens": 4, "min_new_tokens": 0, "sequence_bias": {(2,): 8.0}}
    outputs = {}
    for return_dict in (False, True):
        torch.manual_seed(1)
        sampling = {"do_sample": True, "num_candidates": 6, "return_dict": return_dict}
        outputs[return_dict] = model.infill(text, tokenizer, **free, **sampling)
    assert outputs[False] == outputs[True].text


def test_beams_keep_their_order(model, tokenizer):
    beams = {"num_beams": 4, "return_dict": True, "length": 4, "num_return_sequences": 4}
    kept = [output.gaps[0] for output in model.infill("Tom was<|gap|> sad.", tokenizer, **beams)]
    totals = [sum(gap.token_logprobs) for gap in kept]
    assert totals == sorted(totals, reverse=True) and len({tuple(gap.token_ids) for gap in kept}) == 4


def test_alternatives_of_a_first_gap_are_each_continued(model, tokenizer):
    torch.manual_seed(0)
    sampling = {"do_sample": True, "num_return_sequences": 3, "return_dict": True, "length": 3}
    outputs = model.infill(TEXT, tokenizer, **sampling)
    assert len({tuple(output.gaps[0].token_ids) for output in outputs}) == 3
    scores = [output.gaps[0].score for output in outputs]
    assert scores == sorted(scores, reverse=True)
    for output in outputs:  # the second gap's scores are those behind this first fill
        first, second = output.gaps
        pieces = token_pieces(TEXTS, tokenizer)
        left = pieces[0] + first.token_ids + pieces[1]
        (each,) = continuation_logprobs(model, left, [second.token_ids + pieces[2][:16]])
        assert second.joint_score == pytest.approx(sum(each), abs=1e-4)


# ---------------------------------------------------------------------------------------- search, without an end token


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
    """Searched gaps are written once for each length, the others once for each alternative."""
    beside = ["Tom was", Gap((1, 3)), " and", Gap(2), " sad."]
    sampling = {"do_sample": True, "num_return_sequences": 3, "return_dict": True}
    for output in endless.infill(beside, tokenizer, order="parallel", **sampling):
        assert 1 <= len(output.gaps[0].token_ids) <= 3 and len(output.gaps[1].token_ids) == 2
    for order in ("sequential", "parallel"):
        output = endless.infill(TEXT, tokenizer, length=(0, 4), order=order, return_dict=True)
        assert all(1 <= len(gap.token_ids) <= 4 for gap in output.gaps)
    parts = ["Tom was", Gap((1, 6), prefix=" very very big"), " sad."]
    prefixed = endless.infill(parts, tokenizer, num_return_sequences=4, return_dict=True)
    assert sorted(len(output.gaps[0].token_ids) for output in prefixed) == [3, 4, 5, 6]  # as many as the prefix needs
    assert all(output.text.startswith("Tom was very very big") for output in prefixed)
    with pytest.raises(ValueError, match="num_return_sequences=3: gap 0 has only 2 candidates"):
        endless.infill(TEXT, tokenizer, length=(1, 2), num_return_sequences=3)


# --------------------------------------------------------------------------------------------------- given candidates


@pytest.mark.parametrize("right", [" sad.", ""])
def test_candidates_beside_other_gaps(model, tokenizer, right):
    colours, verbs = Gap(candidates=["red", "blue"]), Gap(candidates=[" ran", " sat"])
    parts = ["A ", colours, " cat and ", Gap(3), " dog", verbs, right]
    for order in ("sequential", "parallel"):
        output = model.infill(parts, tokenizer, order=order, return_dict=True)
        assert output.gaps[0].text in ("red", "blue") and output.gaps[2].text in (" ran", " sat")
        assert output.text[slice(*output.gaps[2].span)] == output.gaps[2].text
        assert output.text == model.infill(parts, tokenizer, order=order)
    with pytest.raises(ValueError, match="num_return_sequences=3: gap 0 has only 2 candidates"):
        model.infill(parts, tokenizer, num_return_sequences=3, do_sample=True)


# ------------------------------------------------------------------------------------------------------ result shapes


def test_shapes_of_the_result(model, tokenizer):
    text, parts = "Tom <|gap|> sad.", ["Tom ", Gap(), " sad."]
    two = {"num_beams": 2, "num_return_sequences": 2}

    def fill(inputs, **arguments):
        return model.infill(inputs, tokenizer, length=2, **arguments)

    one = fill(text)
    assert isinstance(one, str)
    assert fill(parts) == one
    assert fill([text]) == fill([parts]) == fill((text,)) == [one]
    assert fill([text, parts, "A<|gap|>"])[:2] == [one, one]
    output = fill(text, return_dict=True)
    assert isinstance(output, InfillOutput) and output.text == one
    assert fill([text], return_dict=True) == [output]
    several = fill(text, **two)
    assert len(set(several)) == 2 and all(isinstance(alternative, str) for alternative in several)
    assert fill([text, parts], **two) == [several, several]
    assert [output.text for output in fill(text, return_dict=True, **two)] == several
    assert fill([]) == fill([], **two) == fill([], order="parallel") == []


def test_a_gap_can_be_made_from_the_model(model, tokenizer):
    assert model.Gap is Gap
    output = model.infill(["Tom was ", model.Gap(length=2), " sad."], tokenizer, length=9, return_dict=True)
    assert len(output.gaps[0].token_ids) == 2


def test_a_generator_of_inputs_is_not_a_batch(model, tokenizer):
    with pytest.raises(ValueError, match="inputs=<generator.*: must be a string, a list"):
        model.infill((text for text in BATCH), tokenizer)
