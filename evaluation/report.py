"""One report of all results: `results.json`, `report.md`, and `report.html` with embedded plots."""

import json
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from . import plots
from .appropriate import RATED_STORIES, score_sheets, write_sheet
from .claims import shown, verdicts
from .figures import Estimate, Figure, average
from .run import TABLES, Result, table_module
from .systems import System

AVERAGED = re.compile(r"(STS|SICK).*: Spearman x 100")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.2rem .7rem;border-bottom:1px solid #8886;"
    "text-align:left;white-space:nowrap}.ours{font-weight:600}.paper{opacity:.65}svg{max-width:100%;height:auto;background:#fff}"
    "pre{white-space:pre-wrap}figure{margin:1rem 0}figcaption,.note{font-size:.85rem;opacity:.8}"
)


@dataclass
class Pivot:
    """A table: rows are systems and ways, columns `data: measure`."""

    columns: list[str] = field(default_factory=list)
    cells: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    figures: dict[tuple[str, str], Figure] = field(default_factory=dict)

    def add(self, row: str, column: str, estimate: Estimate) -> None:
        if column not in self.columns:
            self.columns.append(column)
        self.cells.setdefault(row, {})[column] = estimate

    def compared(self, row: str, rival: str, column: str) -> Estimate | None:
        """The paired difference (for perplexities the ratio) of two rows; `None` if they cannot be compared."""
        if column not in self.cells[row] or column not in self.cells[rival]:
            return None
        ours, theirs = self.figures.get((row, column)), self.figures.get((rival, column))
        if ours is None or theirs is None:  # averages
            return self.cells[row][column] - self.cells[rival][column]
        return ours.against(theirs)


def pivot(table: str, results: list[Result]) -> Pivot:
    """The results of one table."""
    module, found = table_module(table), Pivot()
    if table == "ablation":
        pairs = module.rows(results)
    else:
        pairs = [(each.system, figure) for each in results if each.table == table for figure in each.figures]
    for system, figure in pairs:
        row, column = f"{system}, {figure.way}" if figure.way else system, f"{figure.data}: {figure.measure}"
        found.add(row, column, figure.estimate)
        found.figures[row, column] = figure
    averaged = [column for column in found.columns if AVERAGED.fullmatch(column)]
    for row, cells in found.cells.items() if len(averaged) > 1 and table == "sts" else ():
        if all(column in cells for column in averaged):
            found.add(row, f"average of {len(averaged)}: Spearman x 100", average([cells[c] for c in averaged]))
    return found


def differences(found: Pivot, ours: str, ways: tuple[str, ...]) -> dict[tuple[str, str], dict[str, Estimate]]:
    """Ours minus every other row (for perplexities, ours over it): by (our row, other row) and column, with paired intervals."""
    compared = {}
    for way in ways:
        row = f"{ours}, {way}" if way else ours
        for rival in [each for each in found.cells if each != row] if row in found.cells else ():
            each = {column: found.compared(row, rival, column) for column in found.columns}
            if each := {column: estimate for column, estimate in each.items() if estimate is not None}:
                compared[row, rival] = each
    return compared


def write_report(
    results: list[Result], left_out: dict[str, str], ours: str, out: Path, overlaps: dict | None = None
) -> dict:
    """
    Writes `results.json`, `report.md`, `report.html`, its plots in `figures`, `overview.svg` and the rating sheet.

    Args:
        results (`list[Result]`): Of all tables and systems.
        left_out (`dict[str, str]`): Tables that were not evaluated, and why.
        ours (`str`): The system that is compared with the others.
        out (`Path`): Output folder.
        overlaps (`dict[str, tuple[int, int]]`, *optional*): For each data set, how many of its sentences occur in the
            training text, and how many it has.

    Returns:
        [`Pivot`] of each table, by name.
    """
    shown_tables = [name for name in TABLES if any(result.table == name for result in results) or name == "ablation"]
    pivots = {name: pivot(name, results) for name in shown_tables}
    if not pivots["ablation"].cells or len({row.split(",")[0] for row in pivots["ablation"].cells}) < 2:
        del pivots["ablation"]
    for system, figure in people(results, out, ours).items():
        pivots["appropriate"].add(system, "people: appropriate %", figure.estimate)
    sections = [section(name, found, results, ours) for name, found in pivots.items()]
    claims = verdicts(pivots, ours)
    content = as_json(results, pivots, claims, overlaps, ours)
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(as_markdown(sections, claims, left_out, overlaps, results), encoding="utf-8")
    (out / "report.html").write_text(as_html(sections, claims, left_out, overlaps, results, ours), encoding="utf-8")
    (out / "figures").mkdir(exist_ok=True)
    for name, each in zip(pivots, sections):
        for title, picture in each["pictures"].items():
            (out / "figures" / f"{name}-{file_name(title)}.svg").write_text(picture, encoding="utf-8")
    if picture := plots.overview(content):
        (out / "overview.svg").write_text(plots.svg(picture), encoding="utf-8")
    return pivots


