"""Reads a run's settings: a YAML recipe, then flags, which win."""

import argparse
import dataclasses
import difflib
from pathlib import Path

import yaml
from transformers import HfArgumentParser

import configuration_magnet

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments, ViewArguments

RECIPES = Path(configuration_magnet.__file__).parent / "recipes"
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
