r"""magnet infill: fills the gaps of texts, each from the text on both sides of it.

    magnet infill "Tom was hungry. <|gap|> He was full."
    magnet infill --input drafts.txt --length 4-12 --stop sentence --output filled.txt
    cat drafts.txt | magnet infill --do_sample --num_candidates 8 --num_return_sequences 3 --json

A result is a line, alternatives follow each other, the best first. An empty line stays one. In Python: model.infill().
"""

import argparse
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

OWN_STOPS = ("sentence", "line", "word")
PASSED_ON = ("length", "max_new_tokens", "min_new_tokens", "order", "selection", "num_candidates", "join_tokens")
PASSED_ON += ("avoid_copy", "chunk_size", "batch_size", "gap_token")
READ_AT_ONCE = 4  # batches of texts, which infill() sorts by length


def length(text: str):
    """
    "auto", an exact number of tokens, or the fewest and most.

    >>> length("4-12"), length("12"), length("auto")
    ((4, 12), 12, 'auto')
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if text != "auto" and not found:
        raise argparse.ArgumentTypeError(f"{text!r}: must be auto, a number as 12, or a range as 4-12")
    if text == "auto":
        return text
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser("magnet infill", __doc__)
    add_text_flags(parser, "a text with gaps, <|gap|>; several texts may follow each other")
    parser.add_argument("--output", help="file to write (default: standard output)")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a line: text, gaps, their scores and tokens"
    )
    parser.add_argument("--stream", action="store_true", help="show the text while it is written")
    gaps = parser.add_argument_group("gaps")
    gaps.add_argument("--length", type=length, default="auto", help="tokens: auto, 12 (exactly), or 4-12")
    gaps.add_argument("--max_new_tokens", type=int, default=64, help="most tokens with --length auto (default: 64)")
    gaps.add_argument("--min_new_tokens", type=int, help="fewest tokens with --length auto")
    gaps.add_argument("--stop", nargs="+", help="end behind the first sentence, line or word; or before these strings")
    gaps.add_argument("--order", default="sequential", choices=("sequential", "parallel"))
    gaps.add_argument("--gap_token", default="<|gap|>", help="marks a gap (default: <|gap|>); \\ before it: as text")
    gaps.add_argument("--avoid_copy", type=int, help="fills hold no so many tokens in a row of the text behind")
    gaps.add_argument("--chunk_size", type=int, help="write long fills in pieces of so many tokens")
    ranks = parser.add_argument_group("alternatives")
    ranks.add_argument("--num_return_sequences", type=int, default=1, help="alternatives for each text")
    ranks.add_argument("--num_candidates", type=int, help="fills to write and rank (default: as many)")
    ranks.add_argument("--selection", default="auto", choices=("auto", "join", "joint", "end", "mean_logprob"))
    ranks.add_argument("--join_tokens", type=int, default=16, help="tokens behind a gap that rank its fills")
    add_sampling_flags(parser)
    add_model_flags(parser)
    parser.add_argument("--batch_size", type=int, default=32, help="gaps filled at once (default: 32)")
    return parser.parse_args(args)


def main(args: list[str]) -> None:
    options = parse(args)
    settings = {name: getattr(options, name) for name in PASSED_ON} | sampling(options)
    settings["stop"] = options.stop[0] if options.stop and options.stop[0] in OWN_STOPS else options.stop
    if options.stream:
        check_stream(options)
    texts = read_texts(options)
    batches = in_batches(texts, 1 if options.stream else options.batch_size * READ_AT_ONCE)
    model, tokenizer = load_magnet(options)
    from transformers import set_seed

    set_seed(options.seed)
    if options.stream:
        for (text,) in batches:
            show(model, tokenizer, text, settings)
        return
    with lines_to(options.output) as write:
        for batch in batches:
            for line in filled(model, tokenizer, batch, settings, options):
                write(line)


def check_stream(options) -> None:
    for name in ("json", "output"):
        if getattr(options, name):
            raise ValueError(f"{name}: --stream shows text on standard output as it is written. Leave one out.")
    if options.num_return_sequences > 1:
        raise ValueError(f"num_return_sequences={options.num_return_sequences}: --stream shows one fill of a gap.")
    if options.order == "parallel":
        raise ValueError("order='parallel': --stream writes from left to right. Leave one out.")


# ------------------------------------------------------------------------------------------------------------- results


def filled(model, tokenizer, batch, settings: dict, options):
    """Yields the lines of a batch of texts."""
    outputs = iter(infill(model, tokenizer, [each for each in batch if each.text.strip()], settings, options))
    for each in batch:
        if not each.text.strip():
            yield json.dumps({"text": "", "gaps": []}) if options.json else ""
            continue
        answer = next(outputs)
        for output in answer if options.num_return_sequences > 1 else [answer]:
            yield as_json(output) if options.json else as_line(output.text, each.origin)


def infill(model, tokenizer, batch, settings, options) -> list:
    try:
        many = {"num_return_sequences": options.num_return_sequences, "return_dict": True}
        return model.infill([each.text for each in batch], tokenizer, **settings, **many)
    except ValueError as error:
        raise ValueError(with_origins(str(error), batch)) from error


def with_origins(message: str, batch) -> str:
    """An error of infill(), which counts the texts of a batch, in terms of where they stand."""
    return re.sub(r"inputs\[(\d+)\]", lambda found: batch[int(found[1])].origin, message)


def as_json(output) -> str:
    gaps = [{name: finite(value) for name, value in asdict(gap).items()} for gap in output.gaps]
    return json.dumps({"text": output.text, "gaps": gaps}, ensure_ascii=False, allow_nan=False)


def finite(value):
    """JSON knows no infinity: a probability of 0 has no logarithm there."""
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_line(text: str, origin: str) -> str:
    """A text of one line stays one, also where a fill holds a line break."""
    if "\n" in text and not origin.startswith("argument"):
        print(f"{origin}: a line break is written as a space; --json keeps it", file=sys.stderr)
        return text.replace("\r\n", " ").replace("\n", " ")
    return text


# ----------------------------------------------------------------------------------------------------------- streaming


def show(model, tokenizer, given, settings: dict) -> None:
    """Prints a text while its gaps are filled."""
    if not given.text.strip():
        return print()
    from modeling_magnet.gaps_magnet import split_at_gaps

    try:
        texts = [part for part in split_at_gaps(given.text, settings["gap_token"]) if isinstance(part, str)]
        events = model.infill_stream(given.text, tokenizer, **settings)
        for number, event in enumerate_gaps(events):
            if event is None:
                print(texts[number], end="", flush=True)
            else:
                print(event.text, end="", flush=True)
    except ValueError as error:
        raise ValueError(with_origins(str(error), [given])) from error
    print(texts[-1], flush=True)


def enumerate_gaps(events):
    """Yields (gap, None) before a gap's first event and (gap, event) for each."""
    current = None
    for event in events:
        if event.gap != current:
            current = event.gap
            yield current, None
        yield current, event
