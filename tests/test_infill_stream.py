"""infill_stream(): what it shows, joined, is what infill() returns; nothing that was shown is ever taken back."""

import threading

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_infill_options import UNICODE
from test_infill_stops import Write
from transformers import AutoTokenizer, LogitsProcessor

from modeling_magnet import Gap, InfillEvent, InfillStreamer

TEXT = "Tom was<|gap|> and then he<|gap|> sad."


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def endless(text_magnet):
    return text_magnet(infill_end_token_id=None)


def fills_of(events) -> dict:
    """Joined texts of (item, gap); each gap has one last event, and none behind it."""
    fills, done = {}, {}
    for event in events:
        key = event.item, event.gap
        assert key not in done
        fills[key] = fills.get(key, "") + event.text
        if event.done:
            done[key] = event.finish_reason
        else:
            assert event.finish_reason is None and event.text
    assert fills.keys() == done.keys()
    return {key: (text, done[key]) for key, text in fills.items()}


def check(model, tokenizer, batch, **arguments) -> list[InfillEvent]:
    torch.manual_seed(0)
    expected = model.infill(batch, tokenizer, return_dict=True, **arguments)
    torch.manual_seed(0)
    events = list(model.infill_stream(batch, tokenizer, **arguments))
    assert fills_of(events) == {
        (item, number): (gap.text, gap.finish_reason)
        for item, output in enumerate(expected)
        for number, gap in enumerate(output.gaps)
    }
    return events


def functions(text):
    return 2 if len(text) > 4 else None


STOP = st.sampled_from([None, "sentence", "line", "word", ["a", " b", "e \n"], functions])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    batch=st.lists(st.tuples(UNICODE, UNICODE.filter(bool), UNICODE), min_size=1, max_size=2),
    gap=st.builds(Gap, st.sampled_from([6, (1, 6), "auto"]), stop=STOP, prefix=st.sampled_from([None, "x", " é"])),
    options=st.fixed_dictionaries(
        {
            "order": st.sampled_from(["sequential", "parallel"]),
            "chunk_size": st.sampled_from([None, 2]),
            "do_sample": st.booleans(),
            "batch_size": st.sampled_from([1, 32]),
        }
    ),
    seed=st.integers(0, 9),
)
def test_the_events_joined_are_the_fills(model, tokenizer, batch, gap, options, seed):
    documents = [[left, gap, middle, Gap(4), right] for left, middle, right in batch]
    check(model, tokenizer, documents, max_new_tokens=8, logits_processor=[Bias(seed)], **options)


class Bias(LogitsProcessor):
    """Makes another model of each seed."""

    def __init__(self, seed):
        self.bias = 5 * torch.rand(4096, generator=torch.Generator().manual_seed(seed))

    def __call__(self, input_ids, scores):
        return scores + self.bias


class Texts(LogitsProcessor):
    """Makes a fill of these tokens, whatever the model thinks, then END."""

    def __init__(self, ids):
        self.ids, self.start = [*ids, 2], None

    def __call__(self, input_ids, scores):
        self.start = input_ids.shape[1] if self.start is None else self.start
        scores = torch.full_like(scores, -torch.inf)
        scores[:, self.ids[min(input_ids.shape[1] - self.start, len(self.ids) - 1)]] = 0
        return scores


WRITTEN = [
    " He ran",
    " ran home.",
    " Then he was full",
    " Then",
    " he was",
    "\n",
    " ",
    ".",
    '"',
    " 🎉",
    "é",
    " and b",
    "a",
]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    written=st.lists(st.sampled_from(WRITTEN), min_size=1, max_size=5).map("".join),
    right=st.lists(st.sampled_from(WRITTEN), max_size=3).map("".join),
    stop=STOP,
    length=st.sampled_from(["auto", 40]),
)
@example(written=" He ran home. Then he was full.", right=" Then he was full. Good.", stop=None, length="auto")
@example(written=" He ran home. Then he was full.", right=" Then he was full. Good.", stop="sentence", length="auto")
@example(written=" a Then he was full", right=" Then he was full a", stop=["full a"], length=40)
def test_what_is_trimmed_was_never_shown(model, tokenizer, written, right, stop, length):
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    parts = ["Tom", Gap(length, 40, stop=stop), right]
    arguments = lambda: {"logits_processor": [Texts(ids) if length == "auto" else Write(ids)]}  # noqa: E731
    (output,) = model.infill([parts], tokenizer, return_dict=True, **arguments())
    shown = ""
    for event in model.infill_stream([parts], tokenizer, **arguments()):
        shown += event.text
        assert output.gaps[0].text.startswith(shown)
    assert shown == output.gaps[0].text


def test_an_overlap_is_trimmed_and_not_shown(model, tokenizer):
    ids = tokenizer(" He ran home. Then he was full.", add_special_tokens=False)["input_ids"]
    parts = ["Tom.", Gap(), " Then he was full. He slept."]
    (gap,) = model.infill(parts, tokenizer, return_dict=True, logits_processor=[Texts(ids)]).gaps
    assert (gap.text, gap.trimmed, gap.finish_reason) == (" He ran home.", " Then he was full.", "end_token")
    assert tokenizer.decode(gap.token_ids) == gap.text and gap.end_logprob is None
    events = list(model.infill_stream(parts, tokenizer, logits_processor=[Texts(ids)]))
    assert "".join(event.text for event in events) == " He ran home." and len(events) > 3


