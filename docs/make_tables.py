"""Writes the tables of README.md and docs/results.md from docs/measured, so that no number is typed by hand.

python docs/make_tables.py            # rewrites what stands between <!-- begin NAME --> and <!-- end NAME -->
"""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "results.md")


def read(name: str) -> list[dict]:
    """The rows of a file in docs/measured (JSON lines)."""
    return [json.loads(line) for line in (DOCS / "measured" / name).read_text(encoding="utf-8").splitlines()]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def demo() -> str:
    """The demo's own table."""
    from magnet_train.demo import table

    return table(json.loads((DOCS / "measured" / "demo.json").read_text(encoding="utf-8")))


def with_interval(row: dict, key: str) -> str:
    if key not in row:
        return "-"
    low, high = row[f"{key}_95"]
    return f"{row[key]:.1f} ({low:.1f}-{high:.1f})"


def infilling(name: str, labels: dict[str, str]) -> str:
    rows = [
        [labels[Path(row["model"]).name]]
        + [with_interval(row, f"infill_{layout}") for layout in ("causal", "exact", "free")]
        + [f"{row['causal_ppl']:.2f}"]
        for row in read(name)
    ]
    header = ["", "left to right", "given length", "free length + END", "causal ppl of whole stories"]
    return markdown(header, rows)


def ratio(name: str) -> str:
    row = read(name)[-1]
    low, high = row["exact_over_causal_95"]
    return (
        f"On the same gaps, given the length, MAGNET's perplexity is {row['exact_over_causal']:.3f} of the base's "
        f"(95 % interval of the paired ratio {low:.3f}-{high:.3f})."
    )


def stories() -> str:
    labels = {
        "magnet-tiny-base": "base",
        "magnet-tiny-control": "causal-LM LoRA control",
        "magnet-tiny": "**magnet-tiny**",
    }
    return infilling("stories.jsonl", labels) + "\n\n" + ratio("stories.jsonl")


def roc() -> str:
    labels = {"stories3M": "base", "roc-control": "causal-LM LoRA control", "roc": "**MAGNET**"}
    return infilling("roc.jsonl", labels) + "\n\n" + ratio("roc.jsonl")


def embedding() -> str:
    base, *_, tiny = read("stories.jsonl")
    rows = [
        ["base, last token, causal", base["spearman"], base["top1"]],
        ["base, mean of tokens, causal", base["spearman_mean_pooled"], base["top1_mean_pooled"]],
        ["**magnet-tiny**", tiny["spearman"], tiny["top1"]],
    ]
    return markdown(["", "Spearman x 100", "top-1 retrieval %"], [[a, f"{b:.1f}", f"{c:.1f}"] for a, b, c in rows])


def infill_speed() -> str:
    rows = [
        [str(row["context"]), *(f"{ratio:.2f}" for ratio in row["ratios"].values())]
        for row in read("infill_speed.jsonl")
    ]
    return markdown(["context tokens", *read("infill_speed.jsonl")[0]["ratios"]], rows)


def train_step() -> str:
    (row,) = read("train_step.jsonl")
    cells = [
        [name, f"{row['seconds'][name]:.2f}", f"{row['peak_mb_over_model'][name]:.0f}"] for name in row["seconds"]
    ]
    ratios = ", ".join(f"{name}: {value:.2f}" for name, value in row["ratios"].items())
    return markdown(["logits", "CPU seconds a step", "peak MB over the model"], cells) + f"\n\n{ratios}."


TABLES = (demo, stories, embedding, roc, infill_speed, train_step)


def render(page: str) -> str:
    """The page with every table made anew."""
    for table in TABLES:
        begin, end = f"<!-- begin {table.__name__} -->", f"<!-- end {table.__name__} -->"
        if begin in page:
            page = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{table()}\n{end}", page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"written: {path.name}")
