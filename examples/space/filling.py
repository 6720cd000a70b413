"""Alternatives for the gaps of a text, with the probability of each token, for the Infill tab."""

import math
import threading

import torch
from checkpoint import Checkpoint, check_text

MAX_GAPS, MAX_NEW_TOKENS, MAX_DRAFTS = 8, 128, 8
DECODINGS = ("sampling", "beam search", "greedy")
# class of a token -> minimum probability; light to dark
CLASSES = {"p ≥ 0.5": 0.5, "0.1 – 0.5": 0.1, "0.01 – 0.1": 0.01, "p < 0.01": 0.0}
_random = threading.Lock()  # torch's random state is global, so seeded calls take turns


def seeded(call, seed: int, *args, **kwargs):
    """Calls with a seed, without affecting or being affected by other threads' random numbers."""
    with _random, torch.random.fork_rng():
        torch.manual_seed(int(seed))
        return call(*args, **kwargs)


def longest_gap(checkpoint: Checkpoint) -> int:
    """Maximum tokens of a gap that the model ends itself: its largest free offset."""
    config = checkpoint.model.config
    if config.infill_end_token_id is None:
        return MAX_NEW_TOKENS
    return min(MAX_NEW_TOKENS, max(config.infill_free_offsets))


def gap_length(kind: str, exact: int, fewest: int, most: int) -> dict:
    """The length arguments of `infill()`."""
    if kind == "auto":
        return {"length": "auto", "max_new_tokens": int(most)}
    if kind == "exact":
        return {"length": int(exact)}
    if fewest > most:
        raise ValueError(f"fewest={fewest}: must not be above most={most}. Move one of the sliders.")
    return {"length": (int(fewest), int(most))}


def decoding_arguments(kind: str, drafts: int, temperature: float, top_p: float) -> dict:
    """The decoding arguments of `infill()`; greedy search has only one draft."""
    if kind == "greedy":
        return {}
    several = {"num_return_sequences": int(drafts), "num_candidates": int(drafts)}
    if kind == "beam search":
        return several | {"num_beams": int(drafts)}
    return several | {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p)}


def alternatives(
    checkpoint: Checkpoint,
    text: str,
    length: dict,
    decoding: dict,
    order: str = "sequential",
    seed: int = 0,
) -> list[dict]:
    """
    Fills the gaps of a text in several ways, best first.

    Returns:
        `{"text", "score", "gaps": [{"span", "text", "tokens", "finish_reason", "end"}]}` for each alternative, where
        `tokens` are pairs of a token's text and its log-probability.
    """
    check_text("The text", text)
    parts = checkpoint.module("infilling_magnet").split_at_gaps(text, "<|gap|>")
    gaps = sum(not isinstance(part, str) for part in parts)
    if not gaps:
        raise ValueError("The text has no gap. Click a word below it, or type <|gap|> where something is missing.")
    if gaps > MAX_GAPS:
        raise ValueError(f"The text has {gaps} gaps, of at most {MAX_GAPS}. Take some out.")
    outputs = seeded(
        checkpoint.model.infill,
        seed,
        text,
        checkpoint.tokenizer,
        order=order,
        return_dict=True,
        **length,
        **decoding,
    )
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [_described(output, checkpoint.tokenizer) for output in _distinct(outputs)]


def _distinct(outputs: list) -> list:
    return list({output.text: output for output in reversed(outputs)}.values())[::-1]


def _described(output, tokenizer) -> dict:
    gaps = [
        {
            "name": gap.name,
            "span": list(gap.span),
            "text": gap.text,
            "tokens": list(zip(token_texts(gap.token_ids, tokenizer), gap.token_logprobs)),
            "finish_reason": gap.finish_reason,
            "end": gap.end_logprob,
        }
        for gap in output.gaps
    ]
    return {"text": output.text, "score": output.gaps[0].score, "gaps": gaps}


def token_texts(ids: list[int], tokenizer) -> list[str]:
    """Each token as text; part of a character, such as a byte of an emoji, as its vocabulary entry."""
    texts = [tokenizer.decode([number]) for number in ids]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return [piece if "\ufffd" in text else text for text, piece in zip(texts, pieces)]


def label(alternative: dict) -> str:
    """One line for the list of alternatives."""
    fills = "  ⋯  ".join(gap["text"].replace("\n", " ⏎ ") or "(nothing)" for gap in alternative["gaps"])
    tokens = sum(len(gap["tokens"]) for gap in alternative["gaps"])
    score = "" if alternative["score"] is None else f"{alternative['score']:.2f}  ·  "
    return f"{score}{fills}  ·  {tokens} token{'' if tokens == 1 else 's'}"


def highlighted_fills(alternative: dict) -> list[tuple[str, str | None]]:
    """The whole text, split at its fills; each fill is labelled with its gap's name or number."""
    parts, end = [], 0
    for number, gap in enumerate(alternative["gaps"], 1):
        start, stop = gap["span"]
        parts += [(alternative["text"][end:start], None), (gap["text"], gap["name"] or f"gap {number}")]
        end = stop
    return [part for part in [*parts, (alternative["text"][end:], None)] if part[0]]


def highlighted_tokens(alternative: dict) -> list[tuple[str, str | None]]:
    """The tokens of all fills, each labelled with its probability class."""
    parts = []
    for gap in alternative["gaps"]:
        parts += [(" ⋯ ", None)] if parts else []
        parts += [(text.replace("\n", "⏎"), probability_class(logprob)) for text, logprob in gap["tokens"]]
        if gap["end"] is not None:
            parts.append((" END", probability_class(gap["end"])))
    return parts


def probability_class(logprob: float) -> str:
    return next(name for name, least in CLASSES.items() if math.exp(logprob) >= least)


def token_table(alternative: dict) -> list[list]:
    """Rows of gap, token (END included), probability in percent, log-probability in nats."""
    rows = []
    for number, gap in enumerate(alternative["gaps"], 1):
        name, ends = gap["name"] or f"gap {number}", [] if gap["end"] is None else [("END", gap["end"])]
        for text, logprob in [*gap["tokens"], *ends]:
            rows.append([name, text.replace("\n", "⏎"), round(100 * math.exp(logprob), 1), round(logprob, 2)])
    return rows


def summary(alternative: dict) -> str:
    """How each gap ended, and the mean log-probability of its tokens."""
    lines = []
    for number, gap in enumerate(alternative["gaps"], 1):
        logprobs = [logprob for _, logprob in gap["tokens"]]
        mean = f", mean log-probability {sum(logprobs) / len(logprobs):.2f} nats" if logprobs else ""
        lines.append(f"**{gap['name'] or f'gap {number}'}** ends by `{gap['finish_reason']}`{mean}")
    return " · ".join(lines)
