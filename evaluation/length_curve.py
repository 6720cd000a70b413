"""Infilling perplexity by the length of the gap, on long texts.

python -m magnet_eval.length_curve --model examples/assets/magnet-tiny --texts novels.txt.gz --skip 16000 \\
    --output docs/measured/length_curve.json --plot docs/length_curve.png

Lines of the file behind the first `--skip` are joined to one text and cut into windows; each holds one gap, in its middle,
of a length drawn from a bucket. Ways to score the same tokens:

* `causal`: the base model, from the left;
* `exact`: from both sides, told the length;
* `free`: not told it, paying for the end; only as far as the trained offset reaches;
* `exact, chunks`: `exact`, but after every `--chunk` tokens what is written becomes context, as `infill()` does it.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .fill_metrics import write_report
from .infilling import GapExample, Perplexity, infill_perplexity
from .stories import load

BUCKETS = ((1, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 256), (257, 512))
CONTEXT = 128  # tokens around the gap


def windows_of(ids: list[int], bos: int, bucket: tuple[int, int], count: int, room: int, seed: int = 0):
    """`count` gaps of a bucket's lengths, in windows of at most `room` tokens spread over the text."""
    rng, examples = np.random.default_rng(seed), []
    for number, first in enumerate(np.linspace(0, len(ids) - room, count).astype(int)):
        length = int(rng.integers(bucket[0], bucket[1] + 1))
        window = [bos, *ids[first : first + room - 1]]
        examples.append(GapExample(window, (room - length) // 2, length, number))
    return examples


def chunked(examples: list[GapExample], chunk: int) -> tuple[list[GapExample], np.ndarray]:
    """Each gap as a row of shorter ones: what is left of a chunk is context, what is right of it is missing from the
    row. Returns the rows and how many tokens of each are scored."""
    rows, scored = [], []
    for example in examples:
        for begun in range(0, example.length, chunk):
            rows.append(GapExample(example.ids, example.start + begun, example.length - begun, example.story))
            scored.append(min(chunk, example.length - begun))
    return rows, np.array(scored)


@torch.no_grad()
def chunk_nats(model, rows: list[GapExample], scored: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """Cost of the first `scored` tokens of each gap, exact layout."""
    nats = np.zeros(len(rows))
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        width = max(len(row.ids) for row in some)
        ids, spans, mask = (torch.zeros(len(some), width, dtype=torch.long) for _ in range(3))
        for n, row in enumerate(some):
            ids[n, : len(row.ids)], mask[n, : len(row.ids)] = torch.tensor(row.ids), 1
            spans[n, row.start : row.start + row.length] = 1
        logits = model(ids, attention_mask=mask, span_ids=spans, attention_mode="hybrid", use_cache=False).logits
        for n, row in enumerate(some):
            at = torch.arange(row.start, row.start + int(scored[first + n]))
            logprobs = logits[n, at - 1].float().log_softmax(-1)
            nats[first + n] = -float(logprobs.gather(-1, ids[n, at][:, None]).sum())
    return nats


def chunked_perplexity(model, examples: list[GapExample], chunk: int) -> Perplexity:
    """Exact layout, every `chunk` tokens becoming context of the next."""
    rows, scored = chunked(examples, chunk)
    nats = np.bincount([row.story for row in rows], chunk_nats(model, rows, scored), minlength=len(examples))
    return Perplexity(nats, np.array([e.length for e in examples]), np.arange(len(examples)))


def curve(model, ids: list[int], bos: int, count: int, chunk: int) -> list[dict]:
    """One row a bucket, as far as the model's positions and the text reach."""
    limit = min(model.config.max_position_embeddings, len(ids))
    rows = []
    for bucket in tqdm([b for b in BUCKETS if b[1] <= limit // 2], desc="span lengths"):
        free = [o for o in model.config.infill_free_offsets if o >= bucket[1]]
        room = limit - (max(model.config.infill_free_offsets) if free else 0)
        examples = windows_of(ids, bos, bucket, count, min(room, CONTEXT + bucket[1]))
        measured = {"causal": infill_perplexity(model, examples, "causal", 16)}
        measured["exact"] = infill_perplexity(model, examples, "exact", 16)
        if free:
            measured["free"] = infill_perplexity(model, examples, "free", 16)
        if bucket[1] > chunk:
            measured["exact, chunks"] = chunked_perplexity(model, examples, chunk)
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
    """Perplexity over that of the base, by span length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    labels = ["{}-{}".format(*row["bucket"]) for row in rows]
    for name in ("exact", "exact, chunks", "free"):
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
    parser.add_argument("--chunk", type=int, default=48, help="tokens that become context at once")
    parser.add_argument("--output", required=True, help="JSON to write")
    parser.add_argument("--plot", required=True, help="PNG to write")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    with (gzip.open if args.texts.endswith(".gz") else open)(args.texts, "rt", encoding="utf-8") as lines:
        text = "\n".join(line.strip() for line in list(lines)[args.skip :][:1000])
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    rows = curve(model, ids, tokenizer.bos_token_id, args.count, args.chunk)
    report = {"model": Path(args.model).name, "chunk": args.chunk, "rows": rows}
    write_report(args.output, report)
    plot(rows, args.plot)


if __name__ == "__main__":
    main()
