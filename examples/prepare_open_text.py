"""Cuts open text into passages of whole sentences and varying length, one per line: magnet-smollm2's training texts.

    python examples/prepare_open_text.py --output_file runs/open-text/texts.txt \\
        --source open-text/wiki-2018.txt.gz=20700:5500 --source open-text/textbooks.txt.gz=24:2000 \\
        --source open-text/novels.txt.gz=16000:2500 --source open-text/tales.txt.gz=571:4000 \\
        --source open-text/tinystories.txt.gz=2286 --stories examples/assets/everyday-stories/train.jsonl --copies 4

`--source PATH=N:M` takes M random passages of the first N documents; later documents stay unseen and can serve for
evaluation. Passages end at sentence boundaries and vary in length, so that the amount of context does not reveal the
length of a gap.
"""

import argparse
import gzip
import json
import random
from pathlib import Path

from magnet_train.data.sentences import split_sentences

SHORTEST, LONGEST = 30, 150  # words of a passage; about 40 and 220 tokens


def passages(document: str, rng: random.Random) -> list[str]:
    """Consecutive passages of a document; a remainder that is too short is dropped."""
    found, current, wanted = [], "", rng.randint(SHORTEST, LONGEST)
    for sentence in split_sentences(document):
        if len((current + sentence).split()) > LONGEST:
            found.append(current)
            current, wanted = "", rng.randint(SHORTEST, LONGEST)
        current += sentence
        if len(current.split()) >= wanted:
            found.append(current)
            current, wanted = "", rng.randint(SHORTEST, LONGEST)
    found.append(current)
    return [text.strip() for text in found if SHORTEST <= len(text.split()) <= LONGEST]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", default=[], help="PATH=DOCUMENTS or PATH=DOCUMENTS:PASSAGES")
    parser.add_argument("--stories", help="JSONL with a list of sentences in each row")
    parser.add_argument("--copies", type=int, default=1, help="how often the stories are repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    texts = []
    for source in args.source:
        path, _, numbers = source.partition("=")
        documents, _, most = numbers.partition(":")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            kept = [line.strip() for _, line in zip(range(int(documents)), lines)]
        cut = [passage for document in kept for passage in passages(document, rng)]
        if most:
            cut = rng.sample(cut, min(int(most), len(cut)))
        print(f"{path}: {len(cut)} passages, {sum(len(text.split()) for text in cut)} words")
        texts += cut
    if args.stories:
        rows = [json.loads(line) for line in Path(args.stories).read_text(encoding="utf-8").splitlines()]
        texts += [" ".join(row["sentences"]) for row in rows] * args.copies
    rng.shuffle(texts)
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    args.output_file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    print(f"{args.output_file}: {len(texts)} passages, {sum(len(text.split()) for text in texts)} words")


if __name__ == "__main__":
    main()
