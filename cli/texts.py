"""The texts a command reads from its arguments, a file or standard input, one by one, each with its origin."""

import itertools
import sys
from collections.abc import Iterator
from typing import NamedTuple


class Text(NamedTuple):
    text: str
    origin: str  # "texts.txt:17"


def add_text_flags(parser, what: str) -> None:
    parser.add_argument("texts", nargs="*", metavar="TEXT", help=what)
    parser.add_argument(
        "--input",
        help="where to read texts: .txt (one per line) or .jsonl, also as .gz, .parquet, a folder of these, or a Hub "
        "data set; - or no input: standard input",
    )
    parser.add_argument("--text_column", default="text", help="text column (default: text)")


def read_texts(options) -> Iterator[Text]:
    """
    The texts, read lazily. A line ends at a line feed (or CR LF), which is not part of it.

    Raises:
        `ValueError` for no input, two, or a missing one; while reading, for anything that is not text, with file and line.
    """
    if options.texts and options.input:
        raise ValueError(f"input={options.input!r}: texts were also given as arguments. Drop one of the two.")
    if options.texts:
        return (Text(text, f"argument {n}") for n, text in enumerate(options.texts, start=1))
    if options.input in (None, "-"):
        if options.input is None and sys.stdin.isatty():
            raise ValueError("no texts. Pass them as arguments, with --input, or through a pipe.")
        return stdin_texts()
    from magnet_train.data.reading import list_files

    list_files(options.input)  # before a model is loaded
    return file_texts(options.input, options.text_column)


def stdin_texts() -> Iterator[Text]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"stdin:{number}: not UTF-8 (byte {error.start}: {error.reason}). Convert it.") from None
        yield Text(text.removesuffix("\n").removesuffix("\r"), f"stdin:{number}")


def file_texts(source: str, column: str) -> Iterator[Text]:
    from magnet_train.data.reading import problem_of, read_records

    for record in read_records(source, [column]):
        if record.problem:
            raise ValueError(f"{record.origin}: {record.problem}. Fix the row.")
        if column not in record.values:  # a blank line between JSON objects
            continue
        if problem := problem_of(record.values[column]):
            raise ValueError(f"{record.origin}: {column!r} {problem}. Fix the row.")
        yield Text(record.values[column], record.origin)


def in_batches(texts: Iterator[Text], batch_size: int, at_once: int = 1) -> Iterator[list[Text]]:
    """Yields lists of `at_once` batches of texts; the last may be shorter."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1.")
    texts = iter(texts)
    while batch := list(itertools.islice(texts, batch_size * at_once)):
        yield batch
