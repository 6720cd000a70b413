"""The settings of a run and where each came from: printed at its start, saved with its checkpoint."""

import dataclasses
from pathlib import Path

import yaml
from transformers import TrainerCallback

from .arguments import MagnetTrainingArguments
from .recipes import CONFIGURATION, OWN_NAMES

SECRETS = ("hub_token",)
# specific to a process, not to the run, or old names
LEFT_OUT = ("local_rank", "gradient_checkpointing", "gradient_checkpointing_kwargs", *SECRETS)


def configuration(arguments) -> dict:
    """All settings of the four dataclasses, serializable as YAML, without secrets."""
    model_args, data_args, view_args, training_args = arguments
    settings = {}
    for part in (model_args, data_args, view_args):
        settings |= dataclasses.asdict(part)
    settings |= training_args.to_dict()
    return {name: value for name, value in settings.items() if name not in LEFT_OUT}


def describe(arguments, sources: dict[str, str]) -> str:
    """One line for each of our settings and for each other non-default one, with its source."""
    settings = configuration(arguments)
    # not from a second MagnetTrainingArguments: under DeepSpeed it replaces the run's own state
    defaults = {field.name: field.default for field in dataclasses.fields(MagnetTrainingArguments)}
    changed = {name for name in sources if (settings.get(name) or None) != (defaults.get(name) or None)}
    named = [name for name in settings if name in OWN_NAMES or name in changed]
    lines = [_line(name, settings[name], sources.get(name, "default")) for name in named]
    return "\n".join([*lines, f"({len(settings) - len(named)} more of TrainingArguments are at their defaults)"])


class ConfigurationCallback(TrainerCallback):
    """
    Writes all settings to `training_config.yaml`, in `output_dir` when training starts and in each checkpoint.
    `--config` restores the same settings from it.

    Args:
        arguments: The four dataclasses as given, without values set later.
        sources (`dict[str, str]`, *optional*): Where values came from, as returned by [`parse_with_sources`].
    """

    def __init__(self, arguments, sources: dict[str, str] | None = None):
        sources = sources or {}
        head = "# All settings of this run and where each came from; magnet train --config reads it back."
        lines = [_line(name, value, sources.get(name, "default")) for name, value in configuration(arguments).items()]
        self.text = "\n".join([head, *lines, ""])

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            (Path(args.output_dir) / CONFIGURATION).write_text(self.text, encoding="utf-8")

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():  # save_strategy=best may have skipped it
            (folder / CONFIGURATION).write_text(self.text, encoding="utf-8")


def _line(name, value, source) -> str:
    text = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True)
    return f"{name}: {text.strip()[1:-1]}  # {source}"
