"""The Generate tab: continuations by the base, in causal mode, and with the adapter on, from one set of weights."""

import functools
import importlib
import os

import torch
from accelerate import init_empty_weights
from filling import seeded
from transformers import AutoModelForCausalLM

MAX_CHARACTERS, MAX_NEW_TOKENS = 4000, 128
BASE, CAUSAL, ADAPTED = "the base, stock class", "MAGNET, causal mode", "MAGNET, adapter on (the paper's)"


@functools.cache
def models(model) -> dict:
    """The checkpoint between two others that share its weights; it does not change."""
    weights = model.state_dict()
    base = {n: w for n, w in weights.items() if "_lora." not in n and not n.startswith("projection_head.")}
    adapted = type(model.config).from_dict(model.config.to_dict() | {"causal_adapter": True})
    return {
        BASE: _on_weights(AutoModelForCausalLM.from_config, model.config.to_base(), model, base),
        CAUSAL: model,
        ADAPTED: _on_weights(type(model), adapted, model, weights),
    }


def _on_weights(build, config, model, weights):
    config._attn_implementation = model.config._attn_implementation
    with init_empty_weights(include_buffers=False):
        view = build(config)
    view.load_state_dict(weights, assign=True)
    view.tie_weights()
    view.generation_config = model.generation_config
    return view.to(model.device).eval()


@torch.no_grad()
def compare(
    model, tokenizer, prompt: str, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> dict[str, dict]:
    """
    Continues a text in three ways, then scores the base's result with all three models.

    Returns:
        For each model `{"continuation", "equal", "difference", "perplexity"}`: whether all logits of that text equal
        the base's bit for bit, their largest difference, and the perplexity of the whole text.
    """
    if not 0 < len(prompt.strip()) <= len(prompt) <= MAX_CHARACTERS:
        raise ValueError(f"The prompt has {len(prompt.strip()):,} characters. Write 1 to {MAX_CHARACTERS:,}.")
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be between 1 and {MAX_NEW_TOKENS}.")
    # the checkpoint's own tokenization: control tokens that are spelt out are text
    encoding = importlib.import_module(type(model).__module__.rpartition(".")[0] + ".encoding_magnet")
    ids = [*encoding.start_ids(model.config, tokenizer), *encoding.text_ids(prompt, tokenizer)]
    ids = torch.tensor([ids], device=model.device)  # (1, L)
    room = model.config.max_position_embeddings - ids.shape[1]
    if room < max_new_tokens:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}: the prompt leaves room for {max(room, 0)} tokens. Shorten one of them."
        )
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    written = {
        name: seeded(view.generate, seed, ids, max_new_tokens=max_new_tokens, use_cache=True, **sampling)
        for name, view in models(model).items()
    }
    whole = written[BASE]  # (1, L + new)
    logits = {name: view(whole, use_cache=False).logits for name, view in models(model).items()}  # (1, L + new, V)
    return {
        name: {
            "continuation": tokenizer.decode(written[name][0, ids.shape[1] :], skip_special_tokens=True),
            "equal": torch.equal(logits[name], logits[BASE]),
            "difference": float((logits[name] - logits[BASE]).abs().max()),
            "perplexity": float(torch.nn.functional.cross_entropy(logits[name][0, :-1].float(), whole[0, 1:]).exp()),
        }
        for name in written
    }


def highlighted(prompt: str, continuation: str, base: str) -> list[tuple[str, str | None]]:
    """The prompt and its continuation, which is marked from the first character that differs from the base's."""
    shared = os.path.commonprefix([continuation, base])
    parts = [(prompt, None), (shared, "same as the base"), (continuation[len(shared) :], "differs")]
    return [part for part in parts if part[0]]


def measures(results: dict[str, dict]) -> list[list]:
    """Rows of model, whether all logits equal the base's, perplexity."""
    rows = []
    for name, result in results.items():
        same = "bit for bit" if result["equal"] else f"no, differs by up to {result['difference']:.3g}"
        rows.append([name, same, f"{result['perplexity']:.2f}"])
    return rows
