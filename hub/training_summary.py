"""What a model card says about a run, if public: base, licence, data, settings, the last values of its log."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache

CONFIGURATION, LOG = "training_config.yaml", "train_log.jsonl"  # as magnet train writes them
HUB_ID = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?::[\w.-]+)?(?:@[\w.-]+)?")  # name, configuration, revision
FILE_NAME = re.compile(r"\.(txt|jsonl|json|parquet)(\.gz)?$")
FIGURE = re.compile(r"step|train_runtime|(eval_)?(loss|accuracy)_\w+")
METADATA = ("base_model", "license", "license_name", "license_link", "language", "datasets")
DATA = {"train_file": "texts", "pairs_file": "sentence pairs", "eval_file": "held-out texts"}
SETTINGS = (  # no other setting is shown: a value may be a path or a secret
    *("max_steps", "per_device_train_batch_size", "per_device_pair_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "lr_scheduler_type", "weight_decay", "lambda_mntp", "lambda_sscl", "lambda_msg"),
    *("sscl_start_step", "temperature", "mask_ratio", "max_spans", "span_min", "span_max", "gap_layout"),
    *("clean_context_ratio", "max_length", "pair_max_length", "dtype", "bf16", "seed"),
)


@dataclass
class TrainingSummary:
    """
    Args:
        metadata (`dict`, *optional*): Fields of [`~huggingface_hub.ModelCardData`]: base, licence, language, datasets.
        data (`dict[str, str]`, *optional*): Public names of the data, by use.
        settings (`dict`, *optional*): The settings of the run that matter for its result.
        log (`dict[str, float]`, *optional*): The last value of each loss and accuracy, the steps and the seconds.
    """

    metadata: dict = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    log: dict[str, float] = field(default_factory=dict)


def read_training_summary(folder: str | Path, metadata: dict | None = None) -> TrainingSummary:
    """
    Args:
        folder (`str` or `Path`): May contain `training_config.yaml` and `train_log.jsonl`.
        metadata (`dict`, *optional*):
            From an earlier card, instead of the settings: what was a folder then may look like a Hub id now.
    """
    path = Path(folder) / CONFIGURATION
    given = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}
    found = _metadata(given) if metadata is None else metadata
    found = {name: found[name] for name in METADATA if found.get(name)}
    data = {what: _public(str(given[key]), found.get("datasets", ())) for key, what in DATA.items() if given.get(key)}
    settings = {name: given[name] for name in SETTINGS if given.get(name) is not None}
    return TrainingSummary(found, data, settings, _last_figures(Path(folder) / LOG))


def _metadata(given: dict) -> dict:
    """A local base is not named, but its card provides the licence and, for a MAGNET checkpoint, the base."""
    names = [str(given.get(key) or "") for key in ("train_file", "pairs_file")]
    datasets = {"datasets": list(dict.fromkeys(filter(None, map(_hub_dataset, names))))}
    base = str(given.get("model_name_or_path") or "")
    if not base:
        return datasets
    is_local = Path(base).exists() or not HUB_ID.fullmatch(base)
    card = _card(Path(base) / "README.md" if is_local else try_to_load_from_cache(base, "README.md"))
    if not is_local:
        card["base_model"] = base
    elif "magnet" not in (card.get("tags") or []) or card.get("library_name") != "transformers":
        card.pop("base_model", None)
    return card | datasets


def _card(path) -> dict:
    """The metadata of the card at a path; empty if there is none or it cannot be read."""
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return {}
    try:
        return ModelCard.load(Path(path), ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return {}


def _hub_dataset(name: str) -> str | None:
    match = HUB_ID.fullmatch(name)
    return None if match is None or Path(name).exists() or FILE_NAME.search(name) else match[1]


def _public(name: str, datasets: list[str]) -> str:
    match = HUB_ID.fullmatch(name)
    return name if match and match[1] in datasets else Path(name).name


def _last_figures(log: Path) -> dict[str, float]:
    found = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # a killed process may leave half a line
            continue
        found |= {name: value for name, value in values.items() if FIGURE.fullmatch(name)}
    return found
