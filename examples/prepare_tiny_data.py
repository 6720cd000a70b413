"""Turns open text and stories into training files for magnet-tiny: texts.txt (one per line) and pairs.jsonl.

    python examples/prepare_tiny_data.py --text novels.txt.gz:10000 tinystories.txt.gz*3 \\
        --stories examples/assets/everyday-stories/train.jsonl --output_dir runs/magnet-tiny-data

`--text` takes files with one document per line; `:N` takes only the first N lines, `*K` repeats them K times. Pairs
are the stories' sentences with their paraphrases, and sentences of the texts with a copy that lacks words and may be
reordered, which teaches a small model to use the words.
"""

import argparse
import gzip
import json
import math
import random
import re
from pathlib import Path

SENTENCE = re.compile(r"(?<=[.!?])\s+")


def read_texts(source: str) -> list[str]:
    """Reads `PATH`, `PATH:FIRST_LINES` or `PATH*COPIES`."""
    path, _, copies = source.partition("*")
    path, _, first = path.partition(":")
    lines = read_lines(path)
    return lines[: int(first or len(lines))] * int(copies or 1)


def read_lines(path: str) -> list[str]:
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines if line.strip()]


def reworded(sentence: str, rng: random.Random) -> str:
    """The sentence without a quarter of its words and, half of the time, with its two halves swapped."""
    words = sentence.split()
    kept = sorted(rng.sample(range(len(words)), k=math.ceil(0.75 * len(words))))
    words = [words[i] for i in kept]
    if rng.random() < 0.5:
        cut = len(words) // 2
        words = words[cut:] + words[:cut]
    return " ".join(words)


def story_pairs(stories: list[dict]) -> list[dict]:
    pairs = [pair for story in stories for pair in zip(story["sentences"], story["paraphrases"])]
    return [{"text": text, "positive": positive} for text, positive in pairs]


def text_pairs(texts: list[str], count: int, rng: random.Random) -> list[dict]:
    sentences = [s for text in texts for s in SENTENCE.split(text) if 8 <= len(s.split()) <= 30]
    rng.shuffle(sentences)
    return [{"text": s, "positive": reworded(s, rng)} for s in sentences[:count]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=[], help="PATH, PATH:LINES or PATH*COPIES")
    parser.add_argument("--stories", required=True, help="JSONL with sentences and paraphrases")
    parser.add_argument(
        "--story_copies", type=int, default=10, help="how often the stories and their pairs are repeated"
    )
    parser.add_argument("--text_pairs", type=int, default=20000, help="pairs made from the texts")
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args()

    rng = random.Random(0)
    texts = [line for source in args.text for line in read_texts(source)]
    stories = [json.loads(line) for line in read_lines(args.stories)]
    told = [" ".join(story[key]) for story in stories for key in ("sentences", "paraphrases")]
    pairs = story_pairs(stories) * args.story_copies + text_pairs(texts, args.text_pairs, rng)
    texts += told * args.story_copies
    rng.shuffle(texts)
    rng.shuffle(pairs)

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")
    print(f"{len(texts)} texts, {len(pairs)} pairs -> {folder}")


if __name__ == "__main__":
    main()
