"""The text infill() returns: the caller's characters verbatim, seams that do not show, where a fill begins and ends."""

import threading

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from infilling import Write, bare_tokenizer, forwards_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_magnet import Gap, InfilledGap, InfillOutput, MagnetLlamaForCausalLM
from modeling_magnet.encoding_magnet import start_ids, text_ids
from modeling_magnet.infilling_magnet import (
    SENTINELS,
    context_ids,
    continuation_ids,
    fill_text,
    overlap,
    read_document,
    split_at_gaps,
    start_tokens,
)

MARKER = "<|gap|>"
NASTY = ["", " ", "  ", "\r\n", "\t", "\0", "_", "🎉👩‍👩‍👧", "é", "\u0301", "<s>", "</s>", "<pad>", "<unk>"]
NASTY += ["\\", "ab", " Tom.", "\u200fא"]
UNICODE = st.lists(st.sampled_from(NASTY) | st.text(max_size=5), max_size=6).map("".join)
STOPS = [None, "sentence", "line", ["a", " b"]]


@pytest.fixture(scope="module")
def model(text_magnet):
    return text_magnet()


@pytest.fixture(scope="module")
def sentencepiece(shared):
    """A Llama-2 tokenizer: it puts a space before a text, takes one off a decoded text, and falls back to bytes."""
    return AutoTokenizer.from_pretrained(shared / "models" / "stories3M")


# ------------------------------------------------------------------------------------------- the caller's characters


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    texts=st.tuples(UNICODE, UNICODE.filter(bool), UNICODE).filter(any),
    gaps=st.tuples(
        *[
            st.builds(
                Gap,
                st.sampled_from([3, (0, 4), (2, 6), "auto"]),
                stop=st.sampled_from(STOPS),
                prefix=st.sampled_from([None, " x", "é"]),
            )
        ]
        * 2
    ),
    options=st.fixed_dictionaries({"order": st.sampled_from(["sequential", "parallel"]), "do_sample": st.booleans()}),
)
@example(texts=("a\r\n ", " ", "\0 "), gaps=(Gap((0, 4)), Gap(3, prefix=" x")), options={"do_sample": True})
@example(texts=("</s> <s>", "_", "<pad>"), gaps=(Gap(2), Gap(3)), options={"order": "parallel"})
@example(texts=("e", "\u0301", "👩‍👧"), gaps=(Gap(2), Gap("auto")), options={"order": "sequential"})
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
    for gap, asked, right in zip(output.gaps, gaps, texts[1:]):
        assert gap.text.startswith(asked.prefix or "")
        assert not (right[:1].isspace() and gap.text[-1:].isspace()) or gap.text == " x"[: len(gap.text)]
        if asked.length == 3 and gap.finish_reason == "exact_length":
            assert len(gap.token_ids) == 3


@settings(max_examples=20, deadline=None, derandomize=True)
@given(texts=st.tuples(UNICODE, UNICODE).filter(any))
@example(texts=("_", "</s>"))
def test_an_empty_fill_gives_the_text_itself(model, tokenizer, texts):
    end_at_once = {"sequence_bias": {(2,): 1e4}, "min_new_tokens": 0}
    output = model.infill([texts[0], Gap(), texts[1]], tokenizer, return_dict=True, **end_at_once)
    assert output == InfillOutput("".join(texts), [InfilledGap("", [], "end_token", span=(len(texts[0]),) * 2)])


@pytest.fixture(scope="module")
def bare():
    return bare_tokenizer()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(texts=st.tuples(UNICODE.filter(bool), UNICODE.filter(bool)))
def test_without_a_token_that_opens_a_text(model, bare, texts):
    text = model.infill([texts[0], Gap(3), texts[1]], bare)
    assert text.startswith(texts[0]) and text.endswith(texts[1])


# -------------------------------------------------------------------------------------------------------- gap markers


