"""The tables of docs/results.md that `free_length` and `length_curve` measured; docs/make_tables.py puts them in."""

import json
from pathlib import Path

MEASURED = Path(__file__).parents[1] / "docs" / "measured"
RULES = {
    "join": "`join`",
    "joint": "`joint`",
    "joint_bonus": "`joint` + 2 nats a token",
    "join_own": "`join` + 0.3 own",
    "end": "`end`",
    "mean_logprob": "`mean_logprob`",
}
GREEDY = {
    "gold": "people",
    "magnet_free": "**MAGNET**, greedy",
    "magnet_gold_length": "MAGNET, told the length, greedy",
    "fim_psm": "FIM-LoRA, PSM, greedy",
    "fim_spm": "FIM-LoRA, SPM, greedy",
    "base": "base, left to right, greedy",
}
SAMPLED = {"magnet": "MAGNET", "fim_psm": "FIM-LoRA, PSM", "fim_spm": "FIM-LoRA, SPM", "base": "base"}
BEST_OF = {f"{key}_n8_{rule}": f"{name}, 8: {text}" for key, name in SAMPLED.items() for rule, text in RULES.items()}
WAYS = {
    "search": "length search",
    "search_sentence": "length search, whole sentences",
    "cut": "one decode, cut",
    "cut_sentence": "one decode, cut at a sentence end",
}
COLUMNS = {
    "finished": "finished %",
    "length": "tokens",
    "length_error": "length error",
    "join_bits_magnet-tiny-base": "join bits, judge 1",
    "join_bits_stories260K": "join bits, judge 2",
    "rouge_l": "ROUGE-L",
    "copied": "copied %",
}
COMPARED = ("length_error", "join_bits_magnet-tiny-base", "join_bits_stories260K", "rouge_l")


def report(name: str) -> dict:
    return json.loads((MEASURED / name).read_text(encoding="utf-8"))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


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
    """Systems that may end a gap, and what people wrote."""
    return measured_rows(report("free_length.json")["systems"], GREEDY | BEST_OF)


def free_length_differences() -> str:
    """MAGNET less fill-in-the-middle, with as many candidates and the same rule."""
    found, rows = report("free_length.json")["differences"], []
    for rule in ("", "_n8_join", "_n8_joint_bonus", "_n8_join_own"):
        system = f"magnet{rule}" if rule else "magnet_free"
        for order in ("psm", "spm"):
            if system in found and f"fim_{order}{rule}" in found[system]:
                label = f"8: {RULES[rule.removeprefix('_n8_')]}" if rule else "greedy"
                values = found[system][f"fim_{order}{rule}"]
                rows.append([f"{label}, less {order.upper()}", *(cell(values[key]) for key in COMPARED)])
    return markdown(["MAGNET", *(COLUMNS[key] for key in COMPARED)], rows)


def free_length_search() -> str:
    """Without the end token."""
    labels = {"magnet_free": "MAGNET with END, greedy"}
    labels |= {name: GREEDY[name] for name in ("magnet_gold_length", "fim_psm", "fim_spm")}
    labels |= {f"magnet_{way}_{rule}": f"{text}: {RULES[rule]}" for way, text in WAYS.items() for rule in RULES}
    return measured_rows(report("free_length.json")["search"]["systems"], labels)


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
    names, rows = ("causal", "exact", "exact, chunks", "free"), []
    for row in report(name)["rows"]:
        cells = [cell(row[name]) if name in row else "-" for name in names]
        ratios = [cell(row[f"{name} / causal"], 3) if name in row else "-" for name in names[1:3]]
        rows.append(["{}-{}".format(*row["bucket"]), *cells, *ratios])
    header = ["tokens", "left to right", "given length", "given length, chunks", "free length + END"]
    return markdown([*header, "given length / left to right", "chunks / left to right"], rows)


def length_curve_long() -> str:
    """The same after `long_spans`."""
    return length_curve("length_curve_long.json")


TABLES = (
    free_length,
    free_length_differences,
    free_length_search,
    free_length_perplexity,
    length_curve,
    length_curve_long,
)
