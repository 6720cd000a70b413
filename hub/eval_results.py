"""`eval_results.json`: a checkpoint's evaluation results, bound to the weights they were measured with.

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

logger = logging.getLogger(__name__)

EVAL_RESULTS = "eval_results.json"


@dataclass
class Measured:
    """
    One evaluation result.

    Args:
        task_type (`str`): The Hub's name of a task, such as `"text-generation"` or `"sentence-similarity"`.
        dataset_name (`str`): The evaluation data: a Hub id if it has one, never a local path.
        metric (`str`): The metric's short name, such as `"perplexity"` or `"spearman"`.
        value (`float`): Finite.
        task_name (`str`, *optional*): The task in words.
        metric_name (`str`, *optional*): The metric in words.
        interval (`list[float]`, *optional*): Its 95 % interval, `[low, high]`.
        command (`str`, *optional*): Reproduces the value. Absolute paths are rejected.

    Raises:
        `ValueError` naming the field.

    Example:

    ```python
    >>> from magnet_hub.eval_results import Measured
    >>> Measured("sentence-similarity", "everyday-stories", "spearman", 68.7).as_eval_result().metric_type
    'spearman'

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
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: must be a non-empty string. Name what was evaluated."
                )
        numbers = [self.value, *(self.interval or [])]
        if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers) or len(numbers) not in (1, 3):
            raise ValueError(
                f"value={self.value!r}, interval={self.interval!r} ({self.metric}): must be a finite number, and [low, high] "
                "or None. Leave out what was not evaluated."
            )
        for name in ("dataset_name", "command"):
            if any(Path(word.strip("'\"")).is_absolute() for word in (getattr(self, name) or "").split()):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: contains a local path, and model cards are public. Use a name."
                )

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
    Writes `eval_results.json` into a checkpoint. A result with the same task, data and metric is replaced; others are
    kept as long as the weights have not changed since.

    Args:
        folder (`str` or `Path`): The evaluated checkpoint.
        results (`list[Measured]`): The results to add. [`refresh_model_card`] shows them in the card.
    """
    kept = {(r.task_type, r.dataset_name, r.metric, r.metric_name): r for r in [*read_eval_results(folder), *results]}
    rows = [{name: value for name, value in asdict(result).items() if value is not None} for result in kept.values()]
    content = json.dumps({"weights": weights_of(folder), "results": rows}, indent=1)
    (Path(folder) / EVAL_RESULTS).write_text(content + "\n", encoding="utf-8")


def read_eval_results(folder: str | Path) -> list[Measured]:
    """
    The evaluation results of a checkpoint; none, with a warning, if the weights have changed since.

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
            f"{EVAL_RESULTS}: not in the format of magnet evaluate ({error}). Delete it and evaluate again."
        ) from None
    if measured_with != weights_of(folder):
        logger.warning("%s was measured with other weights and is ignored. Evaluate again.", EVAL_RESULTS)
        return []
    return results


def weights_of(folder: str | Path) -> dict[str, str]:
    """File names and SHA-256 of a checkpoint's weights; reads them once, about a second per 1.5 GB."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
