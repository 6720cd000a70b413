"""Infilling where nobody says how long the gap is: one sentence of each five-sentence story is written anew.

python -m magnet_eval.free_length --model runs/roc --fim runs/roc-fim --base stories3M \\
    --judge examples/assets/magnet-tiny-base stories260K --cloze cloze2016_val.tsv --limit 500 \\
    --output docs/measured/free_length.json

The first `--limit` stories are taken; story n (from 0) misses sentence 2 + n % 3. Every system may write 128 tokens, and
of every fill what the text behind it repeats is cut off. Measures of each fill:

* finished: it ended by itself within the budget (the end token; for the base model also the end of a sentence);
* length error: tokens more or fewer than gold;
* join bits: log2 p(right | left, fill) - log2 p(right | left) under a judge that no system uses;
* ROUGE-L F1 x 100 against gold, and the share of its 5-grams that stand in the text around it.
"""

import argparse
from pathlib import Path

import numpy as np

from . import fills
from .fill_metrics import copy_rate, joined, mean_interval, right_bits, rouge_l, write_report
from .infilling import Perplexity, infill_perplexity, sentence_gaps
from .stories import load, read_cloze

SAMPLES = 8
RULES = ("join", "joint", "joint_bonus", "join_own")
FIM_ROWS = (
    "fim_psm",
    "fim_spm",
    "fim_psm_n8_join",
    "fim_spm_n8_join",
    "fim_psm_n8_joint_bonus",
    "fim_spm_n8_joint_bonus",
    "fim_psm_n8_join_own",
    "fim_spm_n8_join_own",
)


def story_cases(stories: list[list[str]], tokenizer):
    """The gaps as texts and as ids: story n misses sentence 2 + n % 3."""
    missing = [1 + number % 3 for number in range(len(stories))]
    every = sentence_gaps(stories, tokenizer)
    offsets = np.cumsum([0] + [len(story) for story in stories])
    examples = [every[offsets[n] + m] for n, m in enumerate(missing)]
    return fills.cases_of(stories, examples, missing), examples


def magnet_systems(model, tokenizer, cases) -> dict[str, list]:
    """MAGNET with the end token, and given the length: the chosen candidates of each."""
    free = fills.magnet_pools(model, tokenizer, cases)
    exact = fills.magnet_pools(model, tokenizer, cases, length="gold")
    sampled = fills.magnet_pools(model, tokenizer, cases, SAMPLES, **fills.SAMPLING)
    rows = {"magnet_free": (free, None), "magnet_gold_length": (exact, None)}
    rows |= {f"magnet_n8_{rule}": (sampled, rule) for rule in (*RULES, "end", "mean_logprob")}
    return chosen(rows)


def search_systems(model, tokenizer, cases) -> dict[str, list]:
    """MAGNET without the end token: a search over lengths, and one long decode that is cut."""
    searched = fills.search_pools(model, tokenizer, cases)
    cuts = fills.cut_pools(model, tokenizer, cases)
    rows = {}
    for way, pools in (("search", searched), ("cut", cuts)):
        rules = RULES + ("mean_logprob",) * (way == "search")
        rows |= {f"magnet_{way}_{rule}": (pools, rule) for rule in rules}
        ended = fills.at_sentence_end(pools)
        rows |= {f"magnet_{way}_sentence_{rule}": (ended, rule) for rule in RULES}
    return chosen(rows)


def chosen(rows: dict[str, tuple]) -> dict[str, list]:
    return {name: [fills.pick(pool, rule) for pool in pools] for name, (pools, rule) in rows.items()}


def one_way_systems(fim, base, tokenizer, cases) -> dict[str, list]:
    """Fill-in-the-middle in both orders, and the base model, which sees the left side alone."""
    prompts = {
        "fim_psm": (fim, fills.fim_prompts(cases, tokenizer, spm=False), False),
        "fim_spm": (fim, fills.fim_prompts(cases, tokenizer, spm=True), False),
        "base": (base, [case.left_ids for case in cases], True),
    }
    rows = {}
    for name, (model, ids, sentence) in prompts.items():
        greedy = fills.one_way_pools(model, base, tokenizer, cases, ids, sentence=sentence, name=name)
        sampled = fills.one_way_pools(model, base, tokenizer, cases, ids, SAMPLES, sentence, name=f"{name}, sampled")
        rows[name] = [fills.pick(pool, None) for pool in greedy]
        for rule in RULES:
            rows[f"{name}_n8_{rule}"] = [fills.pick(pool, rule) for pool in sampled]
    return rows


