"""Infilling gaps of unknown length: one sentence of each five-sentence story is rewritten.

python -m magnet_eval.research.free_length --model runs/roc --fim runs/roc-fim --base stories3M \\
    --judge examples/assets/magnet-tiny-base stories260K --cloze cloze2016_val.tsv --limit 500 \\
    --output docs/measured/free_length.json

Uses the first `--limit` stories; story n (from 0) misses sentence 2 + n % 3. Every system may write 64 tokens, and
what the right context repeats is cut off each fill. `_n8`: of 8 samples, the one after which the text continues best
under the base (`infill(num_candidates=8)`, and the same for the others). Measures of each fill:

* finished: it ended within the budget (the end token; for the base model also the end of a sentence);
* length error: absolute difference from gold in tokens;
* join bits: log2 p(right | left, fill) - log2 p(right | left) under a judge that no system uses;
* ROUGE-L F1 x 100 against gold.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from magnet_train.fim import fim_markers, fim_row
from modeling_magnet import Gap
from modeling_magnet.encoding_magnet import start_ids
from modeling_magnet.infilling_magnet import Document, cut_at, fill_ids, fill_text, overlap

from ..infilling import GapExample, Perplexity, infill_perplexity, sentence_gaps
from ..stories import load, read_cloze
from .measures import mean_interval, right_bits, rouge_l, write_report

MOST = 64  # tokens of a fill
SAMPLES = 8
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}
SENTENCE = Gap(stop="sentence")


@dataclass
class Case:
    """A story without one sentence: texts, and the same gap as token ids."""

    left: str
    gold: str
    right: str
    example: GapExample

    @property
    def document(self) -> Document:
        return Document([f"{self.left} ", f" {self.right}"], [Gap()])

    @property
    def left_ids(self) -> list[int]:
        return self.example.ids[: self.example.start]

    @property
    def right_ids(self) -> list[int]:
        return self.example.ids[self.example.start + self.example.length :]


@dataclass
class Fill:
    text: str
    finished: bool


def story_cases(stories: list[list[str]], config, tokenizer) -> list[Case]:
    """Story n misses sentence 2 + n % 3, so there is text on both sides."""
    cases = []
    for number, sentences in enumerate(stories):
        m = 1 + number % 3
        examples = sentence_gaps([sentences], config, tokenizer)
        example = examples[m - len(sentences)]  # without a start token, the first sentence has none
        example.story = number
        cases.append(Case(" ".join(sentences[:m]), sentences[m], " ".join(sentences[m + 1 :]), example))
    return cases


# ------------------------------------------------------------------------------------------------------------ MAGNET


def magnet_fills(model, tokenizer, cases: list[Case], told_length: bool = False, **settings) -> list[Fill]:
    """Fills by `infill()`."""
    torch.manual_seed(0)
    lengths = [case.example.length if told_length else "auto" for case in cases]
    inputs = [[f"{case.left} ", Gap(length), f" {case.right}"] for case, length in zip(cases, lengths)]
    fills = []
    for first in tqdm(range(0, len(inputs), 100), desc="MAGNET"):
        some = inputs[first : first + 100]
        outputs = model.infill(some, tokenizer, max_new_tokens=MOST, return_dict=True, batch_size=128, **settings)
        fills += [Fill(o.gaps[0].text.strip(), o.gaps[0].finish_reason != "max_tokens") for o in outputs]
    return fills


def searched_fills(model, tokenizer, cases: list[Case]) -> list[Fill]:
    """Fills as by a checkpoint not trained to end gaps, which tries several lengths."""
    end, model.config.infill_end_token_id = model.config.infill_end_token_id, None
    try:
        return magnet_fills(model, tokenizer, cases)
    finally:
        model.config.infill_end_token_id = end


# -------------------------------------------------------------------------------------------- left-to-right models


class SentenceEnds(StoppingCriteria):
    """Stops a row once it has ended a sentence; the cut comes later."""

    def __init__(self, tokenizer, prompt: int):
        self.tokenizer, self.prompt = tokenizer, prompt

    def __call__(self, input_ids, scores, **kwargs):
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        done = [cut_at(text.lstrip(), SENTENCE) is not None for text in texts]
        return torch.tensor(done, device=input_ids.device)


@torch.no_grad()
def written_rows(
    model, tokenizer, prompts, count=1, sentence=False, batch_size=128, name=None
) -> list[list[list[int]]]:
    """Ids that stock `generate()` writes after prompts: `count` samples each, or the greedy row."""
    found, end = [None] * len(prompts), tokenizer.eos_token_id
    barred = sorted(set(tokenizer.all_special_ids) - {end})
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    torch.manual_seed(0)
    size = max(1, batch_size // count)
    for first in tqdm(range(0, len(order), size), desc=name, disable=name is None):
        chosen = order[first : first + size]
        length = max(len(prompts[i]) for i in chosen)
        pads = [length - len(prompts[i]) for i in chosen]
        ids = torch.tensor([[end] * pad + prompts[i] for pad, i in zip(pads, chosen)], device=model.device)
        mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in pads], device=model.device)
        rows = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=MOST,
            eos_token_id=end,
            pad_token_id=end,
            suppress_tokens=barred or None,
            stopping_criteria=StoppingCriteriaList([SentenceEnds(tokenizer, length)] if sentence else []),
            num_return_sequences=count,
            **(SAMPLING if count > 1 else {"do_sample": False}),
        )[:, length:].tolist()
        for n, i in enumerate(chosen):
            found[i] = rows[n * count : (n + 1) * count]
    return found


def one_way_fills(model, base, tokenizer, cases, prompts, count=1, sentence=False, name=None) -> list[Fill]:
    """Fills of a left-to-right model after prompts; of several, the best by the rule of `infill()`."""
    rows = written_rows(model, tokenizer, prompts, count, sentence, name=name)
    pools = [[one_way_fill(row, case, tokenizer, sentence) for row in many] for case, many in zip(cases, rows)]
    if count == 1:
        return [pool[0] for pool in pools]
    return [best(pool, case, base, tokenizer) for case, pool in zip(tqdm(cases, desc="join scores"), pools)]


def one_way_fill(row: list[int], case: Case, tokenizer, sentence: bool) -> Fill:
    end = tokenizer.eos_token_id
    ids = row[: row.index(end)] if end in row else row
    text = fill_text(ids, case.document, 0, tokenizer).strip()
    text = text[: len(text) - overlap(text, case.right)].strip()
    cut = cut_at(f"{text} ", SENTENCE) if sentence else None
    return Fill(text if cut is None else text[:cut], end in row or cut is not None)


def best(pool: list[Fill], case: Case, base, tokenizer) -> Fill:
    """Unfinished fills are chosen only if none finished."""

    def join_score(fill: Fill) -> float:
        return base.score_infill(f"{case.left} <|gap|> {case.right}", [fill.text], tokenizer).gaps[0].join_score

    return max([fill for fill in pool if fill.finished] or pool, key=join_score)


def fim_row_of(case: Case, opening: list[int], middle: list[int], tokenizer, spm: bool) -> tuple[list[int], int]:
    """A story in fill-in-the-middle order, and where its middle starts."""
    left = case.left_ids[len(opening) :]
    bos = opening[0] if opening else None
    row, start = fim_row(left, middle, case.right_ids, fim_markers(tokenizer), bos, tokenizer.eos_token_id, spm)
    return row.tolist(), start


# ---------------------------------------------------------------------------------------------------------- measuring


def magnet_systems(model, tokenizer, cases) -> dict[str, list[Fill]]:
    """MAGNET with the end token, greedy and best of samples, and given the length."""
    return {
        "magnet_free": magnet_fills(model, tokenizer, cases),
        "magnet_gold_length": magnet_fills(model, tokenizer, cases, told_length=True),
        "magnet_n8": magnet_fills(model, tokenizer, cases, num_candidates=SAMPLES, **SAMPLING),
    }


def one_way_systems(fim, base, tokenizer, cases) -> dict[str, list[Fill]]:
    """Fill-in-the-middle in both orders, and the base model, which only sees the left side."""
    opening = start_ids(base.config, tokenizer)
    systems = {"base": (base, [case.left_ids for case in cases], True)}
    for order in ("psm", "spm"):
        rows = [fim_row_of(case, opening, [], tokenizer, order == "spm") for case in cases]
        systems[f"fim_{order}"] = (fim, [row[:start] for row, start in rows], False)
    fills = {}
    for name, (model, prompts, sentence) in systems.items():
        fills[name] = one_way_fills(model, base, tokenizer, cases, prompts, 1, sentence, name)
        fills[f"{name}_n8"] = one_way_fills(model, base, tokenizer, cases, prompts, SAMPLES, sentence, f"{name}, 8")
    return fills


def measure(
    systems: dict[str, list[Fill]], cases, judges: dict[str, tuple], tokenizer
) -> dict[str, dict[str, np.ndarray]]:
    """Each measure of each system, one value per story."""
    alone = {
        name: right_bits(*judge, [(case.left, case.right) for case in cases], name) for name, judge in judges.items()
    }
    measured = {}
    for system, fills in systems.items():
        pairs = list(zip(cases, fills))
        lengths = np.array([len(fill_ids(fill.text, case.document, 0, tokenizer)) for case, fill in pairs])
        row = {
            "finished": np.array([100.0 * fill.finished for fill in fills]),
            "length": lengths,
            "length_error": abs(lengths - np.array([case.example.length for case in cases])),
            "rouge_l": np.array([rouge_l(case.gold, fill.text) for case, fill in pairs]),
        }
        for name, judge in judges.items():
            texts = [(f"{case.left} {fill.text}".strip(), case.right) for case, fill in pairs]
            row[f"join_bits_{name}"] = right_bits(*judge, texts, f"{name}: {system}") - alone[name]
        measured[system] = row
    return measured


def summary(measured: dict[str, dict[str, np.ndarray]]) -> dict:
    """Means with their intervals, and the differences from fill-in-the-middle, paired by story."""
    systems = {s: {key: mean_interval(values) for key, values in row.items()} for s, row in measured.items()}
    differences = {
        system: {
            other: {key: mean_interval(row[key] - measured[other][key]) for key in row}
            for other in measured
            if other.startswith("fim_") and other != system
        }
        for system, row in measured.items()
    }
    return {"systems": systems, "differences": differences}


def perplexities(model, fim, base, tokenizer, cases) -> dict[str, list[float]]:
    """Perplexities of the gold sentence, to check that the models learnt to fill; `_end` includes ending the gap."""
    examples, opening = [case.example for case in cases], start_ids(base.config, tokenizer)
    found = {
        "base_left_to_right": infill_perplexity(base, examples, "causal"),
        "magnet_exact": infill_perplexity(model, examples, "exact"),
        "magnet_free_end": infill_perplexity(model, examples, "free"),
    }
    plain = found["base_left_to_right"]
    for order in ("psm", "spm"):
        for end in (False, True):
            rows = []
            for case, each in zip(cases, examples):
                gold = each.ids[each.start : each.start + each.length]
                row, start = fim_row_of(case, opening, gold, tokenizer, order == "spm")
                rows.append(GapExample(row, [(start, each.length + end)], each.story))
            nats = infill_perplexity(fim, rows, "causal").nats  # the sentence's tokens share the end's cost, as above
            found[f"fim_{order}" + "_end" * end] = Perplexity(nats, plain.tokens, plain.stories)
    return {name: [round(value, 2) for value in (p.value, *p.interval())] for name, p in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="MAGNET checkpoint that learnt to end gaps")
    parser.add_argument(
        "--fim", required=True, help="fill-in-the-middle control (--fim_ratio 1 --causal_adapter true)"
    )
    parser.add_argument("--base", required=True, help="the model both were trained from")
    parser.add_argument("--judge", nargs="+", required=True, help="models that no system uses")
    parser.add_argument("--cloze", required=True, help="Story Cloze file (tab-separated)")
    parser.add_argument("--limit", type=int, help="first stories only")
    parser.add_argument("--output", required=True, help="JSON to write")
    args = parser.parse_args()
    (model, tokenizer), (fim, _), (base, _) = load(args.model), load(args.fim), load(args.base)
    cases = story_cases(read_cloze(args.cloze)[: args.limit], model.config, tokenizer)
    systems = {"gold": [Fill(case.gold, True) for case in cases]} | magnet_systems(model, tokenizer, cases)
    systems |= {"magnet_search": searched_fills(model, tokenizer, cases)}
    systems |= one_way_systems(fim, base, tokenizer, cases)
    judges = {Path(path).name: load(path) for path in args.judge}
    report = {
        "models": {name: Path(getattr(args, name)).name for name in ("model", "fim", "base")},
        "stories": len(cases),
        "perplexity": perplexities(model, fim, base, tokenizer, cases),
        **summary(measure(systems, cases, judges, tokenizer)),
    }
    write_report(args.output, report)
    for system, row in report["systems"].items():
        print(system, {key: value[0] for key, value in row.items()})


if __name__ == "__main__":
    main()
