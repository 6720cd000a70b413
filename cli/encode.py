"""magnet encode: embeds texts, one output row per input line.

    magnet encode --input texts.txt --output vectors.npy
    magnet encode "A cat sleeps." "Rain fell." > vectors.jsonl
    zcat texts.txt.gz | magnet encode --output vectors.npy --batch_size 128

The input is streamed, so it may be larger than memory. In Python: model.encode().
"""

import json
import sys
from collections.abc import Iterator

from .model import add_model_flags, load_magnet
from .output import lines_to, replacing
from .parser import Parser
from .texts import add_text_flags, in_batches, read_texts

READ_AT_ONCE = 32  # batches of texts, which encode() sorts by length


def parse(args: list[str]):
    parser = Parser("magnet encode", __doc__)
    add_text_flags(parser, "one or more texts")
    parser.add_argument(
        "--output",
        help=".npy (float32, one row per text) or .jsonl (text and embedding); default or -: JSON lines to standard output",
    )
    parser.add_argument(
        "--on_empty",
        default="encode",
        choices=("encode", "skip", "raise"),
        help="empty texts: encode (one row per input text, default), skip, or raise an error",
    )
    parser.add_argument("--instruction", help="instruction before each text (default: the checkpoint's); '' for none")
    parser.add_argument("--no_normalize", action="store_true", help="do not scale the vectors to unit length")
    parser.add_argument("--batch_size", type=int, default=32, help="batch size (default: 32)")
    add_model_flags(parser)
    return parser.parse_args(args)


def main(args: list[str]) -> None:
    options = parse(args)
    as_array = options.output is not None and options.output.endswith(".npy")
    if not as_array and options.output not in (None, "-") and not options.output.endswith(".jsonl"):
        raise ValueError(f"output={options.output!r}: must end in .npy or .jsonl, or be - for standard output.")
    chunks = in_batches(without_empty(read_texts(options), options.on_empty), options.batch_size, READ_AT_ONCE)
    if as_array:
        with replacing(options.output) as file:  # before the model is loaded, in case it is not writable
            count = write_npy(file, *encoded(chunks, options))
    else:
        with lines_to(options.output) as write:
            count = write_jsonl(write, *encoded(chunks, options))
    print(f"{count:,} vectors", file=sys.stderr)


def without_empty(texts, on_empty: str):
    """Applies `--on_empty` and counts empty texts."""
    empty = 0
    for each in texts:
        if not each.text.strip():
            empty += 1
            if on_empty == "raise":
                raise ValueError(f"{each.origin}: is empty. Fix it, or use --on_empty encode or skip.")
        if each.text.strip() or on_empty == "encode":
            yield each
    if empty:
        print(f"{empty:,} empty texts: {'skipped' if on_empty == 'skip' else 'encoded'}", file=sys.stderr)


def encoded(chunks, options) -> tuple[int, Iterator]:
    """The width of the vectors, and an iterator of (texts, vectors) chunks."""
    model, tokenizer = load_magnet(options)
    from tqdm.auto import tqdm

    def run():
        with tqdm(desc="encode", unit=" texts", delay=2, disable=None) as bar:
            for chunk in chunks:
                yield chunk, encode(model, tokenizer, chunk, options)
                bar.update(len(chunk))

    return model.config.hidden_size, run()


def encode(model, tokenizer, chunk, options):
    settings = {"instruction": options.instruction, "batch_size": options.batch_size}
    texts = [each.text for each in chunk]
    for each in chunk:
        check_text(each)
    return model.encode(texts, tokenizer, normalize=not options.no_normalize, show_progress_bar=False, **settings)


def check_text(each) -> None:
    from modeling_magnet.encoding_magnet import check_text as check

    check(each.origin, each.text)  # arguments may contain bytes that are not text


def write_npy(file, width: int, chunks) -> int:
    """
    Writes a .npy whose number of rows is only known at the end: numpy reserves room for it in the header.

    >>> import io
    >>> import numpy as np
    >>> file = io.BytesIO()
    >>> write_npy(file, 2, [(["a", "b"], np.ones((2, 2), np.float32)), (["c"], np.zeros((1, 2), np.float32))])
    3
    >>> np.load(io.BytesIO(file.getvalue())).tolist()
    [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """
    write_header(file, 0, width)
    start, count = file.tell(), 0
    for _, vectors in chunks:
        file.write(vectors.astype("<f4").tobytes())
        count += len(vectors)
    file.seek(0)
    write_header(file, count, width)
    assert file.tell() == start, "the header has grown"
    return count


def write_header(file, rows: int, width: int) -> None:
    import numpy as np

    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, header)  # magic string and version included


def write_jsonl(write, width: int, chunks) -> int:
    count = 0
    for texts, vectors in chunks:
        for each, vector in zip(texts, vectors):
            numbers = [float(str(number)) for number in vector]  # shortest decimal of the same float32
            write(json.dumps({"text": each.text, "embedding": numbers}, ensure_ascii=False))
            count += 1
    return count