def measure(systems: dict[str, list], cases, judges: dict[str, tuple], tokenizer) -> dict[str, dict[str, np.ndarray]]:
    """Each measure of each system, one value a story."""
    alone = {
        name: right_bits(*judge, [(case.left, case.right) for case in cases], name) for name, judge in judges.items()
    }
    measured = {}
    for system, chosen in systems.items():
        pairs = list(zip(cases, chosen))
        lengths = np.array([len(fills.fill_ids(fill.text, case, tokenizer)) for case, fill in pairs])
        row = {
            "finished": np.array([100.0 * fill.finished for fill in chosen]),
            "length": lengths,
            "length_error": abs(lengths - np.array([case.length for case in cases])),
            "rouge_l": np.array([rouge_l(case.gold, fill.text) for case, fill in pairs]),
            "copied": np.array([100 * copy_rate(fill.text, case.left, case.right) for case, fill in pairs]),
        }
        for name, judge in judges.items():
            texts = [(joined(case.left, fill.text), case.right) for case, fill in pairs]
            row[f"join_bits_{name}"] = right_bits(*judge, texts, f"{name}: {system}") - alone[name]
        measured[system] = row
    return measured


def summary(measured: dict[str, dict[str, np.ndarray]]) -> dict:
    """Means with their intervals, and the differences to fill-in-the-middle."""
    systems = {s: {key: mean_interval(values) for key, values in row.items()} for s, row in measured.items()}
    return {"systems": systems, "differences": differences(measured)}


def differences(measured: dict[str, dict[str, np.ndarray]]) -> dict:
    """Of each system to each fill-in-the-middle row, paired by story."""
    return {
        system: {
            other: {key: mean_interval(row[key] - measured[other][key]) for key in row}
            for other in FIM_ROWS
            if other in measured and other != system
        }
        for system, row in measured.items()
    }


def perplexities(model, fim, base, tokenizer, cases, examples) -> dict[str, list[float]]:
    """Of the gold sentence, a check that the models learnt to fill; `_end` pays for ending the gap too (with
    what END's twins have, see `end_twins`)."""
    found = {
        "base_left_to_right": infill_perplexity(base, examples, "causal"),
        "magnet_exact": infill_perplexity(model, examples, "exact"),
        "magnet_free_end": infill_perplexity(model, examples, "free"),
    }
    shared = np.log(len(fills.end_twins(base, tokenizer.eos_token_id)))
    found["magnet_free_end"].nats -= shared
    lengths, stories = (np.array([getattr(example, key) for example in examples]) for key in ("length", "story"))
    for order in ("psm", "spm"):
        for end in (False, True):
            rows = fills.fim_examples(cases, examples, tokenizer, order == "spm", end)
            nats = infill_perplexity(fim, rows, "causal").nats - end * shared
            found[f"fim_{order}" + "_end" * end] = Perplexity(nats, lengths, stories)
    return {name: [round(value, 2) for value in (p.value, *p.interval())] for name, p in found.items()}


def gold_row(cases) -> list:
    """What people wrote, as a system: the ceiling of the measures."""
    return [fills.Candidate(case.gold, True, case.length) for case in cases]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="MAGNET checkpoint that learnt to end gaps")
    parser.add_argument(
        "--fim", required=True, help="fill-in-the-middle control (--fim_ratio 1 --causal_adapter true)"
    )
    parser.add_argument("--base", required=True, help="the model both were trained from")
    parser.add_argument("--judge", nargs="+", required=True, help="Llama models that no system uses")
    parser.add_argument("--cloze", required=True, help="Story Cloze file (tab-separated)")
    parser.add_argument("--limit", type=int, help="first stories only")
    parser.add_argument("--search", type=int, default=100, help="stories of the length search, which costs most")
    parser.add_argument("--output", required=True, help="JSON to write")
    args = parser.parse_args()
    (model, tokenizer), (fim, _), (base, _) = load(args.model), load(args.fim), load(args.base)
    cases, examples = story_cases(read_cloze(args.cloze)[: args.limit], tokenizer)
    systems = {"gold": gold_row(cases)}
    systems |= magnet_systems(model, tokenizer, cases) | one_way_systems(fim, base, tokenizer, cases)
    judges = {Path(path).name: load(path) for path in args.judge}
    measured = measure(systems, cases, judges, tokenizer)
    same = {s: {key: values[: args.search] for key, values in row.items()} for s, row in measured.items()}
    some = cases[: args.search]
    searched = {name: same[name] for name in ("magnet_free", "magnet_gold_length", "fim_psm", "fim_spm")}
    searched |= measure(search_systems(model, tokenizer, some), some, judges, tokenizer)
    report = {
        "models": {name: Path(getattr(args, name)).name for name in ("model", "fim", "base")},
        "stories": len(cases),
        "end_twins": len(fills.end_twins(base, tokenizer.eos_token_id)),
        "perplexity": perplexities(model, fim, base, tokenizer, cases, examples),
        **summary(measured),
        "search": {"stories": args.search, **summary(searched)},
    }
    write_report(args.output, report)
    for part in (report, report["search"]):
        print(f"{part['stories']} stories")
        for system, row in part["systems"].items():
            print(system, {key: value[0] for key, value in row.items()})


if __name__ == "__main__":
    main()
