"""What a caller may ask of a gap: length, name, no copies, chunks; gaps of all kinds side by side."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_infill_exact import TEXTS, naive_fill, token_pieces
from transformers import AutoTokenizer, LogitsProcessor

from modeling_magnet import Gap
from modeling_magnet.gaps_magnet import read_document, split_at_gaps
from modeling_magnet.seams_magnet import fill_text, text_ids

TEXT = "<|gap|>".join(TEXTS)


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture
def calls(model, monkeypatch):
    """Rows of each generate() call."""
    rows, generate = [], model.generate

    def counted(**arguments):
        rows.append(len(arguments["input_ids"]))
        return generate(**arguments)

    monkeypatch.setattr(model, "generate", counted)
    return rows


# -------------------------------------------------------------------------------------------------------- lengths

NEVER, AT_ONCE = {"sequence_bias": {(2,): -1e4}}, {"sequence_bias": {(2,): 1e4}}


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


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"length": (5, 2)}, r"length=\(5, 2\): the fewest tokens must not be more than the most"),
        ({"length": (0, 0)}, r"length=\(0, 0\): the fewest"),
        ({"length": (-1, 2)}, r"length=\(-1, 2\): the fewest"),
        ({"length": (1, 2, 3)}, r"length=\(1, 2, 3\): a range is two integers"),
        ({"length": (1, True)}, r"length=\(1, True\): a range is two integers"),
        ({"min_new_tokens": 65}, "min_new_tokens=65: must lie between 0 and max_new_tokens=64"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1: must lie between"),
        ({"min_new_tokens": "5"}, "min_new_tokens='5': must lie between"),
        ({"stop": "paragraph"}, "stop='paragraph': must be one of sentence, line, word"),
        ({"stop": 5}, "stop=5: must be one of"),
        ({"stop": []}, r"stop=\[\]: must hold strings that are not empty"),
        ({"stop": ["a", ""]}, "must hold strings that are not empty"),
    ],
)
def test_limits_that_make_no_sense(model, tokenizer, settings, match):
    with pytest.raises(ValueError, match=match):
        model.infill(TEXT, tokenizer, **settings)


@pytest.mark.parametrize(
    "gap, match",
    [
        (Gap(prefix=5), "prefix=5: must be a string"),
        (Gap(prefix="\ud800"), "character at 0 is half of a surrogate pair"),
        (Gap(length=1, prefix=" very very big"), "prefix=' very very big': its 3 tokens exceed the gap's 1"),
        (Gap(max_new_tokens=2, prefix=" very very big"), "its 3 tokens exceed the gap's 2"),
        (Gap(candidates=[]), r"candidates=\[\]: must be a list of strings"),
        (Gap(candidates="ab"), "candidates='ab': must be a list of strings"),
        (Gap(candidates=[1]), "candidates holds 1, which is no string"),
        (Gap(candidates=["\udfff"]), "half of a surrogate pair"),
        (Gap(candidates=["a"], prefix="a"), "prefix='a': the candidates are whole fills"),
        (Gap(candidates=["a", " very" * 600]), r"gaps of \[600\] positions exceed max_position_embeddings=512"),
    ],
)
def test_gaps_that_make_no_sense(model, tokenizer, gap, match):
    with pytest.raises(ValueError, match=r"inputs\[0\].*" + match):
        model.infill(["Tom was", gap, " sad."], tokenizer)


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_gaps_of_all_kinds_are_written_side_by_side(model, tokenizer, calls, order):
    kinds = [
        Gap(6),
        Gap("auto", 9),
        Gap((2, 4)),
        Gap(5, prefix=" ver"),
        Gap("auto", 12, stop="word"),
        Gap(8, stop=["e", "a"]),
    ]
    parts = ["Tom "]
    for kind in kinds:
        parts += [kind, " and then he was "]
    batch = [parts, [TEXTS[0], Gap(3), TEXTS[1]]]
    arguments = {"order": order, "return_dict": True, "sequence_bias": {(2,): 2.0}, "avoid_copy": 2}
    together = model.infill(batch, tokenizer, **arguments)
    assert calls == ([7] if order == "parallel" else [2, 1, 1, 1, 1, 1])
    assert together == model.infill(batch, tokenizer, batch_size=1, **arguments)
    assert calls[-7:] == [1] * 7
    assert together[0].gaps[3].text.startswith(" ver") and len(together[0].gaps[0].token_ids) == 6


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


@pytest.mark.parametrize(
    "text, gaps, match",
    [
        ("a <|gap:x|> b <|gap:x|>", {}, r"inputs\[0\]: the gaps are named \['x', 'x'\]: a name may be there once"),
        ("a <|gap:x|> b", {"y": Gap()}, r"gaps: no gap is named \['y'\]; there are \['x'\]"),
        ("a <|gap|> b", {"gap": Gap()}, r"gaps: no gap is named \['gap'\]; there are \[\]"),
        ("a <|gap:x|> b", {"x": 5}, "gaps={'x': 5}: must map the names of gaps to Gap objects"),
        ("a <|gap:x|> b", [Gap()], "must map the names"),
        ("a <|gap:my name|> b", {}, r"inputs\[0\]: <\|gap:my name\|>: a gap's name must be of letters"),
        ("a <|gap:|> b <|gap|>", {}, r"<\|gap:\|>: a gap's name must be"),
    ],
)
def test_names_that_are_refused(model, tokenizer, text, gaps, match):
    with pytest.raises(ValueError, match=match):
        model.infill(text, tokenizer, gaps=gaps)


def test_named_markers_can_be_escaped():
    text = r"\<|gap:x|> \<|gap:my name|> \\<|gap:y|> <|gap:größe|>"
    assert split_at_gaps(text, "<|gap|>") == [
        "<|gap:x|> <|gap:my name|> \\",
        Gap(name="y"),
        " ",
        Gap(name="größe"),
        "",
    ]
    assert split_at_gaps("a <|gap:x|> ____", "____") == ["a <|gap:x|> ", Gap(), ""]


# --------------------------------------------------------------------------------------------------------- no copies


class Copy(LogitsProcessor):
    """Prefers tokens of the text behind."""

    def __init__(self, ids):
        self.ids = sorted(set(ids))

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self.ids] += 20
        return scores


def ngrams(ids, n):
    return {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    words=st.lists(st.sampled_from([" the", " cat", " sat", " on", " a", " dog", "."]), min_size=1, max_size=8),
    n=st.integers(1, 4),
    how=st.sampled_from([{}, {"do_sample": True}, {"num_beams": 3}, {"chunk_size": 3}, {"order": "parallel"}]),
)
def test_fills_hold_no_ngram_of_the_text_behind(model, tokenizer, words, n, how):
    texts = ["Tom", "".join(words), " and" + "".join(reversed(words))]
    rights = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts[1:]]
    wants = {"logits_processor": [Copy(sum(rights, []))], "length": 8, "return_dict": True}
    output = model.infill("<|gap|>".join(texts), tokenizer, avoid_copy=n, **wants, **how)
    for number, gap in enumerate(output.gaps):
        for right in rights[number:]:
            assert not ngrams(gap.token_ids, n) & ngrams(right, n)
    copied = model.infill("<|gap|>".join(texts), tokenizer, **wants, **how).gaps[0]
    assert set(copied.token_ids) <= set(sum(rights, []))  # else nothing was avoided


# ------------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("chunk_size", [1, 4, 12, 50])
def test_chunks_become_context(model, tokenizer, chunk_size):
    left, right = token_pieces(TEXTS[:2], tokenizer)
    written = []
    while len(written) < 12:
        rest = 12 - len(written)
        pieces = [left + written, right]
        written += naive_fill(model, tokenizer, pieces, [rest], 0, steps=min(chunk_size, rest))[0]
    text = "<|gap|>".join(TEXTS[:2])
    (gap,) = model.infill(text, tokenizer, length=12, chunk_size=chunk_size, return_dict=True).gaps
    assert (gap.token_ids, gap.finish_reason, len(gap.token_logprobs)) == (written, "exact_length", 12)


@pytest.mark.parametrize("chunk_size, chunks", [(None, [6, 6, 8]), (5, [5, 5, 5, 5]), (100, [6, 6, 8])])
def test_budgets_above_the_largest_offset(text_magnet, tokenizer, chunk_size, chunks):
    model = text_magnet(infill_free_offsets=[4, 8])
    left, right = token_pieces(TEXTS[:2], tokenizer)
    written = []
    for chunk in chunks:
        written += naive_fill(model, tokenizer, [left + written, right], [8], 0, steps=chunk)[0]
    arguments = {"max_new_tokens": 20, "chunk_size": chunk_size, "suppress_tokens": [2], "return_dict": True}
    (gap,) = model.infill("<|gap|>".join(TEXTS[:2]), tokenizer, **arguments).gaps
    assert (gap.token_ids, gap.finish_reason) == (written, "max_tokens")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    words=st.integers(1, 30),
    gaps=st.lists(st.sampled_from([4, 11, (1, 9), "auto"]), min_size=1, max_size=3),
    most=st.integers(1, 30),
    chunk_size=st.sampled_from([None, 1, 3, 7]),
    order=st.sampled_from(["sequential", "parallel"]),
)
def test_positions_never_exceed_the_limit(text_magnet, tokenizer, words, gaps, most, chunk_size, order):
    model = text_magnet(infill_free_offsets=[4, 8], max_position_embeddings=40)
    parts, seen = ["a" + " the" * words], []
    for length in gaps:
        parts += [Gap(length, most), " the"]

    def record(module, args, kwargs):
        seen.append(int(kwargs["position_ids"].max()))

    handle = model.model.register_forward_pre_hook(record, with_kwargs=True)
    arguments = {"order": order, "chunk_size": chunk_size, "suppress_tokens": [2]}
    try:
        model.infill(parts, tokenizer, **arguments)
        assert max(seen) < 40
    except ValueError as error:
        assert "exceed max_position_embeddings=40" in str(error) and not seen
    finally:
        handle.remove()


# -------------------------------------------------------------------------------------------------- whatever is asked

UNICODE = st.lists(
    st.sampled_from(
        ["", " ", "\r\n", "\t", "a", " b.", "e\u0301", "🎉", "👩\u200d👧", "\u200fא", "</s>", "<pad>", "\0", "_"]
    )
    | st.text(max_size=4),
    max_size=5,
).map("".join)
STOP = st.sampled_from([None, "sentence", "line", "word", ["a", " b"], lambda text: 3 if len(text) > 4 else None])
LENGTH = st.sampled_from([3, (0, 4), (2, 6), "auto"])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    texts=st.tuples(UNICODE, UNICODE.filter(bool), UNICODE).filter(any),
    gaps=st.tuples(*[st.builds(Gap, LENGTH, stop=STOP, prefix=st.sampled_from([None, " x", "é"]))] * 2),
    options=st.fixed_dictionaries(
        {
            "order": st.sampled_from(["sequential", "parallel"]),
            "chunk_size": st.sampled_from([None, 2]),
            "avoid_copy": st.sampled_from([None, 1, 2]),
            "do_sample": st.booleans(),
        }
    ),
)
@example(
    texts=("a\r\n ", " ", "\0 "),
    gaps=(Gap((0, 4), stop="word"), Gap(3, prefix=" x")),
    options={"order": "parallel", "chunk_size": 2, "avoid_copy": 1, "do_sample": True},
)
def test_without_its_fills_the_text_is_the_input(model, tokenizer, texts, gaps, options):
    torch.manual_seed(0)
    parts = [texts[0], gaps[0], texts[1], gaps[1], texts[2]]
    bias = {"sequence_bias": {(2,): 5.0}, "max_new_tokens": 9}
    output = model.infill(parts, tokenizer, return_dict=True, **options, **bias)
    rest, end = [], 0
    for gap in output.gaps:
        first, last = gap.span
        assert output.text[first:last] == gap.text
        rest, end = [*rest, output.text[end:first]], last
    assert tuple([*rest, output.text[end:]]) == texts
    for gap, left, right in zip(output.gaps, texts, texts[1:]):
        assert not (right[:1].isspace() and gap.text[-1:].isspace()) or gap.text == " x"[: len(gap.text)]


def test_the_text_of_half_characters_only_grows(model, tokenizer):
    """Bytes that are no whole character: what more tokens bring never changes the characters before."""
    bytes_ = [token for token in range(4096) if "\ufffd" in tokenizer.decode(token)][:8]
    torch.manual_seed(0)
    for _ in range(30):
        ids = [bytes_[n] if n < 8 else 300 + n for n in torch.randint(0, 11, (8,)).tolist()]
        check_growth(ids, tokenizer)


@pytest.mark.shared
def test_the_text_of_half_characters_only_grows_in_sentencepiece(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories3M")
    party = text_ids("a🎉", tokenizer)[-4:]
    for ids in ([*party, party[0]], [*party, party[0], 400], [party[0], *party], [party[1], 400, *party, party[2]]):
        check_growth(ids, tokenizer)


def check_growth(ids, tokenizer):
    document = read_document(["x🎉", Gap(4), "y"], "<|gap|>", Gap(), {}, 0)
    shown = ""
    for end in range(len(ids) + 1):
        text = fill_text(ids[:end], document, 0, tokenizer)
        assert text.startswith(shown)
        shown = text.rstrip("\ufffd")
