r"""magnet infill: fills gaps in texts, using the context on both sides.

    magnet infill "Tom was hungry. <|gap|> He was full."
    magnet infill --input drafts.txt --length 4-12 --stop sentence --output filled.txt
    cat drafts.txt | magnet infill --do_sample --num_candidates 8 --num_return_sequences 3 --json

Each result is one line, alternatives best first. Empty lines stay empty. In Python: model.infill().
"""

import argparse
import contextlib
import json
import math
import re
import sys
from dataclasses import asdict

from .model import add_model_flags, load_magnet
from .output import lines_to
from .parser import Parser
from .sampling import add_sampling_flags, sampling
from .texts import add_text_flags, in_batches, read_texts

OWN_STOPS = ("sentence", "line")
PASSED_ON = ("length", "max_new_tokens", "min_new_tokens", "order", "num_candidates", "join_tokens")
PASSED_ON += ("batch_size", "gap_token", "num_return_sequences")
READ_AT_ONCE = 4  # batches of texts, which infill() sorts by length


def length(text: str):
    """
    Parses "auto", an exact number of tokens, or a range.

    >>> length("4-12"), length("12"), length("auto")
    ((4, 12), 12, 'auto')
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if text != "auto" and not found:
        raise argparse.ArgumentTypeError(f"{text!r}: must be auto, a number like 12, or a range like 4-12")
    if text == "auto":
        return text
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser("magnet infill", __doc__)
    add_text_flags(parser, "one or more texts with gaps, <|gap|>")
    parser.add_argument("--output", help="file to write (default: standard output)")
    parser.add_argument("--json", action="store_true", help="JSON lines: text, gaps, their scores and tokens")
    parser.add_argument("--stream", action="store_true", help="stream fills to standard error as they are generated")
    gaps = parser.add_argument_group("gaps")
    gaps.add_argument("--length", type=length, default="auto", help="tokens per gap: auto, 12 (exactly), or 4-12")
    gaps.add_argument(
        "--max_new_tokens", type=int, help="maximum with --length auto (default: 64, or the trained maximum)"
    )
    gaps.add_argument("--min_new_tokens", type=int, default=1, help="minimum with --length auto (default: 1)")
    gaps.add_argument("--stop", nargs="+", help="end after the first sentence or line, or before one of these strings")
    gaps.add_argument("--order", default="sequential", choices=("sequential", "parallel"))
    gaps.add_argument(
        "--gap_token", default="<|gap|>", help="gap marker (default: <|gap|>); \\ before it makes it plain text"
    )
    ranks = parser.add_argument_group("alternatives")
    ranks.add_argument("--num_return_sequences", type=int, default=1, help="alternatives per text")
    ranks.add_argument("--num_candidates", type=int, help="fills to generate and rank (default: num_return_sequences)")
    ranks.add_argument("--join_tokens", type=int, default=16, help="tokens after a gap used to rank its fills")
    add_sampling_flags(parser)
    add_model_flags(parser)
    parser.add_argument("--batch_size", type=int, default=32, help="gaps filled at once (default: 32)")
    return parser.parse_args(args)


def main(args: list[str]) -> None:
    options = parse(args)
    settings = {name: getattr(options, name) for name in PASSED_ON} | sampling(options)
    settings["stop"] = options.stop[0] if options.stop and options.stop[0] in OWN_STOPS else options.stop
    batches = in_batches(read_texts(options), *((1, 1) if options.stream else (options.batch_size, READ_AT_ONCE)))
    model, tokenizer = load_magnet(options)
    from transformers import TextStreamer, set_seed

    set_seed(options.seed)
    if options.stream:
        settings["streamer"] = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with lines_to(options.output) as write:
        for batch in batches:
            for line in filled(model, tokenizer, batch, settings, options):
                write(line)


# ------------------------------------------------------------------------------------------------------------- results


def filled(model, tokenizer, batch, settings: dict, options):
    """Yields the output lines of a batch of texts."""
    texts = [each for each in batch if each.text.strip()]
    outputs = iter(infill(model, tokenizer, texts, settings) if texts else [])
    for each in batch:
        if not each.text.strip():
            yield json.dumps({"text": "", "gaps": []}) if options.json else ""
            continue
        answer = next(outputs)
        for output in answer if options.num_return_sequences > 1 else [answer]:
            yield as_json(output) if options.json else as_line(output.text, each.origin)


def infill(model, tokenizer, batch, settings: dict) -> list:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a streamer prints to stdout
            return model.infill([each.text for each in batch], tokenizer, return_dict=True, **settings)
    except ValueError as error:
        raise ValueError(with_origins(str(error), batch)) from error


def with_origins(message: str, batch) -> str:
    """Replaces the batch indices in an error of infill() with the texts' origins."""
    return re.sub(r"inputs\[(\d+)\]", lambda found: batch[int(found[1])].origin, message)


def as_json(output) -> str:
    gaps = [{name: finite(value) for name, value in asdict(gap).items()} for gap in output.gaps]
    return json.dumps({"text": output.text, "gaps": gaps}, ensure_ascii=False, allow_nan=False)


def finite(value):
    """JSON has no infinity: infinite log-probabilities become null."""
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_line(text: str, origin: str) -> str:
    """Keeps a one-line text on one line, even if a fill contains a line break."""
    if "\n" in text and not origin.startswith("argument"):
        print(f"{origin}: replaced a line break with a space; --json keeps it", file=sys.stderr)
        return text.replace("\r\n", " ").replace("\n", " ")
    return text
