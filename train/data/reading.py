"""Reads files, folders and Hub data sets into records, each with its location ("texts.txt:17"), and records into texts.

`datasets` reads Parquet and the Hub. Lines of text and JSON are read here: no library names the line of a bad row.
"""

import gzip
import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

KINDS = ".txt, .jsonl, .json (these also .gz), .parquet"
READABLE = re.compile(r".*\.((txt|jsonl?)(\.gz)?|parquet)")
HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w.-]+))?")
UNREADABLE = (OSError, EOFError, zlib.error, pyarrow.ArrowException, datasets.exceptions.DatasetsError)


@dataclass(slots=True)
class Record:
    """A row as read, or the reason why it cannot be used."""

    origin: str
    values: dict | None
    problem: str = ""


class BadRows:
    """
    What happens to rows that cannot be used: `on_bad="raise"` stops at the first, `"skip"` counts them.

    >>> bad = BadRows("skip")
    >>> bad.add("texts.jsonl:3", "no JSON object")
    >>> bad.count, bad.first
    (1, 'texts.jsonl:3: no JSON object.')
    """

    def __init__(self, on_bad: str = "raise"):
        self.on_bad, self.count, self.first = on_bad, 0, ""

    def add(self, origin: str, why: str) -> None:
        message = f"{origin}: {why}."
        if self.on_bad == "raise":
            raise ValueError(f"{message} Mend the row, or leave such rows out with on_bad=skip.")
        self.count += 1
        if self.count == 1:
            self.first = message

    def report(self, source: str) -> None:
        if self.count:
            logger.warning("%s: %d bad rows skipped. The first: %s", source, self.count, self.first)


# ------------------------------------------------------------------------------------------------------------- records


def list_files(source: str) -> list[Path] | None:
    """The files of a source: itself, or all readable files of a folder, sorted; `None` for a Hub id."""
    path, named_as_file = Path(source), READABLE.fullmatch(source)
    if source and path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and READABLE.fullmatch(file.name))
        if not files:
            raise ValueError(f"{source}: no file in this folder ends in {KINDS}.")
        return files
    if path.is_file() and not named_as_file:
        raise ValueError(f"{source}: not a kind of file that can be read. Give one that ends in {KINDS}.")
    if not path.is_file() and (named_as_file or not HUB_ID.fullmatch(source)):
        raise ValueError(f"{source!r}: no such file or folder.")
    return [path] if path.is_file() else None


def read_records(source: str | datasets.Dataset, columns: list[str], name: str | None = None) -> Iterator[Record]:
    """
    The records of a file, a folder, the train split of a Hub data set (`owner/name`, `owner/name:config`, either with
    `@revision`) or a [`datasets.Dataset`].

    Args:
        columns (`list[str]`): The required columns. A record without them lists those it has.
        name (`str`, *optional*): What a [`datasets.Dataset`] is called in messages.
    """
    if isinstance(source, datasets.Dataset):
        yield from dataset_records(source, columns, name)
    elif (files := list_files(source)) is not None:
        for file in files:
            yield from file_records(file, columns)
    else:
        yield from dataset_records(load_hub(source), columns, source)


def file_records(file: Path, columns: list[str]) -> Iterator[Record]:
    """The records of one file. A damaged one stops the run whatever `on_bad` is: nobody knows what it lacks."""
    number = 0
    try:
        for number, record in enumerate(_records(file, columns), start=1):
            yield record
    except UNREADABLE as error:
        raise ValueError(f"{file}:{number + 1}: cannot be read from here on ({error}).") from error


def _records(file, columns):
    if file.suffix == ".parquet":
        rows = datasets.load_dataset("parquet", data_files=[str(file)], split="train", streaming=True)
        yield from dataset_records(rows, columns, str(file))
        return
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield _line(file, number, line, columns)


