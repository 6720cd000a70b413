"""What `magnet evaluate` measures: each figure with its 95 % interval, in model-card format."""

import logging
import warnings
from collections.abc import Callable

import numpy as np
from scipy.stats import ConstantInputWarning, spearmanr

from magnet_hub.results import Measured

from .embedding import cosines, found_their_own
from .infilling import GapExample, infill_perplexity, sentence_gaps, whole

logger = logging.getLogger(__name__)

LAYOUTS = {  # as worded in the shipped checkpoint's card
    "exact": "perplexity of the missing sentence, given length",
    "free": "perplexity of the missing sentence and its end",
    "causal": "the same from the left alone, causal mode",
}


def measure_infilling(
    model, tokenizer, stories: list[list[str]], dataset: str, command: str, every: bool = True, batch_size: int = 32
) -> list[Measured]:
    """
    Infilling perplexity of one missing sentence (Table 4), and perplexity of whole stories in causal mode.

    Args:
        model (`Magnet*ForCausalLM`): In eval mode. For one not trained with hybrid attention (a converted base), use
            [`measure_causal`].
        stories (`list[list[str]]`): Sentences of each story.
        dataset, command (`str`): Dataset name, and the command that measures it.
        every (`bool`, *optional*, defaults to `True`): Each sentence in turn; else sentence `n % 5` of story n.

    Raises:
        `ValueError` if no story fits into `max_position_embeddings`.
    """
    layouts = ["exact", "free"] if model.config.infill_end_token_id is not None else ["exact"]
    return _infilling(model, tokenizer, stories, dataset, command, every, batch_size, [*layouts, "causal"])


def measure_causal(
    model, tokenizer, stories: list[list[str]], dataset: str, command: str, every: bool = True, batch_size: int = 32
) -> list[Measured]:
    """Like [`measure_infilling`], for a model that only reads left to right."""
    return _infilling(model, tokenizer, stories, dataset, command, every, batch_size, ["causal"])


def _infilling(model, tokenizer, stories, dataset, command, every, batch_size, layouts) -> list[Measured]:
    gaps = _fitting(sentence_gaps(stories, model.config, tokenizer, every), model.config, layouts)
    results = []
    for layout in layouts:
        measured = infill_perplexity(model, gaps, layout, batch_size, show_progress_bar=True)
        results.append(_perplexity("Infilling", LAYOUTS[layout], measured, dataset, command))
    texts = list({gap.story: whole(gap.ids, gap.story) for gap in gaps}.values())
    measured = infill_perplexity(model, texts, "causal", batch_size, show_progress_bar=True)
    return [
        *results,
        _perplexity("Generation", "perplexity of whole stories, causal mode", measured, dataset, command),
    ]


def _perplexity(task, name, measured, dataset, command) -> Measured:
    interval = [round(end, 2) for end in measured.interval()]
    return Measured("text-generation", dataset, "perplexity", round(measured.value, 2), task, name, interval, command)


def _fitting(gaps: list[GapExample], config, layouts) -> list[GapExample]:
    """Gaps that fit in every layout; warns about the others."""
    offsets = config.infill_free_offsets if "free" in layouts else []
    longest = max(offsets, default=config.max_position_embeddings)
    fitting = []
    for gap in gaps:
        offset = next((offset for offset in offsets if offset >= gap.length), gap.length)
        if gap.length <= longest and len(gap.ids) - gap.length + offset <= config.max_position_embeddings:
            fitting.append(gap)
    if not fitting:
        raise ValueError(
            f"stories: none of {len(gaps)} gaps fits into max_position_embeddings={config.max_position_embeddings} and "
            f"infill_free_offsets={offsets}. Measure shorter stories."
        )
    if len(fitting) < len(gaps):
        logger.warning(
            "%d of %d gaps are too long for this checkpoint and left out.", len(gaps) - len(fitting), len(gaps)
        )
    return fitting


def measure_similarity(encode: Callable, pairs: list[tuple[float, str, str]], dataset: str, command: str) -> Measured:
    """
    Spearman correlation, times 100, of cosine similarity with the grades of sentence pairs (Table 2).

    Args:
        encode (`Callable[[list[str]], np.ndarray]`): Texts to unit vectors, (N, d).
        pairs: Score and two sentences each.

    Raises:
        `ValueError` if all grades are equal, as the correlation is then undefined.
    """
    grades = np.array([pair[0] for pair in pairs])
    if grades.min() == grades.max():
        raise ValueError(f"{dataset}: all {len(pairs)} pairs have the grade {grades[0]:g}. Measure pairs of several.")
    similarity = cosines(encode, pairs)

    def spearman(rows):
        with warnings.catch_warnings():  # a draw of few pairs may have one grade only, and no correlation
            warnings.simplefilter("ignore", ConstantInputWarning)
            return 100 * spearmanr(similarity[rows], grades[rows]).statistic

    return _measured("Sentence similarity", "spearman", "Spearman x 100", spearman, len(pairs), dataset, command)


def measure_retrieval(encode, sentences: list[str], paraphrases: list[str], dataset: str, command: str) -> Measured:
    """Percentage of paraphrases whose nearest sentence, among all, is their own."""
    found = found_their_own(encode, sentences, paraphrases)

    def top1(rows):
        return 100 * found[rows].mean()

    name = "Retrieval of paraphrases"
    return _measured(name, "accuracy", "top-1, percent", top1, len(sentences), dataset, command)


def _measured(task, metric, name, statistic, count, dataset, command) -> Measured:
    value, interval = statistic(np.arange(count)), bootstrap(statistic, count)
    rounded = round(float(value), 2), [round(end, 2) for end in interval]
    return Measured("sentence-similarity", dataset, metric, rounded[0], task, name, rounded[1], command)


def bootstrap(statistic: Callable, count: int, samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """
    95 % bootstrap interval of a statistic over `count` rows, resampled with replacement `samples` times.

    Args:
        statistic (`Callable[[np.ndarray], float]`): Function of row numbers; draws that give NaN are ignored.

    Example:

    ```python
    >>> import numpy as np
    >>> from magnet_eval.checkpoint import bootstrap
    >>> heights = np.array([1.6, 1.7, 1.8, 1.9])
    >>> low, high = bootstrap(lambda rows: heights[rows].mean(), len(heights))
    >>> 1.6 < low < heights.mean() < high < 1.9
    True

    ```
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(samples)]
    return tuple(float(np.nanquantile(drawn, share)) for share in (0.025, 0.975))