def file_name(title: str) -> str:
    """
    A plot's title as part of a file name.

    >>> file_name("ROC: Rep-4 over training")
    'roc-rep-4-over-training'
    """
    return re.sub(r"\W+", "-", title).strip("-").lower()


def people(results: list[Result], out: Path, ours: str) -> dict[str, Figure]:
    """Writes the rating sheet, unless there is one, and scores rated copies."""
    own = [result for result in results if result.table in ("appropriate", "prompting")]
    if own and not (out / "rating_key.json").is_file():
        stories = min((result.extra["stories"] for result in own), key=len)[:RATED_STORIES]
        same = [result for result in own if result.extra["stories"][: len(stories)] == stories]  # not of other data
        if fills := {row: texts[: len(stories)] for row, texts in to_rate(same, ours)}:
            write_sheet(stories, fills, out)
    return score_sheets(out)


def to_rate(results: list[Result], ours: str):
    """The fills that Table 5 rates: (row, texts) of ours, the base's, and the best zero-shot and five-shot prompt."""
    for wanted in ("left to right", "zero-shot", "five-shot", ""):
        found = [
            (figure.value, f"{result.system}, {figure.way}" if figure.way else result.system, result, figure.way)
            for result in results
            for figure in result.figures
            if figure.measure == "ROUGE-L"
            and (
                result.system == ours
                if wanted == ""
                else System(result.system).kind == "base" and wanted in figure.way
            )
        ]
        if found:
            *_, row, result, way = max(found, key=lambda each: each[0])
            yield row, result.extra["fills"][way]


# ------------------------------------------------------------------------------------------------------------- sections


def section(table: str, found: Pivot, results: list[Result], ours: str) -> dict:
    """The content of a table's section."""
    module, own = table_module(table), [result for result in results if result.table == table]
    rows = [
        [row, *(shown(cells[c]) if c in cells else "" for c in found.columns)] for row, cells in found.cells.items()
    ]
    compared = differences(found, ours, module.COMPARED)
    notes = {
        f"{r.system}: {key}": v
        for r in own
        for key, v in r.extra.items()
        if isinstance(v, (int, str)) or key == "standard deviation"
    }
    notes |= {
        f"{r.system}: {key}": v for r in own for key, v in r.extra.items() if key.endswith("not in the training set")
    }
    return {
        "title": TABLES[table],
        "about": " ".join(module.__doc__.split()),
        "header": ["", *found.columns],
        "rows": rows,
        "paper": papers_rows(module.PAPER, found.columns),
        "differences": [
            [f"{row} : {rival}", *(shown(cells[c]) if c in cells else "" for c in found.columns)]
            for (row, rival), cells in compared.items()
        ],
        "pictures": plots.pictures(table, found, own, ours) if found.cells or own else {},
        "notes": notes,
        "texts": texts_of(own) if table in ("generations", "appropriate", "prompting") else {},
    }


def papers_rows(paper: dict[str, dict[str, float]], columns: list[str]) -> list[list[str]]:
    """The paper's numbers in our columns, also for the average of the sets that we have."""
    rows, averaged = [], [column for column in columns if AVERAGED.fullmatch(column)]
    for name, values in paper.items():
        if len(averaged) > 1 and all(column in values for column in averaged):
            mean = sum(values[column] for column in averaged) / len(averaged)
            values = values | {f"average of {len(averaged)}: Spearman x 100": round(mean, 2)}
        if any(column in values for column in columns):
            rows.append([f"the paper: {name}", *(f"{values[c]:g}" if c in values else "" for c in columns)])
    return rows


def texts_of(results: list[Result], most: int = 8) -> dict[str, dict[str, str]]:
    """What each system generated, by story or prompt."""
    found = {}
    for result in results:
        if "stories" in result.extra:
            shown_stories = result.extra["stories"][:most]
            for number, story in enumerate(shown_stories):
                texts = found.setdefault(f"{story['left']} ____ {story['right']}", {"people": story["gold"]})
                for way, fills in result.extra["fills"].items():
                    texts[f"{result.system}, {way}" if way else result.system] = fills[number]
        for kind in ("fills", "continuations") if "continuations" in result.extra else ():
            for given, written in result.extra[kind].items():
                for way, text in written.items():
                    name = way if way == "people" else f"{result.system}, {way}" if way else result.system
                    found.setdefault(given, {})[name] = text
    return found


