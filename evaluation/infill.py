"""Table 4: perplexity of the missing tokens, compared with left-to-right systems and trivial rivals.

    python -m magnet_eval.infill --model runs/magnet --baseline runs/base runs/clm_control \\
        --stories examples/assets/everyday-stories/validation.jsonl --cloze cloze2016_val.tsv \\
        --wikitext wiki.valid.raw --documents wiki.txt.gz --skip 20700 --output infill.json

Each sentence of a story is left out in turn. Documents are cut into passages of whole sentences, each with up to three
missing spans of 8 to 32 tokens (section 4.3). Every system predicts the same tokens; intervals are over stories and
documents. `free + END` adds the cost of ending the gap to the same tokens. *Another's right side* and *no right side*
use the layout of given lengths: their extra cost is what the right side's content, and its presence, are worth.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from magnet_train.data.reading import load_texts
from magnet_train.data.sentences import split_sentences
from modeling_magnet.encoding_magnet import start_ids, text_ids

from .infilling import (
    GapExample,
    Perplexity,
    infill_perplexity,
    sentence_gaps,
    with_right,
    with_the_right_of_another,
    without_right,
)
from .stories import layouts_of, load, read_cloze, read_stories

PASSAGE_WORDS = 120
SPANS, SHORTEST, LONGEST = 3, 8, 32


# ---------------------------------------------------------------------------------------------------------------- data


def read_wikitext(path: str | Path) -> list[str]:
    """The articles of a raw Wikitext file as running text: detokenized, without headings."""
    articles = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if re.fullmatch(r" = [^=].* = ", line):
            articles.append("")
        elif articles and line.strip() and not line.startswith(" ="):
            articles[-1] = f"{articles[-1]} {detokenized(line)}".strip()
    return [article for article in articles if article]


def detokenized(line: str) -> str:
    """
    A line of Wikitext as people write it.

    >>> detokenized(' The crab ( Homarus ) weighs 0 @.@ 7 – 2 @,@ 000 kg ; it \\'s " blue " , well @-@ known . ')
    'The crab (Homarus) weighs 0.7 – 2,000 kg; it\\'s "blue", well-known.'
    """
    line = re.sub(r" @([-,.])@ ", r"\1", line.strip())
    line = re.sub(
        r' " ([^"]*?) " ?', r' "\1" ', f" {line} "
    ).strip()  # quotation marks attach to the text between them
    line = re.sub(r" ([,.;:!?%)\]}])", r"\1", line)
    line = re.sub(r"([(\[{$£€]) ", r"\1", line)
    line = re.sub(r" (n't|'(?:s|re|ve|ll|m|d))\b", r"\1", line)
    return re.sub(r"(?<=s) ' (?=\w)", "' ", line)


def passages(document: str, words: int = PASSAGE_WORDS) -> list[str]:
    """Consecutive passages of whole sentences; those under half or over twice `words`, such as lists, are dropped."""
    found, current = [], ""
    for sentence in split_sentences(document):
        current += sentence
        if len(current.split()) >= words:
            found.append(current.strip())
            current = ""
    return [text for text in [*found, current.strip()] if words // 2 <= len(text.split()) <= 2 * words]


def document_gaps(documents: list[str], config, tokenizer, per_document: int = 2, seed: int = 0) -> list[GapExample]:
    """
    Passages with up to three spans of 8 to 32 tokens, separated by at least one token.

    Args:
        documents (`list[str]`): Each is a unit of resampling.
        config, tokenizer: As in [`sentence_gaps`].
        per_document (`int`, *optional*, defaults to 2): Passages per document, spread over it.
        seed (`int`, *optional*, defaults to 0): For the spans.
    """
    rng, opening, examples = np.random.default_rng(seed), start_ids(config, tokenizer), []
    for number, document in enumerate(documents):
        cut = passages(document)
        for place in np.unique(np.linspace(0, len(cut) - 1, per_document).astype(int)) if cut else ():
            ids = opening + text_ids(cut[place], tokenizer)
            spans, position = [], len(opening) + 1
            for left in range(SPANS, 0, -1):  # each in its own part of the rest
                length = int(rng.integers(SHORTEST, LONGEST + 1))
                room = (len(ids) - position) // left - length - 1
                if room < 1:
                    continue
                start = position + int(rng.integers(0, room))
                spans.append((start, length))
                position = start + length + 1
            if spans:
                examples.append(GapExample(ids, spans, number))
    return examples


# ----------------------------------------------------------------------------------------------------------- measuring


def measure(model, sets: dict[str, list[GapExample]], batch_size: int = 16) -> dict[str, dict[str, Perplexity]]:
    """For each set, the perplexity in each layout the model supports, and of the trivial rivals."""
    found = {}
    for name, examples in sets.items():
        row = {layout: infill_perplexity(model, examples, layout, batch_size) for layout in layouts_of(model)}
        if "exact" in row and (two_sided := with_right(examples)):
            rivals = {
                "own": two_sided,
                "another's": with_the_right_of_another(two_sided),
                "none": without_right(two_sided),
            }
            row |= {
                f"right: {key}": infill_perplexity(model, each, "exact", batch_size) for key, each in rivals.items()
            }
        found[name] = row
    return found


def report(measured: dict[str, dict[str, dict[str, Perplexity]]], model: str) -> dict:
    """Values with intervals; for `model` also the ratios to every system's left-to-right value on the same gaps."""
    result = {}
    for name in measured[model]:
        rows, ratios = {}, {}
        for system, sets in measured.items():
            rows[system] = {layout: _rounded(each.value, *each.interval()) for layout, each in sets[name].items()}
            for layout in ("exact", "free"):
                if layout in measured[model][name]:
                    ratios[f"{layout} / {system}"] = _ratio(measured[model][name][layout], sets[name]["causal"])
        ours = measured[model][name]
        for rival in ("another's", "none"):
            if f"right: {rival}" in ours:
                ratios[f"own / {rival}"] = _ratio(ours["right: own"], ours[f"right: {rival}"])
        tokens = ours["causal"].tokens
        result[name] = {"gaps": len(tokens), "tokens": int(tokens.sum()), "perplexity": rows, "ratios": ratios}
    return result


def _ratio(one: Perplexity, other: Perplexity) -> list[float]:
    return _rounded(one.value / other.value, *one.ratio_interval(other), digits=3)


def _rounded(*values: float, digits: int = 2) -> list[float]:
    return [round(value, digits) for value in values]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a MAGNET checkpoint")
    parser.add_argument("--baseline", nargs="*", default=[], help="bases and controls, read from left to right")
    parser.add_argument("--stories", help="JSONL with a list of sentences a row")
    parser.add_argument("--cloze", help="Story Cloze file (tab-separated)")
    parser.add_argument("--wikitext", help="a raw Wikitext file; it is detokenised")
    parser.add_argument("--documents", help=".txt or .txt.gz, one document a line")
    parser.add_argument("--skip", type=int, default=0, help="documents at the beginning that were trained on")
    parser.add_argument("--limit", type=int, help="the first stories, and as many documents")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output", help="JSON to write")
    args = parser.parse_args()
    measured, sets = {}, None
    for path in tqdm([args.model, *args.baseline], desc="systems"):
        model, tokenizer = load(path)
        sets = read_sets(args, model.config, tokenizer) if sets is None else sets
        measured[Path(path).name] = measure(model, sets, args.batch_size)
    found = report(measured, Path(args.model).name)
    print(json.dumps(found, indent=1))
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def read_sets(args, config, tokenizer) -> dict[str, list[GapExample]]:
    sets = {}
    if args.stories:
        stories = [row["sentences"] for row in read_stories(args.stories)][: args.limit]
        sets[Path(args.stories).parent.name or "stories"] = sentence_gaps(stories, config, tokenizer)
    if args.cloze:
        sets["ROC"] = sentence_gaps(read_cloze(args.cloze)[: args.limit], config, tokenizer)
    if args.wikitext:
        sets["Wikitext"] = document_gaps(read_wikitext(args.wikitext)[: args.limit], config, tokenizer, per_document=5)
    if args.documents:
        documents = [document.text for document in load_texts(args.documents, "text")][args.skip :]
        sets["documents"] = document_gaps(documents[: args.limit], config, tokenizer)
    return sets


if __name__ == "__main__":
    main()
