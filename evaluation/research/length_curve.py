"""Infilling perplexity by the length of the gap, on long texts.

python -m magnet_eval.research.length_curve --model examples/assets/magnet-tiny --texts novels.txt.gz --skip 16000 \\
    --output docs/measured/length_curve.json --plot docs/length_curve.png

Lines of the file after the first `--skip` are joined into one text and cut into windows, each with one gap in its
middle, of a length drawn from a bucket. Ways to score the same tokens:

* `causal`: the base model, left to right;
* `exact`: from both sides, length given;
* `free`: length unknown, end scored too; only up to the trained offset.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from modeling_magnet.encoding_magnet import start_ids, text_ids

from ..infilling import GapExample, infill_perplexity
from ..stories import load
from .measures import write_report

BUCKETS = ((1, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 256), (257, 512))
CONTEXT = 128  # tokens around the gap


def windows_of(ids: list[int], opening: list[int], bucket: tuple[int, int], count: int, room: int, seed: int = 0):
    """`count` gaps of a bucket's lengths, in windows of at most `room` tokens spread over the text."""
    rng, examples = np.random.default_rng(seed), []
    for number, first in enumerate(np.linspace(0, len(ids) - room, count).astype(int)):
        length = int(rng.integers(bucket[0], bucket[1] + 1))
        window = opening + ids[first : first + room - len(opening)]
        examples.append(GapExample(window, [((room - length) // 2, length)], number))
    return examples


def curve(model, ids: list[int], opening: list[int], count: int) -> list[dict]:
    """One row per bucket, as far as the model's positions and the text reach."""
    limit = min(model.config.max_position_embeddings, len(ids))
    rows = []
    for bucket in tqdm([b for b in BUCKETS if b[1] <= limit // 2], desc="span lengths"):
        free = [o for o in model.config.infill_free_offsets if o >= bucket[1]]
        room = limit - (max(model.config.infill_free_offsets) if free else 0)
        examples = windows_of(ids, opening, bucket, count, min(room, CONTEXT + bucket[1]))
        measured = {"causal": infill_perplexity(model, examples, "causal", 16)}
        measured["exact"] = infill_perplexity(model, examples, "exact", 16)
        if free:
            measured["free"] = infill_perplexity(model, examples, "free", 16)
        row = {"bucket": list(bucket), "gaps": count}
        for name, perplexity in measured.items():
            row[name] = [round(value, 2) for value in (perplexity.value, *perplexity.interval())]
            if name != "causal":
                low, high = perplexity.ratio_interval(measured["causal"])
                row[f"{name} / causal"] = [
                    round(value, 3) for value in (perplexity.value / measured["causal"].value, low, high)
                ]
        rows.append(row)
    return rows


def plot(rows: list[dict], path: str) -> None:
    """Plots perplexity relative to the base, by span length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    labels = ["{}-{}".format(*row["bucket"]) for row in rows]
    for name in ("exact", "free"):
        kept = [(label, row[f"{name} / causal"]) for label, row in zip(labels, rows) if name in row]
        values = np.array([value for _, value in kept])
        bars = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
        axes.errorbar([label for label, _ in kept], values[:, 0], yerr=bars, marker="o", capsize=3, label=name)
    axes.axhline(1, color="grey", linewidth=1)
    axes.set(xlabel="tokens of the gap", ylabel="perplexity / left to right", yscale="log")
    axes.set_yticks([0.8, 1, 1.5, 2, 4, 8, 16], labels=["0.8", "1", "1.5", "2", "4", "8", "16"])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="MAGNET checkpoint")
    parser.add_argument("--texts", required=True, help="one passage a line; .gz is read too")
    parser.add_argument("--skip", type=int, default=0, help="lines that the model may have seen")
    parser.add_argument("--count", type=int, default=100, help="gaps of each bucket")
    parser.add_argument("--output", required=True, help="JSON to write")
    parser.add_argument("--plot", required=True, help="PNG to write")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    with (gzip.open if args.texts.endswith(".gz") else open)(args.texts, "rt", encoding="utf-8") as lines:
        text = "\n".join(line.strip() for line in list(lines)[args.skip :][:1000])
    rows = curve(model, text_ids(text, tokenizer), start_ids(model.config, tokenizer), args.count)
    write_report(args.output, {"model": Path(args.model).name, "rows": rows})
    plot(rows, args.plot)


if __name__ == "__main__":
    main()
