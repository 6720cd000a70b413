"""The log and plots of a run: `train_log.jsonl`, one line per log call, and `curves.png`."""

import json
import os
from pathlib import Path

from transformers import TrainerCallback

OBJECTIVES = {"mntp": "tab:blue", "msg": "tab:orange", "sscl": "tab:green", "kl": "tab:red"}
PANELS = {  # title -> (unit, series: key of the log -> label)
    "loss": ("nats", {f"loss_{name}": name for name in OBJECTIVES}),
    "accuracy": ("share right", {f"accuracy_{name}": name for name in OBJECTIVES}),
    "gradient norm": ("before clipping", {"grad_norm": "all objectives"}),
    "speed": ("tokens per second", {"tokens_per_second": "texts and sentences"}),
}


class CurvesCallback(TrainerCallback):
    """
    Appends every log line to `train_log.jsonl` and draws `curves.png` when training ends. A new run starts a new log; a
    resumed one keeps the lines up to its checkpoint, so that the log equals that of an uninterrupted run.
    """

    def on_init_end(self, args, state, control, **kwargs):
        os.environ.setdefault("WANDB_PROJECT", args.project)  # the Trainer passes `project` only to trackio

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        lines = read_log(log_path(args.output_dir)) if state.global_step > 0 else []
        kept = [line for line in lines if _is_before(line, state.global_step, args.eval_on_start)]
        _replace(log_path(args.output_dir), kept)
        if state.global_step >= state.max_steps:  # killed between the last checkpoint and the plot
            self.on_train_end(args, state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with log_path(args.output_dir).open("a", encoding="utf-8") as log:  # closed, and so flushed, line by line
                log.write(json.dumps({"step": state.global_step} | logs) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            draw_curves(log_path(args.output_dir), Path(args.output_dir) / "curves.png")


def log_path(output_dir) -> Path:
    return Path(output_dir) / "train_log.jsonl"


def read_log(log: Path) -> list[dict]:
    """The lines of a log, without partial ones left by a killed process or a full disk."""
    lines = []
    for text in log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _is_before(line: dict, step: int, eval_on_start: bool) -> bool:
    """Whether a resumed run will not write this line again: it continues after `step`, or evaluates there first."""
    again = "train_runtime" in line or (eval_on_start and "eval_loss" in line)
    return line["step"] < step or (line["step"] == step and not again)


def _replace(log: Path, lines: list[dict]) -> None:
    fresh = log.with_suffix(".jsonl.new")
    fresh.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(fresh, log)  # a kill leaves the old log or the new one


def draw_curves(log: Path, picture: Path) -> None:
    """Draws loss and accuracy of each objective, gradient norm and speed over the steps of a `train_log.jsonl`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_log(log)
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (title, (unit, series)) in zip(axes.flat, PANELS.items()):
        for key, label in series.items():
            color = OBJECTIVES.get(label, "tab:gray")
            _draw(axis, lines, key, "-", color, label)
            _draw(axis, lines, f"eval_{key}", "o--", color, f"eval {label}")
        axis.set(xlabel="step", ylabel=unit, title=title, ylim=(0, None))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small", ncols=2, framealpha=0.6)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def _draw(axis, lines, key, style, color, label):
    points = [(line["step"], line[key]) for line in lines if key in line]
    if any(value for _, value in points):  # an objective that is off is 0 throughout
        axis.plot(*zip(*points), style, color=color, markersize=3, label=label)
