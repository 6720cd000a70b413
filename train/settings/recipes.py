"""Reads a run's settings from a YAML recipe, overridden by flags, and records where each came from."""

import argparse
import dataclasses
import difflib
import json
import re
from pathlib import Path
from textwrap import fill

import yaml
from transformers import HfArgumentParser

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments, ViewArguments
from .checks import check_arguments
from .help import OWN_NAMES, RECIPES, recipe_names, train_help
from .precision import bf16_is_faster

AUTO = {"dtype": ("float32", "bfloat16"), "bf16": (False, True)}  # without and with bfloat16
CONFIGURATION = "training_config.yaml"  # written by a run to its output_dir
ARGUMENTS = (ModelArguments, DataArguments, ViewArguments, MagnetTrainingArguments)
NAMES = [field.name for cls in ARGUMENTS for field in dataclasses.fields(cls)]


def parse(args: list[str] | None = None) -> tuple:
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
    return parse_with_sources(args)[:4]


def parse_with_sources(args: list[str] | None = None) -> tuple:
    """
    Like [`parse`], with the source of each value.

    Returns:
        The four instances, and a `dict` from name to `"flag"` or the recipe's file name, for all values set there.
    """
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, flags = first.parse_known_args(args)
    recipe, sources = _read_recipe(known.config) if known.config else ({}, {})
    sources |= {name: "flag" for name in _flag_names(flags)}
    parser = _ArgumentsParser(ARGUMENTS, prog="magnet train", allow_abbrev=False)
    parser.add_argument("--config", help=f"Recipe: {', '.join(recipe_names())}, or a YAML file. Flags win over it.")
    left_open = [name for name in AUTO if recipe.get(name) == "auto"]
    recipe = {name: value for name, value in recipe.items() if name not in left_open}
    parser.set_defaults(**{name: value for name, value in recipe.items() if _is_no_flag(value)})
    given = [part for name, value in recipe.items() if not _is_no_flag(value) for part in _as_flag(name, value)]
    try:
        values, rest = parser.parse_known_args([*given, *flags])
    except ValueError as error:
        raise ValueError(_explain(str(error), sources)) from None
    if rest:
        raise ValueError(f"{rest[0]}: belongs to no flag. Write --name value, and --config in front of a recipe.")
    left_open = [name for name in left_open if sources[name] != "flag"]
    if left_open:
        is_bf16, why = _precision(values)
        for name in left_open:
            setattr(values, name, AUTO[name][is_bf16])
            sources[name] += f", auto: {why}"
    parsed = parser.parse_dict(vars(values), allow_extra_keys=True)
    check_arguments(*parsed)
    return *parsed, sources


def _precision(values: argparse.Namespace) -> tuple[bool, str]:
    """Whether to compute in bfloat16, and why: as the resumed run did, or whichever is faster here."""
    before = Path(values.output_dir, CONFIGURATION)
    if values.resume and before.is_file():
        return yaml.safe_load(before.read_text(encoding="utf-8"))["bf16"], "as the run that is resumed"
    return bf16_is_faster(values.use_cpu)


def read_recipe(config: str) -> dict:
    """The settings of a recipe and of those it extends, checked against the arguments' names."""
    return _read_recipe(config)[0]


def _read_recipe(config: str, below: tuple = ()) -> tuple[dict, dict[str, str]]:
    """The settings and, for each, the file that sets it. `below` are the files that extend this one."""
    path = _recipe_path(config, below)
    if path in below:
        chain = " -> ".join(file.name for file in (*below, path))
        raise ValueError(f"extends={config!r}: the recipes extend each other in a circle ({chain}).")
    lines = _read_yaml(path)
    extended = lines.pop("extends", None)
    settings, sources = _read_recipe(str(extended), (*below, path)) if extended is not None else ({}, {})
    for key in lines:
        if key not in NAMES:
            raise ValueError(f"{path.name}: unknown key {key!r}.{_nearest(key)}")
    return settings | lines, sources | {key: path.name for key in lines}


def _read_yaml(path: Path) -> dict:
    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: is no YAML: {error}") from None
    if not isinstance(lines, dict):
        raise ValueError(f"{path.name}: must hold lines of the form 'key: value'.")
    return lines


def _recipe_path(config, below) -> Path:
    """A name is a built-in recipe; a file that a recipe extends is relative to that recipe."""
    is_file = Path(config).suffix in (".yaml", ".yml")
    path = Path(below[-1].parent if below else "", config) if is_file else RECIPES / f"{config}.yaml"
    if not path.is_file():
        name = "extends" if below else "config"
        raise ValueError(
            f"{name}={config!r}: no such recipe. Known: {', '.join(recipe_names())}; or pass a .yaml file."
        )
    return path.resolve()


def _flag_names(flags: list[str]) -> list[str]:
    """The arguments set by flags; argparse cannot distinguish a flag with the default value from none."""
    names = []
    for flag in (flag for flag in flags if flag.startswith("--") and flag != "--help"):
        name = flag[2:].split("=")[0].replace("-", "_")
        name = name.removeprefix("no_") if name.removeprefix("no_") in NAMES else name
        if name not in NAMES:
            raise ValueError(f"unknown flag '--{name}'.{_nearest(name, '--')}")
        names.append(name)
    return names


def _nearest(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), NAMES, n=1)
    return f" Did you mean '{prefix}{close[0]}'?" if close else ""


def _is_no_flag(value) -> bool:
    return value is None or value == []


def _as_flag(name: str, value) -> list[str]:
    """A recipe's value as flags, so that argparse checks its type too."""
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def _explain(message: str, sources: dict[str, str]) -> str:
    """argparse's `argument --lora_r/--lora-r: invalid int value: 'many'`, with the value's source."""
    found = re.match(r"argument --(\w+)[^:]*: (?:invalid (\w+) value: (.*)|(.*))", message, flags=re.DOTALL)
    if not found:
        return f"{message}."
    name, kind, value, other = found.groups()
    source = sources.get(name, "flag")
    return f"{name}={value}: is no {kind} ({source})." if kind else f"{name}: {other} ({source})."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """argparse would print the usage of two hundred flags and exit."""
        raise ValueError(message)


class _ArgumentsParser(_Parser, HfArgumentParser):
    def format_help(self) -> str:
        """Our arguments with their meaning; only names for [`TrainingArguments`]."""
        others = fill(", ".join(name for name in NAMES if name not in OWN_NAMES), 119, break_on_hyphens=False)
        return train_help(f"Also, as transformers' TrainingArguments explains them:\n{others}\n")