def escape(text, marker):
    """Makes every marker in a text a marker as text, and protects backslashes that stand before a real marker."""
    written = ""
    for piece in text.split(marker)[:-1]:
        written += protect(piece) + "\\" + marker
    return written + protect(text.split(marker)[-1])


def protect(piece):
    backslashes = len(piece) - len(piece.rstrip("\\"))
    return piece + "\\" * backslashes


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    left=st.lists(st.sampled_from(["\\", MARKER, "<|gap|", "a", "\n"]), max_size=6).map("".join),
    right=st.lists(st.sampled_from(["\\", MARKER, "gap|>", "a", "\n"]), max_size=6).map("".join),
)
def test_every_text_can_be_escaped(left, right):
    backslashes_at_the_end = len(right) - len(right.rstrip("\\"))
    written = escape(left, MARKER) + MARKER + escape(right, MARKER)
    written = written[: len(written) - backslashes_at_the_end]  # no marker follows those
    assert split_at_gaps(written, MARKER) == [left, Gap(), right]


@pytest.mark.parametrize(
    "text, parts",
    [
        (r"a \<|gap|> b<|gap|>", ["a <|gap|> b", Gap(), ""]),
        (r"a \\<|gap|> b", ["a \\", Gap(), " b"]),
        (r"a \\\<|gap|> b <|gap|>c", ["a \\<|gap|> b ", Gap(), "c"]),
        (r"C:\dir\\x <|gap|>", [r"C:\dir\\x ", Gap(), ""]),
        (r"\<|gap:x|> \<|gap:my name|> <|gap:größe|>", ["<|gap:x|> <|gap:my name|> ", Gap(name="größe"), ""]),
    ],
)
def test_backslashes_escape_markers_only(model, tokenizer, text, parts):
    assert split_at_gaps(text, MARKER) == parts
    assert model.infill(text, tokenizer, length=3) == model.infill(parts, tokenizer, length=3)


@pytest.mark.parametrize("marker", ["____", "[MASK]", ".*", "</s>"])
def test_another_marker(model, tokenizer, marker):
    expected = model.infill(["Tom <|gap:x|> was ", Gap(), " and sad."], tokenizer, length=3)
    assert model.infill(f"Tom <|gap:x|> was {marker} and sad.", tokenizer, length=3, gap_token=marker) == expected


# -------------------------------------------------------------------------------------------------- control tokens


def test_control_tokens_of_the_text_never_become_control_ids(model, tokenizer):
    hostile = "a_b <gap> </s> <s> <pad> <unk> <mask>"
    parts = [hostile, Gap(7, prefix=" </s>"), hostile, Gap(candidates=["</s>", "<pad>"]), hostile]
    forwards = forwards_of(model, lambda: model.infill(parts, tokenizer, stop=["</s> x"]))
    rows = [row for forward in forwards for row in forward["input_ids"].tolist()]
    control = set(tokenizer.all_special_ids)
    # [BOS] opens a context
    assert all(control.isdisjoint(row[1:]) for row in rows) and len(rows) > 5
    context = rows[0]
    assert context[0] == tokenizer.bos_token_id and tokenizer.decode(context[1:]) == hostile * 3
    for gap in model.infill(parts, tokenizer, return_dict=True).gaps:
        assert gap.text.startswith((" </s>", "</s>", "<pad>")) and control.isdisjoint(gap.token_ids)


def test_control_tokens_stay_text_while_other_threads_tokenize(tokenizer):
    """The tokenizer holds that setting; a call without it, in another thread, changes it at any moment."""
    done = threading.Event()

    def disturb():
        while not done.is_set():
            tokenizer("</s>")

    others = [threading.Thread(target=disturb) for _ in range(3)]
    for other in others:
        other.start()
    try:
        assert not any(2 in text_ids("a </s> b", tokenizer) for _ in range(2000))
    finally:
        done.set()
        for other in others:
            other.join()


