"""Evaluation data: the files of a data folder and their formats.

| file, at any depth | content |
|---|---|
| `validation.jsonl` | stories: `{"sentences": [...], "paraphrases": [...]}` a line |
| `cloze2016_val.tsv` | Story Cloze: id, 4 sentences, 2 endings, number of the right one |
| `sts/*.tsv`, `sts.tsv` | graded pairs: score, sentence, sentence |
| `wiki.valid.raw`, `wiki.test.raw` | raw Wikitext; read detokenized |
| `documents.txt`, `documents.txt.gz` | one document per line |
| `conll*/train.txt`, `valid.txt` | CoNLL-2003: word, part of speech, chunk, name |
| `clustering/*.tsv` | header with `label` and `text` (or `subject`) |
| `code/*.py` | source code |
| `arc_easy.jsonl` | questions: `{"query", "choices", "gold"}` |

Other tab-separated files have no header. Files with "train" in their name are never evaluated on.
"""

import csv
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path

import sentencex
import yaml
from tqdm.auto import tqdm

from .systems import System

FAST = 8  # stories, pairs ... of --fast


@dataclass
class Settings:
    """Evaluation settings, the same for every system."""

    data: Path  # a folder or a file
    limit: int | None = None  # stories, documents, pairs, sentences or questions of each set
    fast: bool = False  # a few of each, and short generations
    batch_size: int = 16
    seed: int = 0
    judge: System | None = None  # independent language model that scores the text after a fill
    tasks: tuple[str, ...] = ()  # lm-eval or mteb tasks, whose data is downloaded

    def __post_init__(self):
        if self.fast:
            self.limit = min(self.limit or FAST, FAST)


def files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """
    The files of a folder, or the one file given, whose path ends with one of the patterns.

    Raises:
        `ValueError` if there is none.
    """
    everything = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else [folder]
    found = [
        path
        for pattern in patterns
        for path in everything
        if path.resolve().match(pattern) and ("train" in pattern or "train" not in path.name)
    ]
    if not found:
        raise ValueError(f"data={str(folder)!r}: has none of {', '.join(patterns)}. Add one (see --help).")
    return found


def name_of(path: Path) -> str:
    """The name of a data set: of its file, or of its folder if the file name is generic."""
    named = {
        "cloze2016_val": "ROC",
        "wiki.valid": "Wikitext",
        "wiki.test": "Wikitext",
        "documents.txt": "documents",
        "valid": path.resolve().parent.name,
    }
    return named.get(path.stem, path.resolve().parent.name if path.stem in ("validation", "sts") else path.stem)


