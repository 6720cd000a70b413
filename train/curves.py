"""What a run leaves to look at: `train_log.jsonl`, one line a log call, and `curves.png`."""

import json
from pathlib import Path

from transformers import TrainerCallback

OBJECTIVES = {"mntp": "tab:blue", "msg": "tab:orange", "sscl": "tab:green"}


class CurvesCallback(TrainerCallback):
    """Appends every log line to `train_log.jsonl` and draws `curves.png` when training ends."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.global_step == 0:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            log_path(args.output_dir).write_text("", encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with log_path(args.output_dir).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": state.global_step} | logs) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            draw_curves(log_path(args.output_dir), Path(args.output_dir) / "curves.png")


def log_path(output_dir) -> Path:
    return Path(output_dir) / "train_log.jsonl"


def draw_curves(log: Path, picture: Path) -> None:
    """Draws loss and accuracy of each objective over the steps of a `train_log.jsonl`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, what, unit in zip(axes, ("loss", "accuracy"), ("nats", "share right")):
        for name, color in OBJECTIVES.items():
            for prefix, style in (("", "-"), ("eval_", "o--")):
                key = f"{prefix}{what}_{name}"
                points = [(line["step"], line[key]) for line in lines if key in line]
                if points:
                    axis.plot(
                        *zip(*points), style, color=color, markersize=3, label=f"{prefix}{name}".replace("_", " ")
                    )
        axis.set(xlabel="step", ylabel=unit, title=what)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
