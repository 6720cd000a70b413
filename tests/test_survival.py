"""How a run lives: what it saves is complete or not taken for it, only the same run goes on, and it ends bit-exact."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors
import surviving
import torch
from conftest import build_magnet
from safetensors.torch import load_file
from surviving import STEPS, TOKENIZER, train
from training import magnet
from transformers import TrainerCallback, TrainerState, modeling_utils
from transformers.trainer_utils import get_last_checkpoint

from magnet_hub import save
from magnet_train.settings.recipes import CONFIGURATION
from magnet_train.survival import saving, signals
from magnet_train.survival.complete import COMPLETE, checkpoints, newest_complete, problem, read_complete

WEIGHTS = "model.safetensors"
FILES = [WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run with all its checkpoints, and the weights it ended at."""
    folder = tmp_path_factory.mktemp("whole")
    model = train(folder, save_total_limit=None)
    assert [path.name for path in checkpoints(folder)] == [f"checkpoint-{step}" for step in range(1, STEPS + 1)]
    return folder, model.state_dict()


@pytest.fixture
def broken_off(whole, tmp_path):
    """The folder of a run that was killed after step 3."""
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        shutil.copytree(whole[0] / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return folder


def same(model, weights) -> bool:
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(value, weights[name]) for name, value in state.items())


class Steps(TrainerCallback):
    """Notes each step that begins, and does something at one of them."""

    def __init__(self, at=None, do=None):
        self.seen, self.at, self.do = [], at, do

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append(state.global_step + 1)
        if self.at == self.seen[-1]:
            self.do()


# ------------------------------------------------------------------------------------------------ complete checkpoints


def test_complete_json_names_every_file_and_setting(whole):
    content = read_complete(whole[0] / "checkpoint-2")
    assert {*FILES, "config.json", "tokenizer.json", "training_args.bin", CONFIGURATION} <= content["files"].keys()
    settings = {"learning_rate": 1e-2, "lambda_sscl": 9.0, "world_size": 1, "span_max": 8, "lora_r": 16}
    assert (settings | {"sharding": "none"}).items() <= content["run"].items()
    assert not {"output_dir", "resume", "eval_file", "hub_token"} & content["run"].keys()


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_seen(broken_off, name, damage, caplog):
    newest = broken_off / "checkpoint-3"
    assert problem(newest) is None
    DAMAGES[damage](newest / name)
    assert newest_complete(broken_off) == broken_off / "checkpoint-2"
    assert f"{newest} is skipped: {name} " in caplog.text
    with pytest.raises(ValueError, match=rf"checkpoint-3': {name} .*--resume would take checkpoint-2"):
        train(broken_off, resume_from_checkpoint=str(newest))


@pytest.mark.parametrize("content", [None, "", '{"files": {'])
def test_a_checkpoint_without_a_proper_complete_json_is_none(broken_off, content):
    path = broken_off / "checkpoint-3" / COMPLETE
    path.unlink() if content is None else path.write_text(content)
    assert problem(broken_off / "checkpoint-3").startswith(f"{COMPLETE} ")
    assert newest_complete(broken_off) == broken_off / "checkpoint-2"


def test_weights_alone_are_not_resumed_from_and_not_deleted(tmp_path, caplog):
    train(tmp_path, save_only_model=True, max_steps=2)
    assert problem(tmp_path / "checkpoint-2") == "it holds weights only (save_only_model=True)"
    with pytest.raises(SystemExit):
        train(tmp_path, [Steps(at=1, do=lambda: send(signal.SIGTERM))], resume=True)
    assert "begins at step 0" in caplog.text and (tmp_path / "checkpoint-2" / WEIGHTS).is_file()


def test_an_old_checkpoint_goes_only_when_a_newer_one_is_complete(tmp_path, monkeypatch):
    """The Trainer deletes before the new one is marked: with a limit of 2 there is always one left."""
    rmtree, removed = shutil.rmtree, []

    def remove(path, *args, **kwargs):
        if Path(path) in checkpoints(tmp_path):
            assert checkpoints(tmp_path).index(newest_complete(tmp_path)) > checkpoints(tmp_path).index(Path(path))
            removed.append(Path(path).name)
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", remove)
    train(tmp_path)
    assert removed == [f"checkpoint-{step}" for step in range(1, STEPS - 1)]
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]


