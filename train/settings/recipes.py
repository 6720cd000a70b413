"""Reads the settings of a run: a YAML recipe (`--config`) and flags, which win, as TRL's TrlParser does; and writes them.

A recipe may build on another one: `extends: paper`.
"""

import dataclasses
import difflib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import yaml
from transformers import HfArgumentParser

import configuration_magnet

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments, ViewArguments, check_arguments
from .precision import bf16_is_faster

logger = logging.getLogger(__name__)

RECIPES = Path(configuration_magnet.__file__).parent / "recipes"
CONFIGURATION = "training_config.yaml"  # written by a run to its output_dir
ARGUMENTS = (ModelArguments, DataArguments, ViewArguments, MagnetTrainingArguments)
NAMES = [field.name for cls in ARGUMENTS for field in dataclasses.fields(cls)]
AUTO = {"dtype": ("float32", "bfloat16"), "bf16": (False, True)}  # without and with bfloat16
# specific to a process, not to the run; old names; secrets
LEFT_OUT = ("local_rank", "gradient_checkpointing", "gradient_checkpointing_kwargs", "hub_token")
USAGE = """magnet train [--config RECIPE] [--name value ...]

  magnet train --config default
  magnet train --config default --model_name_or_path HuggingFaceTB/SmolLM2-135M --train_file texts.txt \\
      --pairs_file pairs.jsonl --output_dir runs/smol"""


def parse(args: list[str]) -> tuple:
    """
    Reads `--config RECIPE` (a name in `configuration_magnet/recipes`, or a YAML file) and flags, which override it.

    Returns:
        One instance each of `ModelArguments`, `DataArguments`, `ViewArguments` and `MagnetTrainingArguments`.

    Raises:
        `ValueError` for an unknown name (the message suggests the nearest), an invalid value, or values that conflict.

    Example:

    ```python
    >>> from magnet_train.settings.recipes import parse
    >>> base = ["--model_name_or_path", "base", "--train_file", "texts.txt", "--use_cpu"]
    >>> model_args, data_args, view_args, training_args = parse(["--config", "paper", *base, "--max_steps", "7"])
    >>> model_args.lora_r, training_args.max_steps
    (16, 7)

    ```
    """
    parser = Parser(ARGUMENTS, prog="magnet train", usage=USAGE, allow_abbrev=False)
    parser.add_argument("--config", help=f"A recipe ({', '.join(recipe_names())}), or a YAML file. Flags win over it.")
    for flag in (arg.split("=")[0] for arg in args if arg.startswith("--")):
        if flag not in parser._option_string_actions:
            raise ValueError(f"unknown flag {flag!r}.{nearest(flag, parser._option_string_actions)}")
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config = first.parse_known_args(args)[0].config
    recipe = read_recipe(config) if config else {}
    left_open = [name for name in AUTO if recipe.get(name) == "auto"]
    # argparse checks the types of the other values, given as flags before those of the command line
    parser.set_defaults(**{name: value for name, value in recipe.items() if value is None or value == []})
    parser.set_defaults(**dict.fromkeys(left_open))
    given = [part for name, value in recipe.items() if name not in left_open for part in as_flag(name, value)]
    values, rest = parser.parse_known_args([*given, *args])
    if rest:
        raise ValueError(f"{rest[0]}: belongs to no flag. Write --name value, and --config in front of a recipe.")
    choose_precision(values, [name for name in left_open if getattr(values, name) is None])
    arguments = parser.parse_dict(vars(values), allow_extra_keys=True)
    model_args, data_args, view_args, training_args = arguments
    check_arguments(model_args.causal_adapter, view_args, training_args, data_args)
    return arguments


class Parser(HfArgumentParser):
    def error(self, message: str):
        """argparse would print the usage and exit."""
        raise ValueError(f"{message}.")


def as_flag(name: str, value) -> list[str]:
    if value is None or value == []:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def choose_precision(values, left_open: list[str]) -> None:
    """Replaces `auto` as the resumed run did, or by whichever is faster here."""
    if not left_open:
        return
    before = Path(values.output_dir, CONFIGURATION)
    if values.resume and before.is_file():
        chosen = yaml.safe_load(before.read_text(encoding="utf-8"))["bf16"], "as the run that is resumed"
    else:
        chosen = bf16_is_faster(values.use_cpu)
    for name in left_open:
        setattr(values, name, AUTO[name][chosen[0]])
        logger.info("%s: auto is %s, %s", name, getattr(values, name), chosen[1])


# ------------------------------------------------------------------------------------------------------------- recipes


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(config: str, below: tuple[Path, ...] = ()) -> dict:
    """
    The settings of a recipe and of those it extends.

    Args:
        config (`str`): A name in `configuration_magnet/recipes`, or a YAML file; one that is extended lies beside the
            file that names it.
        below (`tuple` of `Path`, *optional*): The files that extend this one.
    """
    is_file = Path(config).suffix in (".yaml", ".yml")
    path = (Path(below[-1].parent if below else "", config) if is_file else RECIPES / f"{config}.yaml").resolve()
    if not path.is_file() or path in below:
        what = "extends" if below else "config"
        why = "extends itself" if path in below else "no such recipe"
        raise ValueError(f"{what}={config!r}: {why}. Known: {', '.join(recipe_names())}; or pass a .yaml file.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: is no YAML: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name}: must hold lines of the form 'key: value'.")
    extended = settings.pop("extends", None)
    for key in settings:
        if key not in NAMES:
            raise ValueError(f"{path.name}: unknown key {key!r}.{nearest(str(key), NAMES)}")
    return (read_recipe(str(extended), (*below, path)) if extended is not None else {}) | settings


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def configuration(arguments: tuple) -> str:
    """All settings of the four dataclasses as YAML that `--config` reads back, without secrets."""
    *parts, training_args = arguments
    settings = {name: value for part in parts for name, value in dataclasses.asdict(part).items()}
    settings |= training_args.to_dict()
    settings = {name: value for name, value in settings.items() if name not in LEFT_OUT}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
