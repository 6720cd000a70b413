"""Not in the paper: causal mode against the base, the tokens each mode attends to, and similarities of sentences."""

import torch

from modeling_magnet.encoding_magnet import start_ids, text_ids

from .data import STORIES, Settings, files, name_of, read_stories
from .embedding import encoders
from .figures import Figure, means
from .scoring import span_costs, whole_texts
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
    whole, equal = whole_texts(texts, model.config, system.tokenizer), []
    ours = span_costs(model, whole, "causal", settings.batch_size)
    with model.adapter_disabled():
        base = span_costs(model, whole, "causal", settings.batch_size)
    for example in whole:
        ids = torch.tensor([example.ids], device=model.device)
        with torch.no_grad():
            logits = model(ids, attention_mode="causal", use_cache=False).logits
            with model.adapter_disabled():
                equal.append(
                    100.0
                    * (logits == model(ids, attention_mode="causal", use_cache=False).logits).float().mean().item()
                )
    tokens = [example.length for example in whole]
    found = means(name_of(path), {"causal logits equal to the base's %": equal})
    for way, nats in (("causal mode", ours), ("base", base)):
        found.append(
            Figure(name_of(path), "perplexity of whole texts", "perplexity", [nats, tokens], way, sum(tokens))
        )
    extra = {"sees": sees(system, texts[0])}
    if (encode := encoders(system, settings.batch_size).get("")) and stories[0].get("paraphrases"):
        pairs = [pair for story in stories for pair in zip(story["sentences"], story["paraphrases"])][:SENTENCES]
        vectors = encode([text for column in zip(*pairs) for text in column])
        similarity = (vectors[: len(pairs)] @ vectors[len(pairs) :].T).round(3).tolist()
        extra["similarity"] = {"sentences": [pair[0] for pair in pairs], "cosines": similarity}
    return found, extra


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
