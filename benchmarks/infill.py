"""Compares infill() with generate() and with full recomputation, and its ways to fill and score with each other.

    OMP_NUM_THREADS=1 python benchmarks/infill.py

CPU seconds of one thread, the best of several alternating runs. A random Llama and texts of random words; times
include tokenization, reading the context and decoding. Writes docs/measured/infill_speed.json.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from common import magnet, random_llama, side_by_side
from tqdm import tqdm
from train_step import memory as process_memory
from transformers import AutoTokenizer

from modeling_magnet import Gap

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "measured" / "infill_speed.json"
PARTS = ("generate", "orders", "candidates", "memory")
SPAN = 32


def words(count: int, tokenizer, seed: int = 0) -> str:
    """A text of `count` tokens: words that are one token each in any context."""
    whole = sorted(token[1:] for token in tokenizer.get_vocab() if token[:1] == "Ġ" and token[1:].isalpha())
    return "".join(" " + word for word in random.Random(seed).choices(whole, k=count))


class Case:
    """A context of `size` tokens with a gap of `span` tokens in its middle."""

    def __init__(self, size: int, tokenizer, span: int = SPAN):
        self.span = span
        left, right = (words(n, tokenizer, n) for n in (size // 2 - 1, size - size // 2))
        self.text, self.tokenizer = f"{left}<|gap|>{right}", tokenizer
        self.left = [tokenizer.bos_token_id, *tokenizer(left, add_special_tokens=False)["input_ids"]]
        self.right = tokenizer(right, add_special_tokens=False)["input_ids"]
        self.prompt = torch.tensor([self.left + self.right])
        assert self.prompt.shape[1] == size

    def infill(self, model, **arguments) -> list[int]:
        output = model.infill(
            self.text, self.tokenizer, length=self.span, return_dict=True, join_tokens=1, **arguments
        )
        return output.gaps[0].token_ids

    def generate(self, model):
        options = {"max_new_tokens": self.span, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        return model.generate(self.prompt, attention_mask=torch.ones_like(self.prompt), **options)

    def text_of(self, model, **arguments) -> str:
        return model.infill(self.text, self.tokenizer, length=self.span, **arguments)

    @torch.no_grad()
    def naive(self, model) -> list[int]:
        """Recomputes the whole text with the hybrid mask for every token; logits only at the needed position."""
        n = len(self.left)
        ids = torch.tensor([self.left + [0] * SPAN + self.right])
        span_ids = torch.zeros_like(ids)
        span_ids[0, n : n + SPAN] = 1
        for t in range(SPAN):
            options = {"attention_mode": "hybrid", "span_ids": span_ids, "logits_to_keep": torch.tensor([n + t - 1])}
            logits = model(ids, **options).logits[0, 0]
            logits[self.tokenizer.all_special_ids] = -torch.inf
            ids[0, n + t] = logits.argmax()
        return ids[0, n : n + SPAN].tolist()


def against_generate(models, tokenizer, size: int, repeats: int) -> dict:
    llama, plain, adapted, always = models
    case, short = Case(size, tokenizer), Case(size, tokenizer, span=1)
    assert case.infill(adapted) == case.naive(adapted), "infill and re-forwarding disagree"
    calls = {
        "generate": lambda: case.generate(llama),
        "infill": lambda: case.text_of(plain),
        "generate_lora": lambda: case.generate(always),
        "infill_lora": lambda: case.text_of(adapted),
        "generate_1": lambda: short.generate(llama),
        "infill_1": lambda: short.text_of(plain),
    }
    seconds = side_by_side(calls, repeats) | side_by_side({"naive": lambda: case.naive(plain)}, 1)
    ratios = {
        "infill / generate": seconds["infill"] / seconds["generate"],
        "each further token": (seconds["infill"] - seconds["infill_1"])
        / (seconds["generate"] - seconds["generate_1"]),
        "both with LoRA": seconds["infill_lora"] / seconds["generate_lora"],
        "infill with LoRA / generate without": seconds["infill_lora"] / seconds["generate"],
        "naive / infill": seconds["naive"] / seconds["infill"],
    }
    return {"context": size, "seconds": seconds, "ratios": ratios}


def orders(model, tokenizer, size: int, gaps: int, repeats: int) -> dict:
    """K gaps of SPAN tokens: all at once, one after another, and one call each."""
    pieces = [words(size // (gaps + 1), tokenizer, n) for n in range(gaps + 1)]
    parts = [pieces[0]] + [part for piece in pieces[1:] for part in (Gap(length=SPAN), piece)]
    lefts = ["".join(pieces[: n + 1]) for n in range(gaps)]
    rights = ["".join(pieces[n + 1 :]) for n in range(gaps)]
    calls = {
        "parallel": lambda: model.infill(parts, tokenizer, order="parallel"),
        "sequential": lambda: model.infill(parts, tokenizer),
        "a call each": lambda: [model.infill([a, Gap(length=SPAN), b], tokenizer) for a, b in zip(lefts, rights)],
        "one gap": lambda: model.infill([lefts[0], Gap(length=SPAN), rights[0]], tokenizer),
    }
    seconds = side_by_side(calls, repeats)
    return {"gaps": gaps, "context": size, "seconds": seconds}


def candidates(model, tokenizer, size: int, count: int, repeats: int) -> dict:
    """Ranks `candidates=[...]` of 8 tokens each: all at once, and with one call of score_infill() each."""
    left, right = words(size // 2, tokenizer, 1), words(size // 2, tokenizer, 2)
    given = [words(8, tokenizer, 100 + n) for n in range(count)]
    text = f"{left}<|gap|>{right}"
    calls = {
        "together": lambda: model.infill([left, Gap(candidates=given), right], tokenizer),
        "one by one": lambda: [model.score_infill(text, [fill], tokenizer) for fill in given],
    }
    seconds = side_by_side(calls, repeats)
    return {"context": size, "candidates": count, "seconds": seconds, "per_second": count / seconds["together"]}


def gap_memory(gaps: int, size: int, cache: str) -> dict:
    """Resident peak of a parallel call over the model, and the formula of docs/infill.md; needs its own process."""
    tokenizer, model = load_tokenizer(), magnet(random_llama(), 16)
    pieces = [words(size // (gaps + 1), tokenizer, n) for n in range(gaps + 1)]
    parts = [pieces[0]] + [part for piece in pieces[1:] for part in (Gap(length=SPAN), piece)]
    model.infill(["A", Gap(length=2), " b"], tokenizer)  # one-time allocations
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    before = process_memory("VmRSS")
    model.infill(parts, tokenizer, order="parallel", cache_implementation=cache)
    peak = process_memory("VmHWM") - before
    config = model.config
    context = 1 + sum(len(tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces)
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    formula = per_token * (gaps * (context + SPAN) + context) / 2**20
    return {"gaps": gaps, "context": context, "cache": cache, "peak_mib": peak, "formula_mib": formula}


def load_tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "tests" / "assets" / "magnet-tiny-base", trust_remote_code=False)


def in_a_process(gaps: int, size: int, cache: str) -> dict:
    command = [sys.executable, __file__, "--gap_memory", str(gaps), str(size), cache]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure anew")
    parser.add_argument("--gap_memory", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.gap_memory:
        gaps, size, cache = args.gap_memory
        print(json.dumps(gap_memory(int(gaps), int(size), cache)))
        return
    tokenizer, llama = load_tokenizer(), random_llama()
    plain, adapted, always = magnet(llama, None), magnet(llama, 16), magnet(llama, 16)
    always.config.causal_adapter = True
    models = (llama, plain, adapted, always)
    steps = {
        "generate": [
            (lambda size=size: against_generate(models, tokenizer, size, args.repeats)) for size in args.contexts
        ],
        "orders": [lambda: orders(plain, tokenizer, 256, 4, args.repeats)],
        "candidates": [lambda: candidates(plain, tokenizer, 256, 32, args.repeats)],
        "memory": [
            (lambda gaps=gaps, cache=cache: in_a_process(gaps, 1024, cache))
            for cache in ("dynamic", "static")
            for gaps in (1, 4, 16)
        ],
    }
    found = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    found |= {"layers": 8, "hidden": 512, "vocabulary": 32000, "span": SPAN, "torch": torch.__version__}
    with tqdm(total=sum(len(steps[name]) for name in args.parts)) as bar:
        for name in args.parts:
            found[name] = []
            for run in steps[name]:
                found[name].append(run())
                bar.write(json.dumps({name: found[name][-1]}))
                bar.update()
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
