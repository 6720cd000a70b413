"""Table 9: ablation of the training objectives, from the results of `words` and `sts`.

Name each run after its objectives: `--baseline magnet-mntp=... magnet-sscl-msg=... magnet-all=...`.
"""

import re

TABLES = ("words", "sts")
RUN = r"magnet-(all|(mntp|sscl|msg)(-(mntp|sscl|msg))*)"
MEASURES = ("accuracy %", "Spearman x 100")
COMPARED = ("",)
SETS = ("chunking: accuracy %", "NER: accuracy %", "POS: accuracy %")
SETS += tuple(f"STS{year}: Spearman x 100" for year in range(12, 17))
PAPER = {
    "MNTP": (92.44, 98.11, 93.18),
    "MNTP + MSG": (92.51, 98.20, 93.38),
    "MNTP + SSCL + MSG": (92.64, 98.31, 93.34, 67.98, 84.66, 77.67, 84.17, 79.44),
    "SSCL": (None, None, None, 69.06, 84.53, 78.07, 84.09, 78.52),
    "SSCL + MSG": (None, None, None, 68.46, 84.52, 77.33, 84.35, 79.17),
}
PAPER = {name: {key: value for key, value in zip(SETS, row) if value} for name, row in PAPER.items()}


def rows(results: list) -> list:
    """
    The results of `words` and `sts` of the ablations, as one table.

    Args:
        results (`list[Result]`): Of all tables.
    """
    return [
        (result.system, figure)
        for table in TABLES
        for result in results
        if result.table == table and re.fullmatch(RUN, result.system)
        for figure in result.figures
        if figure.measure in MEASURES and figure.way == ""
    ]
