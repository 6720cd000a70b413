"""Evaluates checkpoints on held-out five-sentence stories, one JSON line each, as `magnet demo` prints them.

python -m magnet_eval.stories --model tests/assets/magnet-tiny --stories examples/assets/everyday-stories
"""

import argparse
import json
from pathlib import Path

from .data import read_graded_pairs, read_stories
from .embedding import encoders, found_their_own
from .scoring import infill_perplexity, sentence_gaps, whole_texts
from .sts import spearman
from .systems import System, is_adapted, load


def infilling_row(model, tokenizer, stories: list[list[str]], every: bool = True) -> dict:
    """Infilling perplexities with their 95 % intervals; hybrid mode only for an adapted model."""
    examples = sentence_gaps(stories, model.config, tokenizer, every)
    layouts = ["causal"] + (["exact"] if is_adapted(model) else [])
    layouts += ["free"] if is_adapted(model) and model.config.infill_end_token_id is not None else []
    figures = {layout: infill_perplexity(model, examples, layout) for layout in layouts}
    row = {"gaps": len(examples), "span_tokens": figures["causal"].tokens}
    for layout, figure in figures.items():
        row[f"infill_{layout}"] = round(figure.value, 2)
        row[f"infill_{layout}_95"] = _rounded(figure.estimate.interval, 2)
    if "exact" in figures:  # the same gaps, so the two are correlated
        ratio = figures["exact"].against(figures["causal"])
        row |= {"exact_over_causal": round(ratio.value, 3), "exact_over_causal_95": _rounded(ratio.interval, 3)}
    whole = whole_texts([" ".join(story) for story in stories], model.config, tokenizer)
    return row | {"causal_ppl": infill_perplexity(model, whole, "causal").value}


def _rounded(interval: list[float] | None, digits: int) -> list[float] | None:
    return interval and [round(end, digits) for end in interval]


def embedding_row(model, tokenizer, folder: str | Path) -> dict:
    """Spearman on the graded pairs and top-1 retrieval; an unadapted model embeds with causal attention."""
    stories = read_stories(Path(folder) / "validation.jsonl")
    pairs = read_graded_pairs(Path(folder) / "sts.tsv")
    both = [[text for story in stories for text in story[key]] for key in ("sentences", "paraphrases")]
    row = {}
    for way, encode in encoders(System("magnet" if is_adapted(model) else "base", model, tokenizer)).items():
        name = {"": "", "last token": "", "mean": "_mean_pooled", "Echo": "_echo"}[way]
        row[f"spearman{name}"] = round(spearman(encode, pairs), 1)
        row[f"top1{name}"] = round(100 * float(found_their_own(encode, *both).mean()), 1)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, help="MAGNET checkpoints and bases")
    parser.add_argument("--stories", required=True, help="folder with validation.jsonl and sts.tsv")
    args = parser.parse_args()
    for path in args.model:
        model, tokenizer = load(path)
        stories = [story["sentences"] for story in read_stories(Path(args.stories) / "validation.jsonl")]
        row = infilling_row(model, tokenizer, stories) | embedding_row(model, tokenizer, args.stories)
        print(json.dumps({"model": path} | row))


if __name__ == "__main__":
    main()
