"""Turns ROC stories (tab-separated: id, five sentences) into training texts, one story per line.

python examples/prepare_roc.py roc_spring2016.tsv runs/roc-data/texts.txt
"""

import sys
from pathlib import Path


def main(source: str, target: str) -> None:
    rows = [line.split("\t")[1:6] for line in Path(source).read_text(encoding="utf-8").splitlines()]
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text("".join(" ".join(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} stories -> {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
