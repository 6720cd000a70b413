"""A result on one data set: numbers per story, pair or sentence, which give its value, 95 % interval and paired difference
from another system on the same data."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import bootstrap, entropy, pearsonr, rankdata

SAMPLES, BATCH = 1000, 50  # draws, and how many are in memory at once


# statistics of columns (draws, units, ...); one value per draw


def ratio_of_sums(values, weights):
    return values.sum(1) / weights.sum(1)


def perplexity(nats, tokens):
    return np.exp(nats.sum(1) / tokens.sum(1))


def f1(right, total):
    """F1 x 100; with several classes (the last axis), the mean over those that occur."""
    right, total = (column.sum(1).reshape(len(column), -1) for column in (right, total))  # (draws, classes)
    return 100 * np.nanmean(2 * right / np.where(total > 0, total, np.nan), axis=1)


def spearman(similarity, grades):
    return 100 * pearsonr(rankdata(similarity, axis=1), rankdata(grades, axis=1), axis=1).statistic


def v_measure(labels, clusters):
    """The mean over several clusterings, (draws, texts, clusterings), from entropies: scikit-learn's takes 4 ms per draw."""

    def one(row, found):
        alone = entropy(np.bincount(row)) + entropy(np.bincount(found))
        return 2 - 2 * entropy(np.bincount(row * (found.max() + 1) + found)) / alone if alone else 1.0

    return np.array([100 * np.mean([one(row, each) for each in found.T]) for row, found in zip(labels, clusters)])


STATISTICS = {each.__name__: each for each in (ratio_of_sums, perplexity, f1, spearman, v_measure)}


@dataclass
class Estimate:
    """A value and its bootstrap draws; values derived from it have intervals too."""

    value: float
    draws: np.ndarray

    @property
    def interval(self) -> list[float] | None:
        """The 95 % interval; `None` for a single unit."""
        if np.isnan(self.draws).all():
            return None
        return [float(np.nanquantile(self.draws, share)) for share in (0.025, 0.975)]

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value / other.value, self.draws / other.draws)


def average(estimates: list[Estimate]) -> Estimate:
    """The mean over independent data sets."""
    return Estimate(
        float(np.mean([each.value for each in estimates])), np.mean([each.draws for each in estimates], axis=0)
    )


@dataclass
class Figure:
    """
    One metric of a system on one data set.

    Args:
        data (`str`): Name of the data set.
        measure (`str`): The metric, with its unit.
        statistic (`str`): Name of the function of `columns` that gives the value, a key of `STATISTICS`.
        columns (`list` of arrays of shape `(units, ...)`): What each resampled unit (story, document, pair) contributes.
        way (`str`, *optional*): How the system was used, if there are several ways.
        tokens (`int`, *optional*): Number of tokens predicted or encoded.

    Example:

    ```python
    >>> from magnet_eval.figures import Figure
    >>> ours = Figure("stories", "perplexity", "perplexity", [[4.0, 9.0, 6.0], [3, 3, 3]])
    >>> base = Figure("stories", "perplexity", "perplexity", [[5.0, 10.0, 7.0], [3, 3, 3]])
    >>> round(ours.value, 2), [round(end, 3) for end in ours.against(base).interval]
    (8.26, [0.717, 0.717])

    ```
    """

    data: str
    measure: str
    statistic: str
    columns: list
    way: str = ""
    tokens: int | None = None

    def __post_init__(self):
        self.columns = [np.asarray(column) for column in self.columns]

    @cached_property
    def value(self) -> float:
        return float(STATISTICS[self.statistic](*(column[None] for column in self.columns))[0])

    @cached_property
    def estimate(self) -> Estimate:
        """Resamples units, with the same draws for every system on the same data."""
        count = len(self.columns[0])
        if count < 2:
            return Estimate(self.value, np.full(SAMPLES, np.nan))

        def statistic(rows, axis):
            return STATISTICS[self.statistic](*(column[rows] for column in self.columns))

        rng = np.random.default_rng([count, *self.data.encode()])
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a draw of few pairs may have a single grade: it is left out of the interval
            settings = {"n_resamples": SAMPLES, "batch": BATCH, "method": "percentile", "vectorized": True}
            found = bootstrap((np.arange(count),), statistic, rng=rng, **settings)
        return Estimate(self.value, found.bootstrap_distribution)

    def against(self, other: "Figure") -> Estimate | None:
        """The difference from another system's figure, or the ratio of perplexities; `None` if units or weights differ."""
        if len(self.columns[0]) != len(other.columns[0]) or self.statistic != other.statistic:
            return None
        same = np.array_equal(self.columns[1], other.columns[1])  # tokens differ with another tokenizer
        if self.statistic == "perplexity":
            return self.estimate / other.estimate if same else None
        return self.estimate - other.estimate if same or self.statistic != "ratio_of_sums" else None

    def as_json(self) -> dict:
        fields = {name: getattr(self, name) for name in ("data", "measure", "statistic", "way", "tokens")}
        return fields | {"columns": [column.tolist() for column in self.columns]}


def means(data: str, values: dict[str, list[float]], way: str = "", weights=None) -> list[Figure]:
    """A figure for each metric, all means over stories or texts."""
    return [
        Figure(data, measure, "ratio_of_sums", [column, np.ones(len(column)) if weights is None else weights], way)
        for measure, column in values.items()
    ]
