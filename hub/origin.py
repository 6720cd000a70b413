"""A checkpoint's origin for its model card, read from what `magnet train` writes beside it, and from the base."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache

CONFIGURATION, LOG = "training_config.yaml", "train_log.jsonl"  # as magnet train writes them
HUB_ID = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?::[\w.-]+)?(?:@[\w.-]+)?")  # name, configuration, revision
FILE_NAME = re.compile(r"\.(txt|jsonl|json|parquet)(\.gz)?$")
FIGURE = re.compile(r"step|train_runtime|(eval_)?(loss|accuracy)_\w+")
SETTINGS = (
    "max_steps",
    "per_device_train_batch_size",
    "per_device_pair_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "lambda_mntp",
    "lambda_sscl",
    "lambda_msg",
    "sscl_start_step",
    "temperature",
    "mask_ratio",
    "max_spans",
    "span_min",
    "span_max",
    "gap_layout",
    "clean_context_ratio",
    "max_length",
    "pair_max_length",
    "dtype",
    "bf16",
    "seed",
)


@dataclass
class Origin:
    """
    Where a checkpoint comes from, as far as it is public: Hub names, never local paths.

    The metadata fields are those of [`~huggingface_hub.ModelCardData`].
    """

    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | list[str] | None = None
    datasets: list[str] | None = None
    data: dict[str, str] = field(default_factory=dict)  # what it was used for -> its name
    settings: dict = field(default_factory=dict)
    log: dict = field(default_factory=dict)  # the last figures of the training log

    @property
    def metadata(self) -> dict:
        named = {name: value for name, value in asdict(self).items() if name not in ("data", "settings", "log")}
        return {name: value for name, value in named.items() if value}


def read_origin(folder: str | Path, card: ModelCard | None = None) -> Origin:
    """
    Args:
        folder (`str` or `Path`): May contain `training_config.yaml` and `train_log.jsonl`.
        card ([`~huggingface_hub.ModelCard`], *optional*):
            A card written earlier. Its metadata are kept: what was a folder then may look like a Hub id now.
    """
    given = _configuration(Path(folder))
    origin = Origin(settings={name: given[name] for name in SETTINGS if given.get(name) is not None})
    if card is None:
        origin = _name_base(origin, str(given.get("model_name_or_path") or ""))
        names = [str(given.get(key) or "") for key in ("train_file", "pairs_file")]
        origin.datasets = list(dict.fromkeys(filter(None, map(_hub_dataset, names)))) or None
    else:
        for name, value in card.data.to_dict().items():
            if name in Origin().__dict__ and name not in ("data", "settings", "log"):
                setattr(origin, name, value)
    for key, what in (("train_file", "texts"), ("pairs_file", "sentence pairs"), ("eval_file", "held-out texts")):
        if given.get(key):
            origin.data[what] = _public_name(str(given[key]), origin.datasets or [])
    origin.log = _last_figures(Path(folder) / LOG)
    return origin


def _configuration(folder: Path) -> dict:
    path = folder / CONFIGURATION
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _name_base(origin: Origin, name: str) -> Origin:
    """Sets base, licence and language. A folder is not named, but its card gives its licence."""
    if not name:
        return origin
    is_local = Path(name).exists() or not HUB_ID.fullmatch(name)
    card = _card_of(Path(name) / "README.md" if is_local else try_to_load_from_cache(name, "README.md"))
    data = {} if card is None else card.data.to_dict()
    for key in ("license", "license_name", "license_link", "language"):
        setattr(origin, key, data.get(key))
    origin.base_model = None if is_local else name
    if is_local and str(data.get("library_name")) == "transformers" and "magnet" in (data.get("tags") or []):
        origin.base_model = data.get("base_model")  # a MAGNET checkpoint that was trained further
    return origin


def _card_of(path) -> ModelCard | None:
    """The card at a path; `None` if there is none or it cannot be read."""
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return None
    try:
        return ModelCard.load(Path(path), ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError):
        return None


def _hub_dataset(name: str) -> str | None:
    match = HUB_ID.fullmatch(name)
    if not name or match is None or Path(name).exists() or FILE_NAME.search(name):
        return None
    return match[1]


def _public_name(name: str, datasets: list[str]) -> str:
    match = HUB_ID.fullmatch(name)
    return name if match and match[1] in datasets else Path(name).name


def _last_figures(log: Path) -> dict:
    """The last value of each loss and accuracy, the steps and the seconds."""
    found = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # a killed process may leave half a line
            continue
        found |= {name: value for name, value in values.items() if FIGURE.fullmatch(name)}
    return found
