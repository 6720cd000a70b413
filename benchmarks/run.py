"""Runs all benchmarks and writes the report: docs/performance.md, its JSON and its charts.

python benchmarks/run.py                       # all, in 10 minutes on 2 cores, a few more without AVX-512 (make bench)
python benchmarks/run.py --only counts loss    # these anew; the others stay as they were measured
python benchmarks/run.py --only                # nothing anew: only the page and the charts
"""

import argparse
import importlib
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import matplotlib
from common import ROOT, in_a_fork

SCRIPTS = "counts loss train_step contrastive smollm2 encode encode_once infill adapter_gate loading growth".split()
ELSEWHERE = {name: f"{name}.json" for name in ("encode_llm2vec", "at_scale", "gpu")}  # of runs started by hand, if any
DOCS = ROOT / "docs"
MEASURED = DOCS / "measured"
PACKAGES = ("torch", "transformers", "peft", "sentence-transformers")
INTRO = """# Performance

Written by `make bench` (`benchmarks/run.py`); the same figures as JSON are in `docs/measured/performance.json`. Ratios are taken side by
side in one process: calls take turns, each counts with the mean of its faster half, and the range is that of single rounds. Time is CPU
time of one thread unless a row says otherwise. Memory is the peak over the model in a process of its own, never in the
same run as time. Weights are random, which changes no cost. A single script prints its rows: `python benchmarks/loss.py`.
What was tried where a target is missed: [log](LOG.md), "Performance".
"""


def measure(names: list[str], report: dict, write) -> dict:
    """Runs scripts, each in a process of its own, and calls `write(report)` after each."""
    modules = {name: importlib.import_module(name) for name in names}  # before the first fork: imported once
    groups = {group["script"]: group for group in report.get("groups", [])}
    for name, module in modules.items():
        started = time.monotonic()
        rows = in_a_fork(module.main)
        groups[name] = {"script": name, "title": title(module), "rows": rows, "seconds": time.monotonic() - started}
        report = {"machine": machine(), "groups": ordered(groups)}
        write(report)
        print(f"{name}: {groups[name]['seconds']:.0f} s", flush=True)
    return report


def title(module) -> str:
    return module.__doc__.splitlines()[0].rstrip(".")


def ordered(groups: dict[str, dict]) -> list[dict]:
    return [groups[name] for name in (*SCRIPTS, *ELSEWHERE) if name in groups]


def elsewhere(report: dict) -> dict:
    """The report with what was measured by scripts that `make bench` does not run."""
    groups = {group["script"]: group for group in report["groups"]}
    for name, file in ELSEWHERE.items():
        if (MEASURED / file).is_file():
            found = json.loads((MEASURED / file).read_text(encoding="utf-8"))
            rows, where = (found["rows"], f", on {found['device']}") if isinstance(found, dict) else (found, "")
            module = importlib.import_module(name)
            groups[name] = {"script": name, "title": title(module) + where, "rows": rows}
    return report | {"groups": ordered(groups)}


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found = {
        "cpu": f"{len(names)} x {names[0]}" if names else platform.processor(),
        "python": platform.python_version(),
    }
    return found | {name: version(name) for name in PACKAGES}


# ----------------------------------------------------------------------------------------------------------- the page


def render(report: dict) -> str:
    rows = [each for group in report["groups"] for each in group["rows"]]
    judged = [each for each in rows if each["reached"] is not None]
    reached = sum(each["reached"] for each in judged)
    open_ = [each for each in rows if each["target"] and each["ratio"] is None]
    lines = [
        INTRO,
        ", ".join(f"{name} {value}" if name != "cpu" else value for name, value in report["machine"].items()) + ".",
        "",
    ]
    lines += [f"**{reached} of {len(judged)} targets are reached**, {len(open_)} could not be measured.", ""]
    lines += ["![How far each figure is past its target](performance.png)", ""]
    for group in report["groups"]:
        spent = f", {group['seconds']:.0f} s" if "seconds" in group else ""
        lines += [f"## {group['title']}", "", *table(group["rows"]), ""]
        lines += [f"`benchmarks/{group['script']}.py`{spent}", ""]
        if any("curve" in each for each in group["rows"]):
            lines += ["![Time and memory against size, log-log](performance_growth.png)", ""]
    return "\n".join(lines)


