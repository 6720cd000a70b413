"""kill -9, a full disk, signals and a rival process: what is left is complete, and the resumed run ends bit-exact."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import surviving
import torch
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from magnet_train.survival.checkpointing import COMPLETE, checkpoints, newest_complete, problem, read_complete


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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return surviving.train(tmp_path_factory.mktemp("undisturbed")).state_dict()


def distance(model, weights) -> float:
    return max((value - weights[name]).abs().max().item() for name, value in model.state_dict().items())


def in_a_save(folder) -> bool:
    """A folder `checkpoint-<step>` without `complete.json` is one that was being written, or deleted after a save."""
    return any(not (path / COMPLETE).is_file() for path in checkpoints(folder))


@pytest.mark.slow
def test_killed_at_any_moment_the_run_resumes_bit_exact(start, weights, tmp_path, caplog, record_property, trials=20):
    """In a step drawn at random, after a time drawn at random: the last may fall into the final export."""
    started, process = time.monotonic(), start(tmp_path / "undisturbed")
    process.join()
    a_step = (time.monotonic() - started) / (surviving.STEPS + 2)  # starting and the export take about one each
    moments = random.Random(0)
    killed = saving = stock = 0
    for trial in range(trials):
        folder = tmp_path / str(trial)
        share = (
            (0, 1.2) if trial % 2 else (0.3, 0.9)
        )  # of a step, which ends with a save: every other trial aims at that
        killed += kill(start(folder, moments.randint(1, surviving.STEPS)), moments.uniform(*share) * a_step)
        saving += in_a_save(folder)
        last = get_last_checkpoint(folder)
        stock += last is not None and problem(Path(last)) is None
        before = newest_complete(folder)
        model = surviving.train(folder, resume=True)
        assert before is None or f"going on from {before}" in caplog.text
        assert distance(model, weights) == 0, f"killed in trial {trial}, resumed from {before}"
        assert [problem(path) for path in checkpoints(folder)] == [None]
        assert (folder / "config.json").is_file()
    counts = {"trials": trials, "killed": killed, "in a save": saving, "stock folder whole": stock}
    for name, count in counts.items():
        record_property(name, count)
    assert killed >= 0.8 * trials and saving >= 0.2 * trials, counts


def test_killed_behind_its_last_save_the_run_is_tidied_up(tmp_path, weights):
    """Nothing is left to train, and so nothing to save, but an older checkpoint was being deleted."""
    surviving.train(tmp_path)
    half = tmp_path / f"checkpoint-{surviving.STEPS - 1}"
    half.mkdir()
    (half / "optimizer.pt").write_bytes(b"half")
    model = surviving.train(tmp_path, resume=True)
    assert distance(model, weights) == 0
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{surviving.STEPS}"]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_bit_exact(start, weights, tmp_path):
    moments = random.Random(1)
    for _ in range(4):
        kill(start(tmp_path, moments.randint(1, 2), resume=True), moments.uniform(0, 0.2))
    assert distance(surviving.train(tmp_path, resume=True), weights) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_from_outside(start, weights, tmp_path, number, code):
    process = start(tmp_path, 2, max_steps=10_000)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == code
    assert newest_complete(tmp_path) == checkpoints(tmp_path)[-1]
    assert not (tmp_path / "config.json").exists()


def with_small_files(folder, begun, settings):
    """No file may grow beyond 300 kB once the first checkpoint is there: the weights have more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        surviving.in_process(folder, begun, settings)
    except OSError as error:
        Path(folder, "told").write_text(str(error))
        sys.exit(3)


def test_a_disk_that_fills_up_while_writing(start, weights, tmp_path):
    surviving.train(tmp_path, max_steps=2, lr_scheduler_type="constant")
    process = start(tmp_path, target=with_small_files, resume=True, resume_changed=True)
    process.join()
    assert process.exitcode == 3
    told = (tmp_path / "told").read_text()
    assert "checkpoint-3 could not be saved: " in told and "too large" in told
    assert "checkpoint-2 is intact" in told and "--resume true" in told
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert problem(tmp_path / "checkpoint-2") is None


@pytest.mark.slow
def test_two_processes_leave_together_and_fail_together(tmp_path):
    """SIGTERM reaches one of them; the differences are seen by the main one alone."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(Path(__file__).with_name("surviving_spread.py"))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, script, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [told[name] for name in ("undisturbed", "left", "resumed")] == ["done", "SystemExit: 0", "done"]
        assert "lambda_msg: 1.0 in the checkpoint, now 3.0" in told["changed"]
    (checkpoint,) = checkpoints(tmp_path / "run")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= read_complete(checkpoint)["files"].keys()
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("undisturbed", "run"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert "saved " in done.stderr and "checkpoint-3. Go on with the same command and --resume true" in done.stderr