def lines(path: Path) -> list[str]:
    """
    The lines of a text file, which may be gzipped.

    Raises:
        `ValueError` for an empty file, or one that is not UTF-8.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            found = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}).") from None
    if not any(line.strip() for line in found):
        raise ValueError(f"{path}: is empty.")
    return found


def rows(path: Path, columns: int, limit: int | None = None) -> list[list[str]]:
    """Tab-separated rows of at least `columns` columns."""
    found = []
    for number, line in enumerate(lines(path), start=1):
        if line.strip() and len(found) != limit:
            found.append(line.split("\t"))
            if len(found[-1]) < columns or not all(cell.strip() for cell in found[-1][:columns]):
                raise ValueError(f"{path}:{number}: has {len(found[-1])} columns, or an empty one; needs {columns}.")
    return found


def json_rows(path: Path, keys: tuple[str, ...], limit: int | None = None) -> list[dict]:
    """JSON lines with these keys."""
    found = []
    for number, line in enumerate(lines(path), start=1):
        if line.strip() and len(found) != limit:
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: is not JSON ({error}).") from None
            missing = [key for key in keys if not isinstance(found[-1], dict) or key not in found[-1]]
            if missing:
                raise ValueError(f"{path}:{number}: has no column {missing[0]!r}.")
    return found


# ------------------------------------------------------------------------------------------------------------- stories

STORIES = ("validation.jsonl", "cloze2016_val.tsv")


def read_stories(path: str | Path, limit: int | None = None) -> list[dict]:
    """
    Stories with `sentences` and optionally as many `paraphrases`, from JSON lines or a Story Cloze file.

    Raises:
        `ValueError` naming file and line.
    """
    path = Path(path)
    if path.suffix == ".tsv":
        return [{"sentences": story} for story in read_cloze(path, limit)]
    found = json_rows(path, ("sentences",), limit)
    for number, row in enumerate(found, start=1):
        texts = [*row["sentences"], *row.get("paraphrases", [])] if isinstance(row["sentences"], list) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{path}: story {number}: sentences (and paraphrases) must be lists of non-empty texts.")
        if row.get("paraphrases") and len(row["paraphrases"]) != len(row["sentences"]):
            raise ValueError(f"{path}: story {number}: must have as many paraphrases as sentences.")
    return found


def read_cloze(path: str | Path, limit: int | None = None) -> list[list[str]]:
    """Story Cloze rows `id, 4 sentences, 2 endings, number of the right one`, as five sentences."""
    found = rows(Path(path), 8, limit)
    wrong = [row for row in found if row[7] not in ("1", "2")]
    if wrong:
        raise ValueError(f"{path}: the number of the right ending is {wrong[0][7]!r}; must be 1 or 2.")
    return [row[1:5] + [row[4 + int(row[7])]] for row in found]


def read_graded_pairs(path: str | Path, limit: int | None = None) -> list[tuple[float, str, str]]:
    """
    Reads `score<TAB>sentence<TAB>sentence` lines.

    Raises:
        `ValueError` for a score that is not a number, or if all are equal: the correlation is then undefined.
    """
    try:
        found = [(float(row[0]), row[1], row[2]) for row in rows(Path(path), 3, limit)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len({grade for grade, *_ in found}) < 2:
        raise ValueError(
            f"{path}: all {len(found)} pairs have the score {found[0][0]:g}. Use pairs with different scores."
        )
    return found


def read_labelled(path: Path, limit: int | None = None) -> list[tuple[str, str]]:
    """(label, text) of a tab-separated file with a header; `limit` picks evenly spaced rows."""
    found = list(csv.DictReader(lines(path), delimiter="\t", quoting=csv.QUOTE_NONE))
    text = next((name for name in ("text", "subject") if found and name in found[0]), None)
    if text is None or "label" not in found[0]:
        raise ValueError(f"{path}: its header has no column {'label' if text else 'text'!r}.")
    found = [(row["label"], row[text]) for row in found if (row[text] or "").strip()]
    return found[:: max(1, len(found) // limit)][:limit] if limit else found


def read_conll(path: Path, limit: int | None = None) -> list[list[list[str]]]:
    """Sentences, each a list of its words' `[word, part of speech, chunk, name]`."""
    found, sentence = [], []
    for number, line in enumerate([*lines(path), ""], start=1):
        if line.startswith("-DOCSTART-"):
            continue
        if cells := line.split():
            if len(cells) < 4:
                raise ValueError(
                    f"{path}:{number}: has {len(cells)} columns; needs word, part of speech, chunk and name."
                )
            sentence.append(cells[:4])
        elif sentence:
            found.append(sentence)
            sentence = []
    return found[:limit]


# ----------------------------------------------------------------------------------------------------------- documents

WIKITEXT = ("wiki.valid.raw", "wiki.test.raw")
DOCUMENTS = ("documents.txt", "documents.txt.gz")
PASSAGE_WORDS = 120


def read_documents(path: Path, limit: int | None = None) -> list[str]:
    """The documents of a file with one per line, or of a raw Wikitext file."""
    if path.name in WIKITEXT:
        return read_wikitext(path, limit)
    return [line.strip() for line in lines(path) if line.strip()][:limit]


def read_wikitext(path: str | Path, limit: int | None = None) -> list[str]:
    """The articles of a raw Wikitext file as running text: detokenized, without headings."""
    articles = []
    for line in lines(Path(path)):
        if re.fullmatch(r" = [^=].* = ", line):
            articles.append("")
        elif articles and line.strip() and not line.startswith(" ="):
            articles[-1] = f"{articles[-1]} {detokenized(line)}".strip()
    return [article for article in articles if article][:limit]


def detokenized(line: str) -> str:
    """
    Undoes the tokenization of a line of Wikitext.

    >>> detokenized(' The crab ( Homarus ) weighs 0 @.@ 7 – 2 @,@ 000 kg ; it \\'s " blue " , well @-@ known . ')
    'The crab (Homarus) weighs 0.7 – 2,000 kg; it\\'s "blue", well-known.'
    """
    line = re.sub(r" @([-,.])@ ", r"\1", line.strip())
    # quotation marks attach to the text between them
    line = re.sub(r' " ([^"]*?) " ?', r' "\1" ', f" {line} ").strip()
    line = re.sub(r" ([,.;:!?%)\]}])", r"\1", line)
    line = re.sub(r"([(\[{$£€]) ", r"\1", line)
    line = re.sub(r" (n't|'(?:s|re|ve|ll|m|d))\b", r"\1", line)
    return re.sub(r"(?<=s) ' (?=\w)", "' ", line)


