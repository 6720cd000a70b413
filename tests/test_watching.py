"""What a run tells while it trains: the log file, the curves, and what TensorBoard, trackio and wandb receive."""

import functools
import json

import pytest
from training import VIEW, log_of, magnet, make_trainer, texts

from magnet_train.curves import CurvesCallback, draw_curves, log_path, read_log

RUN = {"rows": texts(12), "per_device_train_batch_size": 4, "max_steps": 5, "sscl_start_step": 0}
RESUMABLE = RUN | {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
PARTS = ("mntp", "sscl", "msg", "kl")
FIGURES = {"loss", "grad_norm", "learning_rate", "tokens_per_second", *(f"accuracy_{name}" for name in PARTS[:3])}
FIGURES |= {f"{what}_{name}" for what in ("loss", "lambda") for name in PARTS}
EVALUATED = {f"eval_{what}_{name}" for what in ("loss", "accuracy") for name in ("mntp", "sscl", "msg")}
REPORTED = {f"train/{name}" for name in FIGURES} | {name.replace("eval_", "eval/", 1) for name in EVALUATED}


@pytest.fixture
def make(tmp_path):
    return functools.partial(make_trainer, tmp_path, callbacks=[CurvesCallback()])


def train_for_logs(make, **settings):
    """Two steps of all four losses, with an evaluation after the second."""
    given = {"view": VIEW | {"all_span_ratio": 0.5}, "lambda_kl": 0.5, "max_steps": 2}
    given |= {"eval_rows": texts(4, seed=9), "eval_strategy": "steps", "eval_steps": 2}
    trainer = make(magnet(causal_adapter=True), **RUN | given | settings)
    trainer.train()
    return trainer


# ---------------------------------------------------------------------------------------------------- log file, curves


@pytest.mark.slow
def test_every_line_has_every_figure_and_the_curves_are_of_the_log(make, tmp_path):
    train_for_logs(make)
    lines = read_log(log_path(tmp_path))
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 2
    for line in steps:
        assert FIGURES <= set(line)
        assert line["tokens_per_second"] > 0 and line["grad_norm"] > 0
    (evaluation,) = (line for line in lines if "eval_loss" in line)
    assert EVALUATED <= set(evaluation) and evaluation["step"] == 2
    picture, empty = tmp_path / "own.png", tmp_path / "empty.png"
    (tmp_path / "empty.jsonl").write_text("")
    draw_curves(tmp_path / "empty.jsonl", empty)
    draw_curves(log_path(tmp_path), picture)
    assert picture.read_bytes() == (tmp_path / "curves.png").read_bytes() != empty.read_bytes()


@pytest.mark.parametrize("rest", [b"", b'{"step": 2, "lo', b'{"step": 2,\n', b"\x00\x00\xff", b"3\n", b'["step"]\n'])
def test_what_is_left_of_a_line_is_no_line(tmp_path, rest):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1, "loss": 2.5}\n' + rest)
    assert read_log(log) == [{"step": 1, "loss": 2.5}]
    assert read_log(tmp_path / "none.jsonl") == []


@pytest.mark.slow
def test_a_resumed_log_is_that_of_one_run(make, tmp_path):
    """Killed after the second checkpoint, in the middle of a line; resumed from the first."""
    trainer = make(magnet(), **RESUMABLE)
    trainer.train()
    with log_path(tmp_path).open("a") as log:
        log.write('{"step": 6, "loss": 3.1, "gra')
    make(magnet(), **RESUMABLE).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    lines = [json.loads(line) for line in log_path(tmp_path).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 5]  # five steps and the summary
    assert [line["loss"] for line in lines[:5]] == [line["loss"] for line in log_of(trainer)]


@pytest.mark.slow
def test_resumed_evaluations_are_not_there_twice(make, tmp_path):
    options = RESUMABLE | {"eval_rows": texts(4), "eval_on_start": True, "max_steps": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 2}
    make(magnet(), **options).train()
    make(magnet(), **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    lines = read_log(log_path(tmp_path))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_lines_are_on_disk_at_once(make, tmp_path):
    """A killed run has all lines of its steps: they are read here before it ends."""
    seen = []

    class Reader(CurvesCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append([line["step"] for line in read_log(log_path(tmp_path))])

    make(magnet(), callbacks=[Reader()], **RUN | {"max_steps": 3}).train()
    assert seen == [[], [1], [1, 2]]


# ----------------------------------------------------------------------------------------------------------- report_to


def test_tensorboard_receives_every_figure(make, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = train_for_logs(make, report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert set(events.Tags()["scalars"]) >= REPORTED
    written = {event.step: event.value for event in events.Scalars("train/loss_msg")}
    assert written == pytest.approx({line["step"]: line["loss_msg"] for line in log_of(trainer)})


def test_trackio_receives_every_figure(make, tmp_path, monkeypatch):
    """Into a local data base: without trackio_space_id nothing leaves the machine."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    train_for_logs(make, report_to=["trackio"])
    (run,) = trackio.Api().runs("magnet")
    assert run.name == tmp_path.name
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    assert {key for line in storage.get_logs("magnet", run.name) for key in line} >= REPORTED


def test_wandb_receives_every_figure(make, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    train_for_logs(make, report_to=["wandb"])
    summary, run = dict(wandb.run.summary), wandb.run
    wandb.finish()
    assert (run.project, run.name) == ("magnet", tmp_path.name) and set(summary) >= REPORTED


def test_nothing_is_reported_unless_asked_for(make, tmp_path):
    trainer = make(magnet(), **RUN)
    names = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    assert "CurvesCallback" in names
    assert not {name for name in names if name.startswith(("TensorBoard", "Trackio", "Wandb"))}
    assert (trainer.args.project, trainer.args.run_name) == ("magnet", tmp_path.name)
