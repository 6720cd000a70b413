"""Collects sentence pairs for SSCL: from each source those that share the fewest words, the stories' paraphrases, and neighbours.

    python examples/prepare_pairs.py --output_file runs/open-text/pairs.jsonl \\
        --source pairs/onestopenglish.tsv.gz=4245 --source pairs/wiki_turkcorpus.tsv.gz=4644 \\
        --source pairs/wiki_split.tsv.gz=3000 --source pairs/e2e_restaurants.tsv.gz=600 \\
        --stories examples/assets/everyday-stories/train.jsonl --neighbours runs/open-text/texts.txt=13800

Pairs that share nearly all words teach a model to count words, so `--source PATH=N` takes the N pairs of least
overlap. What paraphrases have to teach is soon learned; a sentence and the one that follows it in a text stay hard to
match, so `--neighbours PATH=N` adds N such, at most one of each text (a line).
"""

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from magnet_train.data.sentences import split_sentences


def overlap(text: str, positive: str) -> float:
    """
    The share of common words.

    >>> overlap("The cat sat.", "the cat ran")
    0.5
    """
    one, other = (set(re.findall(r"\w+", side.lower())) for side in (text, positive))
    return len(one & other) / max(1, len(one | other))


def read_pairs(path: str) -> list[tuple[str, str]]:
    """Rows `text<TAB>positive`, each text once."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t")[:2] for line in lines]
    return list(
        {text: (text, positive) for text, positive in rows if (text, positive) != ("text", "positive")}.values()
    )


def read_neighbours(path: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """A sentence of each text and its successor, both of 5 to 32 words."""
    for text in dict.fromkeys(Path(path).read_text(encoding="utf-8").splitlines()):
        sentences = [sentence.strip() for sentence in split_sentences(text)]
        fits = [5 <= len(sentence.split()) <= 32 for sentence in sentences]
        places = [i for i in range(len(sentences) - 1) if fits[i] and fits[i + 1]]
        if places:
            place = rng.choice(places)
            yield sentences[place], sentences[place + 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", default=[], help="PATH=PAIRS")
    parser.add_argument("--stories", help="JSONL with sentences and paraphrases")
    parser.add_argument("--neighbours", help="PATH=PAIRS: texts, one per line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path, required=True)
    args = parser.parse_args()
    pairs = []
    for source in args.source:
        path, _, most = source.partition("=")
        taken = sorted(read_pairs(path), key=lambda pair: overlap(*pair))[: int(most)]
        print(f"{path}: {len(taken)} pairs, overlap {sum(overlap(*pair) for pair in taken) / len(taken):.2f}")
        pairs += taken
    if args.stories:
        rows = [json.loads(line) for line in Path(args.stories).read_text(encoding="utf-8").splitlines()]
        pairs += [pair for row in rows for pair in zip(row["sentences"], row["paraphrases"])]
    rng = random.Random(args.seed)
    if args.neighbours:
        path, _, most = args.neighbours.partition("=")
        found = list(read_neighbours(path, rng))
        pairs += rng.sample(found, min(int(most), len(found)))
    rng.shuffle(pairs)
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    with args.output_file.open("w", encoding="utf-8") as file:
        for text, positive in pairs:
            file.write(json.dumps({"text": text, "positive": positive}, ensure_ascii=False) + "\n")
    print(f"{args.output_file}: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
