"""The benchmarks themselves: rows, verdicts and the page made of them; every script runs at a tiny shape."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
sys.path.append(str(ROOT / "benchmarks"))

import common  # noqa: E402
import run  # noqa: E402

MACHINE = {"cpu": "2 x Some CPU", "torch": "2.13.0"}
ROWS = [
    common.row("speed", "4 layers", "time: theirs / ours", 2.0, [1.9, 2.25], ">= 1.5"),
    common.row("speed", "8 layers", "time: theirs / ours", 1.2, [1.1, 1.3], ">= 1.5"),
    common.row("overhead", "4 layers", "time: ours / theirs", 1.05, None, "<= 1.05"),
    common.row("overhead", "8 layers", "time: ours / theirs", 1.26, None, "<= 1.05"),
    common.row("rows of the head", "4 layers", "on pairs", 0, None, "<= 0"),
    common.row("in bfloat16", "4 layers", "not fast here", None, None, ">= 1.7"),
    common.row("cost", "4 layers", "tokens a second", 12345.6, None, None),
]
VERDICTS = ["reached", "**missed by 20 %**", "reached", "**missed by 20 %**", "reached", "not measured", ""]
RESULTS = ["2.00 (1.90 to 2.25)", "1.20 (1.10 to 1.30)", "1.05", "1.26", "0.00", "-", "12,346"]


@pytest.mark.parametrize("row, verdict, result", list(zip(ROWS, VERDICTS, RESULTS)))
def test_verdict_and_result_of_a_row(row, verdict, result):
    assert run.verdict(row) == verdict and run.result(row) == result
    assert row["reached"] == {"reached": True, "": None, "not measured": None}.get(verdict, False)


def test_the_page_has_every_row_and_counts_the_targets():
    report = {"machine": MACHINE, "groups": [{"script": "loss", "title": "The losses", "rows": ROWS, "seconds": 8.2}]}
    page = run.render(report)
    assert "2 x Some CPU, torch 2.13.0." in page
    assert "**3 of 5 targets are reached**, 1 could not be measured." in page
    assert "## The losses" in page and "`benchmarks/loss.py`, 8 s" in page
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert [line[0] for line in lines] == [row["question"] for row in ROWS]
    assert [line[3] for line in lines] == RESULTS


def test_charts_are_drawn(tmp_path):
    curve = {"name": "encode()", "unit": "tokens", "x": [1, 2], "seconds": [0.1, 0.2], "mib": [10, 20]}
    rows = [*ROWS, common.row("growth", "1 to 2", "exponent", 1.0, None, None) | {"curve": curve}]
    report = {"machine": MACHINE, "groups": [{"script": "growth", "title": "Growth", "rows": rows}]}
    run.chart(report, tmp_path / "bars.png")
    run.growth_chart(report, tmp_path / "growth.png")
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("bars.png", "growth.png"))
    assert "performance_growth.png" in run.render(report)
    assert run.past_target(ROWS[0]) == pytest.approx(4 / 3) and run.past_target(ROWS[3]) == pytest.approx(1.05 / 1.26)


@pytest.mark.skipif(not (ROOT / "docs" / "performance.md").is_file(), reason="`make bench` has not run")
def test_the_page_is_that_of_the_measured_figures():
    report = json.loads((ROOT / "docs" / "measured" / "performance.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == run.render(report)


def test_calls_take_turns_and_the_faster_halves_are_compared():
    ticks, order = iter([0, 4, 4, 6, 6, 9, 9, 10, 10, 30, 30, 32]), []
    calls = {name: lambda name=name: order.append(name) for name in ("slow", "fast")}
    seconds = common.side_by_side(calls, 3, lambda: next(ticks))
    assert order == ["slow", "fast"] * 4  # the first two are the warm-up
    assert seconds == {"slow": [4, 3, 20], "fast": [2, 1, 2]}
    assert common.compared(seconds, "slow", "fast") == (3.5 / 1.5, [2.0, 10.0])


def test_peak_is_what_the_call_adds():
    def build():
        kept = bytearray(2**27)  # 128 MiB, before the call
        return lambda: len(kept) + len(bytearray(b"x") * 2**26)

    assert 60 < common.peak_mib(build) < 90


def test_a_failing_child_is_an_error():
    with pytest.raises(RuntimeError, match="failed in its process"):
        common.in_a_fork(lambda: 1 // 0)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_importable_and_says_how_it_is_run(name):
    module = importlib.import_module(name)
    assert name == "common" or f"python benchmarks/{name}.py" in module.__doc__
    assert all(callable(importlib.import_module(script).main) for script in (*run.SCRIPTS, *run.ELSEWHERE))


def test_the_gpu_script_runs_dry_on_a_cpu(tmp_path):
    import gpu

    rows = gpu.main(["--dry_run", "--output_dir", str(tmp_path)])
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["rows"] == rows
    assert not [row["how"] for row in rows if "failed" in row["how"] or "not run" in row["how"]]
    missing = [row["question"] for row in rows if row["ratio"] is None]
    assert missing == ["training step, x^m", "hybrid attention", "hybrid attention"]  # peak; FlexAttention
    targets = {row["target"] for row in rows}
    assert {"<= 1.11", "<= 118", "<= 1.55", ">= 30000", ">= 200"} <= targets


TINY = {
    "loss": {"rows": 1, "length": 64, "hidden": 64, "vocab": 4000, "repeats": 1, "rows_in_memory": 2},
    "train_step": {"layers": 1, "hidden": 64, "rows": 1, "length": 32, "pairs": 2, "repeats": 1},
    "contrastive": {"layers": 1, "hidden": 64, "pairs": 4, "repeats": 1},
    "smollm2": {"rows": 1, "length": 32, "pairs": 1, "repeats": 1, "num_hidden_layers": 1, "vocab_size": 500},
    "encode": {"layers": 2, "hidden": 128, "few": 4, "many": 6, "repeats": 1},
    "encode_once": {"layers": 1, "hidden": 64, "contexts": [32], "span": 4, "repeats": 1},
    "infill": {"layers": 1, "hidden": 64, "contexts": [32], "span": 4, "repeats": 1, "keep": False},
    "adapter_gate": {"layers": 1, "hidden": 64, "prompt": 8, "new": 2, "count": 2, "repeats": 1},
    "loading": {"layers": 1, "hidden": 64, "repeats": 1},
    "growth": {"most": 256, "repeats": 1},
}
RUN_ALL = """
import importlib, json, sys
for name, settings in json.loads(sys.argv[1]).items():
    print(name, file=sys.stderr)
    print(json.dumps([name, importlib.import_module(name).main(**settings)]))
