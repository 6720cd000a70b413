"""Writes the measured tables of README.md and docs/*.md from docs/measured, so that no number is typed by hand.

python docs/make_tables.py            # rewrites what is between <!-- begin NAME --> and <!-- end NAME -->
"""

import functools
import json
import re
from pathlib import Path

from magnet_eval import plots
from magnet_eval.run import TABLES as EVALUATED
from magnet_eval.run import table_module

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))


def read(name: str) -> list[dict]:
    """The rows of a file in docs/measured (JSON lines)."""
    return [json.loads(line) for line in (DOCS / "measured" / name).read_text(encoding="utf-8").splitlines()]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def infilling_measured() -> dict:
    return json.loads((DOCS / "measured" / "infill_speed.json").read_text(encoding="utf-8"))


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


# ---------------------------------------------------------------------------------------- the paper's tables, evaluated

STUDIES = {
    "smollm2": "results.json",
    "smollm2_1_7b": "results_smollm2_1_7b.json",
    "llama2_7b": "results_llama2_7b.json",
}
BESIDE = {  # our systems, the paper's rows, and the ways that the paper has
    "base": ("Llama-2-7B", ("", "last token", "left to right", "greedy")),
    "llm2vec": ("LLM2Vec", ("", "greedy")),
    "magnet": ("MAGNET", ("", "given length", "greedy")),
}
GENERATED = ("repetition", "knowledge")  # in causal mode, where the paper's model has its adapter on: magnet-paper's
UNMEASURED = "Not measured yet."


def results(study: str = "smollm2") -> dict:
    """What `magnet evaluate` wrote to `results.json`; empty before it was measured."""
    path = DOCS / "measured" / STUDIES[study]
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def estimate(row: dict) -> str:
    digits = 2 if abs(row["value"]) >= 1 else 3
    value = f"{row['value']:.{digits}f}"
    return f"{value} ({' to '.join(f'{end:.{digits}f}' for end in row['interval'])})" if row["interval"] else value


def row_name(row: dict) -> str:
    return f"{row['system']}, {row['way']}" if row["way"] else row["system"]


def evaluated(table: str) -> str:
    """All systems in a table, without the curves by length."""
    content = results()
    rows = [row for row in [*content["figures"], *content["averages"]] if row["table"] == table] if content else []
    rows = [row for row in rows if "gaps of" not in row["measure"]]
    if not rows:
        return UNMEASURED
    columns = list(dict.fromkeys(f"{row['data']}: {row['measure']}" for row in rows))
    cells = {(row_name(row), f"{row['data']}: {row['measure']}"): estimate(row) for row in rows}
    names = list(dict.fromkeys(map(row_name, rows)))
    return markdown(["", *columns], [[name, *(cells.get((name, column), "") for column in columns)] for name in names])


def beside_the_paper(study: str) -> str:
    """The paper's numbers of Llama-2-7B, and beside them what was measured here, if anything."""
    content, rows = results(study), []
    if not content and study != "smollm2":  # the paper's numbers stand in the first
        return UNMEASURED
    measured = {
        (row["table"], row["system"], row["way"], f"{row['data']}: {row['measure']}"): estimate(row)
        for row in content.get("figures", [])
    }
    for table in EVALUATED:
        paper = table_module(table).PAPER
        chosen = [next((paper[name] for name in paper if name.startswith(start)), {}) for start, _ in BESIDE.values()]
        for column in dict.fromkeys(column for values in chosen for column in values):
            theirs = [f"{values[column]:g}" if column in values else "" for values in chosen]
            ours = []
            for system, (_, ways) in BESIDE.items():
                system = "magnet-paper" if system == "magnet" and table in GENERATED else system
                ours.append(
                    next((measured[key] for way in ways if (key := (table, system, way, column)) in measured), "")
                )
            rows.append([f"`{table}`", column, *theirs, *ours])
    header = ["", "", *(f"paper: {name}" for name, _ in BESIDE.values()), *(f"here: {name}" for name in BESIDE)]
    return markdown(header, rows)


def claims() -> str:
    rows = [[row["claim"], row["verdict"], row["figures"]] for row in results().get("claims", [])]
    return markdown(["claim", "verdict", "figures"], rows) if rows else UNMEASURED


def contamination() -> str:
    found = results().get("found in training text", {})
    rows = [[name, str(seen), str(of)] for name, (seen, of) in found.items()]
    return markdown(["test set", "sentences found in the training text", "sentences"], rows) if rows else UNMEASURED


def readme_result() -> str:
    """Two tables, and the overview picture once all rivals were evaluated."""
    content = results()
    if not content:
        return ""
    found, parts = {}, []
    if plots.overview(content):
        parts.append(
            "![Infilling, embedding and generation of the base, LLM2Vec, FIM-LoRA and MAGNET](docs/overview.svg)"
        )
    for row in [*content["averages"], *content["figures"]]:
        if row["measure"] in ("perplexity", "perplexity, right side", "Spearman x 100"):
            found.setdefault(row_name(row), {})[row["data"]] = f"{row['value']:.1f}"
    for title, names in SHOWN.items():
        sets = list(dict.fromkeys(data for name in names for data in found.get(name, {})))
        rows = [[told, *(found[name].get(data, "") for data in sets)] for name, told in names.items() if name in found]
        parts.append(markdown([title, *sets], rows))
    return "\n\n".join(parts)


SHOWN = {  # README's tables
    "Perplexity of what is missing": {
        "magnet, left to right": "the base, from the left side alone",
        "causal, left to right": "the base trained on the same texts, from the left side alone",
        "magnet, given length": "MAGNET, from both sides, given its length",
        "magnet, free length + END": "MAGNET, from both sides, and where it ends",
        "fim, PSM, free length + END": "fill-in-the-middle, trained on the same texts, and where it ends",
        "magnet, another's": "MAGNET, with the right side of another text",
    },
    "Similarity of sentences, Spearman x 100": {
        "lexical TF-IDF words": "TF-IDF",
        "lexical TF-IDF characters": "TF-IDF of characters",
        "llm2vec, own prompt": "LLM2Vec (MNTP, SimCSE), the same base, texts and rank",
        "magnet, own prompt": "MAGNET",
    },
}


PAPERS = {f"table_{name}": functools.partial(evaluated, name) for name in EVALUATED}
PAPERS |= {f"study_{name}": functools.partial(beside_the_paper, name) for name in STUDIES}


# ------------------------------------------------------------------------------------------------- all tables


TABLES = (
    exactness,
    infill_ways,
    gap_memory,
    llama_cpp,
    check_example,
    real_families,
    claims,
    contamination,
    readme_result,
)
BLOCKS = {table.__name__: table for table in TABLES} | PAPERS


def render(page: str) -> str:
    """The page with every table made anew."""
    for name, table in BLOCKS.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin in page:
            text = table()
            block = "\n".join([begin, text, end] if text else [begin, end])
            page = re.sub(f"{begin}.*?{end}", lambda _, block=block: block, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    if results() and (picture := plots.overview(results())):
        (DOCS / "overview.svg").write_text(plots.svg(picture), encoding="utf-8")
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if "<!-- begin" in page:
            path.write_text(render(page), encoding="utf-8")
            print(f"written: {path.name}")