def test_an_exact_length_is_not_trimmed(model, tokenizer):
    ids = tokenizer(" He ran home. Then he was full.", add_special_tokens=False)["input_ids"]
    parts = ["Tom.", Gap(len(ids)), " Then he was full. He slept."]
    (gap,) = model.infill(parts, tokenizer, return_dict=True, logits_processor=[Write(ids)]).gaps
    assert (gap.token_ids, gap.trimmed, gap.finish_reason) == (ids, "", "exact_length")
    assert gap.text == " He ran home. Then he was full."


@pytest.mark.parametrize("end", [2, 500])
def test_the_end_token_is_never_shown(text_magnet, tokenizer, end):
    model = text_magnet(infill_end_token_id=end)
    for bias in (6.0, 1e4):
        check(model, tokenizer, [TEXT, "A<|gap|> b"], max_new_tokens=12, sequence_bias={(end,): bias})


def test_events_come_while_the_fill_is_written(model, tokenizer):
    stream = model.infill_stream(TEXT, tokenizer, length=(8, 8), order="parallel")
    steps, handle = [], None
    handle = model.model.register_forward_pre_hook(lambda *args: steps.append(len(steps)))
    try:
        events = list(stream)
    finally:
        handle.remove()
    assert len(events) > 6 and {event.gap for event in events} == {0, 1}
    assert [event.done for event in events].index(True) > 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 3, "length": 5},
        {"num_beams": 3, "num_candidates": 2, "selection": "join", "length": 5, "chunk_size": 2},
        {"do_sample": True, "num_candidates": 3, "length": 5},
        {"do_sample": True, "num_candidates": 3, "length": 6, "chunk_size": 2},
        {"stop": lambda text: 3 if len(text) > 6 else None},
    ],
)
def test_fills_that_compete_have_one_event(model, tokenizer, arguments):
    events = check(model, tokenizer, [TEXT, "A<|gap|> b"], max_new_tokens=9, **arguments)
    assert len(events) == 3 and all(event.done for event in events)


def test_candidates_and_searches_have_one_event(model, endless, tokenizer):
    parts = ["A", Gap(candidates=[" cat", " dog"]), " ran", Gap(4), "."]
    events = check(model, tokenizer, [parts])
    assert [event.gap for event in events][0] == 0 and events[0].done and len(events) > 2
    events = check(endless, tokenizer, [TEXT], length=(1, 5))
    assert len(events) == 2 and all(event.done for event in events)


def test_names_and_items(model, tokenizer):
    events = list(model.infill_stream(["a<|gap:x|> b", "c<|gap|> d<|gap:y|>"], tokenizer, length=2))
    assert {(event.item, event.gap, event.name) for event in events} == {(0, 0, "x"), (1, 0, None), (1, 1, "y")}


# ------------------------------------------------------------------------------------------------------- the thread


def threads():
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


def test_closing_early_ends_the_thread(model, tokenizer):
    before, steps = threads(), []
    handle = model.model.register_forward_pre_hook(lambda *args: steps.append(1))
    try:
        stream = model.infill_stream(TEXT, tokenizer, length=200)
        next(stream)
        stream.close()
        assert threads() == before and len(steps) < 150
    finally:
        handle.remove()
    for event in model.infill_stream(TEXT, tokenizer, length=200):  # as `break` does
        break
    del event
    assert len(list(model.infill_stream(TEXT, tokenizer, length=2))) >= 2


@pytest.mark.parametrize(
    "inputs, arguments, match",
    [
        ("no gap", {}, r"inputs\[0\]: no gap"),
        (TEXT, {"length": 0}, "length=0: must be a positive integer"),
        (TEXT, {"temprature": 1}, "temprature"),
        (TEXT, {"stop": lambda text: -5}, "returned -5"),
        (TEXT, {"return_dict": True}, "return_dict: infill_stream.. tells one fill"),
        (TEXT, {"num_return_sequences": 2}, "num_return_sequences: infill_stream.. tells one fill"),
        (TEXT, {"streamer": None}, "streamer: infill_stream.. tells one fill"),
    ],
)
def test_an_error_is_raised_where_the_events_are_read(model, tokenizer, inputs, arguments, match):
    before = threads()
    with pytest.raises(ValueError, match=match):
        list(model.infill_stream(inputs, tokenizer, **arguments))
    assert threads() == before


def test_another_streamer_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="streamer=.*: must be an InfillStreamer"):
        model.infill(TEXT, tokenizer, streamer=print)
    told = InfillStreamer(tokenizer, 2)
    model.infill(TEXT, tokenizer, length=3, streamer=told)
    assert told.events.qsize() >= 2


@pytest.mark.shared
@pytest.mark.parametrize("seed", range(4))
def test_events_of_a_sentencepiece_tokenizer(text_magnet, shared, seed):
    model, tokenizer = text_magnet(seed=seed), AutoTokenizer.from_pretrained(shared / "models" / "stories3M")
    party = tokenizer("🎉é", add_special_tokens=False)["input_ids"]
    bias = {(token,): 8.0 for token in party} | {(2,): 6.0}  # bytes, whole characters and halves
    batch = [["Tom 🎉", Gap(12), " 🎉 sad."], ["", Gap((0, 12)), "é", Gap(5, prefix="🎉"), ""]]
    for more in ({}, {"do_sample": True}, {"chunk_size": 3}):
        check(model, tokenizer, batch, sequence_bias=bias, **more)