"""


@pytest.mark.slow
def test_every_script_answers_at_a_tiny_shape():
    """In one process of its own: the scripts fork, which no process may that has run a backward pass."""
    command = [sys.executable, "-c", RUN_ALL, json.dumps(TINY)]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert set(answers) == set(run.SCRIPTS) - {"counts"}
    for rows in answers.values():
        assert rows and all(set(row) - {"curve"} == set(ROWS[0]) for row in rows)
        assert all(row["ratio"] is None or row["ratio"] > 0 for row in rows)
    targets = [row for rows in answers.values() for row in rows if row["target"]]
    assert len(targets) >= 20 and sum(row["ratio"] is None for row in targets) <= 2  # bfloat16, where it is slow


@pytest.mark.slow
def test_the_proofs_on_a_model_of_any_family(tmp_path):
    """A mismatch of a bit or of a pair of tokens would end the script with an error."""
    stories = ROOT / "examples" / "assets" / "everyday-stories" / "train.jsonl"
    lines = stories.read_text(encoding="utf-8").splitlines()
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(json.loads(line)["sentences"]) for line in lines), encoding="utf-8")
    base = ROOT / "tests" / "assets" / "magnet-tiny-base"
    command = [sys.executable, ROOT / "benchmarks" / "real_families.py", base, texts, "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["training"]["gaps"] > 0 and figures["causal"]["adapter_moves"] > 0
    assert figures["brute_force"]["difference"] < 1e-4
    assert max(figures["infill"]["exact"], figures["infill"]["free"]) < 1e-5
