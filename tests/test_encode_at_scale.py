"""examples/encode_at_scale.py: a killed worker and a killed job lose no row and repeat none. Needs `ray[data]`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "encode_at_scale.py"
MODEL = ROOT / "tests" / "assets" / "magnet-tiny"
sys.path.append(str(SCRIPT.parent))
pytest.importorskip("ray")
import encode_at_scale  # noqa: E402 - imports ray


class Killer(encode_at_scale.Encoder):
    """Kills its own process at the first row; once something is finished, the whole job at the last one."""

    def __call__(self, rows):
        ids, folder = rows["id"].to_pylist(), Path(os.environ["FOLDER"])
        if 0 in ids and not (folder / "worker").exists():
            (folder / "worker").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if 119 in ids:
            while not finished_ids(folder) or not (folder / "worker").exists():
                time.sleep(0.1)
            os.kill(int(os.environ["JOB"]), signal.SIGKILL)
        return super().__call__(rows)


def finished_ids(folder: Path) -> list[int]:
    files = [file for file in (folder / "vectors.done").glob("*.parquet") if ".pending." not in file.name]
    return [id for file in files for id in pyarrow.parquet.read_table(file)["id"].to_pylist()]


def texts_in(folder: Path, count: int) -> pyarrow.Table:
    rows = pyarrow.table({"id": range(count), "text": [f"Tom ate {n} apples. " * (1 + n % 3) for n in range(count)]})
    (folder / "texts").mkdir()
    for start in range(0, count, count // 3):
        pyarrow.parquet.write_table(rows.slice(start, count // 3), folder / "texts" / f"{start}.parquet")
    return rows


def run(*command, folder: Path, cpus: int = 4) -> subprocess.CompletedProcess:
    search = os.pathsep.join([str(ROOT / "tests"), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    start = f"import os, ray, sys; os.environ['JOB'] = str(os.getpid()); ray.init(num_cpus={cpus}, include_dashboard=False)"
    return subprocess.run(
        [sys.executable, "-c", "\n".join([start, *command])],
        env=os.environ | {"PYTHONPATH": search, "FOLDER": str(folder), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_kills_lose_and_repeat_nothing(tmp_path):
    rows, output = texts_in(tmp_path, 120), tmp_path / "vectors"
    arguments = (str(tmp_path / "texts"), str(output), f"{output}.done", str(MODEL), 2, 0, 10, 8)
    killed = run(
        "import encode_at_scale, test_encode_at_scale",
        f"encode_at_scale.process(test_encode_at_scale.Killer, *{arguments})",
        folder=tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "worker").exists(), killed.stderr[-2000:]
    before = finished_ids(tmp_path)
    assert 0 < len(before) < 120
    written = {file: file.stat().st_mtime_ns for file in output.glob("*.parquet")}

    command = ["--input", arguments[0], "--output", arguments[1], "--model", arguments[3], "--workers", "2"]
    sys_argv = ["encode_at_scale.py", *command, "--rows_per_file", "10"]
    resumed = run(
        f"import runpy; sys.argv = {sys_argv}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')", folder=tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    found = pyarrow.parquet.ParquetDataset(output).read().sort_by("id")
    assert found.select(["id", "text"]).equals(rows.cast(found.select(["id", "text"]).schema))
    kept = [file for file, changed in written.items() if file.exists() and file.stat().st_mtime_ns == changed]
    assert sorted(id for file in kept for id in pyarrow.parquet.read_table(file)["id"].to_pylist()) == sorted(before)

    encoder = encode_at_scale.Encoder(str(MODEL), 8)
    expected = encoder.model.encode(rows["text"].to_pylist(), encoder.tokenizer)
    np.testing.assert_allclose(np.stack(found["embedding"].to_pylist()), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_too_few_processors_are_an_error_and_no_endless_wait():
    import ray

    ray.init(num_cpus=2, include_dashboard=False)
    with pytest.raises(ValueError, match="--workers 2: .* take 4 CPUs, but Ray has 2"):
        encode_at_scale.check_cpus(2)
    ray.shutdown()


def test_a_worker_fills_gaps():
    worker = encode_at_scale.Infiller(str(MODEL), 8)
    texts = ["Tom was hungry. <|gap|> He was full.", "A <|gap|>"]
    filled = worker(pyarrow.table({"id": [7, 8], "text": texts}))
    assert filled.column_names == ["id", "text", "filled"]
    assert filled["filled"].to_pylist() == worker.model.infill(texts, worker.tokenizer)


@pytest.mark.parametrize("ids", [[1, 2, 2], [1, None, 2]])
def test_ids_must_tell_rows_apart(tmp_path, ids):
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "text": ["a"] * 3}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="`id` is not unique, or missing"):
        encode_at_scale.check_ids(str(tmp_path))
