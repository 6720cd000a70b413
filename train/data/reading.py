"""Reads files, folders and Hub datasets lazily into records, each with its location ("texts.txt:17").

Text and JSON lines are read by our own loop, because no library reports file and line of a bad row; Parquet and Hub
datasets are read by `datasets`.
"""

import gzip
import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
LONGEST_LINE = 100 * 2**20  # bytes; a longer line is a file without line breaks, not text
HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w.-]+))?")


@dataclass(slots=True)
class Record:
    """A row as read, or the reason why it cannot be used."""

    origin: str
    values: dict | None
    problem: str = ""


class BadRows:
    """
    Handles rows that cannot be used: `on_bad="raise"` stops at the first, `"skip"` counts them.

    >>> bad = BadRows("skip")
    >>> bad.add("texts.jsonl:3", "no JSON object")
    >>> bad.count, bad.first
    (1, ['texts.jsonl:3: no JSON object.'])
    """

    def __init__(self, on_bad: str = "raise"):
        self.on_bad, self.count, self.first = on_bad, 0, []

    def add(self, origin: str, why: str) -> None:
        message = f"{origin}: {why}."
        if self.on_bad == "raise":
            raise ValueError(f"{message} Mend the row, or leave such rows out with on_bad=skip.")
        self.count += 1
        if len(self.first) < 3:
            self.first.append(message)

    def report(self, source: str) -> None:
        if self.count:
            logger.warning("%s: %d bad rows skipped. The first: %s", source, self.count, " ".join(self.first))


# ------------------------------------------------------------------------------------------------------------- sources


def list_files(source: str) -> list[Path] | None:
    """The files of a source: itself, or all readable files of a folder, sorted; `None` for a Hub id."""
    if not source:
        raise ValueError("'': names no file, folder or Hub data set.")
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file))
        if not files:
            raise ValueError(f"{source}: no file in this folder ends in {_known_kinds()}.")
        return files
    if path.is_file():
        if kind_of(path) is None:
            raise ValueError(f"{source}: not a kind of file that can be read. Give one that ends in {_known_kinds()}.")
        return [path]
    if kind_of(path) or not HUB_ID.fullmatch(source):
        raise ValueError(f"{source}: no such file or folder.")
    return None


def kind_of(path: Path) -> str | None:
    if path.suffix == ".gz":
        kind = KINDS.get(Path(path.stem).suffix)
        return None if kind == "parquet" else kind
    return KINDS.get(path.suffix)


def _known_kinds() -> str:
    return ", ".join(KINDS) + " (the text kinds also .gz)"


def read_records(
    source: str | datasets.Dataset,
    columns: list[str],
    start: int = 0,
    streaming: bool = False,
    name: str | None = None,
) -> Iterator[Record]:
    """
    The records of a file, a folder, the train split of a Hub dataset (`owner/name`, `owner/name:config`, either with
    `@revision`) or a dataset, from number `start` on. Bad rows and blank lines count as records, so that numbers do
    not depend on row contents; records before `start` are read but not decoded.

    Args:
        columns (`list[str]`): The required columns. A record without them lists those it has.
        streaming (`bool`): Whether to stream a Hub dataset over the network instead of downloading it first. Files are
            always streamed.
        name (`str`, *optional*): The name of a dataset in messages.
    """
    in_memory = isinstance(source, datasets.Dataset)
    files = None if in_memory else list_files(source)
    if files is None:
        rows, name = (source, name) if in_memory else (load_hub(source, streaming), source)
        rows = _select(rows, name, columns)
        yield from _dataset_records(rows, name, columns, start)  # a broken connection is not a bad row: it raises
        return
    rows = itertools.chain.from_iterable(_rows(file, columns) for file in files)
    for _ in tqdm(range(start), desc="skip", unit=" rows", leave=False, disable=start < 100_000):
        next(rows, None)
    for row in rows:
        yield row if isinstance(row, Record) else _decode(*row, columns)


def _rows(file: Path, columns):
    if kind_of(file) == "parquet":
        return _parquet_records(file, columns)
    return ((file, number, line) for number, line in _lines(file))


# ------------------------------------------------------------------------------------------------- text and JSON lines


