"""The Embed tab: cosine similarities of sentences, ranked by similarity to a query."""

import numpy as np
import pandas as pd

MAX_SENTENCES, MAX_CHARACTERS = 24, 600


def compare(model, tokenizer, query: str, sentences: list[str]) -> tuple[np.ndarray, list[list]]:
    """The sentences' cosines, (N, N), with bidirectional attention; and rows of rank, cosine to the query, sentence."""
    if not 2 <= len(sentences) <= MAX_SENTENCES:
        raise ValueError(f"Sentences: {len(sentences)}. Write 2 to {MAX_SENTENCES}, one per line.")
    for where, text in [("The query", query), *((f"Sentence {n}", text) for n, text in enumerate(sentences, 1))]:
        if not text.strip() or len(text) > MAX_CHARACTERS:
            raise ValueError(f"{where} has {len(text.strip())} characters. Write 1 to {MAX_CHARACTERS}.")
    vectors = model.encode([query, *sentences], tokenizer)  # (1 + N, d)
    cosines = vectors @ vectors.T
    order = np.argsort(-cosines[0, 1:], kind="stable")
    rows = [[rank, round(float(cosines[0, 1 + i]), 3), sentences[i]] for rank, i in enumerate(order, 1)]
    return cosines[1:, 1:], rows


def heat_map(cosines: np.ndarray, sentences: list[str]):
    """The similarities as a shaded table; rows are labelled with sentences, columns with their numbers."""
    numbers = [str(number) for number in range(1, len(sentences) + 1)]
    table = pd.DataFrame(cosines, columns=numbers)
    table.insert(0, "sentence", [f"{number}. {sentence}" for number, sentence in zip(numbers, sentences)])
    lowest = min(0, float(cosines.min()))
    # of black and white text, the one with more contrast: at a luminance of 0.18 both have 4.6
    shades = {"vmin": lowest, "vmax": 1, "text_color_threshold": 0.18}
    return table.style.format(precision=2).background_gradient("GnBu", subset=numbers, **shades)