@pytest.mark.parametrize("where", ["weights", "optimizer", "state", COMPLETE])
def test_a_save_that_fails_says_what_is_left(broken_off, whole, monkeypatch, where):
    def fail(*args, **kwargs):
        raise {"weights": safetensors.SafetensorError, "optimizer": RuntimeError}.get(where, OSError)("no more room")

    places = {"weights": (modeling_utils, "safe_save_file"), "optimizer": (torch, "save")}
    places |= {"state": (TrainerState, "save_to_json"), COMPLETE: (saving, "mark_complete")}
    with monkeypatch.context() as patch:
        patch.setattr(*places[where], fail)
        with pytest.raises(OSError, match="checkpoint-4 could not be saved: no more room.*checkpoint-3 is intact"):
            train(broken_off, resume=True, save_total_limit=None)
    assert newest_complete(broken_off) == broken_off / "checkpoint-3"
    assert same(train(broken_off, resume=True), whole[1])
    assert all(problem(path) is None for path in checkpoints(broken_off))


def test_an_error_outside_a_save_is_not_touched(broken_off):
    with pytest.raises(ZeroDivisionError):
        train(broken_off, [Steps(at=5, do=lambda: 1 / 0)], resume=True, save_total_limit=None)
    assert problem(broken_off / "checkpoint-4") is None


def test_a_final_file_is_never_seen_in_part(tmp_path, monkeypatch):
    model, other = magnet(), build_magnet(seed=3)
    save.save_checkpoint(model, TOKENIZER, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert save.UNFINISHED not in names and {"1_Pooling", "README.md", WEIGHTS} <= names
    before = (tmp_path / WEIGHTS).read_bytes()

    def fail(config, folder, **kwargs):
        assert (folder / WEIGHTS).is_file() and (tmp_path / WEIGHTS).read_bytes() == before
        raise OSError("no more room")

    with monkeypatch.context() as patch:
        patch.setattr(save, "write_model_card", fail)
        with pytest.raises(OSError, match="no more room"):
            save.save_checkpoint(other, TOKENIZER, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == before and not (tmp_path / save.UNFINISHED).exists()

    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier save")
    state = {name: value + 1 for name, value in other.state_dict().items()}
    save.save_checkpoint(other, TOKENIZER, tmp_path, dict(state))  # save_pretrained empties it
    assert {path.name for path in tmp_path.iterdir()} == names
    saved = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(value, state[name]) for name, value in saved.items())


# ------------------------------------------------------------------------------------------------------------ resuming


def test_the_resumed_run_takes_the_newest_complete_one_and_ends_at_the_same_weights(whole, broken_off, caplog):
    DAMAGES["truncated"](broken_off / "checkpoint-3" / WEIGHTS)
    (broken_off / "checkpoint-4").mkdir()  # killed in its save
    (broken_off / "checkpoint-4" / "left_behind").write_text("from before")
    assert get_last_checkpoint(broken_off) == str(broken_off / "checkpoint-4")  # what transformers would take
    model = train(broken_off, resume=True, save_total_limit=None)
    assert f"going on from {broken_off / 'checkpoint-2'}" in caplog.text
    assert f"checkpoint-4 is skipped: {COMPLETE} is missing" in caplog.text
    assert same(model, whole[1])
    assert all(problem(path) is None for path in checkpoints(broken_off))
    assert not (broken_off / "checkpoint-4" / "left_behind").exists()


def test_with_nothing_complete_a_resumed_run_begins_at_step_0(whole, tmp_path, caplog):
    (tmp_path / "checkpoint-1").mkdir()
    assert same(train(tmp_path, resume=True), whole[1])
    assert "holds no complete checkpoint; training begins at step 0" in caplog.text


def test_a_finished_run_is_tidied_up_and_not_trained_further(whole, broken_off):
    """The Trainer itself takes another step before it looks. An older checkpoint was being deleted."""
    last = whole[0] / f"checkpoint-{STEPS}"
    shutil.copytree(last, broken_off / last.name)
    DAMAGES["missing"](broken_off / "checkpoint-1" / WEIGHTS)
    steps = Steps()
    assert same(train(broken_off, [steps], resume=True), whole[1])
    assert steps.seen == []
    assert (broken_off / "config.json").is_file()  # what the first run did not come to write
    assert not (broken_off / "checkpoint-1").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 2e-2, "seed": 7}, ["learning_rate: 0.01 in the", " seed: 42", "data_seed: 42"]),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
            [
                "per_device_train_batch_size: 4 in",
                "per_device_pair_batch_size: 8 in",
                "steps: 1 in the checkpoint, now 3",
            ],
        ),
        ({"lambda_sscl": 2.0, "max_steps": 9}, ["lambda_sscl: 9.0 in the checkpoint, now 2.0", "max_steps: 6 in"]),
        ({"rows": 13}, ["data: train: "]),
        ({"view": {"gap_layout": "exact", "span_max": 7}}, ["gap_layout: mixed", "span_max: 8", "free_offset: 16"]),
    ],
)
def test_a_changed_run_is_refused_with_every_difference(broken_off, changes, told):
    with pytest.raises(ValueError, match="this is not the run that wrote it") as error:
        train(broken_off, resume=True, **changes)
    assert all(part in str(error.value) for part in [*told, "--resume_changed"])
    assert str(error.value).count(" in the checkpoint, now ") == len(told)


