"""The paper's claims, tested with 95 % intervals of paired comparisons."""

import math
import re
from dataclasses import dataclass

from .systems import System


@dataclass
class Claim:
    """
    Compares ours with a baseline on every matching column: a difference, or a ratio of perplexities. The whole interval must
    be within the bounds; without a baseline, the value itself.

    Args:
        text (`str`): The claim.
        table (`str`): The table it is tested on.
        columns (`str`): Regular expression of the columns, `data: measure`.
        way (`str`): The way of our row.
        system (`str`): The system of our row; empty for the report's own.
        rival (`str`): Regular expression of the baseline's row; empty tests our own value.
        least, most (`float`, *optional*): Bounds.
    """

    text: str
    table: str
    columns: str
    way: str = ""
    rival: str = ""
    least: float | None = None
    most: float | None = None
    system: str = ""

    def keeps(self, estimate) -> bool:
        low, high = (estimate.interval or (-math.inf, math.inf)) if self.rival else (estimate.value, estimate.value)
        return (self.least is None or low > self.least) and (self.most is None or high < self.most)


SAME = 1e-9
SCALE = "cannot be tested at this scale"
CLAIMS = [
    Claim("Words: above the base", "words", ".*", "", "base.*", least=0),
    Claim("Words: above LLM2Vec [MNTP]", "words", ".*", "", "llm2vec-mntp.*", least=0),
    Claim("STS: above the base's last token by at least 15", "sts", "average.*", "", "base.*, last token", least=15),
    Claim(
        "STS: above the base's mean, Echo, PromptEOL", "sts", "average.*", "", "base.*, (mean|Echo|PromptEOL)", least=0
    ),
    Claim("STS: above causal + contrastive (ours)", "sts", "average.*", "", "causal-contrastive.*", least=0),
    Claim("STS: above LLM2Vec", "sts", "average.*", "", "llm2vec[^,]*", least=0),
    Claim(
        "STS: each with its own prompt, above LLM2Vec (ours)",
        "sts",
        "average.*",
        "own prompt",
        "llm2vec.*own prompt",
        least=0,
    ),
    Claim("STS: above a bag of words (ours)", "sts", "average.*", "", "lexical.*", least=0),
    Claim("Clustering: above LLM2Vec", "clustering", ".*", "", "llm2vec[^,]*", least=0),
    Claim(
        "Infilling: given the length, at most 0.88 of the causal control's perplexity",
        "infill",
        "(?!.*gaps of).*: perplexity",
        "given length",
        "causal.*, left to right",
        most=0.88,
    ),
    Claim(
        "Infilling: free length with END, at most 0.95 of the same (ours)",
        "infill",
        "(?!.*gaps of).*: perplexity",
        "free length + END",
        "causal.*, left to right",
        most=0.95,
    ),
    Claim(
        "Infilling: own right context, at most 0.80 of another story's (ours)",
        "infill",
        ".*right side",
        "own",
        "magnet[^,]*, another's",
        most=0.8,
    ),
    Claim(
        "Infilling: own right context, below none (ours)", "infill", ".*right side", "own", "magnet[^,]*, none", most=1
    ),
    Claim("Fills: at least 99 % finished (ours)", "appropriate", ".*finished %", "", least=99),
    Claim(
        "Fills: ROUGE-L above fill-in-the-middle (ours)", "appropriate", ".*ROUGE-L", "", "fim.*, (PSM|SPM)", least=0
    ),
    Claim(
        "Fills: join bits above fill-in-the-middle (ours)",
        "appropriate",
        ".*join bits",
        "",
        "fim.*, (PSM|SPM)",
        least=0,
    ),
    Claim("Repetition: below LLM2Vec", "repetition", ".*", "greedy", "llm2vec[^,]*, greedy", most=0),
    Claim(
        "Repetition with the adapter on in causal mode, as in the paper: below LLM2Vec",
        "repetition",
        ".*",
        "greedy",
        "llm2vec[^,]*, greedy",
        most=0,
        system="magnet-paper",
    ),
    Claim("Causal mode: the base's logits, bit for bit (ours)", "modes", ".*equal to the base.*", "", least=99.999),
    Claim(
        "Causal mode: the base's perplexity (ours)",
        "infill",
        ".*perplexity of whole texts.*",
        "whole texts",
        "base, whole texts",
        least=1 - SAME,
        most=1 + SAME,
    ),
    Claim(
        "Causal mode: the base's repetition (ours)",
        "repetition",
        ".*",
        "greedy",
        "base, greedy",
        least=-SAME,
        most=SAME,
    ),
    Claim("Causal mode: the base's answers (ours)", "knowledge", ".*", "", "base", least=-SAME, most=SAME),
]
UNTESTABLE = {
    "BBH, MMLU, NaturalQuestions: unchanged": f"{SCALE}: a base this small is at chance level",
    "People prefer the fills (Table 5)": f"{SCALE}: needs raters; the report has the rating sheet",
}


def verdicts(tables: dict, ours: str) -> list[tuple[str, str, str]]:
    """
    (claim, verdict, values) of each claim.

    Args:
        tables (`dict[str, Pivot]`): By name.
        ours (`str`): The name of the system that the claims are about.
    """
    found = []
    for claim in CLAIMS:
        name = claim.system or ours
        row = f"{name}, {claim.way}" if claim.way else name
        compared = list(_compared(claim, tables.get(claim.table), row))
        if not compared:
            found.append((claim.text, "not measured", ""))
            continue
        holds = all(claim.keeps(estimate) for *_, estimate in compared)
        told = "; ".join(f"{column}, {rival or 'itself'}: {shown(estimate)}" for column, rival, estimate in compared)
        found.append((claim.text, "confirmed at this scale" if holds else "not confirmed", told))
    return found + [(text, why.split(":")[0], why.split(": ")[1]) for text, why in UNTESTABLE.items()]


def _compared(claim, pivot, row):
    """(column, baseline, estimate) of each comparison in a claim."""
    for column in pivot.columns if pivot else ():
        if row in pivot.cells and column in pivot.cells[row] and re.fullmatch(claim.columns, column):
            if not claim.rival:
                yield column, "", pivot.cells[row][column]
            for rival in pivot.cells:
                if not claim.rival or rival == row or not re.fullmatch(claim.rival, rival):
                    continue
                if System(rival.split(",")[0]).step is None:  # a point of a curve is no rival
                    if (estimate := pivot.compared(row, rival, column)) is not None:
                        yield column, rival, estimate


def shown(estimate) -> str:
    """
    A value and its interval.

    >>> from magnet_eval.figures import Figure
    >>> shown(Figure("a", "b", "ratio_of_sums", [[1.0], [1]]).estimate)
    '1.00'
    """
    digits = 2 if abs(estimate.value) >= 1 else 3
    if estimate.interval is None:
        return f"{estimate.value:.{digits}f}"
    low, high = estimate.interval
    return f"{estimate.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
