"""The tables of docs/results.md that `free_length` and `length_curve` measured; docs/make_tables.py inserts them."""

import json
from pathlib import Path

MEASURED = Path(__file__).parents[2] / "docs" / "measured"
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


TABLES = (
    free_length,
    free_length_differences,
    free_length_perplexity,
    length_curve,
    length_curve_long,
)