def test_resume_changed_goes_on_and_warns_of_the_same(broken_off, whole, caplog):
    changes = {"lambda_sscl": 2.0, "learning_rate": 2e-2}
    model = train(broken_off, resume=True, resume_changed=True, save_total_limit=None, **changes)
    assert "going on although this is not the run" in caplog.text
    assert "lambda_sscl: 9.0 in the checkpoint, now 2.0" in caplog.text
    assert "learning_rate: 0.01 in the checkpoint, now 0.02 (the checkpoint's stays in force" in caplog.text
    assert not same(model, whole[1])


def test_a_moved_run_with_another_log_interval_is_the_same_run(broken_off, whole, tmp_path):
    moved = tmp_path / "a b" / ".." / "Ümläute 文"
    (tmp_path / "a b").mkdir()
    shutil.copytree(broken_off, moved)
    assert same(train(moved, resume=True, logging_steps=2, save_total_limit=3), whole[1])
    assert len(checkpoints(tmp_path / "Ümläute 文")) == 3


def test_a_run_goes_on_in_another_folder(broken_off, whole, tmp_path):
    assert same(train(tmp_path / "new", resume_from_checkpoint=str(broken_off / "checkpoint-2")), whole[1])
    assert len(checkpoints(broken_off)) == 3


@pytest.mark.parametrize(
    ("asked_for", "reason"),
    [
        (None, "holds checkpoint-1, checkpoint-2, checkpoint-3 of an earlier run. Go on from there with --resume"),
        ("checkpoint-9", "there is no such folder. --resume would take checkpoint-3"),
        ("a/checkpoint-9", "no such folder. No complete checkpoint lies beside it"),
    ],
)
def test_a_run_does_not_mix_with_another(broken_off, asked_for, reason):
    with pytest.raises(ValueError, match=reason):
        train(broken_off, resume_from_checkpoint=asked_for and str(broken_off / asked_for))


# ------------------------------------------------------------------------------------------------------------- signals


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code", "strategy"),
    [
        (signal.SIGTERM, 0, "no"),
        pytest.param(signal.SIGINT, 130, "epoch", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0, "steps", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_leaves(tmp_path, whole, number, code, strategy, caplog, capfd):
    steps = Steps(at=4, do=lambda: send(number, number))  # torchrun sends what the terminal has sent already
    handlers = [signal.getsignal(each) for each in signals.NAMES]
    with pytest.raises(SystemExit) as left:
        train(tmp_path, [steps], save_strategy=strategy)
    assert left.value.code == code and steps.seen == [1, 2, 3, 4]
    assert handlers == [signal.getsignal(each) for each in signals.NAMES]
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "config.json").exists() and not (tmp_path / WEIGHTS).exists()
    assert f"saved {tmp_path / 'checkpoint-4'}. Go on with the same command and --resume" in caplog.text
    assert "this step is finished and saved" in capfd.readouterr().err
    assert same(train(tmp_path, resume=True, save_strategy=strategy), whole[1])


def test_ctrl_c_twice_leaves_at_once(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(signals, "ECHO", -1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [Steps(at=4, do=lambda: send(signal.SIGINT, signal.SIGINT))])
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-3"
    assert same(train(tmp_path, resume=True), whole[1])


# ---------------------------------------------------------------------------------------- processes that can be killed


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported everything: a fresh interpreter costs seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["surviving"])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), path)))
    warm = context.Process(target=time.time)  # starts the server
    warm.start()
    warm.join()
    os.environ["PYTHONPATH"] = path or ""
    return context