def sentences_of(text: str) -> list[str]:
    """
    The sentences of a text.

    >>> sentences_of("Mr. Okoro has a stove. It runs on gas!")
    ['Mr. Okoro has a stove.', 'It runs on gas!']
    """
    return [sentence.strip() for sentence in sentencex.segment("en", " ".join(text.split())) if sentence.strip()]


def passages(document: str, words: int = PASSAGE_WORDS) -> list[str]:
    """Consecutive passages of whole sentences; those under half or over twice `words`, such as lists, are dropped."""
    found, current = [], []
    for sentence in sentences_of(document):
        current.append(sentence)
        if len(" ".join(current).split()) >= words:
            found.append(" ".join(current))
            current = []
    return [text for text in [*found, " ".join(current)] if words // 2 <= len(text.split()) <= 2 * words]


# ---------------------------------------------------------------------------------------------------------------- code

CODE = ("code/*.py",)
BLOCK_LINES = (4, 30)


def read_code(path: Path, limit: int | None = None) -> list[list[str]]:
    """The blocks of a file, between empty lines, of 4 to 30 lines each."""
    blocks, block = [], []
    for line in [*lines(path), ""]:
        if line.strip():
            block.append(line)
        elif block:
            blocks, block = [*blocks, block], []
    return [block for block in blocks if BLOCK_LINES[0] <= len(block) <= BLOCK_LINES[1]][:limit]


# ------------------------------------------------------------------------------------------------------- contamination


def folded(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


MIN_WORDS = 6  # shorter sentences occur by chance
TEXTS = (
    *STORIES,
    *WIKITEXT,
    *DOCUMENTS,
    "sts/*.tsv",
    "sts.tsv",
    "conll*/valid.txt",
    "clustering/*.tsv",
    "arc_easy.jsonl",
)


def overlaps(settings: Settings, training: list[Path]) -> dict[str, tuple[int, int]]:
    """
    For each set of the data folder, how many of its sentences of six words or more occur in the training text, and how
    many it has. Ignores case, spaces and punctuation.
    """
    wanted = {
        f"{name_of(path)} ({path.name})": {
            sentence
            for text in texts_of(path, settings.limit)
            for sentence in map(folded, sentences_of(text))
            if len(sentence.split()) >= MIN_WORDS
        }
        for path in (files(settings.data, TEXTS) if training else ())
    }
    every, found = set().union(*wanted.values()), set()
    for path in training:
        for line in tqdm(lines(path), desc=f"search {path.name}", leave=False, disable=None):
            try:
                line = json.loads(line) if ".json" in path.name else line
            except ValueError:
                pass
            for text in strings_of(line):
                found |= every & set(map(folded, sentences_of(text)))
    return {name: (len(sentences & found), len(sentences)) for name, sentences in wanted.items()}


def texts_of(path: Path, limit: int | None) -> list[str]:
    """All texts of an evaluation set."""
    if path.name in (*WIKITEXT, *DOCUMENTS):
        return read_documents(path, limit)
    if path.name in STORIES:
        stories = read_stories(path, limit)
        return [" ".join(told) for story in stories for told in (story["sentences"], story.get("paraphrases", []))]
    if path.name == "valid.txt":
        return [" ".join(word for word, *_ in sentence) for sentence in read_conll(path, limit)]
    if path.parent.name == "clustering":
        return [text for _, text in read_labelled(path, limit and 5 * limit)]
    if path.suffix == ".jsonl":
        return [row["query"] for row in json_rows(path, ("query",), limit)]
    return [text for _, *pair in read_graded_pairs(path, limit) for text in pair]


def strings_of(value) -> list[str]:
    """The strings in a row of JSON, or the row itself."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for each in value for text in strings_of(each)]
    return value.split("\t") if isinstance(value, str) else []


def training_files(path: str) -> list[Path]:
    """The texts and pairs that a checkpoint was trained on, which may be gone, from the settings of its run beside it."""
    settings = Path(path, "training_config.yaml")
    if not settings.is_file():
        return []
    run = yaml.safe_load(settings.read_text(encoding="utf-8"))
    return [Path(run[key]) for key in ("train_file", "pairs_file") if run.get(key)]