def table(rows: list[dict]) -> list[str]:
    head = ["| question | shape | what is compared | result (range) | target | verdict |", "|---" * 6 + "|"]
    cells = [
        [each["question"], each["shape"], each["how"], result(each), each["target"] or "", verdict(each)]
        for each in rows
    ]
    return head + ["| " + " | ".join(line) + " |" for line in cells]


def result(row: dict) -> str:
    if row["ratio"] is None:
        return "-"
    if row["spread"] is None:
        return number(row["ratio"])
    low, high = map(number, row["spread"])
    return f"{number(row['ratio'])} ({low} to {high})"


def number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


def verdict(row: dict) -> str:
    if row["target"] is None:
        return ""
    if row["reached"] is None:
        return "not measured"
    if row["reached"]:
        return "reached"
    bound = float(row["target"].split()[1])
    return f"**missed by {100 * abs(row['ratio'] / bound - 1):.0f} %**" if bound else "**missed**"


# --------------------------------------------------------------------------------------------------------- the charts


def past_target(row: dict) -> float:
    """How many times better than its target a figure is; below 1, it misses it."""
    sign, bound = row["target"].split()
    return row["ratio"] / float(bound) if sign == ">=" else float(bound) / row["ratio"]


def chart(report: dict, path: Path) -> None:
    from matplotlib import pyplot

    rows = [each for group in report["groups"] for each in group["rows"] if each["reached"] is not None]
    rows = [each for each in rows if each["ratio"]][::-1]  # from top to bottom; a count of 0 has no bar
    figure, axes = pyplot.subplots(figsize=(11, 1 + 0.32 * len(rows)), layout="constrained")
    names = [f"{each['question']}, {each['how']}"[:88] for each in rows]
    colours = ["tab:green" if each["reached"] else "tab:red" for each in rows]
    bars = axes.barh(range(len(rows)), [past_target(each) - 1 for each in rows], left=1, color=colours)
    axes.bar_label(bars, [f"{number(each['ratio'])}, target {each['target']}" for each in rows], padding=3, fontsize=7)
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis("{x:g}")
    axes.margins(x=0.3)
    axes.set_xlabel("times as good as the target")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def growth_chart(report: dict, path: Path) -> None:
    from matplotlib import pyplot

    rows = [each for group in report["groups"] for each in group["rows"] if "curve" in each]
    if not rows:
        return
    figure, places = pyplot.subplots(2, (len(rows) + 1) // 2, figsize=(11, 6.5), layout="constrained", squeeze=False)
    for axes, each in zip(places.flat, rows):
        curve = each["curve"]
        axes.loglog(curve["x"], curve["seconds"], "o-", label="CPU seconds")
        axes.loglog(curve["x"], [mib / 1000 for mib in curve["mib"]], "s--", label="peak, thousand MiB")
        axes.set_title(f"{curve['name']}: time ~ size^{each['ratio']:.2f}", fontsize=9)
        axes.set_xlabel(curve["unit"], fontsize=8)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SCRIPTS, default=SCRIPTS, help="the scripts to run")
    args = parser.parse_args()
    matplotlib.use("Agg")
    path = MEASURED / "performance.json"

    def write(report: dict) -> None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": machine(), "groups": []}
    report = elsewhere(measure(args.only, report, write))
    write(report)
    (DOCS / "performance.md").write_text(render(report), encoding="utf-8")
    chart(report, DOCS / "performance.png")
    growth_chart(report, DOCS / "performance_growth.png")


if __name__ == "__main__":
    main()
