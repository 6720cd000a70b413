"""The Infill tab: clicked words become gaps, and gaps get fills, each token with its probability."""

import itertools
import math
import re
import threading

import torch

MAX_CHARACTERS, MAX_GAPS, MAX_ALTERNATIVES, MAX_NEW_TOKENS = 4000, 8, 8, 128
GAP = "<|gap|>"
MARKER = r"<\|gap(?::[^|<>]*)?\|>"
PIECE = re.compile(rf"\s*(?:\\*{MARKER}|(?:(?!(?<!\\)\\*{MARKER})\S)+)|\s+")
# gradio's named colours, light under black text in both themes, by minimum probability in percent
COLORS = {50: "green", 10: "lime", 1: "yellow", 0: "red"}
_random = threading.Lock()  # torch's random state is global, so seeded calls take turns


def seeded(call, seed: int, *args, **kwargs):
    """Calls with a seed, without affecting or being affected by other threads' random numbers."""
    with _random, torch.random.fork_rng():
        torch.manual_seed(int(seed))
        return call(*args, **kwargs)


def read_pieces(text: str) -> list[tuple[str, str | None]]:
    """
    Splits a text into words and markers, each with the white space before it; markers are labelled.

    Example:

    ```python
    >>> read_pieces("Tom ate. <|gap|> Good.")
    [('Tom', None), (' ate.', None), (' <|gap|>', 'gap'), (' Good.', None)]

    ```
    """
    return [(piece, "gap" if is_marker(piece) else None) for piece in PIECE.findall(text)]


def is_marker(piece: str) -> bool:
    r"""Whether `infill()` reads a piece as a gap; `\<|gap|>` is text."""
    match = re.fullmatch(rf"\s*(\\*){MARKER}", piece)
    return match is not None and len(match[1]) % 2 == 0


def write_text(pieces: list[tuple[str, str | None]]) -> str:
    """The text of pieces, with one marker for each run of gaps: the run's own (named) marker, if it has one."""
    text = ""
    for is_gap, run in itertools.groupby(pieces, key=lambda piece: piece[1] is not None):
        texts = [piece[0] for piece in run]
        if is_gap:
            space = texts[0][: len(texts[0]) - len(texts[0].lstrip())]
            texts = [space, next((text.lstrip() for text in texts if is_marker(text)), GAP)]
        text += "".join(texts)
    return text


def click(pieces: list[tuple[str, str | None]], index: int) -> list[tuple[str, str | None]]:
    """The pieces after a click on one: a word toggles; a marker, whose words are unknown, is removed."""
    before, clicked, after = pieces[:index], pieces[index : index + 1], pieces[index + 1 :]
    toggled = [(text, None if label else "gap") for text, label in clicked if not is_marker(text)]
    return [*before, *toggled, *after]


def longest_gap(config) -> int:
    """Maximum tokens of a gap that the model ends itself: its largest free offset."""
    if config.infill_end_token_id is None:
        return MAX_NEW_TOKENS
    return min(MAX_NEW_TOKENS, max(config.infill_free_offsets))


def alternatives(
    model,
    tokenizer,
    text: str,
    fewest: int,
    most: int,
    decoding: str = "sampling",
    num_alternatives: int = 1,
    temperature: float = 0.7,
    top_p: float = 0.95,
    order: str = "sequential",
    seed: int = 0,
) -> list[dict]:
    """
    Fills the gaps of a text in up to `num_alternatives` ways, best first, with `fewest` to `most` tokens each.

    Returns:
        `{"text", "score", "gaps": [{"name", "span", "text", "tokens", "finish_reason", "end"}]}` for each alternative,
        where `tokens` are pairs of a token's text and its log-probability, and `end` is that of the end token.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed. Shorten it.")
    gaps = sum(label is not None for _, label in read_pieces(text))
    if not gaps:
        raise ValueError(f"The text has no gap. Click a word below it, or type {GAP} where something is missing.")
    if gaps > MAX_GAPS:
        raise ValueError(f"The text has {gaps} gaps; at most {MAX_GAPS} are allowed. Remove some.")
    if fewest > most:
        raise ValueError(f"fewest={fewest}: must not be above most={most}. Move one of the sliders.")
    if most > MAX_NEW_TOKENS:
        raise ValueError(f"length={most}: must be at most {MAX_NEW_TOKENS} on this page. Shorten the gap.")
    if not 1 <= num_alternatives <= MAX_ALTERNATIVES:
        raise ValueError(f"num_alternatives={num_alternatives}: must be between 1 and {MAX_ALTERNATIVES}.")
    kwargs = {"do_sample": True, "temperature": temperature, "top_p": top_p} if decoding == "sampling" else {}
    kwargs |= {"num_beams": num_alternatives} if decoding == "beam search" else {}
    kwargs |= {"num_candidates": num_alternatives, "num_return_sequences": num_alternatives}
    length = fewest if fewest == most else (fewest, most)
    outputs = seeded(model.infill, seed, text, tokenizer, length=length, order=order, return_dict=True, **kwargs)
    distinct = {output.text: output for output in reversed(outputs if isinstance(outputs, list) else [outputs])}
    return [_described(output, tokenizer) for output in reversed(distinct.values())]


def _described(output, tokenizer) -> dict:
    gaps = [
        {
            "name": gap.name or f"gap {number}",
            "span": list(gap.span),
            "text": gap.text,
            "tokens": list(zip(token_texts(gap.token_ids, tokenizer), gap.token_logprobs)),
            "finish_reason": gap.finish_reason,
            "end": gap.end_logprob,
        }
        for number, gap in enumerate(output.gaps, 1)
    ]
    return {"text": output.text, "score": output.gaps[0].score, "gaps": gaps}


def token_texts(ids: list[int], tokenizer) -> list[str]:
    """Each token as text; part of a character, such as a byte of an emoji, as its vocabulary entry."""
    texts = [tokenizer.decode([number]) for number in ids]
    return [piece if "\ufffd" in text else text for text, piece in zip(texts, tokenizer.convert_ids_to_tokens(ids))]


def label(alternative: dict) -> str:
    """One line for the list of alternatives."""
    fills = "  ⋯  ".join(gap["text"].strip().replace("\n", " ⏎ ") or "(nothing)" for gap in alternative["gaps"])
    return fills if alternative["score"] is None else f"{alternative['score']:.2f}  ·  {fills}"


def highlighted_fills(alternative: dict) -> list[tuple[str, str | None]]:
    """The whole text, split at its fills; each fill is labelled with its gap's name or number."""
    parts, end = [], 0
    for gap in alternative["gaps"]:
        start, stop = gap["span"]
        parts += [(alternative["text"][end:start], None), (gap["text"], gap["name"])]
        end = stop
    return [part for part in [*parts, (alternative["text"][end:], None)] if part[0]]


def highlighted_tokens(alternative: dict) -> list[tuple[str, str | None]]:
    """The tokens of all fills, each labelled with its probability, and how each gap ended."""
    parts = []
    for gap in alternative["gaps"]:
        parts += [(text.replace("\n", "⏎"), percent(logprob)) for text, logprob in gap["tokens"]]
        ended_by_model = gap["end"] is not None
        parts.append((" END ", percent(gap["end"])) if ended_by_model else (f" ({gap['finish_reason']}) ", None))
    return parts


def percent(logprob: float) -> str:
    """A log-probability (nats) as a percentage."""
    return f"{math.floor(100 * math.exp(logprob) + 1e-9)} %"


def color_map() -> dict[str, str]:
    """A colour for each percentage."""
    return {f"{p} %": next(color for least, color in COLORS.items() if p >= least) for p in range(101)}