@pytest.mark.parametrize("role, token", [("pad_token", "!"), ("mask_token", "_"), ("unk_token", "a")])
def test_a_special_token_may_be_a_string_that_occurs_in_text(model, base_model_path, role, token):
    tokenizer = AutoTokenizer.from_pretrained(base_model_path)
    plain = text_ids(f"Hello{token} {token}", tokenizer)
    setattr(tokenizer, role, token)
    assert text_ids(f"Hello{token} {token}", tokenizer) == plain
    assert model.encode([f"Hello{token}", token], tokenizer).shape == (2, 64)
    left, right = f"Hello{token} {token} ", f"{token} was sad{token}"
    output = model.infill([left, Gap(4), right], tokenizer, return_dict=True)
    assert output.text == left + output.gaps[0].text + right and len(output.gaps[0].token_ids) == 4
    given = model.infill([left, Gap(candidates=[token]), right], tokenizer, return_dict=True)
    assert given.text == left + token + right
    assert model.score_infill(left + MARKER + right, [token], tokenizer).gaps[0].text == token


@pytest.mark.parametrize("length", [5, "auto"])
def test_control_tokens_never_appear_in_fills(model, tokenizer, length):
    wanted = {(token,): 1e4 for token in tokenizer.all_special_ids if length == 5 or token != tokenizer.eos_token_id}
    arguments = {"length": length, "max_new_tokens": 5, "do_sample": True, "num_return_sequences": 8}
    torch.manual_seed(0)
    outputs = model.infill("Tom <|gap|> sad.", tokenizer, sequence_bias=wanted, return_dict=True, **arguments)
    for output in outputs:
        assert len(output.gaps[0].token_ids) == 5
        assert not set(output.gaps[0].token_ids) & set(tokenizer.all_special_ids)


def test_an_end_token_that_is_no_control_token_of_the_tokenizer(text_magnet, tokenizer):
    model = text_magnet(infill_end_token_id=500)
    wanted = {"sequence_bias": {(500,): 1e4}, "return_dict": True}
    free = model.infill("Tom <|gap|> sad.", tokenizer, min_new_tokens=0, **wanted)
    assert (free.text, free.gaps[0].finish_reason) == ("Tom  sad.", "end_token")
    exact = model.infill("Tom <|gap|> sad.", tokenizer, length=4, **wanted)
    assert len(exact.gaps[0].token_ids) == 4 and 500 not in exact.gaps[0].token_ids


# ----------------------------------------------------------------------------------------- seams: the context's tokens

PIECES = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    " x",
    "\n x",
    "\r\n",
    ".x",
    "...",
    "bc",
    "a",
    "ab",
    "\t",
    "é",
    "🎉",
    "<s>",
    "</s>",
]


@pytest.fixture(scope="module")
def greedy_merger():
    """A byte-level tokenizer that merges every sentinel with what may follow it, and hides spaces from its offsets."""
    merges = ["Ċ Ċ", "Ċ Ġ", ". Ċ", ". .", ". x", "a b", "a Ġ", "Ġ Ġ", "Ġ x"]
    merges = [tuple(pair.split()) for pair in merges]
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_every_sentinel_of_this_tokenizer_merges(greedy_merger):
    for sentinel, follower in zip(SENTINELS, (" ", "x", "b"), strict=True):
        assert len(greedy_merger(sentinel + follower)["input_ids"]) == 1


@pytest.mark.parametrize("right", PIECES)
@pytest.mark.parametrize("middle", PIECES[1:])
def test_pieces_are_encoded_whole(model, greedy_merger, middle, right):
    document = read_document("inputs[0]", f"x<|gap|>{middle}<|gap|>{right}", MARKER, Gap(4), {})
    left_ids, middle_ids, right_ids = context_ids(document, model.config, greedy_merger)
    healed = middle if middle == " " else middle.removesuffix(" ")  # a word's token brings the space before it
    assert [greedy_merger.decode(ids) for ids in (left_ids, middle_ids, right_ids)] == ["x", healed, right]
    assert not {0, 1} & {*left_ids, *middle_ids, *right_ids}