def as_json(results, pivots, claims, overlaps, ours: str) -> dict:
    rows = []
    for result in results:
        about = {key: value for key, value in result.about.items() if key != "depends"}
        for figure in result.figures:
            row = {"table": result.table, "system": result.system, "way": figure.way, "data": figure.data}
            row |= {"measure": figure.measure, "value": figure.value, "interval": figure.estimate.interval}
            rows.append(row | {"units": len(figure.columns[0]), "tokens": figure.tokens} | about)
    averages = [
        dict(zip(("table", "system", "way", "data", "measure"), (name, *parts(row, ", "), *parts(column, ": "))))
        | {"value": each.value, "interval": each.interval}
        for name, found in pivots.items()
        for row, cells in found.cells.items()
        for column, each in cells.items()
        if column.startswith(("average", "people"))
    ]
    compared = [
        {"table": name, "row": row, "rival": rival, "column": column, "value": each.value, "interval": each.interval}
        for name, found in pivots.items()
        for (row, rival), cells in differences(found, ours, table_module(name).COMPARED).items()
        for column, each in cells.items()
    ]
    named = [dict(zip(("claim", "verdict", "figures"), claim)) for claim in claims]
    content = {"ours": ours, "figures": rows, "averages": averages, "differences": compared, "claims": named}
    return content | {"found in training text": overlaps or {}}


def parts(name: str, separator: str) -> tuple[str, str]:
    """A row's system and way, or a column's data and measure."""
    first, _, second = name.partition(separator)
    return first, second


# ---------------------------------------------------------------------------------------------------------------- pages

COMPARED = "Paired comparisons with 95 % intervals: ours minus the other; for perplexities, ours over the other."


def pages(sections, claims, left_out, overlaps, results):
    """(title, paragraph, header, rows, section) of each part of the page, in order."""
    yield "Claims", "Decided by 95 % intervals of paired comparisons.", ["claim", "verdict", "figures"], claims, None
    for each in sections:
        yield each["title"], each["about"], each["header"], each["rows"] + each["paper"], each
    if overlaps:
        rows = [(name, str(found), str(of)) for name, (found, of) in overlaps.items()]
        yield "Found in the training text", "", ["data", "sentences found", "sentences"], rows, None
    if left_out:
        yield "Not measured", "", ["table", "reason"], list(left_out.items()), None
    header = ["table", "system", "command", "seed", "commit", "hardware", "date", "seconds"]
    rows = [(r.table, r.system, *(str(r.about.get(key, "")) for key in header[2:])) for r in results]
    versions = results[0].about.get("versions", {}) if results else {}
    told = "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
    yield "How it was measured", told, header, rows, None


def markdown_table(header, rows) -> str:
    """
    A table in Markdown.

    >>> print(markdown_table(["", "a|b"], [["x", "1"]]))
    |  | a\\|b |
    |---|---|
    | x | 1 |
    """
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines.insert(1, None)
    return "\n".join("|---" * len(header) + "|" if row is None else f"| {' | '.join(row)} |" for row in lines)


def as_markdown(sections, claims, left_out, overlaps, results) -> str:
    page = ["# MAGNET: results"]
    for title, paragraph, header, rows, of in pages(sections, claims, left_out, overlaps, results):
        page += [f"## {title}", paragraph]
        page += [markdown_table(header, rows)] if rows else []
        if of:
            page += [COMPARED, markdown_table(of["header"], of["differences"])] if of["differences"] else []
            page += [f"* {key}: {value}" for key, value in of["notes"].items()]
            for given, texts in of["texts"].items():
                page.append(f"> {given}\n" + "".join(f"\n* {name}: {text!r}" for name, text in texts.items()))
    return "\n\n".join(part for part in page if part) + "\n"


def as_html(sections, claims, left_out, overlaps, results, ours: str) -> str:
    page = [f"<!doctype html><html lang=en><meta charset=utf-8><title>MAGNET: results</title><style>{STYLE}</style>"]
    page.append("<meta name=viewport content='width=device-width'><h1>MAGNET: results</h1>")
    for title, paragraph, header, rows, of in pages(sections, claims, left_out, overlaps, results):
        page.append(
            f"<h2>{escape(title)}</h2><p>{escape(paragraph)}</p>{html_table(header, rows, ours) if rows else ''}"
        )
        if not of:
            continue
        if of["differences"]:
            page.append(f"<p class=note>{COMPARED}</p>{html_table(of['header'], of['differences'], '')}")
        page += [
            f"<figure>{svg}<figcaption>{escape(name)}</figcaption></figure>" for name, svg in of["pictures"].items()
        ]
        page += [f"<p class=note>{escape(f'{key}: {value}')}</p>" for key, value in of["notes"].items()]
        for given, texts in of["texts"].items():
            items = "".join(f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in texts.items())
            page.append(f"<details><summary>{escape(given)}</summary><ul>{items}</ul></details>")
    return "\n".join(page) + "</html>\n"


def html_table(header, rows, ours: str) -> str:
    def row(cells, tag):
        name = str(cells[0])
        kind = "ours" if ours and name.split(",")[0] == ours else "paper" if name.startswith("the paper") else ""
        return f"<tr class='{kind}'>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(header, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"
