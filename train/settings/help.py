"""`magnet train --help` and `magnet paraphrase --help`, built from the dataclasses without importing torch."""

import dataclasses
import importlib.util
from pathlib import Path
from textwrap import fill

from .fields import DataArguments, ModelArguments, TrainingFields, ViewArguments

# found, not imported: importing configuration_magnet imports the model
RECIPES = Path(importlib.util.find_spec("configuration_magnet").submodule_search_locations[0]) / "recipes"
FIELDS = (ModelArguments, DataArguments, ViewArguments, TrainingFields)
OWN_NAMES = [field.name for cls in FIELDS for field in dataclasses.fields(cls)]  # without TrainingArguments' others
EXAMPLES = """  magnet train --config demo
  magnet train --config default --model_name_or_path HuggingFaceTB/SmolLM2-135M --train_file texts.txt \\
      --pairs_file pairs.jsonl --output_dir runs/smol"""


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def train_help(others: str) -> str:
    """
    The help text: our arguments with their meaning.

    Args:
        others (`str`): Text about the remaining arguments of transformers' TrainingArguments.
    """
    recipes = fill(f"Recipes: {', '.join(recipe_names())}, or a YAML file. Flags win over them.", 119)
    usage = f"usage: magnet train [--config RECIPE] [--name value ...]\n\n{EXAMPLES}"
    return "\n\n".join([usage, recipes, *map(help_of, FIELDS), others])


def help_of(cls) -> str:
    """
    A dataclass's first docstring line, then one per field.

    Example:

    ```python
    >>> from dataclasses import dataclass, field
    >>> @dataclass
    ... class Size:
    ...     "How large."
    ...     width: int = field(default=3, metadata={"help": "In metres."})
    >>> print(help_of(Size))
    How large.
      --width                        In metres. (default: 3)

    ```
    """
    lines = [cls.__doc__.strip().splitlines()[0]]
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = "required" if default is dataclasses.MISSING else f"default: {default}"
        text = f"{field.metadata['help']} ({default})"
        lines.append(fill(text, 119, initial_indent=f"  --{field.name:28} ", subsequent_indent=" " * 33))
    return "\n".join(lines)