def test_what_opens_a_text(tokenizer, bare, text_magnet):
    assert start_ids(text_magnet().config, tokenizer) == [tokenizer.bos_token_id]
    assert start_ids(text_magnet().config, bare) == [] and bare.bos_token_id is not None
    assert start_ids(text_magnet(text_start_token_id=7).config, bare) == [7]
    assert start_ids(text_magnet(text_start_token_id=7).config, tokenizer) == [7]


@pytest.mark.shared
@pytest.mark.parametrize(
    "left, right, tokens",
    [
        ("Tom was", "s sad.", ["▁Tom", "▁was", "s", "▁sad", "."]),  # no dummy space on the right
        ("Tom was", " sad.", ["▁Tom", "▁was", "▁sad", "."]),
        ("Tom was ", " sad.", ["▁Tom", "▁was", "▁sad", "."]),  # the fill's first token brings the space
        ("", "sad.", ["s", "ad", "."]),
    ],
)
def test_context_of_a_sentencepiece_tokenizer(model, sentencepiece, left, right, tokens):
    document = read_document("inputs[0]", left + MARKER + right, MARKER, Gap(4), {})
    context = sum(context_ids(document, model.config, sentencepiece), [])
    assert sentencepiece.convert_ids_to_tokens(context) == ["<s>", *tokens]


# ------------------------------------------------------------------------------------------ seams: what the text shows

JOINED = [  # left, the tokens written, right, the whole
    ("Tom was ", ["Ġvery"], " sad.", "Tom was very sad."),
    ("Tom was", ["Ġvery"], " sad.", "Tom was very sad."),
    ("Tom was ", ["Ġvery", "Ġ"], " sad.", "Tom was very sad."),
    ("Tom was", ["Ġvery", "Ġ"], "sad.", "Tom was very sad."),
    ("Tom was", ["Ġvery"], ".", "Tom was very."),
    ("Tom ran", ["."], "\nHe was sad.", "Tom ran.\nHe was sad."),
    ("", ["Ġvery"], " sad.", "very sad."),
    ("Tom was ", ["Ġvery"], "", "Tom was very"),
    ("Tom wa", ["s"], " sad.", "Tom was sad."),
    ("Tom was", [",", "Ġvery"], " sad.", "Tom was, very sad."),
]


def check_join(model, tokenizer, left, tokens, right, whole):
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert tokenizer.unk_token_id not in ids
    arguments = {"length": len(ids), "logits_processor": [Write(ids)], "return_dict": True}
    output = model.infill([left, Gap(), right], tokenizer, **arguments)
    assert (output.text, output.gaps[0].token_ids) == (whole, ids)


@pytest.mark.parametrize("left, tokens, right, whole", JOINED)
def test_byte_level_fills_join_without_a_seam(model, tokenizer, left, tokens, right, whole):
    check_join(model, tokenizer, left, tokens, right, whole)


@pytest.mark.shared
@pytest.mark.parametrize("left, tokens, right, whole", JOINED)
def test_sentencepiece_fills_join_without_a_seam(model, sentencepiece, left, tokens, right, whole):
    check_join(model, sentencepiece, left, [token.replace("Ġ", "▁") for token in tokens], right, whole)


SEAMS = [  # natural texts, left and right of the gap
    ("Tom was very ", ". He went home."),
    ("Tom was very", ". He went home."),
    ("The boy ran to the ", " and played."),
    ("The boy ran to the", " and played."),
    ("", " He was very happy."),
    ("Once upon a time, there was a ", ""),
    ("She said,", "\nThe end."),
]


