"""Writes the tables of README.md and docs/results.md from docs/measured, so that no number is typed by hand.

python docs/make_tables.py            # rewrites what stands between <!-- begin NAME --> and <!-- end NAME -->
"""

import json
import re
from pathlib import Path

from magnet_eval.research.tables import TABLES as FREE_LENGTH

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "results.md", DOCS / "infilling.md", DOCS / "scaling.md", DOCS / "check.md")


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


def infilling_measured() -> dict:
    return json.loads((DOCS / "measured" / "infill_speed.json").read_text(encoding="utf-8"))


def infill_speed() -> str:
    rows = infilling_measured()["generate"]
    cells = [[str(row["context"]), *(f"{ratio:.2f}" for ratio in row["ratios"].values())] for row in rows]
    return markdown(["context tokens", *rows[0]["ratios"]], cells)


def infill_ways() -> str:
    """Ways to fill and to score, each in CPU seconds and against the plain way."""
    found = infilling_measured()
    gaps, given = (found[name][0] for name in ("orders", "candidates"))
    groups = [(f"{gaps['gaps']} gaps of {found['span']} tokens", gaps["seconds"], "sequential")]
    groups += [(f"{given['candidates']} candidates of 8 tokens", given["seconds"], "one by one")]
    cells = []
    for what, seconds, plain in groups:
        cells += [[what, way, f"{value:.2f}", f"{seconds[plain] / value:.2f}"] for way, value in seconds.items()]
    header = ["256 tokens of context", "way", "CPU seconds", "times as fast as the plain way"]
    return markdown(header, cells) + f"\n\n{given['per_second']:.0f} candidates a second."


def gap_memory() -> str:
    rows = infilling_measured()["memory"]
    cells = [[row["cache"], str(row["gaps"]), f"{row['formula_mib']:.0f}", f"{row['peak_mib']:.0f}"] for row in rows]
    return markdown(["cache", "gaps", "formula, MiB", "resident peak over the model, MiB"], cells)


def infill_example() -> str:
    """What examples/infill.py printed."""
    printed = (DOCS / "measured" / "infill_example.txt").read_text(encoding="utf-8")
    return f"```\n{printed}```"


def check_example() -> str:
    """What `magnet check examples/assets/magnet-tiny` printed."""
    printed = (DOCS / "measured" / "check.txt").read_text(encoding="utf-8")
    return f"```\n{printed}```"


def train_step() -> str:
    (row,) = read("train_step.jsonl")
    cells = [
        [name, f"{row['seconds'][name]:.2f}", f"{row['peak_mb_over_model'][name]:.0f}"] for name in row["seconds"]
    ]
    ratios = ", ".join(f"{name}: {value:.2f}" for name, value in row["ratios"].items())
    return markdown(["logits", "CPU seconds a step", "peak MB over the model"], cells) + f"\n\n{ratios}."


BASES = {"smollm2": "SmolLM2-135M-Instruct", "gemma": "Gemma-3-270m", "qwen": "Qwen2.5-Coder-0.5B-Instruct"}


def real_families() -> str:
    """What was proved on real weights of three families, and what some steps of training gave."""
    proofs, training = [], []
    for row in read("real_families.jsonl"):
        base, causal, brute, fills = BASES[row["model"]], row["causal"], row["brute_force"], row["infill"]
        equal = [f"{causal['logits']:,} of {causal['logits']:,}", f"{causal['generated']} of {causal['generated']}"]
        worst = [f"{brute['difference']:g} ({brute['tokens']} tokens)"]
        worst += [f"{max(fills['exact'], fills['free']):.0e} ({fills['context']} tokens)"]
        proofs.append([base, *equal, f"{row['pairs_perturbed']:,} of {row['pairs_perturbed']:,}", *worst])
        before, after = row["training"]["before"], row["training"]["after"]
        changes = [f"{before[key]:.2f} → {after[key]:.2f}" for key in ("gaps_exact", "gaps_free", "msg", "mntp")]
        training.append([base, f"{row['training']['left_to_right']:.2f}", *changes])
    header = ["base", "logits equal", "greedy tokens equal", "pairs of tokens as the rule says"]
    first = markdown([*header, "brute-force mask", "fill against one hybrid forward"], proofs)
    header = ["nats a token", "left to right (base)", "given length", "free length + END", "MSG", "MNTP"]
    return first + "\n\n" + markdown(header, training)


def exactness() -> str:
    row = json.loads((DOCS / "measured" / "exactness.json").read_text(encoding="utf-8"))
    killed = row["killed"]
    return markdown(
        ["", "tried", "result"],
        [
            [
                "resumed after a checkpoint",
                f"{row['resumed_runs']} runs of {row['resumed_variants']} kinds",
                f"largest difference of a weight: {row['resumed_largest_difference']:g}",
            ],
            [
                "2 and 4 accumulated batches instead of one",
                f"{row['spread_cases']} kinds of run",
                f"relative difference of the update at most {row['accumulated_largest_difference']:.1e}",
            ],
            [
                "2 processes instead of one, 1 and 2 accumulated batches",
                f"{row['spread_cases']} kinds of run",
                f"relative difference of the update at most {row['processes_largest_difference']:.1e}",
            ],
            [
                "kill -9 at a random moment",
                f"{killed['trials']} runs, {killed['killed']} killed in time, {killed['in a save']} of them in a save",
                f"all {killed['trials']} resumed, weights those of the undisturbed run; the newest folder, which "
                f"transformers would take, was whole {killed['stock folder whole']} times",
            ],
        ],
    )


TABLES = (
    exactness,
    demo,
    stories,
    embedding,
    roc,
    infill_speed,
    infill_ways,
    gap_memory,
    infill_example,
    check_example,
    train_step,
    real_families,
    *FREE_LENGTH,
)


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
