"""The weights do not depend on how a step's rows are spread over accumulated batches and processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import spread
from safetensors.torch import load_file
from training import relative_difference


@pytest.fixture(scope="module")
def one_batch(tmp_path_factory):
    """The updates of one process that takes all 8 rows at once."""
    out = tmp_path_factory.mktemp("one_batch")
    spread.main(out)
    return out


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The same with 2 gloo processes of 4 rows, and with 2 processes of 2 accumulated batches of 2."""
    folders = {}
    for accumulated in (1, 2):
        out = tmp_path_factory.mktemp("two_processes")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launch, str(Path(spread.__file__)), str(out), str(accumulated)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        folders[accumulated] = out
    return folders


def compare(expected: Path, found: Path, case: str) -> float:
    expected, found = (load_file(folder / f"{case}.safetensors") for folder in (expected, found))
    assert expected.keys() == found.keys() and expected
    assert all(update.abs().max() > 0 for update in expected.values())
    return relative_difference(found, expected)


FAST = ("projection head", "chunks", "kl")
EACH = [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in spread.CASES]


@pytest.mark.parametrize("case", EACH)
@pytest.mark.parametrize("accumulated", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_accumulated_batches(one_batch, tmp_path, case, accumulated, record_property):
    spread_out = spread.update(dict(spread.CASES[case]), accumulated, str(tmp_path))
    difference = relative_difference(spread_out, load_file(one_batch / f"{case}.safetensors"))
    record_property("difference", difference)
    assert difference < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", spread.CASES)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_two_processes(one_batch, two_processes, case, accumulated, record_property):
    difference = compare(one_batch, two_processes[accumulated], case)
    record_property("difference", difference)
    assert difference < 1e-6