def _line(file, number, line, columns) -> Record:
    origin = f"{file}:{number}"
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        if file.name.endswith((".txt", ".txt.gz")):
            return checked(origin, {"text": text}, columns)
        values = json.loads(text) if text.strip() else {}
    except UnicodeDecodeError as error:
        return Record(origin, None, f"no UTF-8 (byte {error.start}: {error.reason})")
    except (ValueError, RecursionError) as error:
        return Record(origin, None, f"no JSON object on this line ({error})")
    if not isinstance(values, dict):
        return Record(origin, None, f"no JSON object on this line but a {type(values).__name__}")
    return checked(origin, values, columns) if values else Record(origin, {})  # a blank line


def load_hub(source: str, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """The train split of a Hub data set."""
    hub = HUB_ID.fullmatch(source)
    where = {"split": "train", "streaming": streaming, "revision": hub["revision"]}
    try:
        return datasets.load_dataset(hub["name"], hub["config"], **where)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{source}: neither a file, nor a folder, nor a Hub data set that can be read. {error}"
        ) from error


def select(rows, columns: list[str], source: str):
    for column in columns if rows.column_names is not None else ():  # a stream may not know its columns in advance
        if column not in rows.column_names:
            raise ValueError(f"{source}: no column {column!r}; it has {rows.column_names}.")
    return rows.select_columns(columns)


def dataset_records(rows, columns: list[str], source: str) -> Iterator[Record]:
    # not `for row in rows`: a data-loader worker would get only a share of the rows
    batches = select(rows, columns, source).iter(batch_size=100)
    rows = (dict(zip(batch, values)) for batch in batches for values in zip(*batch.values()))
    for number, values in enumerate(rows, start=1):
        yield checked(f"{source}:{number}", values, columns)


def checked(origin: str, values: dict, columns: list[str]) -> Record:
    for column in columns:
        if column not in values:
            return Record(origin, None, f"no column {column!r}; it has {list(values)}")
    return Record(origin, values)


# --------------------------------------------------------------------------------------------------------------- texts


@dataclass(slots=True)
class Document:
    text: str
    origin: str


def load_texts(
    source, column: str, on_bad: str = "raise", name: str | None = None, sample_by: str = "line"
) -> list[Document]:
    """
    Loads the non-empty texts of a source of [`read_records`].

    Args:
        sample_by (`str`, defaults to `"line"`): `"paragraph"` joins the rows between two empty ones, `"document"` those
            of a file.

    Raises:
        `ValueError` naming file and line of the first bad row, or the source if it holds no text at all.
    """
    bad = BadRows(on_bad)
    records = tqdm(read_records(source, [column], name), desc="read", unit=" rows", leave=False, disable=None)
    documents = list(read_documents(records, column, bad, sample_by))
    source = name or source
    bad.report(source)
    if not documents:
        raise ValueError(f"{source}: column {column!r} holds no text. {bad.first} Give another source.")
    return documents


def read_documents(
    records: Iterable[Record], column: str, bad: BadRows, sample_by: str = "line"
) -> Iterator[Document]:
    """The texts of records: each of its own, or the lines between two empty ones or of a whole file joined."""
    rows = ((record.origin.rpartition(":")[0], document(record, column, bad)) for record in records)
    if sample_by == "line":
        yield from (row for _, row in rows if row)
        return
    for _, group in itertools.groupby(rows, lambda row: (row[0], sample_by == "document" or row[1] is None)):
        lines = [row for _, row in group if row]
        if lines:
            yield Document("\n".join(line.text for line in lines), lines[0].origin)


def document(record: Record, column: str, bad: BadRows) -> Document | None:
    """The text of a record; a list is joined by spaces. `None` if it is empty, or bad and skipped."""
    if record.problem:
        return bad.add(record.origin, record.problem)
    value = record.values.get(column, "")  # a blank line between JSON objects has no columns
    pieces = value if isinstance(value, list) else [value]
    for piece in pieces:
        if problem := problem_of(piece):
            return bad.add(record.origin, f"{column!r} {problem}")
    text = " ".join(pieces)
    return Document(text, record.origin) if text.strip() else None


def problem_of(value) -> str:
    """Why a value is not text; "" if it is."""
    if not isinstance(value, str):
        return f"holds {str(value)[:80]!r} ({type(value).__name__}), which is no text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate at character {error.start}, which is no text"
    return ""
