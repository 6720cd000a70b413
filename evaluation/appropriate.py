"""Table 5: whether fills of a missing sentence suit their story: automatic metrics, and a blind rating sheet.

Each story lacks one of its middle sentences. Every system generates up to 64 tokens, greedily, and its fill is cut after the
first sentence; not so *own end*, of systems that end a gap themselves, and *given length*. Metrics of each fill:

* finished: it ended within the budget, with its end token or with a sentence, and is not empty;
* length error: absolute difference from the gold sentence in tokens;
* join bits: log2 p(right | left, fill) - log2 p(right | left) under `--judge`, a model that no system uses;
* ROUGE-L F1 x 100 against the gold sentence;
* copied: it repeats another sentence of the story.

The report writes the fills of the first 100 stories to `rating_sheet.csv` (and .html), in random order and without system
names: people's, MAGNET's, the base's, and the zero-shot and five-shot prompts of highest ROUGE-L. Raters enter 1 or 0 in the
last column; a rated copy named `rated*.csv` in the report folder is scored by the next run.
"""

import csv
import functools
import json
import random
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from modeling_magnet.infilling_magnet import fill_ids

from .data import STORIES, Settings, folded
from .figures import Figure, means
from .scoring import right_bits
from .systems import System
from .writing import Case, Fill, cases_of, fills_of

FILES = STORIES
KINDS = ("magnet", "base", "causal", "fim")
COMPARED = ("", "given length")
MOST_STORIES, RATED_STORIES = 500, 100
PAPER = {
    name: {"people: appropriate %": value}
    for name, value in (("Llama-2-7B, left to right", 53.5), ("zero-shot", 5.5), ("five-shot", 54.5), ("MAGNET", 62.0))
}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """The automatic metrics of each way to fill, and the fills."""
    found, texts = [], {}
    cases = cases_of(system, settings, MOST_STORIES)
    joins = join_bits(cases, settings.judge)
    for way, fills in fills_of(system, cases, settings).items():
        found += stand_ins(cases, fills, way, system.tokenizer, joins)
        texts[way] = [each.text for each in fills]
    stories = [{"left": case.left, "right": case.right, "gold": case.gold} for case in cases]
    return found, {"stories": stories, "fills": texts}


def join_bits(cases: list[Case], judge: System | None) -> Callable[[list[Fill]], np.ndarray] | None:
    """The join bits of fills, a function of one fill per case, which judges no text twice."""
    if judge is None:
        return None

    known = {}  # most fills are the same with and without their cut

    def judged(befores):  # (cases,)
        texts = [(before, case.right) for before, case in zip(befores, cases)]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, right_bits(judge.model, judge.tokenizer, new)))
        return np.array([known[text] for text in texts])

    alone = judged([case.left for case in cases])
    return lambda fills: judged([f"{case.left} {fill.text}".strip() for case, fill in zip(cases, fills)]) - alone


def stand_ins(cases: list[Case], fills: list[Fill], way: str, tokenizer, joins=None) -> list[Figure]:
    """The automatic metrics, one value per story."""
    pairs = list(zip(cases, fills))
    lengths = [len(fill_ids(fill.text, case.document, 0, tokenizer)) for case, fill in pairs]
    around = [{folded(s) for n, s in enumerate(case.sentences) if n != case.missing} for case in cases]
    values = {
        "finished %": [100.0 * (fill.finished and fill.text != "") for fill in fills],
        "tokens": lengths,
        "length error": [abs(n - case.example.length) for n, case in zip(lengths, cases)],
        "ROUGE-L": [rouge_l(case.gold, fill.text) for case, fill in pairs],
        "copied %": [100.0 * (folded(fill.text) in texts) for fill, texts in zip(fills, around)],
    }
    if joins is not None:
        values["join bits"] = joins(fills)
    return means("fills", values, way)


@functools.cache
def _scorer():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError("appropriate: needs rouge-score. Run pip install 'magnet-llm[eval]'.") from None
    return RougeScorer(["rougeL"])


def rouge_l(gold: str, fill: str) -> float:
    """ROUGE-L F1, times 100."""
    return 100 * _scorer().score(gold, fill)["rougeL"].fmeasure


# -------------------------------------------------------------------------------------------------------- human ratings


def write_sheet(stories: list[dict], fills: dict[str, list[str]], folder: Path, seed: int = 0) -> None:
    """
    Writes `rating_sheet.csv`, `rating_sheet.html` and, for scoring, `rating_key.json`.

    Args:
        stories (`list[dict]`): `left`, `right` and `gold` of each.
        fills (`dict[str, list[str]]`): One fill per story of each system; the gold sentences are added as "people".
        folder (`Path`): Output folder.
    """
    fills = {"people": [story["gold"] for story in stories]} | fills
    items = [(number, system, texts[number]) for system, texts in fills.items() for number in range(len(stories))]
    random.Random(seed).shuffle(items)
    key = [{"item": n, "story": story, "system": system} for n, (story, system, _) in enumerate(items, start=1)]
    (folder / "rating_key.json").write_text(json.dumps(key) + "\n", encoding="utf-8")
    with (folder / "rating_sheet.csv").open("w", encoding="utf-8", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["item", "before", "sentence to judge", "after", "appropriate (1 or 0)"])
        for n, (story, _, text) in enumerate(items, start=1):
            sheet.writerow([n, stories[story]["left"], text, stories[story]["right"], ""])
    told = "<p>Does the marked sentence suit the story? Enter 1 or 0 in rating_sheet.csv.</p>"
    rows = "".join(
        f"<li>{escape(stories[story]['left'])} <mark>{escape(text)}</mark> {escape(stories[story]['right'])}</li>"
        for story, _, text in items
    )
    page = f"<!doctype html><meta charset=utf-8><title>Rating sheet</title>{told}<ol>{rows}</ol>"
    (folder / "rating_sheet.html").write_text(page, encoding="utf-8")


def score_sheets(folder: Path) -> dict[str, Figure]:
    """
    The percentage of each system's fills that raters found appropriate, from `rated*.csv` in a folder. Ratings are averaged
    by story; stories are resampled.

    Raises:
        `ValueError` for a rating that is neither 1 nor 0, or an item that the key does not have.
    """
    sheets = sorted(folder.glob("rated*.csv"))
    key = json.loads((folder / "rating_key.json").read_text(encoding="utf-8")) if sheets else []
    ratings = {row["item"]: [] for row in key}
    for path in sheets:
        with path.open(encoding="utf-8", newline="") as file:
            for number, (item, *_, rating) in enumerate(list(csv.reader(file))[1:], start=2):
                if rating.strip() not in ("0", "1") or not item.isdigit() or int(item) not in ratings:
                    raise ValueError(
                        f"{path}:{number}: item {item!r} is rated {rating!r}; must be 1 or 0, for an item of the sheet."
                    )
                ratings[int(item)].append(100.0 * int(rating))
    systems = {}
    for row in key:
        if ratings[row["item"]]:
            systems.setdefault(row["system"], {})[row["story"]] = np.mean(ratings[row["item"]])
    return {
        system: means("people", {"appropriate %": [by_story[n] for n in sorted(by_story)]})[0]
        for system, by_story in systems.items()
    }
