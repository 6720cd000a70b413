"""The GitHub workflow runs what setup.py promises, with actions pinned by their hash."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_actions_are_pinned_by_hash():
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert len(used) >= 8 and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)


def test_it_may_only_read():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in WORKFLOW["jobs"].values())
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts and all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_every_python_and_both_ends_of_the_ranges_are_tested():
    jobs = WORKFLOW["jobs"]
    lowest = re.search(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
    assert jobs["tests"]["strategy"]["matrix"]["python-version"] == [lowest, "3.12", "3.13"]
    assert jobs["bounds"]["strategy"]["matrix"]["resolution"] == ["lowest-direct", "highest"]


def test_torch_is_the_version_of_the_makefile():
    pinned = re.search(r"torch==[\d.]+", (ROOT / "Makefile").read_text(encoding="utf-8"))[0]
    commands = " ".join(step.get("run", "") for step in STEPS)
    assert re.findall(r"torch==[\d.]+", commands) == [pinned]
    assert pinned in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_files_that_it_names_exist():
    commands = " ".join(step.get("run", "") for step in STEPS)
    assert ".github/use_wheel.py" in commands and (ROOT / ".github/use_wheel.py").is_file()
    assert "make test" in commands and re.search(r"^test:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