def check_seams(model, tokenizer, left, right):
    """The whole text is what its tokens say: no space is missing at a seam, none is there twice."""
    parts, outputs = [left, Gap(4), right], []
    forwards = forwards_of(model, lambda: outputs.append(model.infill(parts, tokenizer, return_dict=True)))
    (context, *_), (output,) = forwards[0]["input_ids"].tolist(), outputs
    n_left = len(tokenizer(left.removesuffix(" "), add_special_tokens=False)["input_ids"])
    ids = context[1 : 1 + n_left] + output.gaps[0].token_ids + context[1 + n_left :]
    assert context.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(context[1 + n_left :]).lstrip() == right.lstrip()
    assert output.text.strip() == tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
    assert output.text.startswith(left) and output.text.endswith(right) and "  " not in output.text


@pytest.fixture(scope="module")
def trained(base_model_path):
    return MagnetLlamaForCausalLM.from_base(LlamaForCausalLM.from_pretrained(base_model_path, dtype="float32"))


@pytest.mark.parametrize("left, right", SEAMS)
def test_seams_of_a_byte_level_tokenizer(trained, tokenizer, left, right):
    check_seams(trained, tokenizer, left, right)


@pytest.mark.shared
@pytest.mark.parametrize("left, right", SEAMS)
def test_seams_of_a_sentencepiece_tokenizer(shared, sentencepiece, left, right):
    llama = LlamaForCausalLM.from_pretrained(shared / "models" / "stories3M", dtype="float32")
    check_seams(MagnetLlamaForCausalLM.from_base(llama), sentencepiece, left, right)


@pytest.mark.parametrize("left", ["Tom was ", "Tom was  ", "def f():\n    ", "one\t "])
def test_behind_a_space_a_fill_begins_a_word(model, tokenizer, left):
    torch.manual_seed(0)
    sampling = {"do_sample": True, "num_return_sequences": 16, "return_dict": True, "temperature": 5.0}
    for output in model.infill(left + "<|gap|> sad.", tokenizer, length=2, **sampling):
        first = tokenizer.convert_ids_to_tokens(output.gaps[0].token_ids[0])
        written = tokenizer.decode(output.gaps[0].token_ids[0])
        assert first.startswith("Ġ") and output.text.startswith(left + written[1:])


# -------------------------------------------------------------------------------------------------------- prefixes

PREFIXES = [  # left, prefix
    ("Tom was ", "ver"),
    ("Tom was ", "very "),
    ("Tom wa", "s"),
    ("Tom was", " "),
    ("Tom was ", " x"),
    ("", "Once"),
    ("", " x"),
    (" ", "x"),
    (" ", " x"),
    ("a ", "é🎉"),
    ("a🎉", "🎉e\u0301"),
    ("x", "<"),
    ("x", "</s>"),
    ("def f():\n    ", "return"),
    ("one\r\n", "\r\n\ttwo  "),
]


def check_prefix(model, tokenizer, left, prefix):
    torch.manual_seed(0)
    right = prefix + " sad " + prefix if left else "."
    sampling, end = {"do_sample": True, "temperature": 9.0}, {"sequence_bias": {(2,): 6.0}}
    for options, more in (
        (Gap(12), {}),
        (Gap("auto", 12, stop="sentence"), sampling),
        (Gap((0, 12), stop=["e", " "]), sampling),
    ):
        options.prefix = prefix
        output = model.infill([left, options, right], tokenizer, return_dict=True, **more, **end)
        assert output.gaps[0].text.startswith(prefix), (options, more)
        assert output.text == left + output.gaps[0].text + right
        assert len(output.gaps[0].token_ids) <= 12


@pytest.mark.parametrize("left, prefix", PREFIXES)
def test_a_fill_starts_with_its_prefix(model, tokenizer, left, prefix):
    check_prefix(model, tokenizer, left, prefix)


@pytest.mark.shared
@pytest.mark.parametrize("left, prefix", PREFIXES)
def test_a_fill_starts_with_its_prefix_in_sentencepiece(model, sentencepiece, left, prefix):
    check_prefix(model, sentencepiece, left, prefix)