@pytest.fixture
def start(processes):
    """Starts `surviving.train(folder, **settings)` in a process of its own and waits until a step begins."""
    running = []

    def start(folder, step=1, target=surviving.in_process, **settings):
        begun, sends = processes.Pipe(duplex=False)
        process = processes.Process(target=target, args=(str(folder), sends, settings))
        process.start()
        running.append((process, begun))
        sends.close()
        with contextlib.suppress(EOFError):  # a resumed run may have fewer steps left
            for _ in range(step):
                begun.recv()
        return process

    yield start
    for process, _ in running:
        process.kill()
        process.join()


def kill(process, seconds):
    """kill -9 after some time; says whether it came in time."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def distance(model, weights) -> float:
    return max((value - weights[name]).abs().max().item() for name, value in model.state_dict().items())


def in_a_save(folder) -> bool:
    """A folder `checkpoint-<step>` without `complete.json` is one that was being written, or deleted after a save."""
    return any(not (path / COMPLETE).is_file() for path in checkpoints(folder))


@pytest.mark.slow
def test_killed_at_any_moment_the_run_resumes_bit_exact(start, whole, tmp_path, caplog, record_property, trials=20):
    """In a step drawn at random, after a time drawn at random: the last may fall into the final export."""
    started, process = time.monotonic(), start(tmp_path / "undisturbed")
    process.join()
    a_step = (time.monotonic() - started) / (STEPS + 2)  # starting and the export take about one each
    moments = random.Random(0)
    killed = saving = stock = 0
    for trial in range(trials):
        folder = tmp_path / str(trial)
        # of a step, which ends with a save: every other trial aims at that
        share = (0, 1.2) if trial % 2 else (0.3, 0.9)
        killed += kill(start(folder, moments.randint(1, STEPS)), moments.uniform(*share) * a_step)
        saving += in_a_save(folder)
        last = get_last_checkpoint(folder)
        stock += last is not None and problem(Path(last)) is None
        before = newest_complete(folder)
        model = train(folder, resume=True)
        assert before is None or f"going on from {before}" in caplog.text
        assert distance(model, whole[1]) == 0, f"killed in trial {trial}, resumed from {before}"
        assert [problem(path) for path in checkpoints(folder)] == [None, None]
        assert (folder / "config.json").is_file()
    counts = {"trials": trials, "killed": killed, "in a save": saving, "stock folder whole": stock}
    for name, count in counts.items():
        record_property(name, count)
    assert killed >= 0.8 * trials and saving >= 0.2 * trials, counts


@pytest.mark.slow
def test_killed_again_and_again_it_ends_bit_exact(start, whole, tmp_path):
    moments = random.Random(1)
    for _ in range(4):
        kill(start(tmp_path, moments.randint(1, 2), resume=True), moments.uniform(0, 0.2))
    assert distance(train(tmp_path, resume=True), whole[1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_from_outside(start, tmp_path, number, code):
    process = start(tmp_path, 2, max_steps=10_000)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == code
    assert newest_complete(tmp_path) == checkpoints(tmp_path)[-1]
    assert not (tmp_path / "config.json").exists()


def with_small_files(folder, begun, settings):
    """No file may grow beyond 300 kB: the weights have more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        surviving.in_process(folder, begun, settings)
    except OSError as error:
        Path(folder, "told").write_text(str(error))
        sys.exit(3)


def test_a_disk_that_fills_up_while_writing(start, broken_off):
    process = start(broken_off, target=with_small_files, resume=True)
    process.join()
    assert process.exitcode == 3
    told = (broken_off / "told").read_text()
    assert "checkpoint-4 could not be saved: " in told and "too large" in told and "checkpoint-3 is intact" in told
    assert newest_complete(broken_off) == broken_off / "checkpoint-3"


@pytest.mark.slow
def test_two_processes_leave_together_and_fail_together(tmp_path):
    """SIGTERM reaches one of them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(Path(__file__).with_name("surviving_spread.py"))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, script, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [told[name] for name in ("undisturbed", "left", "resumed")] == ["done", "SystemExit: 0", "done"]
        assert "lambda_msg: 1.0 in the checkpoint, now 3.0" in told["changed"]
    newest = checkpoints(tmp_path / "run")[-1]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= read_complete(newest)["files"].keys()
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("undisturbed", "run"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert "saved " in done.stderr and "checkpoint-3. Go on with the same command and --resume" in done.stderr
