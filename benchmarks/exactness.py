"""Exactness of training: runs the tests that require it and records their measurements.

    OMP_NUM_THREADS=1 python benchmarks/exactness.py

Writes docs/measured/exactness.json: the largest difference of weights after resuming, that of the update when a step's
rows are spread over accumulated batches and processes, and the outcome of killed runs.
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "resumed": "test_resume.py::test_resumed_at_any_step_the_weights_are_the_same",
    "accumulated": "test_spread.py::test_accumulated_batches",
    "processes": "test_spread.py::test_two_processes",
    "killed": "test_survival.py::test_killed_at_any_moment_the_run_resumes_bit_exact",
}


def properties(test: str) -> list[dict[str, list[float]]]:
    """The records of each case of a test. The test must pass."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / test), f"--junit-xml={report}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        cases = ElementTree.parse(report).iter("testcase")
        found = []
        for case in cases:
            values = {}
            for entry in case.iter("property"):
                values.setdefault(entry.get("name"), []).append(float(entry.get("value")))
            found.append(values)
    return found


def main() -> None:
    found = {name: properties(test) for name, test in TESTS.items()}
    row = {
        "resumed_runs": sum(len(case["resumed"]) for case in found["resumed"]),
        "resumed_variants": len(found["resumed"]),
        "resumed_largest_difference": max(max(case["difference"]) for case in found["resumed"]),
        "spread_cases": len(found["processes"]) // 2,
        "accumulated_largest_difference": max(case["difference"][0] for case in found["accumulated"]),
        "processes_largest_difference": max(case["difference"][0] for case in found["processes"]),
        "killed": {name: int(values[0]) for name, values in found["killed"][0].items()},
    }
    (ROOT / "docs" / "measured" / "exactness.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
