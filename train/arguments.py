"""What `magnet train` can be told: four dataclasses, read from a YAML recipe and from flags (which win)."""

import argparse
import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments

import configuration_magnet

RECIPES = Path(configuration_magnet.__file__).parent / "recipes"


@dataclass
class ModelArguments:
    """The base model and what is added to it."""

    model_name_or_path: str = field(metadata={"help": "Llama or MAGNET checkpoint: a folder or a Hub id."})
    dtype: str = field(default="float32", metadata={"help": "Dtype of the base weights; LoRA weights are float32."})
    mask_token: str = field(default="_", metadata={"help": "Text whose last token stands for a masked one (MNTP)."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: float = field(default=32, metadata={"help": "LoRA alpha; the update is scaled by alpha / r."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"], metadata={"help": "Adapted projections."}
    )
    causal_adapter: bool = field(
        default=False, metadata={"help": "Keep the adapter on in causal mode, as the paper does."}
    )
    pooling: str = field(default="last_token", metadata={"help": "Sentence vector: last_token or mean."})
    projection_head: str = field(default="none", metadata={"help": "none, linear or mlp; used in training only."})
    representation_prompt: str = field(
        default="Given the sentence, find its representation:", metadata={"help": "Instruction put before a sentence."}
    )


@dataclass
class DataArguments:
    """Where the texts and the sentence pairs come from."""

    train_file: str = field(metadata={"help": "Texts: .txt (one a line), .jsonl, either .gz, or a Hub data set id."})
    text_column: str = field(default="text", metadata={"help": "Column with the text; a list is joined by spaces."})
    pairs_file: str | None = field(default=None, metadata={"help": "Sentence pairs for SSCL: .jsonl or a Hub id."})
    pair_columns: list[str] = field(
        default_factory=lambda: ["text", "positive"],
        metadata={"help": "Columns of a sentence and its paraphrase; two lists are paired item by item."},
    )
    eval_file: str | None = field(default=None, metadata={"help": "Held-out texts, read like train_file."})
    max_length: int = field(
        default=512, metadata={"help": "Tokens of a text row, with [BOS]; longer texts are cut up."}
    )
    pair_max_length: int = field(default=128, metadata={"help": "Tokens of a sentence, with prompt, [BOS] and [EOS]."})


@dataclass
class ViewArguments:
    """How a text becomes a training view (section 3.2, Appendix A)."""

    mask_ratio: float = field(default=0.2, metadata={"help": "Share of a row's tokens that MNTP masks."})
    mask_share: float = field(default=0.8, metadata={"help": "Share of those replaced by the mask token."})
    random_share: float = field(default=0.1, metadata={"help": "Share of those replaced by a random token."})
    max_spans: int = field(default=2, metadata={"help": "Most spans of a row."})
    span_min: int = field(default=4, metadata={"help": "Shortest span, tokens."})
    span_max: int = field(default=128, metadata={"help": "Longest span, tokens."})
    max_span_share: float = field(default=0.6, metadata={"help": "Most of a row that its spans may take together."})
    sentence_span_ratio: float = field(default=0.0, metadata={"help": "Share of spans that are one whole sentence."})
    gap_layout: str = field(default="exact", metadata={"help": "exact (the paper) or mixed (half of the spans free)."})
    free_offset: int = field(default=128, metadata={"help": "Positions a free span reserves."})
    clean_context_ratio: float = field(default=0.0, metadata={"help": "Share of rows with spans and no masks."})
    all_span_ratio: float = field(default=0.0, metadata={"help": "Share of rows that are one span, i.e. causal."})
    vary_length: bool = field(default=False, metadata={"help": "Crop rows at random, so that length hides the gap's."})

    def __post_init__(self):
        for name in ("mask_ratio", "mask_share", "random_share", "max_span_share"):
            _check_range(name, getattr(self, name), 0, 1)
        for name in ("sentence_span_ratio", "clean_context_ratio", "all_span_ratio"):
            _check_range(name, getattr(self, name), 0, 1)
        if self.mask_share + self.random_share > 1:
            raise ValueError(f"mask_share + random_share = {self.mask_share + self.random_share}: must be at most 1.")
        if not 1 <= self.span_min <= self.span_max:
            raise ValueError(f"span_min={self.span_min}, span_max={self.span_max}: need 1 <= span_min <= span_max.")
        if self.max_spans < 1:
            raise ValueError(f"max_spans={self.max_spans}: must be at least 1; set lambda_msg=0 to train without MSG.")
        if self.gap_layout not in ("exact", "mixed"):
            raise ValueError(f"gap_layout={self.gap_layout!r}: must be 'exact' or 'mixed'.")
        if self.free_offset < 1:
            raise ValueError(f"free_offset={self.free_offset}: must be positive.")


@dataclass
class MagnetTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with the paper's values, and the weights of the joint loss (section 3.3)."""

    output_dir: str = field(default="runs/magnet", metadata={"help": "Where checkpoints, log and curves are written."})
    learning_rate: float = field(default=3e-5, metadata={"help": "AdamW's learning rate."})
    max_steps: int = field(default=4200, metadata={"help": "Optimizer steps."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Text rows per device and step."})
    per_device_pair_batch_size: int = field(default=64, metadata={"help": "Sentence pairs per device and step."})
    lambda_mntp: float = field(default=1.0, metadata={"help": "Weight of MNTP (lambda 1)."})
    lambda_sscl: float = field(default=9.0, metadata={"help": "Weight of SSCL (lambda 2), once it has started."})
    lambda_msg: float = field(default=1.0, metadata={"help": "Weight of MSG (lambda 3)."})
    sscl_start_step: float = field(
        default=3400, metadata={"help": "Step at which SSCL starts; below 1: that share of all steps."}
    )
    temperature: float = field(default=0.1, metadata={"help": "tau of InfoNCE."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Views have columns of their own."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "A repeated row would be a false negative."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between two lines of the log."})
    save_strategy: str = field(default="no", metadata={"help": "Intermediate checkpoints: no, steps or epoch."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("lambda_mntp", "lambda_sscl", "lambda_msg"):
            _check_range(name, getattr(self, name), 0, 1e6)
        if self.lambda_mntp == self.lambda_sscl == self.lambda_msg == 0:
            raise ValueError("lambda_mntp, lambda_sscl and lambda_msg are all 0: nothing would be trained.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: must be positive.")
        _check_range("sscl_start_step", self.sscl_start_step, 0, float("inf"))
        for name in ("per_device_train_batch_size", "per_device_pair_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        if self.per_device_pair_batch_size % self.per_device_train_batch_size:
            raise ValueError(
                f"per_device_pair_batch_size={self.per_device_pair_batch_size}: must be a multiple of "
                f"per_device_train_batch_size={self.per_device_train_batch_size}, so that each text row carries its pairs."
            )

    @property
    def pairs_per_row(self) -> int:
        return self.per_device_pair_batch_size // self.per_device_train_batch_size


def _check_range(name, value, low, high):
    if not low <= value <= high:  # also catches NaN
        raise ValueError(f"{name}={value}: must lie between {low} and {high}.")


ARGUMENTS = (ModelArguments, DataArguments, ViewArguments, MagnetTrainingArguments)


def parse(args: list[str] | None = None) -> tuple:
    """
    Reads `--config RECIPE` (a name in `configuration_magnet/recipes`, or a YAML file) and flags; flags win.

    Returns:
        One instance each of `ModelArguments`, `DataArguments`, `ViewArguments` and `MagnetTrainingArguments`.

    Raises:
        `ValueError` for a key that no argument has; the message names the nearest one.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, flags = first.parse_known_args(args)
    recipe = read_recipe(known.config) if known.config else {}
    parser = HfArgumentParser(ARGUMENTS, prog="magnet train", allow_abbrev=False)
    parser.add_argument("--config", help=f"Recipe: {', '.join(recipe_names())}, or a YAML file. Flags win over it.")
    parser.set_defaults(**recipe)
    for action in parser._actions:  # argparse has no public way to say that a recipe has given a required value
        action.required = action.required and action.dest not in recipe
    *parsed, _ = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    return tuple(parsed)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(config: str) -> dict:
    """The settings of a recipe, checked against the arguments' names."""
    path = Path(config) if Path(config).suffix in (".yaml", ".yml") else RECIPES / f"{config}.yaml"
    if not path.is_file():
        raise ValueError(
            f"config={config!r}: no such recipe. Known: {', '.join(recipe_names())}; or pass a .yaml file."
        )
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict):
        raise ValueError(f"{path.name}: must hold lines of the form 'key: value'.")
    names = [f.name for cls in ARGUMENTS for f in dataclasses.fields(cls)]
    for key in recipe:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path.name}: unknown key {key!r}.{hint}")
    return recipe
