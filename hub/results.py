"""`eval_results.json`: a checkpoint's evaluation results, in one format, bound to the weights they were measured with.

{"weights": {"model.safetensors": "<sha256>"},
 "results": [{"task_type": "text-generation", "task_name": "Infilling", "dataset_name": "everyday-stories",
              "metric": "perplexity", "metric_name": "Infilling perplexity, given length", "value": 61.6,
              "interval": [56.4, 67.1], "command": "magnet evaluate ..."}]}
"""

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import EvalResult
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

EVAL_RESULTS = "eval_results.json"
BAR_FROM = 2**30  # bytes; less is read in a second or two


@dataclass
class Measured:
    """
    One measured figure.

    Args:
        task_type (`str`): The Hub's name of a task, such as `"text-generation"` or `"sentence-similarity"`.
        dataset_name (`str`): The evaluation data: a Hub id if it has one, never a local path.
        metric (`str`): The metric's short name, such as `"perplexity"` or `"spearman"`.
        value (`float`): Finite.
        task_name (`str`, *optional*): The task in words.
        metric_name (`str`, *optional*): The metric in words.
        interval (`list[float]`, *optional*): Its 95 % interval, `[low, high]`.
        command (`str`, *optional*): Reproduces the figure. Absolute paths are rejected.

    Raises:
        `ValueError` naming the field.

    Example:

    ```python
    >>> from magnet_hub.results import Measured
    >>> Measured("sentence-similarity", "everyday-stories", "spearman", 68.7).shown
    '68.7'

    ```
    """

    task_type: str
    dataset_name: str
    metric: str
    value: float
    task_name: str | None = None
    metric_name: str | None = None
    interval: list[float] | None = None
    command: str | None = None

    def __post_init__(self):
        for name in ("task_type", "dataset_name", "metric"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a name. Say what was measured.")
        numbers = [self.value, *(self.interval or [])]
        if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers) or len(numbers) not in (1, 3):
            raise ValueError(
                f"value={self.value!r}, interval={self.interval!r} ({self.metric}): must be a finite number and, if any, "
                "[low, high]. Leave out what was not measured."
            )
        for name in ("dataset_name", "command"):
            if any(Path(word.strip("'\"")).is_absolute() for word in (getattr(self, name) or "").split()):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: names a path of this machine, and model cards are public. Give a name."
                )

    @property
    def shown(self) -> str:
        """Value and interval as a card shows them."""
        if self.interval is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.interval[0]:.4g} to {self.interval[1]:.4g})"

    def as_eval_result(self) -> EvalResult:
        """In the format of the Hub's `model-index`."""
        return EvalResult(
            task_type=self.task_type,
            task_name=self.task_name,
            dataset_type=self.dataset_name.replace(" ", "-"),
            dataset_name=self.dataset_name,
            metric_type=self.metric,
            metric_name=self.metric_name,
            metric_value=self.value,
        )


def write_eval_results(folder: str | Path, results: list[Measured]) -> None:
    """
    Writes `eval_results.json` into a checkpoint. A figure with the same task, data and metric is replaced; others are
    kept as long as the weights have not changed since.

    Args:
        folder (`str` or `Path`): The evaluated checkpoint.
        results (`list[Measured]`): The figures to add. [`refresh_model_card`] shows them in the card.
    """
    kept = {_key(result): result for result in read_eval_results(folder)}
    kept |= {_key(result): result for result in results}
    content = {"weights": weights_of(folder), "results": [_without_none(result) for result in kept.values()]}
    (Path(folder) / EVAL_RESULTS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_eval_results(folder: str | Path, weights: str | Path | None = None) -> list[Measured]:
    """
    The evaluation results of a checkpoint; none, with a warning, if the weights have changed since.

    Args:
        folder (`str` or `Path`): May contain `eval_results.json`.
        weights (`str` or `Path`, *optional*, defaults to `folder`): The folder with the weights.

    Raises:
        `ValueError` if the file has another format.
    """
    path = Path(folder) / EVAL_RESULTS
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        measured_with, results = content["weights"], [Measured(**row) for row in content["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{EVAL_RESULTS}: not of the form that magnet evaluate writes ({error}). Delete it and measure again."
        ) from None
    if measured_with != weights_of(folder if weights is None else weights):
        logger.warning("%s was measured with other weights and is left out. Measure again.", EVAL_RESULTS)
        return []
    return results


def weights_of(folder: str | Path) -> dict[str, str]:
    """File names and SHA-256 of a checkpoint's weights; reads them once, about a second per 1.5 GB."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    size = sum(path.stat().st_size for path in paths)
    found = {}
    with tqdm(total=size, desc="sha256", unit="B", unit_scale=True, leave=False, disable=size < BAR_FROM) as bar:
        for path in paths:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            bar.update(path.stat().st_size)
    return found


def _key(result: Measured) -> tuple:
    return (result.task_type, result.dataset_name, result.metric, result.metric_name)


def _without_none(result: Measured) -> dict:
    return {name: value for name, value in asdict(result).items() if value is not None}