def test_a_prefix_keeps_the_space_at_its_end(model, tokenizer):
    ids = text_ids(" very ", tokenizer)
    for right, whole in ((" sad", "very  sad"), ("sad", "very sad")):
        gap = Gap(len(ids), prefix="very ")
        assert model.infill(["Tom was ", gap, right], tokenizer).startswith("Tom was very ")
        written = model.infill(["Tom was ", gap, right], tokenizer, logits_processor=[Write(ids)])
        assert written == "Tom was " + whole


def test_a_prefix_may_end_inside_a_token(tokenizer):
    very, ru = start_tokens(text_ids(" very ru", tokenizer), tokenizer)
    assert {tokenizer.decode(token) for token in very} == {" very"}
    last = {tokenizer.decode(token) for token in ru}
    assert {" ru", " run", " running"} & last and all(token.startswith(" ru") for token in last)


@pytest.mark.shared
def test_a_prefix_that_has_no_tokens(model, sentencepiece):
    with pytest.raises(ValueError, match="prefix='▁x': the tokenizer has no tokens for it"):  # its sign for a space
        model.infill(["Tom ", Gap(prefix="▁x"), " sad."], sentencepiece)


# ----------------------------------------------------------------------------------------------- where a fill is ended


@pytest.mark.parametrize(
    "stop, written, fill",
    [
        ("sentence", " He ran. Then", " He ran."),
        ("sentence", ' "Run!" he said.', ' "Run!"'),
        ("sentence", " 3.14 is pi. Yes", " 3.14 is pi."),
        ("sentence", "好。他", "好。"),
        ("line", " one\ntwo", " one"),
        ("line", "\r\n\n one\r\ntwo", "\r\n\n one"),
        ([" and"], " red and blue", " red"),
        (["blue", "re"], " red and blue", " "),
        ([", big red house a"], " the, big red house and", " the"),
        (["ppy"], " unhappy dog", " unha"),
        (["\n\n"], " one\ntwo\n\nthree", " one\ntwo"),
    ],
)
@pytest.mark.parametrize("length", [24, "auto"])
def test_stops(model, tokenizer, stop, written, fill, length):
    arguments = {"length": length, "max_new_tokens": 24, "return_dict": True}
    arguments["logits_processor"] = [Write(text_ids(written, tokenizer))]
    output = model.infill(["Tom", Gap(stop=stop), "|"], tokenizer, **arguments)
    (gap,) = output.gaps
    assert (gap.text, gap.finish_reason, output.text) == (fill, "stop", f"Tom{fill}|")
    assert tokenizer.decode(gap.token_ids) == gap.text and len(gap.token_logprobs) == len(gap.token_ids)
    assert gap.end_logprob is None


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True}])
def test_stops_of_alternatives(model, tokenizer, how):
    torch.manual_seed(0)
    never = {"sequence_bias": {(2,): -1e4}}
    arguments = {"length": (1, 9), "num_return_sequences": 3, "return_dict": True, **never}
    outputs = model.infill(["Tom", Gap(stop=["e", "a"]), " sad."], tokenizer, **arguments, **how)
    gaps = [output.gaps[0] for output in outputs]
    assert "stop" in {gap.finish_reason for gap in gaps}
    for gap in gaps:
        assert not {"e", "a"} & set(gap.text)
        if gap.finish_reason == "stop":
            assert tokenizer.decode(gap.token_ids) == gap.text
        assert len(gap.token_logprobs) == len(gap.token_ids)


