"""Not in the paper: causal mode against the base, the tokens each mode attends to, and similarities of sentences."""

import torch

from modeling_magnet.encoding_magnet import start_ids, text_ids

from .data import STORIES, Settings, files, name_of, read_stories
from .embedding import encoders
from .figures import Figure, means
from .scoring import perplexity_figure, span_costs, whole_texts
from .systems import System

FILES = STORIES
KINDS = ("magnet", "llm2vec", "mtp", "causal", "fim")
COMPARED = ()
PAPER = {}
SENTENCES = 12


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """Share of causal logits equal to the base's, perplexity of both, and the tokens each mode attends to."""
    path = files(settings.data, STORIES)[0]
    stories = read_stories(path, settings.limit or 100)
    texts, model = [" ".join(story["sentences"]) for story in stories], system.model
    whole, extra = whole_texts(texts, model.config, system.tokenizer), {"sees": sees(system, texts[0])}
    found = [texts_figure(system, path, whole, settings, "causal mode")]
    if model.config.adapter is None:
        extra["the base cannot be compared"] = "the adapter is merged into the weights, or there is none"
    else:
        equal = [equal_logits(model, example.ids) for example in whole]
        with model.adapter_disabled():
            found.append(texts_figure(system, path, whole, settings, "base"))
        found = means(name_of(path), {"causal logits equal to the base's %": equal}) + found
    if (encode := encoders(system, settings.batch_size).get("")) and stories[0].get("paraphrases"):
        pairs = [pair for story in stories for pair in zip(story["sentences"], story["paraphrases"])][:SENTENCES]
        vectors = encode([text for column in zip(*pairs) for text in column])
        similarity = (vectors[: len(pairs)] @ vectors[len(pairs) :].T).round(3).tolist()
        extra["similarity"] = {"sentences": [pair[0] for pair in pairs], "cosines": similarity}
    return found, extra


def texts_figure(system: System, path, whole, settings: Settings, way: str) -> Figure:
    nats = span_costs(system.model, whole, "causal", settings.batch_size)
    return perplexity_figure(name_of(path), nats, whole, way, measure="perplexity of whole texts")


@torch.no_grad()
def equal_logits(model, ids: list[int]) -> float:
    """The share of a text's logits in causal mode that equal the base's, in percent."""
    ids = torch.tensor([ids], device=model.device)
    logits = model(ids, attention_mode="causal", use_cache=False).logits
    with model.adapter_disabled():
        return 100.0 * (logits == model(ids, attention_mode="causal", use_cache=False).logits).float().mean().item()


@torch.no_grad()
def sees(system: System, text: str, length: int = 12) -> dict[str, list[list[int]]]:
    """
    Which tokens each output depends on, `(L, L)` of 0 and 1 for each mode, found by replacing one token at a time.

    In hybrid mode tokens 4 to 7 are a span.
    """
    model = system.model
    ids = (start_ids(model.config, system.tokenizer) + text_ids(text, system.tokenizer))[:length]
    spans = [int(4 <= n < 8) for n in range(len(ids))]
    modes = {
        "causal": {},
        "bidirectional": {},
        "hybrid": {"span_ids": torch.tensor([spans] * len(ids), device=model.device)},
    }
    rows = torch.tensor([ids] * len(ids), device=model.device)
    changed = rows + torch.eye(len(ids), dtype=torch.long, device=model.device)
    changed %= model.config.vocab_size
    found = {}
    for mode, inputs in modes.items():
        before, after = (
            model.model(x, attention_mode=mode, use_cache=False, **inputs).last_hidden_state for x in (rows, changed)
        )
        found[mode] = (before != after).any(-1).T.int().tolist()  # (query, key)
    return found
