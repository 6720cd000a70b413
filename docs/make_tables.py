"""Writes the measured tables of README.md and docs/*.md from docs/measured, so that no number is typed by hand.

python docs/make_tables.py            # rewrites what is between <!-- begin NAME --> and <!-- end NAME -->
"""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))


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


def check_example() -> str:
    """What `magnet check tests/assets/magnet-tiny` printed."""
    printed = (DOCS / "measured" / "check.txt").read_text(encoding="utf-8")
    return f"```\n{printed}```"


def llama_cpp() -> str:
    found = json.loads((DOCS / "measured" / "llama_cpp.json").read_text(encoding="utf-8"))
    labels = {
        "f32": "f32",
        "f32_with_the_default_f16_cache": "f32, cache in f16 (llama.cpp's default)",
        "f16": "f16",
        "f32_if_attention_were_causal": "f32, attention forced to causal",
        "f32_without_instruction": "f32, without the instruction",
    }
    cells = []
    for key, label in labels.items():
        row = found[key]
        greedy = f"{row['same_greedy_texts']} of {found['prompts']}" if "same_greedy_texts" in row else "-"
        cells.append([label, greedy, f"{row['largest_difference']:.1e}", f"{row['smallest_cosine']:.6f}"])
    header = ["`--outtype`", "greedy texts equal", "largest difference of an entry", "smallest cosine"]
    told = f"{found['sentences']} sentences; {found['prompts']} prompts, {found['new_tokens']} new tokens."
    return markdown(header, cells) + f"\n\n{told}"


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


# ------------------------------------------------------------------------------ infilling of unknown length

SYSTEMS = {
    "gold": "people",
    "magnet_free": "**MAGNET**, greedy",
    "magnet_gold_length": "MAGNET, told the length, greedy",
    "magnet_search": "MAGNET without END, length search",
    "fim_psm": "FIM-LoRA, PSM, greedy",
    "fim_spm": "FIM-LoRA, SPM, greedy",
    "base": "base, left to right, greedy",
    "magnet_n8": "MAGNET, best of 8",
    "fim_psm_n8": "FIM-LoRA, PSM, best of 8",
    "fim_spm_n8": "FIM-LoRA, SPM, best of 8",
    "base_n8": "base, best of 8",
}
COLUMNS = {
    "finished": "finished %",
    "length": "tokens",
    "length_error": "length error",
    "join_bits_magnet-tiny-base": "join bits, judge 1",
    "join_bits_stories260K": "join bits, judge 2",
    "rouge_l": "ROUGE-L",
}
COMPARED = ("length_error", "join_bits_magnet-tiny-base", "join_bits_stories260K", "rouge_l")


def report(name: str) -> dict:
    return json.loads((DOCS / "measured" / name).read_text(encoding="utf-8"))


def cell(values: list[float], digits: int = 1) -> str:
    """A value and its 95 % interval; "to", because values may be negative."""
    value, low, high = (f"{number:.{digits}f}" for number in values)
    return f"{value} ({low} to {high})"


def measured_rows(systems: dict, labels: dict[str, str]) -> str:
    kept = {name: label for name, label in labels.items() if name in systems}
    rows = [
        [label, f"{systems[name]['finished'][0]:.1f}"] + [cell(systems[name][key]) for key in list(COLUMNS)[1:]]
        for name, label in kept.items()
    ]
    return markdown(["", *COLUMNS.values()], rows)


def free_length() -> str:
    """Human fills and all systems."""
    return measured_rows(report("free_length.json")["systems"], SYSTEMS)


def free_length_differences() -> str:
    """MAGNET minus fill-in-the-middle, with as many candidates and the same rule."""
    found, rows = report("free_length.json")["differences"], []
    for system, others, label in (("magnet_free", "", "greedy"), ("magnet_n8", "_n8", "best of 8")):
        for order in ("psm", "spm"):
            values = found[system][f"fim_{order}{others}"]
            rows.append([f"{label}, less {order.upper()}", *(cell(values[key]) for key in COMPARED)])
    return markdown(["MAGNET", *(COLUMNS[key] for key in COMPARED)], rows)


def free_length_perplexity() -> str:
    labels = {
        "base_left_to_right": "base, left to right",
        "magnet_exact": "MAGNET, told the length",
        "magnet_free_end": "MAGNET, free length + END",
        "fim_psm": "FIM-LoRA, PSM",
        "fim_psm_end": "FIM-LoRA, PSM + END",
        "fim_spm": "FIM-LoRA, SPM",
        "fim_spm_end": "FIM-LoRA, SPM + END",
    }
    found = report("free_length.json")["perplexity"]
    return markdown(["", "perplexity"], [[label, cell(found[name])] for name, label in labels.items()])


def length_curve(name: str = "length_curve.json") -> str:
    """Perplexity by the length of the gap."""
    rows = []
    for row in report(name)["rows"]:
        cells = [cell(row[name]) if name in row else "-" for name in ("causal", "exact", "free")]
        rows.append(["{}-{}".format(*row["bucket"]), *cells, cell(row["exact / causal"], 3)])
    header = ["tokens", "left to right", "given length", "free length + END", "given length / left to right"]
    return markdown(header, rows)


def length_curve_long() -> str:
    """The same after `long_spans`."""
    return length_curve("length_curve_long.json")


FREE_LENGTH = (
    free_length,
    free_length_differences,
    free_length_perplexity,
    length_curve,
    length_curve_long,
)


# ------------------------------------------------------------------------------------------------- all tables


TABLES = (
    exactness,
    demo,
    stories,
    embedding,
    roc,
    infill_speed,
    infill_ways,
    gap_memory,
    llama_cpp,
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
        page = path.read_text(encoding="utf-8")
        if "<!-- begin" in page:
            path.write_text(render(page), encoding="utf-8")
            print(f"written: {path.name}")