def _lines(file: Path) -> Iterator[tuple[int, bytes | str]]:
    """Line numbers and lines; for a line that cannot be read, the reason (str)."""
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
        for number in itertools.count(1):
            try:
                line = stream.readline(LONGEST_LINE + 1)
                too_long = len(line) > LONGEST_LINE
                rest = line
                while too_long and rest and not rest.endswith(b"\n"):
                    rest = stream.readline(LONGEST_LINE)
            except (EOFError, OSError, zlib.error) as error:
                yield number, f"the file cannot be read from here on ({error})".replace("\n", " ")
                return
            if not line:
                return
            yield number, f"a line of more than {LONGEST_LINE:,} bytes" if too_long else line


def _decode(file: Path, number: int, line: bytes | str, columns) -> Record:
    origin = f"{file}:{number}"
    if isinstance(line, str):
        return Record(origin, None, line)
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        if kind_of(file) == "text":
            return _checked(origin, {"text": text}, columns)
        if not text.strip():
            return Record(origin, {})
        values = json.loads(text)
    except UnicodeDecodeError as error:
        return Record(origin, None, f"no UTF-8 (byte {error.start}: {error.reason})")
    except (ValueError, RecursionError) as error:
        return Record(origin, None, f"no JSON object on this line ({error})")
    if not isinstance(values, dict):
        return Record(origin, None, f"no JSON object on this line but a {type(values).__name__}")
    return _checked(origin, values, columns)


def _checked(origin: str, values: dict, columns) -> Record:
    for column in columns:
        if column not in values:
            return Record(origin, None, f"no column {column!r}; it has {list(values)}")
    return Record(origin, values)


# ----------------------------------------------------------------------------------------------- Parquet and datasets


def load_hub(source: str, streaming: bool):
    """The train split of a Hub dataset, `owner/name` or `owner/name:config`, either with `@revision`."""
    hub = HUB_ID.fullmatch(source)
    try:
        return datasets.load_dataset(
            hub["name"], hub["config"], split="train", streaming=streaming, revision=hub["revision"]
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{source}: neither a file, nor a folder, nor a Hub data set that can be read. {error}"
        ) from error


def _parquet_records(file: Path, columns) -> Iterator[Record]:
    number, unreadable = 0, (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        rows = datasets.load_dataset("parquet", data_files=[str(file)], split="train", streaming=True)
    except unreadable as error:
        yield Record(str(file), None, f"no proper Parquet file ({error})")
        return
    rows = _select(rows, str(file), columns)
    try:
        for number, record in enumerate(_dataset_records(rows, str(file), columns), start=1):
            yield record
    except unreadable as error:
        yield Record(f"{file}:{number + 1}", None, f"the file cannot be read from here on ({error})")


def _select(rows, source: str, columns):
    names = rows.column_names
    if names is None:  # a stream whose columns are not known in advance
        return rows
    for column in columns:
        if column not in names:
            raise ValueError(f"{source}: no column {column!r}; it has {names}.")
    return rows.select_columns(columns)


def _dataset_records(rows, source: str, columns, start: int = 0) -> Iterator[Record]:
    number = start
    # not `for row in rows`: a data-loader worker would get only a share of the rows
    for batch in rows.skip(start).iter(batch_size=100):
        for values in zip(*batch.values()):
            number += 1
            yield _checked(f"{source}:{number}", dict(zip(batch, values)), columns)


# --------------------------------------------------------------------------------------------------------------- texts


@dataclass(slots=True)
class Document:
    text: str
    origin: str


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


def load_texts(source, column: str, on_bad: str = "raise", name: str | None = None) -> list[Document]:
    """
    Loads the non-empty texts of a source of [`read_records`] and counts empty ones.

    Raises:
        `ValueError` naming file and line of the first bad row, or the source if it holds no text at all.
    """
    bad, documents, read = BadRows(on_bad), [], 0
    records = tqdm(read_records(source, [column], name=name), desc="read", unit=" rows", leave=False)
    source = name or source
    for read, record in enumerate(records, start=1):
        if found := document(record, column, bad):
            documents.append(found)
    bad.report(source)
    if not documents:
        first = f" The first bad rows: {' '.join(bad.first)}" if bad.first else ""
        raise ValueError(f"{source}: column {column!r} holds no text in {read} rows.{first} Give another source.")
    if empty := read - bad.count - len(documents):
        logger.warning("%s: %d of %d texts are empty and were left out.", source, empty, read)
    return documents
