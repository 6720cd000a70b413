"""Continuations by the base model, in causal mode, and with the adapter on in causal mode, for the Generate tab."""

import functools

import torch
from checkpoint import Checkpoint, causal_view, check_text, stock_view
from filling import seeded

MAX_NEW_TOKENS = 128
BASE, CAUSAL, ADAPTED = "the base", "MAGNET, causal mode", "MAGNET, adapter on"


@functools.cache
def models(checkpoint: Checkpoint) -> dict:
    """Three models that share one set of weights."""
    return {
        BASE: stock_view(checkpoint.model),
        CAUSAL: causal_view(checkpoint.model, causal_adapter=False),
        ADAPTED: causal_view(checkpoint.model, causal_adapter=True),
    }


@torch.no_grad()
def compare(checkpoint: Checkpoint, prompt: str, max_new_tokens: int, temperature: float = 0.0, seed: int = 0) -> dict:
    """
    Continues a text in three ways, then reads the base's result with all three models.

    Returns:
        For each model `{"continuation", "tokens", "equal", "difference", "perplexity"}`: whether all logits of that
        text equal the base's bit for bit, their largest difference, and the perplexity of the whole text.
    """
    check_text("The beginning", prompt)
    tokenizer, encoding = checkpoint.tokenizer, checkpoint.module("encoding_magnet")
    start = encoding.start_ids(checkpoint.model.config, tokenizer)
    ids = [*start, *encoding.text_ids(prompt, tokenizer)]  # spelt-out control tokens are text
    ids = torch.tensor([ids], device=checkpoint.model.device)  # (1, L)
    room = checkpoint.model.config.max_position_embeddings - ids.shape[1]
    if room < max_new_tokens:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}: the beginning leaves room for {max(room, 0)} tokens. Shorten one of them."
        )
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    written = {}
    for name, model in models(checkpoint).items():
        written[name] = seeded(
            model.generate, seed, ids, max_new_tokens=int(max_new_tokens), use_cache=True, **sampling
        )[0, ids.shape[1] :].tolist()
    whole = torch.cat([ids, torch.tensor([written[BASE]], device=ids.device)], dim=1)
    logits = {name: model(whole, use_cache=False).logits for name, model in models(checkpoint).items()}  # (1, L', V)
    return {
        name: {
            "continuation": tokenizer.decode(written[name], skip_special_tokens=True),
            "tokens": written[name],
            "equal": torch.equal(logits[name], logits[BASE]),
            "difference": float((logits[name] - logits[BASE]).abs().max()),
            "perplexity": _perplexity(logits[name], whole),
        }
        for name in logits
    }


def _perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).exp())


def highlighted(checkpoint: Checkpoint, prompt: str, result: dict, base: dict) -> list[tuple[str, str | None]]:
    """The prompt and its continuation, which is marked from the first token that differs from the base's."""
    tokens, same = result["tokens"], 0
    while same < len(tokens) and tokens[same : same + 1] == base["tokens"][same : same + 1]:
        same += 1
    shared = checkpoint.tokenizer.decode(tokens[:same], skip_special_tokens=True).rstrip("\ufffd")
    parts = [(prompt, None), (shared, "as the base"), (result["continuation"][len(shared) :], "differs")]
    return [part for part in parts if part[0]]


def measures(results: dict) -> list[list]:
    """Rows of model, whether the text and all logits equal the base's, their largest difference, perplexity."""
    return [
        [
            name,
            "yes" if result["tokens"] == results[BASE]["tokens"] else "no",
            "bit for bit" if result["equal"] else "no",
            f"{result['difference']:.4g}",
            f"{result['perplexity']:.2f}",
        ]
        for name, result in results.items()
    ]


def verdict(checkpoint: Checkpoint, results: dict) -> str:
    """The comparison in a sentence."""
    if checkpoint.model.config.adapter is None:
        return "This checkpoint has no adapter that could be switched off: all three are the same weights."
    equal, adapted = results[CAUSAL]["equal"], results[ADAPTED]
    gate = (
        "**Causal mode is the base model**: every logit is equal, bit for bit."
        if equal
        else f"Causal mode differs from the base by {results[CAUSAL]['difference']:.3g} in some logit."
    )
    return (
        f"{gate} With the adapter on in causal mode, as in the paper, logits move by up to "
        f"{adapted['difference']:.3g}, and the base's text gets a perplexity of {adapted['perplexity']:.2f} instead of "
        f"{results[BASE]['perplexity']:.2f}."
    )
