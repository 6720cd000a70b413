"""The plots of the report, as SVG."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from .systems import System

matplotlib.rcParams |= {
    "svg.fonttype": "none",
    "svg.hashsalt": "magnet",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
OURS, OTHERS = "#2a7f62", "#9aa5b1"


def svg(canvas: Canvas) -> str:
    """An SVG to embed in HTML."""
    text = io.StringIO()
    canvas.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def bars(pivot, columns: list[str], ours: str, canvas: Canvas | None = None) -> Canvas:
    """A panel of horizontal bars with intervals for each column."""
    canvas = canvas or Canvas(figsize=(4.4 * len(columns), 0.8 + 0.28 * len(pivot.cells)), layout="constrained")
    for axes, column in zip(np.atleast_1d(canvas.subplots(1, len(columns))), columns):
        rows = [(row, cells[column]) for row, cells in pivot.cells.items() if column in cells][::-1]
        values = np.array([estimate.value for _, estimate in rows])
        ends = np.array([estimate.interval or [estimate.value] * 2 for _, estimate in rows]).T
        colors = [OURS if row.split(",")[0] == ours else OTHERS for row, _ in rows]
        axes.barh([row for row, _ in rows], values, xerr=abs(ends - values), color=colors, ecolor="#444", capsize=2)
        axes.set_title(column, fontsize=9)
        axes.tick_params(labelsize=8)
    return canvas


def lines(series: dict[str, list[tuple]], x: str, y: str) -> Canvas:
    """Curves of (x, value, low, high)."""
    canvas = Canvas(figsize=(6.4, 3.6), layout="constrained")
    axes = canvas.subplots()
    for name, points in series.items():
        place, value, low, high = zip(*points)
        axes.plot(place, value, marker="o", markersize=3, label=name)
        axes.fill_between(place, low, high, alpha=0.15)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(fontsize=8)
    return canvas


def heat(sentences: list[str], cosines: list[list[float]]) -> Canvas:
    """Sentences (rows) against their paraphrases (columns)."""
    canvas = Canvas(figsize=(7.5, 4.5), layout="constrained")
    axes = canvas.subplots()
    picture = axes.imshow(cosines, cmap="viridis")
    axes.set_yticks(range(len(sentences)), [sentence[:48] for sentence in sentences], fontsize=7)
    axes.set_xticks(range(len(sentences)), range(1, len(sentences) + 1), fontsize=7)
    axes.set_xlabel("paraphrase of sentence", fontsize=8)
    canvas.colorbar(picture, label="cosine similarity")
    return canvas


def masks(modes: dict[str, list[list[int]]]) -> Canvas:
    """Which key tokens each query depends on, (query, key) for each mode."""
    canvas = Canvas(figsize=(2.6 * len(modes), 2.8), layout="constrained")
    for axes, (mode, seen) in zip(np.atleast_1d(canvas.subplots(1, len(modes))), modes.items()):
        axes.imshow(seen, cmap="Greens", vmin=0, vmax=1.4)
        axes.set(title=mode, xlabel="key", ylabel="query", xticks=[], yticks=[])
    return canvas


def pictures(table: str, pivot, results: list, ours: str) -> dict[str, str]:
    """The plots of a table, by title."""
    found = {}
    plain = [column for column in pivot.columns if "gaps of" not in column]
    if plain and table not in ("modes",):
        found["values"] = bars(pivot, plain[:3], ours)
    by_length = [column for column in pivot.columns if "gaps of" in column]
    for data in dict.fromkeys(column.split(":")[0] for column in by_length):
        columns = [column for column in by_length if column.startswith(f"{data}:")]
        found[f"{data}: perplexity by gap length"] = lines(
            {
                row: [
                    (column.split()[-4] + "-" + column.split()[-2], *ends(cells[column]))
                    for column in columns
                    if column in cells
                ]
                for row, cells in pivot.cells.items()
                if any(column in cells for column in columns)
            },
            "gap length (tokens)",
            "perplexity",
        )
    for column in plain if table in ("repetition", "mtp") else ():
        curves = by_step(results, column)
        if any(len(points) > 1 for points in curves.values()):
            found[f"{column} over training"] = lines(curves, "step", column)
    for extra in [result.extra for result in results if result.system == ours]:
        if layers := extra.get("layers"):
            curves = {name.split(",")[0]: [(n, v, v, v) for n, v in enumerate(row)] for name, row in layers.items()}
            found["norms by layer"] = lines(curves, "layer", "norm")
        if similar := extra.get("similarity"):
            found["sentences and paraphrases"] = heat(**similar)
        if seen := extra.get("sees"):
            found["tokens (columns) that each output (row) depends on; in hybrid mode 4 to 7 are a span"] = masks(seen)
    return {title: svg(canvas) for title, canvas in found.items()}


def ends(estimate) -> tuple[float, float, float]:
    return estimate.value, *(estimate.interval or (estimate.value, estimate.value))


def by_step(results: list, column: str) -> dict[str, list[tuple]]:
    """A column over training steps, one curve per system family and way."""
    curves = {}
    for result in results:
        stem, step = result.system.rpartition("-")[0], System(result.system).step
        for figure in result.figures if step is not None else ():
            if f"{figure.data}: {figure.measure}" == column:
                name = f"{stem}, {figure.way}" if figure.way else stem
                curves.setdefault(name, []).append((step, *ends(figure.estimate)))
    return {name: sorted(points) for name, points in curves.items()}


SHOWN = {"base": "base", "llm2vec": "LLM2Vec", "fim": "FIM-LoRA", "magnet": "MAGNET"}
PANELS = [  # title, table, measure, ways, and which value is the better one
    ("Infilling: perplexity (lower is better)", "infill", "perplexity", "", min),
    ("Embedding: STS, Spearman x 100 (higher is better)", "sts", "Spearman x 100", "", max),
    ("Generation: repeated 4-grams (lower is better)", "repetition", "Rep-4", "greedy", min),
]


def overview(content: dict) -> Canvas | None:
    """
    Infilling, embedding and generation of base, LLM2Vec, FIM-LoRA and MAGNET side by side, each in its better way.

    Args:
        content (`dict`): What `results.json` holds.

    Returns:
        `None` unless all three were evaluated.
    """
    canvas, systems = Canvas(figsize=(13, 2.6), layout="constrained"), systems_shown(content)
    for axes, (title, table, measure, way, better) in zip(canvas.subplots(1, len(PANELS)), PANELS):
        rows = [row for row in content["averages"] if row["table"] == table and row["system"] in systems]
        rows = rows or [
            row
            for row in content["figures"]
            if (row["table"], row["measure"]) == (table, measure) and way in row["way"] and row["system"] in systems
        ]
        if not rows:
            return None
        data = "ROC" if any(row["data"] == "ROC" for row in rows) else rows[0]["data"]
        ways = {}
        for row in rows:
            if row["data"] == data:
                ways.setdefault(row["system"].split("-")[0], []).append(row)
        best = {kind: better(each, key=lambda row: row["value"]) for kind, each in ways.items()}
        bars_of = [(kind, best[kind]) for kind in SHOWN if kind in best][::-1]
        values = np.array([row["value"] for _, row in bars_of])
        ends = np.array([row["interval"] or [row["value"]] * 2 for _, row in bars_of]).T
        names = [f"{SHOWN[kind]}\n{row['way']}" if row["way"] else SHOWN[kind] for kind, row in bars_of]
        colors = [OURS if kind == "magnet" else OTHERS for kind, _ in bars_of]
        axes.barh(names, values, xerr=abs(ends - values), color=colors, ecolor="#444", capsize=2)
        axes.set_title(f"{title}\n{data}", fontsize=9)
        axes.tick_params(labelsize=8)
    return canvas


def systems_shown(content: dict) -> set[str]:
    """Ours, and the first baseline of each other kind: the one named just that, if there is one."""
    names = list(dict.fromkeys(row["system"] for row in content["figures"]))
    found = {content["ours"]}
    for kind in SHOWN:
        same = [name for name in names if name.split("-")[0] == kind]
        found |= set(([kind] if kind in same else same[:1]) if kind != content["ours"].split("-")[0] else [])
    return found
