"""The paper's claims, tested with 95 % intervals of paired comparisons."""

import re
from dataclasses import dataclass


@dataclass
class Claim:
    """
    Compares ours with a baseline on every matching column: a difference, or a ratio of perplexities.

    Args:
        text (`str`): The claim.
        table (`str`): The table it is tested on.
        columns (`str`): Regular expression of the columns, `data: measure`.
        way (`str`): The way of our row.
        rival (`str`): Regular expression of the baseline's row; empty tests our own value.
        least, most (`float`, *optional*): Bounds of the whole interval.
    """

    text: str
    table: str
    columns: str
    way: str = ""
    rival: str = ""
    least: float | None = None
    most: float | None = None

    def keeps(self, interval: list[float]) -> bool:
        low, high = interval
        return (self.least is None or low > self.least) and (self.most is None or high < self.most)


SCALE = "cannot be tested at this scale"
CLAIMS = [
    Claim("Words: above the base", "words", ".*", "", "base.*", least=0),
    Claim("Words: above LLM2Vec [MNTP]", "words", ".*", "", "llm2vec-mntp.*", least=0),
    Claim("STS: above the base's last token by at least 15", "sts", "average.*", "", "base.*, last token", least=15),
    Claim("STS: above Echo", "sts", "average.*", "", "base.*, Echo", least=0),
    Claim("STS: above LLM2Vec", "sts", "average.*", "", "llm2vec[^,]*", least=0),
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
    Claim("Fills: ROUGE-L above fill-in-the-middle (ours)", "appropriate", ".*ROUGE-L", "", "fim.*", least=0),
    Claim("Fills: join bits above fill-in-the-middle (ours)", "appropriate", ".*join bits", "", "fim.*", least=0),
    Claim("Repetition: below LLM2Vec", "repetition", ".*", "greedy", "llm2vec.*, greedy", most=0),
    Claim("Causal mode: the base's logits, bit for bit (ours)", "modes", ".*equal to the base.*", "", least=99.999),
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
        row = f"{ours}, {claim.way}" if claim.way else ours
        compared = list(_compared(claim, tables.get(claim.table), row))
        if not compared:
            found.append((claim.text, "not measured", ""))
            continue
        holds = all(estimate.interval is not None and claim.keeps(estimate.interval) for *_, estimate in compared)
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
                if claim.rival and rival != row and re.fullmatch(claim.rival, rival):
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
