"""The training view of a text: spans, masks, labels and positions (sections 3.2 and 3.3, Appendix A)."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnet_train.fim import FimMarkers
from magnet_train.settings.arguments import ViewArguments
from magnet_train.views import IGNORE, SpecialTokens, sample_spans, sample_view, special_tokens

BOS, END, MASK = 1, 2, 4
VOCAB = 97
TOKENS = SpecialTokens(BOS, MASK, END, np.arange(10, VOCAB))


def a_text(n, seed=0):
    """`n` tokens of the upper vocabulary and a sentence start about every seventh; no id of `TOKENS` is special."""
    rng = np.random.default_rng(seed)
    starts = rng.random(n) < 1 / 7
    starts[:1] = True
    return rng.integers(10, VOCAB, n), starts


def draw(n=100, seed=0, text_seed=0, **view_settings):
    """A view, and the row it was drawn from with [BOS]. Without `vary_length` the row is the whole text."""
    ids, starts = a_text(n, text_seed)
    view = sample_view(ids, starts, ViewArguments(**view_settings), TOKENS, np.random.default_rng(seed))
    return view, np.concatenate([[BOS], ids])


def spans_of(view):
    """(start, length) of each span, by brute force."""
    ids = [g for g in np.unique(view.span_ids) if g > 0]
    wheres = [np.flatnonzero(view.span_ids == g) for g in ids]
    for where in wheres:
        assert (np.diff(where) == 1).all()  # a span is one run
    return [(int(where[0]), len(where)) for where in wheres]


def end_labels(view, start, length, view_settings):
    """What may stand at a span's last token: END if the span is free, nothing if it is exact. Positions tell which,
    unless nothing follows the span."""
    offset = view_settings["free_offset"]
    if view_settings["gap_layout"] == "exact" or length > offset:
        return {IGNORE}
    if length == offset:
        return {END}
    if start + length == len(view.span_ids):
        return {END, IGNORE}
    return {END} if view.position_ids[start + length] == view.position_ids[start] + offset else {IGNORE}


VIEW_SETTINGS = st.fixed_dictionaries(
    {
        "max_spans": st.integers(1, 4),
        "span_min": st.integers(1, 6),
        "span_max": st.integers(6, 40),
        "max_span_share": st.floats(0, 1),
        "mask_ratio": st.floats(0, 0.99),
        "gap_layout": st.sampled_from(["exact", "mixed"]),
        "free_offset": st.integers(1, 50),
        "clean_context_ratio": st.sampled_from([0.0, 0.5, 1.0]),
    }
)
ANY_VIEW = given(n=st.integers(1, 120), seed=st.integers(0, 2**32), view_settings=VIEW_SETTINGS)
MANY = settings(max_examples=200, deadline=None, derandomize=True)


# -------------------------------------------------------------------------------------------------------- determinism


def fields(view):
    return [view.input_ids, view.span_ids, view.position_ids, view.mntp_labels, view.msg_labels]


@pytest.mark.parametrize("key", [(0, 0, 0), (7, 3, 12)])
def test_view_is_a_function_of_the_generator_alone(key):
    options = {"gap_layout": "mixed", "vary_length": True, "clean_context_ratio": 0.5, "sentence_span_ratio": 0.5}
    ids, starts = a_text(200)
    views = []
    for noise in (1, 2):
        np.random.seed(noise)  # the global generator must not matter
        views.append(sample_view(ids, starts, ViewArguments(**options), TOKENS, np.random.default_rng(key)))
    for one, other in zip(*map(fields, views)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["seed", "epoch", "index"])
def test_another_seed_epoch_or_index_gives_another_view(other):
    one, another = (draw(200, seed=key)[0] for key in ((0, 0, 0), other))
    assert any(not np.array_equal(a, b) for a, b in zip(fields(one), fields(another)))


@pytest.mark.parametrize(("trained_end", "end"), [(None, 2), (9, 9)])
def test_tokens_of_a_checkpoint(tokenizer, trained_end, end):
    config = SimpleNamespace(mask_token_id=66, infill_end_token_id=trained_end, text_start_token_id=None)
    tokens = special_tokens(config, tokenizer)
    assert (tokens.bos, tokens.mask, tokens.end) == (tokenizer.bos_token_id, 66, end) and tokenizer.eos_token_id == 2
    assert sorted({*tokens.ordinary, *tokenizer.all_special_ids, 66}) == list(range(len(tokenizer)))
    assert not {*tokenizer.all_special_ids, 66} & set(tokens.ordinary) and tokens.fim is not None


def test_the_text_is_left_as_it_was():
    ids, starts = a_text(100)
    before = ids.copy(), starts.copy()
    for ratio in (0.0, 1.0):
        sample_view(ids, starts, ViewArguments(all_span_ratio=ratio), TOKENS, np.random.default_rng(0))
    np.testing.assert_array_equal(ids, before[0])
    np.testing.assert_array_equal(starts, before[1])


# -------------------------------------------------------------------------------------------------------------- spans


@ANY_VIEW
@MANY
def test_spans_keep_to_their_limits(n, seed, view_settings):
    view, row = draw(n, seed, **view_settings)
    spans = spans_of(view)
    assert view.span_ids[0] == 0  # [BOS] is context, so every span has a token that predicts its first
    assert len(spans) <= view_settings["max_spans"]
    assert sorted(set(view.span_ids)) == list(range(len(spans) + 1))  # 0 and 1..k
    assert spans == sorted(spans)
    for _, length in spans:
        assert view_settings["span_min"] <= length <= view_settings["span_max"]
    assert sum(length for _, length in spans) <= view_settings["max_span_share"] * n
    for (start, length), (following, _) in zip(spans, spans[1:]):
        assert start + length < following  # at least one context token between


def test_spans_take_every_length_and_place():
    """Uniform lengths from span_min to span_max, and spans at both ends of the row."""
    lengths, starts, ends = Counter(), set(), set()
    for seed in range(1500):
        for start, length in spans_of(draw(40, seed, span_min=4, span_max=8, max_spans=1)[0]):
            lengths[length] += 1
            starts.add(start)
            ends.add(start + length)
    assert sorted(lengths) == [4, 5, 6, 7, 8]
    assert all(240 < count < 360 for count in lengths.values())
    assert min(starts) == 1 and max(ends) == 41
    assert starts == set(range(1, 38))


def test_number_of_spans_varies_up_to_max_spans():
    counts = {len(spans_of(draw(300, seed, max_spans=3, span_max=20)[0])) for seed in range(200)}
    assert counts == {1, 2, 3}


def test_sentence_spans_are_whole_sentences():
    ids, sentence_starts = a_text(100)
    starts = np.concatenate([[False], sentence_starts])
    borders = [*np.flatnonzero(starts), len(starts)]
    sentences = {(int(a), int(b - a)) for a, b in zip(borders, borders[1:])}
    view_settings = ViewArguments(sentence_span_ratio=1.0, max_spans=2)
    seen = set()
    for seed in range(300):
        seen.update(sample_spans(starts, view_settings, np.random.default_rng(seed)))
    assert seen == sentences


def test_either_of_two_sentences_is_a_span():
    starts = np.zeros(50, bool)
    starts[[1, 30]] = True
    view_settings = ViewArguments(sentence_span_ratio=1.0, max_spans=1, max_span_share=1.0)
    drawn = {tuple(sample_spans(starts, view_settings, np.random.default_rng(seed))) for seed in range(50)}
    assert drawn == {((1, 29),), ((30, 20),)}


def test_a_text_of_one_sentence_has_no_sentence_span():
    starts = np.zeros(50, bool)
    starts[1] = True
    view_settings = ViewArguments(sentence_span_ratio=1.0)
    assert all(sample_spans(starts, view_settings, np.random.default_rng(seed)) == [] for seed in range(50))


# ------------------------------------------------------------------------------------------------------------- labels


@ANY_VIEW
@MANY
def test_labels_stand_where_they_are_predicted(n, seed, view_settings):
    """mntp_labels[l] = token l+1 iff masked; msg_labels[l] = token l+1 iff in a span; END closes a free span."""
    view, row = draw(n, seed, **view_settings)
    in_span, last = view.span_ids > 0, len(row) - 1
    ends = {start + length - 1: end_labels(view, start, length, view_settings) for start, length in spans_of(view)}
    for place in range(len(row)):
        follows = int(row[place + 1]) if place < last else None
        if place in ends:
            assert view.msg_labels[place] in ends[place]
        elif place < last and in_span[place + 1]:
            assert view.msg_labels[place] == follows
        else:
            assert view.msg_labels[place] == IGNORE
        changed = place < last and view.input_ids[place + 1] != follows
        assert view.mntp_labels[place] in ({follows} if changed else {follows, IGNORE})
    assert not ((view.mntp_labels != IGNORE) & (view.msg_labels != IGNORE)).any()
    assert view.mntp_labels[last] == IGNORE


@ANY_VIEW
@MANY
def test_mntp_masks_context_that_context_predicts(n, seed, view_settings):
    view, row = draw(n, seed, **view_settings)
    masked = np.flatnonzero(view.mntp_labels != IGNORE) + 1
    assert set(np.flatnonzero(view.input_ids != row)) <= set(masked)  # only masked tokens change
    for place in masked:
        assert place > 0  # never [BOS]
        assert view.span_ids[place - 1 : place + 2].sum() == 0  # neither a span token nor a neighbour of a gap


@ANY_VIEW
@MANY
def test_positions_jump_behind_free_spans_only(n, seed, view_settings):
    view, row = draw(n, seed, **view_settings)
    steps = np.diff(view.position_ids)
    assert view.position_ids[0] == 0
    behind = {start + length: length for start, length in spans_of(view) if start + length < len(row)}
    for place, step in enumerate(steps, start=1):
        if place not in behind:
            assert step == 1
        elif view_settings["gap_layout"] == "exact" or behind[place] > view_settings["free_offset"]:
            assert step == 1
        else:
            assert step in (1, view_settings["free_offset"] - behind[place] + 1)


# ------------------------------------------------------------------------------------------------------------- shares


@pytest.fixture(scope="module")
def masks():
    """Many masked tokens: (original, what stands in the row), and for each row how far their number is from a
    fifth of its context."""
    pairs, excess = [], []
    for seed in range(400):
        view, row = draw(400, seed, text_seed=seed, span_max=16)
        where = np.flatnonzero(view.mntp_labels != IGNORE) + 1
        pairs.append(np.stack([row[where], view.input_ids[where]]))
        excess.append(len(where) - 0.2 * (view.span_ids == 0).sum())
    return np.concatenate(pairs, axis=1), excess


def test_a_fifth_of_the_context_is_masked(masks):
    _, excess = masks
    np.testing.assert_allclose(excess, 0, atol=0.5 + 1e-9)  # the nearest whole number of tokens


def test_masked_tokens_are_replaced_80_10_10(masks):
    (original, now), _ = masks
    n = len(original)
    to_mask, same = (now == MASK).mean(), (now == original).mean()
    other = 1 - to_mask - same
    by_chance = 0.1 / (VOCAB - 10)  # a random token may be the original one
    for share, expected in ((to_mask, 0.8), (same, 0.1 + by_chance), (other, 0.1 - by_chance)):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
    assert n > 30_000


def test_random_tokens_are_ordinary_and_uniform(masks):
    (original, now), _ = masks
    random = now[(now != MASK) & (now != original)]
    counts = np.bincount(random, minlength=VOCAB)
    assert counts[:10].sum() == 0  # neither [BOS] nor [EOS] nor the mask token
    expected = counts.sum() / (VOCAB - 10)
    assert (np.abs(counts[10:] - expected) < 5 * np.sqrt(expected)).all()


def test_every_eligible_token_is_masked_equally_often():
    hits, eligible = np.zeros(31), np.zeros(31)
    for seed in range(3000):
        view, _ = draw(30, seed, max_spans=1, span_max=6)
        near = np.convolve(view.span_ids, [1, 1, 1], mode="same") > 0
        eligible += ~near
        hits[1:] += view.mntp_labels[:-1] != IGNORE
    rate = hits[1:] / eligible[1:]
    assert rate.max() - rate.min() < 0.1
    assert 0.2 < rate.mean() < 0.35


def test_mask_ratio_0_masks_nothing():
    for seed in range(20):
        view, row = draw(100, seed, mask_ratio=0.0)
        assert (view.mntp_labels == IGNORE).all()
        np.testing.assert_array_equal(view.input_ids, row)


# ------------------------------------------------------------------------------------------------------- free layouts


def test_half_of_the_spans_are_free():
    found = []
    for seed in range(1000):
        view, _ = draw(200, seed, gap_layout="mixed", free_offset=64, span_max=32)
        found += [view.msg_labels[start + length - 1] == END for start, length in spans_of(view)]
    assert abs(np.mean(found) - 0.5) < 4 * np.sqrt(0.25 / len(found))


def test_right_context_of_a_free_span_stands_exactly_the_offset_behind_its_start():
    free = exact = 0
    for seed in range(200):
        view, row = draw(200, seed, gap_layout="mixed", free_offset=64, span_max=32)
        for start, length in spans_of(view):
            ended = view.msg_labels[start + length - 1] == END
            free, exact = free + ended, exact + (not ended)
            np.testing.assert_array_equal(np.diff(view.position_ids[start - 1 : start + length]), 1)
            if start + length < len(row):
                jump = view.position_ids[start + length] - view.position_ids[start]
                assert jump == (64 if ended else length)
    assert free > 50 and exact > 50


@pytest.mark.parametrize(("length", "ended"), [(16, True), (17, False)])
def test_a_span_of_exactly_the_offset_is_free_and_a_longer_one_is_not(length, ended):
    for seed in range(60):
        view, row = draw(80, seed, gap_layout="mixed", free_offset=16, span_min=length, span_max=length, max_spans=1)
        ((start, _),) = spans_of(view)
        assert (view.msg_labels[start + length - 1] == END) == ended
        np.testing.assert_array_equal(view.position_ids, np.arange(len(row)))


def test_longer_spans_take_the_second_offset():
    settings = {"gap_layout": "mixed", "free_offset": 16, "long_free_offset": 48, "max_spans": 1, "span_min": 4}
    seen = set()
    for seed in range(300):
        view, row = draw(100, seed, **settings, span_max=60, span_lengths="log_uniform", mask_ratio=0.0)
        for start, length in spans_of(view):
            ended = view.msg_labels[start + length - 1] == END
            offset = 16 if length <= 16 else 48
            assert not (ended and length > 48) and (ended or length not in (16, 48))
            if start + length < len(row):
                jump = view.position_ids[start + length] - view.position_ids[start]
                assert jump == (offset if ended else length)
            seen.add((length <= 16, length <= 48, bool(ended)))
    assert seen == {
        (True, True, True),
        (True, True, False),
        (False, True, True),
        (False, True, False),
        (False, False, False),
    }


def test_log_uniform_lengths():
    """As many spans of 4 to 15 tokens as of 16 to 63."""
    found = [
        length
        for seed in range(600)
        for _, length in spans_of(draw(200, seed, span_min=4, span_max=63, span_lengths="log_uniform", max_spans=1)[0])
    ]
    assert len(found) == 600 and min(found) == 4 and max(found) > 55
    assert 240 < sum(length < 16 for length in found) < 360
    short = ViewArguments(span_min=4, span_max=8, span_lengths="log_uniform", max_spans=1)
    drawn = {sample_spans(np.zeros(60, bool), short, np.random.default_rng(seed))[0][1] for seed in range(200)}
    assert drawn == {4, 5, 6, 7, 8}


# ------------------------------------------------------------------------------------------------- whole-row settings


def test_clean_context_ratio_1_masks_no_row_with_spans():
    for seed in range(50):
        view, row = draw(100, seed, clean_context_ratio=1.0)
        assert spans_of(view) and (view.mntp_labels == IGNORE).all()
        np.testing.assert_array_equal(view.input_ids, row)


def test_clean_context_ratio_leaves_rows_without_spans_masked():
    view, _ = draw(100, clean_context_ratio=1.0, max_span_share=0.0)
    assert not spans_of(view) and (view.mntp_labels != IGNORE).sum() == 20


def test_clean_context_ratio_is_a_share_of_rows():
    clean = [(draw(60, seed, clean_context_ratio=0.5)[0].mntp_labels == IGNORE).all() for seed in range(600)]
    assert abs(np.mean(clean) - 0.5) < 4 * np.sqrt(0.25 / 600)


def test_all_span_ratio_1_is_next_token_prediction():
    view, row = draw(50, all_span_ratio=1.0, gap_layout="mixed")
    np.testing.assert_array_equal(view.input_ids, row)
    np.testing.assert_array_equal(view.span_ids, np.ones(51))
    np.testing.assert_array_equal(view.position_ids, np.arange(51))
    np.testing.assert_array_equal(view.msg_labels, [*row[1:], IGNORE])
    assert (view.mntp_labels == IGNORE).all()


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("options", [{}, {"vary_length": True}, {"gap_layout": "mixed"}, {"sentence_span_ratio": 1.0}])
def test_short_texts(n, options):
    for seed in range(30):
        view, row = draw(n, seed, **options)
        assert {len(array) for array in fields(view)} == {len(view.input_ids)}
        assert 2 <= len(view.input_ids) <= n + 1
        targets = (view.mntp_labels != IGNORE).sum() + (view.msg_labels != IGNORE).sum()
        assert targets > 0
        if n < 7:  # 60 % of it are less than span_min
            assert not spans_of(view)


def test_vary_length_keeps_a_run_of_at_least_half():
    ids, starts = np.arange(10, 71), np.zeros(61, bool)
    kept, firsts = set(), set()
    for seed in range(1000):
        view = sample_view(
            ids, starts, ViewArguments(vary_length=True, mask_ratio=0.0), TOKENS, np.random.default_rng(seed)
        )
        assert view.input_ids[0] == BOS
        text = view.input_ids[1:]
        np.testing.assert_array_equal(text, np.arange(text[0], text[0] + len(text)))
        kept.add(len(text))
        firsts.add(int(text[0]))
    assert kept == set(range(31, 62))
    assert firsts == set(range(10, 41))


# ---------------------------------------------------------------------------------------------- tokenizers without [BOS]

BARE = SpecialTokens(None, MASK, END, np.arange(10, VOCAB))


@MANY
@given(
    n=st.integers(1, 60), seed=st.integers(0, 2**32), ratio=st.sampled_from([0.0, 1.0]), view_settings=VIEW_SETTINGS
)
def test_without_bos_nothing_is_asked_of_the_first_token(n, seed, ratio, view_settings):
    """Nothing predicts it: it is in no span and not masked. All labels are the tokens to the right, as ever."""
    ids, starts = a_text(n)
    settings = ViewArguments(sentence_span_ratio=ratio, **view_settings)
    view = sample_view(ids, starts, settings, BARE, np.random.default_rng(seed))
    assert len(view.input_ids) == n and view.span_ids[0] == 0 and view.input_ids[0] == ids[0]
    for labels in (view.mntp_labels, view.msg_labels):
        for place in np.flatnonzero(labels != IGNORE):
            last_of_span = view.span_ids[place] > 0 and (place == n - 1 or view.span_ids[place + 1] == 0)
            assert labels[place] == (END if last_of_span else ids[place + 1])


def test_without_bos_the_first_sentence_is_no_span():
    ids, starts = np.arange(10, 70), np.zeros(60, bool)
    starts[[0, 20, 40]] = True
    found = {
        spans_of(sample_view(ids, starts, ViewArguments(max_spans=1, sentence_span_ratio=1), BARE, rng))[0]
        for rng in (np.random.default_rng(seed) for seed in range(40))
    }
    assert found == {(20, 20), (40, 20)}
    with_bos = {
        spans_of(sample_view(ids, starts, ViewArguments(max_spans=1, sentence_span_ratio=1), TOKENS, rng))[0]
        for rng in (np.random.default_rng(seed) for seed in range(40))
    }
    assert with_bos == {(1, 20), (21, 20), (41, 20)}


def test_without_bos_a_causal_row_is_the_text():
    ids, starts = a_text(30)
    view = sample_view(ids, starts, ViewArguments(all_span_ratio=1), BARE, np.random.default_rng(0))
    assert np.array_equal(view.input_ids, ids) and (view.span_ids == 1).all()
    assert np.array_equal(view.msg_labels, [*ids[1:], IGNORE])


def test_without_bos_a_fim_row_holds_the_text_and_its_markers():
    markers = FimMarkers([90], [91], [92])
    tokens = SpecialTokens(None, MASK, END, np.arange(10, 90), markers)
    ids = np.arange(10, 50)
    for seed in range(20):
        settings = ViewArguments(fim_ratio=1, span_max=12)
        row = sample_view(ids, np.zeros(40, bool), settings, tokens, np.random.default_rng(seed)).input_ids.tolist()
        assert row[0] == 90 and row[-1] == END
        assert sorted(token for token in row[:-1] if token < 90) == ids.tolist()
