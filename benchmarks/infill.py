"""infill() against generate(), full recomputation, diffusion and fill-in-the-middle; its ways to fill, score and store.

    python benchmarks/infill.py --parts candidates memory     # `make bench` measures the others

CPU seconds of one thread. A random Llama and texts of random words; times include tokenization, reading the context and
decoding. Updates docs/measured/infill_speed.json.
"""

import argparse
import json
import random

import torch
from common import ROOT, compared, in_a_fork, load_tokenizer, magnet, peak_mib, random_llama, row, show, side_by_side

from magnet_train.fim import fim_markers
from modeling_magnet import Gap

OUT = ROOT / "docs" / "measured" / "infill_speed.json"
PARTS = ("generate", "adapter", "orders", "rivals", "candidates", "memory")
SPAN = 32


def words(count: int, tokenizer, seed: int = 0) -> str:
    """A text of `count` tokens: words that are one token each in any context (other letters are several bytes)."""
    tokens = [token for token in tokenizer.get_vocab() if token[:1] == "Ġ" and token.removeprefix("Ġ").isalpha()]
    whole = sorted(token[1:] for token in tokens if token[1:].isascii())
    return "".join(" " + word for word in random.Random(seed).choices(whole, k=count))


def with_gaps(size: int, gaps: int, span: int, tokenizer) -> list:
    """A text of about `size` tokens with `gaps` gaps of `span` tokens: texts and [`Gap`]s in turn, as infill() takes them."""
    pieces = [words(size // (gaps + 1), tokenizer, n) for n in range(gaps + 1)]
    return [pieces[0]] + [part for piece in pieces[1:] for part in (Gap(length=span), piece)]


class Case:
    """A context of `size` tokens with a gap of `span` tokens in its middle, and the ways to fill it."""

    def __init__(self, size: int, tokenizer, span: int = SPAN):
        self.span, self.tokenizer = span, tokenizer
        left, right = (words(n, tokenizer, n) for n in (size // 2 - 1, size - size // 2))
        self.text = f"{left}<|gap|>{right}"
        self.left = [tokenizer.bos_token_id, *tokenizer(left, add_special_tokens=False)["input_ids"]]
        self.right = tokenizer(right, add_special_tokens=False)["input_ids"]
        assert len(self.left + self.right) == size

    def infill(self, model) -> str:
        return model.infill(self.text, self.tokenizer, length=self.span)

    def generate(self, model):
        return self._continued(model, self.left + self.right)

    def fim(self, model):
        """Prefix, suffix, middle, with MAGNET's adapter off or absent: a causal model sees both sides first."""
        markers = fim_markers(self.tokenizer)
        parts = (self.left[:1], markers.prefix, self.left[1:], markers.suffix, self.right, markers.middle)
        return self._continued(model, sum(parts, []))

    def _continued(self, model, ids: list[int]):
        options = {"max_new_tokens": self.span, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        prompt = torch.tensor([ids])
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)

    @torch.no_grad()
    def naive(self, model) -> list[int]:
        """Recomputes the whole text with the hybrid mask for every token; logits only at the needed position."""
        n, ids = len(self.left), torch.tensor([self.left + [0] * self.span + self.right])
        span_ids = torch.zeros_like(ids)
        span_ids[0, n : n + self.span] = 1
        for t in range(self.span):
            options = {"attention_mode": "hybrid", "span_ids": span_ids, "logits_to_keep": torch.tensor([n + t - 1])}
            logits = model(ids, **options).logits[0, 0]
            logits[self.tokenizer.all_special_ids] = -torch.inf
            ids[0, n + t] = logits.argmax()
        return ids[0, n : n + self.span].tolist()

    @torch.no_grad()
    def diffusion(self, model) -> list[int]:
        """A canvas of fixed length: in each of `span` steps the most certain masked token is decided."""
        n, mask = len(self.left), model.config.mask_token_id
        ids, is_open = torch.tensor([self.left + [mask] * self.span + self.right]), torch.ones(self.span, dtype=bool)
        for _ in range(self.span):
            keep = torch.arange(n - 1, n - 1 + self.span)  # MNTP predicts a token at the one to its left
            logits = model(ids, attention_mode="bidirectional", logits_to_keep=keep).logits[0]
            logits[:, [*self.tokenizer.all_special_ids, mask]] = -torch.inf
            certain, token = logits.softmax(-1).max(-1)
            at = int(certain.masked_fill(~is_open, -1).argmax())
            ids[0, n + at], is_open[at] = token[at], False
        return ids[0, n : n + self.span].tolist()


def best(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: min(each) for name, each in seconds.items()}


def against_generate(llama, model, tokenizer, size: int, span: int, repeats: int) -> dict:
    case, short = Case(size, tokenizer, span), Case(size, tokenizer, 1)
    calls = {
        "generate": lambda: case.generate(llama),
        "infill": lambda: case.infill(model),
        "generate_1": lambda: short.generate(llama),
        "infill_1": lambda: short.infill(model),
    }
    rounds = side_by_side(calls, repeats)
    for name in ("infill", "generate"):
        rounds[f"{name}_further"] = [whole - first for whole, first in zip(rounds[name], rounds[f"{name}_1"])]
    return {"context": size, "rounds": rounds}


def with_adapter(model, adapted, tokenizer, size: int, span: int, repeats: int) -> dict:
    """The same fill with LoRA on all projections, unmerged, and without."""
    case = Case(size, tokenizer, span)
    calls = {"merged": lambda: case.infill(model), "unmerged": lambda: case.infill(adapted)}
    return {"context": size, "rounds": side_by_side(calls, repeats)}


def orders(model, tokenizer, size: int, span: int, gaps: int, repeats: int) -> dict:
    """Several gaps: all at once, and one after another."""
    parts = with_gaps(size, gaps, span, tokenizer)
    calls = {
        "parallel": lambda: model.infill(parts, tokenizer, order="parallel"),
        "sequential": lambda: model.infill(parts, tokenizer),
    }
    rounds = side_by_side(calls, repeats)
    return {"gaps": gaps, "context": size, "seconds": best(rounds), "rounds": rounds}


def rivals(model, tokenizer, size: int, span: int, repeats: int) -> dict:
    """Other ways to fill the gap with the same weights."""
    case, written = Case(size, tokenizer, span), {}
    slow = {
        "infill": lambda: case.infill(model),
        "diffusion": lambda: case.diffusion(model),
        "naive": lambda: written.update(naive=case.naive(model)),
    }
    like_ours = {"infill": lambda: case.infill(model), "fim": lambda: case.fim(model)}
    rounds = {"like ours": side_by_side(like_ours, 2 * repeats), "slow": side_by_side(slow, 1, warm_up=False)}
    output = model.infill(case.text, tokenizer, length=span, return_dict=True)
    assert output.gaps[0].token_ids == written["naive"], "infill and re-forwarding disagree"
    return {"context": size, "seconds": best(rounds["slow"] | rounds["like ours"]), "rounds": rounds}


def candidates(model, tokenizer, size: int, count: int, repeats: int) -> dict:
    """Ranks `candidates=[...]` of 8 tokens each: all at once, and with one call of score_infill() each."""
    left, right = words(size // 2, tokenizer, 1), words(size // 2, tokenizer, 2)
    given = [words(8, tokenizer, 100 + n) for n in range(count)]
    text = f"{left}<|gap|>{right}"
    calls = {
        "together": lambda: model.infill([left, Gap(candidates=given), right], tokenizer),
        "one by one": lambda: [model.score_infill(text, [fill], tokenizer) for fill in given],
    }
    seconds = best(side_by_side(calls, repeats))
    return {"context": size, "candidates": count, "seconds": seconds, "per_second": count / seconds["together"]}


def gap_memory(llama, tokenizer, size: int, span: int, gaps: int, cache: str) -> dict:
    """Resident peak of a parallel call over the model, and the formula of docs/infill.md."""
    model, parts = magnet(llama, 16), with_gaps(size, gaps, span, tokenizer)

    def build():
        model.infill(["A", Gap(length=2), " b"], tokenizer)  # one-time allocations
        return lambda: model.infill(parts, tokenizer, order="parallel", cache_implementation=cache)

    config = model.config
    context = 1 + sum(len(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in parts[::2])
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    formula = per_token * (gaps * (context + span) + context) / 2**20
    return {"gaps": gaps, "context": context, "cache": cache, "peak_mib": peak_mib(build), "formula_mib": formula}


def measured(parts, layers: int, hidden: int, contexts: list[int], span: int, repeats: int) -> dict:
    """What infill_speed.json holds of these parts."""
    tokenizer, llama = load_tokenizer(), random_llama(layers, hidden)
    plain, adapted = magnet(llama, None), magnet(llama, 16)
    middle, longest = min(256, max(contexts)), max(contexts)
    steps = {
        # differences of a few per cent need more rounds than the others, of many times
        "generate": lambda: [against_generate(llama, plain, tokenizer, size, span, 3 * repeats) for size in contexts],
        "adapter": lambda: [with_adapter(plain, adapted, tokenizer, middle, span, 2 * repeats)],
        "orders": lambda: [orders(plain, tokenizer, middle, span, 4, repeats)],
        "rivals": lambda: [rivals(plain, tokenizer, middle, span, repeats)],
        "candidates": lambda: [candidates(plain, tokenizer, middle, 32, repeats)],
        "memory": lambda: [
            gap_memory(llama, tokenizer, longest, span, gaps, cache)
            for cache in ("dynamic", "static")
            for gaps in (1, 4, 16)
        ],
    }
    found = {"layers": layers, "hidden": hidden, "vocabulary": 32000, "span": span, "torch": torch.__version__}
    return found | {name: steps[name]() for name in parts}


def rows(found: dict) -> list[dict]:
    model = f"{found['layers']} layers of {found['hidden']}, float32; {found['span']} tokens"
    answers = []
    for case in found["generate"]:
        shape, rounds = f"{model}, context {case['context']}", case["rounds"]
        how = "time: infill() / generate() of the stock model on as long a prompt, "
        whole, further = compared(rounds, "infill", "generate"), compared(rounds, "infill_further", "generate_further")
        answers.append(row("infilling", shape, how + "whole call", *whole, "<= 1.05"))
        answers.append(row("infilling", shape, how + "each further token", *further, "<= 1.05"))
    (gaps,), (others,), (fill,) = found["orders"], found["rivals"], found["adapter"]
    shape, how = f"{model}, context {fill['context']}", "time: infill() with LoRA r = 16 unmerged / merged"
    answers.append(row("infilling", shape, how, *compared(fill["rounds"], "unmerged", "merged"), None))
    shape = f"{model} a gap, context {gaps['context']}"
    how = f"time: {gaps['gaps']} gaps, order=sequential / parallel"
    answers.append(row("several gaps", shape, how, *compared(gaps["rounds"], "sequential", "parallel"), ">= 2.0"))
    shape = f"{model}, context {others['context']}"
    for kind, name, told, least in (
        ("slow", "naive", "re-forwarding the text for each token", ">= 4"),
        ("slow", "diffusion", "diffusion on a canvas of fixed length, as many steps as tokens", ">= 4.5"),
        ("like ours", "fim", "fill-in-the-middle prompt and generate(), same weights", ">= 1.0"),
    ):
        ratio = compared(others["rounds"][kind], name, "infill")
        answers.append(row("other ways to fill", shape, f"time: {told} / infill()", *ratio, least))
    return answers


def save(found: dict) -> None:
    before = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    OUT.write_text(json.dumps(before | found, indent=1) + "\n", encoding="utf-8")


def main(layers=8, hidden=512, contexts=(64, 256, 1024), span=SPAN, repeats=2, keep=True) -> list[dict]:
    found = in_a_fork(measured, PARTS[:4], layers, hidden, contexts, span, repeats)
    if keep:
        save(found)
    return rows(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure anew")
    args = parser.parse_args()
    save(measured(args.parts, 8, 512, [64, 256, 1024], SPAN, repeats=5))
    show(rows(json.loads(OUT.read_text(encoding="utf-8"))))