def test_what_the_text_behind_repeats_is_trimmed(model, tokenizer):
    ids = text_ids(" He ran home. Then he was full.", tokenizer)
    right = " Then he was full. He slept."
    writing = {"return_dict": True, "logits_processor": [Write([*ids, 2])]}
    (gap,) = model.infill(["Tom.", Gap(), right], tokenizer, **writing).gaps
    assert (gap.text, gap.trimmed, gap.finish_reason) == (" He ran home.", " Then he was full.", "end_token")
    assert tokenizer.decode(gap.token_ids) == gap.text and gap.end_logprob is None
    assert len(gap.token_logprobs) == len(gap.token_ids)
    writing = {"return_dict": True, "logits_processor": [Write(ids)]}
    (gap,) = model.infill(["Tom.", Gap(len(ids)), right], tokenizer, **writing).gaps  # a length that was promised
    assert (gap.token_ids, gap.trimmed, gap.finish_reason) == (ids, "", "exact_length")
    assert gap.text == " He ran home. Then he was full."


@pytest.mark.parametrize(
    "text, right, characters",
    [
        ("He ran home. Then he was full.", " Then he was full. He slept.", 18),
        ("He saw the", " the end.", 0),  # a word or two may be chance
        ("so he saw the big dog", " the big dog ran", 12),
        ("so he saw the big dog", "g ran", 0),  # within words
        ("so he saw the big dogs", " the big dog ran", 0),
        ("a misunderstanding us", "understanding us now", 0),
        ("an understanding", "understandings are", 0),
        ("xx a b c", "a b c d e", 5),  # three words
        ("on the abcdefghijkl", "abcdefghijkl.", 12),  # or twelve characters
        ("", " the end.", 0),
        ("a b c", "", 0),
    ],
)
def test_overlap(text, right, characters):
    assert overlap(text, right) == characters


def check_half_character(model, tokenizer):
    """The tokens are as they were written; their text ends with the last whole character."""
    ids = continuation_ids(" ran 🎉🎉🎉", tokenizer)[:-1]
    writing = {"return_dict": True, "max_new_tokens": len(ids)}
    for length, finish_reason in ((len(ids), "exact_length"), ("auto", "max_tokens")):
        parts = ["Tom", Gap(length), "."]
        (gap,) = model.infill(parts, tokenizer, logits_processor=[Write(ids)], **writing).gaps
        assert (gap.text, gap.token_ids, gap.finish_reason) == (" ran 🎉🎉", ids, finish_reason)
        assert len(gap.token_logprobs) == len(ids)
    stopped = ["Tom", Gap(len(ids), stop=["🎉🎉"]), "."]
    assert model.infill(stopped, tokenizer, logits_processor=[Write(ids)]) == "Tom ran ."


def test_half_a_character_at_the_end(model, tokenizer):
    check_half_character(model, tokenizer)


@pytest.mark.shared
def test_half_a_character_at_the_end_in_sentencepiece(model, sentencepiece):
    check_half_character(model, sentencepiece)


def check_growth(ids, tokenizer):
    """What more tokens bring never changes the characters before: a prefix, or what a stop has read."""
    for left in ("x🎉", ""):
        document = read_document("inputs[0]", [left, Gap(4), "y"], MARKER, Gap(), {})
        texts = [fill_text(ids[:end], document, 0, tokenizer) for end in range(len(ids) + 1)]
        assert all(longer.startswith(shorter) for shorter, longer in zip(texts, texts[1:]))


def test_bytes_that_are_no_character_change_nothing_before_them(tokenizer):
    bytes_ = [token for token in range(4096) if "\ufffd" in tokenizer.decode(token)][:8]
    torch.manual_seed(0)
    for _ in range(20):
        check_growth([bytes_[n] if n < 8 else 300 + n for n in torch.randint(0, 11, (8,)).tolist()], tokenizer)


@pytest.mark.shared
def test_bytes_that_are_no_character_change_nothing_before_them_in_sentencepiece(sentencepiece):
    party = text_ids("a🎉", sentencepiece)[-4:]
    for ids in ([*party, party[0]], [*party, party[0], 400], [party[0], *party], [party[1], 400, *party, party[2]]):
        check_growth(ids, sentencepiece)
