"""Figures: values by hand, intervals, and paired comparisons in which shared difficulty cancels."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, v_measure_score

from magnet_eval.figures import Figure, average, means


def perplexity(nats, tokens=None):
    return Figure("stories", "perplexity", "perplexity", [nats, np.full(len(nats), 3) if tokens is None else tokens])


def test_an_interval_holds_the_value_and_shrinks_to_it():
    same = perplexity(np.full(20, 6.0))
    assert same.value == pytest.approx(np.exp(2)) and same.estimate.interval == pytest.approx([same.value] * 2)
    mixed = perplexity(np.random.default_rng(0).uniform(3, 9, 50))
    low, high = mixed.estimate.interval
    assert low < mixed.value < high
    assert perplexity([6.0]).estimate.interval is None  # one story says nothing of others


def test_comparisons_are_paired():
    mixed = perplexity(np.random.default_rng(0).uniform(3, 9, 50))
    halved = perplexity(mixed.columns[0] - 3 * np.log(2)).against(mixed)
    assert halved.value == pytest.approx(0.5) and halved.interval == pytest.approx([0.5, 0.5])
    (first,), (second,) = (means("stories", {"points": mixed.columns[0] + n}) for n in (0, 2))
    assert second.against(first).interval == pytest.approx([2, 2])


def test_what_cannot_be_compared_is_not():
    ours = perplexity([4.0, 5.0])
    assert ours.against(perplexity([4.0, 5.0, 6.0])) is None
    assert ours.against(perplexity([4.0, 5.0], [3, 4])) is None  # another tokenizer cuts the same text otherwise
    assert ours.against(means("stories", {"perplexity": [4.0, 5.0]})[0]) is None
    (some,), (other,) = (means("stories", {"bits": [4.0, 5.0]}, weights=weights) for weights in ([1, 2], [2, 2]))
    assert some.against(other) is None  # not of the same characters


def test_an_interval_covers_the_truth_nineteen_times_of_twenty():
    rng, held = np.random.default_rng(0), 0
    for n in range(200):
        low, high = means(f"draw {n}", {"mean": rng.normal(7, 2, 60)})[0].estimate.interval
        held += low < 7 < high
    assert 180 <= held <= 199


def test_an_average_is_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    parts = [means(name, {"mean": rng.normal(5, 2, 60)})[0] for name in ("STS12", "STS13")]
    whole = average([part.estimate for part in parts])
    assert whole.value == pytest.approx(np.mean([part.value for part in parts]))
    width = [np.diff(each.interval)[0] for each in (whole, *(part.estimate for part in parts))]
    assert width[0] < 0.85 * min(width[1:])  # the sets are drawn independently, though they are as large


def test_statistics_are_those_of_scikit_learn():
    truth, guess = [0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 2, 1, 1, 0]
    right = [[int(a == b == c) for c in range(3)] for a, b in zip(truth, guess)]
    total = [[(a == c) + (b == c) for c in range(3)] for a, b in zip(truth, guess)]
    assert Figure("", "", "f1", [right, total]).value == pytest.approx(100 * f1_score(truth, guess, average="macro"))
    one = np.array(right)[:, :1], np.array(total)[:, :1]
    expected = 100 * f1_score([a == 0 for a in truth], [b == 0 for b in guess])
    assert Figure("", "", "f1", [column[:, 0] for column in one]).value == pytest.approx(expected)
    clusters = np.stack([guess, truth], 1)
    expected = 50 * (v_measure_score(truth, guess) + 1)
    assert Figure("", "", "v_measure", [truth, clusters]).value == pytest.approx(expected)


def test_a_figure_survives_json():
    figure = Figure("STS12", "Spearman x 100", "spearman", [[0.1, 0.5, 0.4], [1.0, 3.0, 2.0]], "mean", 12)
    again = Figure(**figure.as_json())
    assert again.value == figure.value == pytest.approx(100) and again.as_json() == figure.as_json()
    assert again.estimate.interval == figure.estimate.interval
