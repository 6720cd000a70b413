"""Figure 6: accuracy on masked tokens, predicted at the left neighbour (MNTP) or at the masked position (MTP).

Held-out text with 20 % of the tokens masked, bidirectional attention. Systems whose names end with a step are points of the
curves: `--baseline mtp-200=runs/mtp/checkpoint-200 magnet-200=runs/mntp/checkpoint-200`.
"""

import numpy as np
import torch

from modeling_magnet.encoding_magnet import padded, start_ids, text_ids

from .data import STORIES, WIKITEXT, Settings, files, name_of, passages, read_stories, read_wikitext
from .figures import Figure
from .systems import System

FILES = (*WIKITEXT, *STORIES)
KINDS = ("magnet", "llm2vec", "mtp")
COMPARED = ("",)
PAPER = {}
MASKED = 0.2


def measure(system: System, settings: Settings) -> tuple[list[Figure], dict]:
    """Masked-token accuracy on each set; texts are resampled."""
    config, tokenizer, found = system.model.config, system.tokenizer, []
    if config.mask_token_id is None:
        return [], {"no mask token": system.name}
    for path in files(settings.data, FILES):
        if path.name in STORIES:
            texts = [" ".join(story["sentences"]) for story in read_stories(path, settings.limit)]
        else:
            texts = [text for article in read_wikitext(path, settings.limit) for text in passages(article)[:2]]
        rng, opening = np.random.default_rng(settings.seed), start_ids(config, tokenizer)
        rows = [(opening + text_ids(text, tokenizer))[: config.max_position_embeddings] for text in texts]
        masked = [np.flatnonzero(rng.random(len(row)) < MASKED) for row in rows]
        masked = [places[places > 0] for places in masked]  # the first token has no left neighbour
        right = []
        for first in range(0, len(rows), settings.batch_size):
            some = slice(first, first + settings.batch_size)
            right += guessed(system, rows[some], masked[some])
        counts = [len(places) for places in masked]
        columns = [100.0 * np.array(right), counts]
        found.append(Figure(name_of(path), "masked tokens %", "ratio_of_sums", columns, tokens=sum(counts)))
    return found, {}


@torch.no_grad()
def guessed(system: System, rows: list[list[int]], masked: list[np.ndarray]) -> list[int]:
    """The number of masked tokens predicted correctly in each row."""
    ids, mask = padded(rows, system.model.device)
    hidden, places = ids.clone(), torch.zeros_like(ids, dtype=torch.bool)
    for row, each in enumerate(masked):
        places[row, torch.as_tensor(each)] = True
    hidden[places] = system.model.config.mask_token_id
    at = places if system.kind == "mtp" else torch.nn.functional.pad(places, (0, 1))[:, 1:]
    inputs = {"attention_mask": mask, "attention_mode": "bidirectional", "logits_to_keep": at}
    guesses = system.model(hidden, **inputs).logits.argmax(-1)  # (N,), row by row
    hits = torch.zeros_like(ids)
    hits[places] = (guesses == ids[places]).long()
    return hits.sum(1).tolist()
