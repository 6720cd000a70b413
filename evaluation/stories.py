"""Held-out measures of checkpoints on five-sentence stories.

python -m magnet_eval.stories --model examples/assets/magnet-tiny --stories examples/assets/everyday-stories
python -m magnet_eval.stories --model runs/roc --cloze cloze2016_val.tsv
"""

import argparse
import json
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from magnet_hub.trust import check_finite, check_source
from modeling_magnet import FAMILIES

from .embedding import encode_causal, read_graded_pairs, retrieval_top1, sts_spearman
from .infilling import causal_perplexity, infill_perplexity, sentence_gaps


def load(path: str, dtype="float32") -> tuple:
    """A MAGNET checkpoint, or a base as a MAGNET model without adapter, in eval mode; and its tokenizer."""
    check_source(path)
    family = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type.removeprefix("magnet_")
    model = FAMILIES[family].from_pretrained(path, dtype=dtype)
    check_finite(model)
    return model.eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def read_stories(path: str | Path) -> list[dict]:
    """JSONL rows with `sentences` and `paraphrases`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def read_cloze(path: str | Path) -> list[list[str]]:
    """Story Cloze rows `id, 4 sentences, 2 endings, number of the right one`, as five sentences."""
    rows = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [row[1:5] + [row[4 + int(row[7])]] for row in rows]


def is_adapted(model) -> bool:
    """Whether it was trained to attend to the right. A merged checkpoint has its adapter in the weights."""
    return model.config.adapter is not None or model.config.causal_adapter


def layouts_of(model) -> list[str]:
    """The layouts a model supports: an unadapted one only reads left to right."""
    if not is_adapted(model):
        return ["causal"]
    return ["causal", "exact"] + (["free"] if model.config.infill_end_token_id is not None else [])


def infilling_row(model, tokenizer, stories: list[list[str]], every: bool = True) -> dict:
    """Infilling perplexities with their 95 % intervals; hybrid mode only for an adapted model."""
    examples = sentence_gaps(stories, model.config, tokenizer, every)
    measured = {layout: infill_perplexity(model, examples, layout) for layout in layouts_of(model)}
    row = {"gaps": len(examples), "span_tokens": int(measured["causal"].tokens.sum())}
    for layout, perplexity in measured.items():
        low, high = perplexity.interval()
        row[f"infill_{layout}"] = round(perplexity.value, 2)
        row[f"infill_{layout}_95"] = [round(low, 2), round(high, 2)]
    if "exact" in measured:  # the same gaps, so the two are correlated
        low, high = measured["exact"].ratio_interval(measured["causal"])
        row["exact_over_causal"] = round(measured["exact"].value / measured["causal"].value, 3)
        row["exact_over_causal_95"] = [round(low, 3), round(high, 3)]
    return row | {"causal_ppl": causal_perplexity(model, [" ".join(story) for story in stories], tokenizer)}


def embedding_row(model, tokenizer, folder: str | Path) -> dict:
    """Spearman on the graded pairs and top-1 retrieval; an unadapted model embeds with causal attention."""
    if is_adapted(model):
        encoders = {"": lambda texts: model.encode(texts, tokenizer, show_progress_bar=False)}
    else:
        encoders = {
            "": lambda texts: encode_causal(model, texts, tokenizer),
            "_mean_pooled": lambda texts: encode_causal(model, texts, tokenizer, pooling="mean"),
        }
    stories = read_stories(Path(folder) / "validation.jsonl")
    sentences = [sentence for story in stories for sentence in story["sentences"]]
    paraphrases = [sentence for story in stories for sentence in story["paraphrases"]]
    row = {}
    for name, encode in encoders.items():
        row[f"spearman{name}"] = round(sts_spearman(encode, read_graded_pairs(Path(folder) / "sts.tsv")), 1)
        row[f"top1{name}"] = round(retrieval_top1(encode, sentences, paraphrases), 1)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, help="MAGNET checkpoints and bases")
    parser.add_argument("--stories", help="folder with validation.jsonl and sts.tsv")
    parser.add_argument("--cloze", help="Story Cloze file (tab-separated)")
    args = parser.parse_args()
    for path in args.model:
        model, tokenizer = load(path)
        row = {"model": path}
        if args.stories:
            stories = [story["sentences"] for story in read_stories(Path(args.stories) / "validation.jsonl")]
            row |= infilling_row(model, tokenizer, stories) | embedding_row(model, tokenizer, args.stories)
        if args.cloze:
            row |= infilling_row(model, tokenizer, read_cloze(args.cloze))
        print(json.dumps(row))


if __name__ == "__main__":
    main()
