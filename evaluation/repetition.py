"""Table 6 and Figure 5: repetition in open-ended generation.

Rep-Sen is the share of repeated sentences, Rep-4 of repeated 4-grams, in the 256 new tokens, averaged over up to 200 prefixes:
the first five words of a passage of Wikitext, or the first sentence of a story. The end token is suppressed. Systems whose names end with a
step (`magnet-400`, `magnet-800`) are points of Figure 5.
"""

import torch

from modeling_magnet.encoding_magnet import start_ids, text_ids

from .data import STORIES, WIKITEXT, Settings, files, name_of, passages, read_stories, read_wikitext, sentences_of
from .figures import Figure, means
from .systems import System
from .writing import continuations

FILES = (*WIKITEXT, *STORIES)
KINDS = ("magnet", "llm2vec", "mtp", "base", "causal", "fim")
COMPARED = ("greedy",)
PREFIXES, NEW_TOKENS = 200, 256
WAYS = {"greedy": {}, "nucleus 0.9": {"do_sample": True, "top_p": 0.9, "top_k": 0, "temperature": 1.0}}
SETS = ("Wikitext: Rep-Sen", "Wikitext: Rep-4", "ROC: Rep-Sen", "ROC: Rep-4")
PAPER = {
    "Llama-2-7B": (0.0056, 0.0601, 0.0381, 0.0163),
    "LLM2Vec": (0.2044, 0.4747, 0.2945, 0.5243),
    "MAGNET": (0.0151, 0.2047, 0.0737, 0.2573),
}
PAPER = {name: dict(zip(SETS, row)) for name, row in PAPER.items()}


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """Rep-Sen and Rep-4 on each set, greedily and with nucleus sampling."""
    opening, found = start_ids(system.model.config, system.tokenizer), []
    new_tokens = 24 if settings.fast else min(NEW_TOKENS, system.model.config.max_position_embeddings // 2)
    for path in files(settings.data, FILES):
        prompts = [opening + text_ids(prefix, system.tokenizer) for prefix in prefixes(path, settings.limit)]
        for way, sampling in WAYS.items():
            torch.manual_seed(settings.seed)
            rows = continuations(
                system.model,
                system.tokenizer,
                prompts,
                new_tokens,
                ends=False,
                batch_size=settings.batch_size,
                **sampling,
            )
            texts = [system.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
            values = {"Rep-Sen": [repeated(sentences_of(text)) for text in texts]}
            values["Rep-4"] = [repeated(list(zip(*(row[n:] for n in range(4))))) for row in rows]
            found += means(name_of(path), values, way)
    return found, {}


def prefixes(path, limit: int | None) -> list[str]:
    """The prompts; passages are spread over the articles."""
    count = min(PREFIXES, limit or PREFIXES)
    if path.name in STORIES:
        return [story["sentences"][0] for story in read_stories(path, count)]
    found = [passage for article in read_wikitext(path) for passage in passages(article)]
    return [" ".join(passage.split()[:5]) for passage in found[:: max(1, len(found) // count)][:count]]


def repeated(items: list) -> float:
    """
    The share of items that occurred before.

    >>> repeated(["It rained.", "He left.", "It rained.", "It rained."])
    0.5
    """
    return 1 - len(set(items)) / len(items) if items else 0.0
