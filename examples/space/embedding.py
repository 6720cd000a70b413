"""Cosine similarities of sentences, their heat map, and those nearest to a query, for the Embed tab."""

import numpy as np
from checkpoint import Checkpoint, check_text
from matplotlib.figure import Figure

MAX_SENTENCES, MAX_SENTENCE_CHARACTERS = 24, 600


def read_sentences(lines: str) -> list[str]:
    """One sentence per line; empty lines are skipped."""
    sentences = [line.strip() for line in check_text("The list of sentences", lines, 10_000).splitlines()]
    sentences = [sentence for sentence in sentences if sentence]
    if len(sentences) < 2:
        raise ValueError("There is one sentence only. Write at least two, each on a line of its own.")
    if len(sentences) > MAX_SENTENCES:
        raise ValueError(f"There are {len(sentences)} sentences, of at most {MAX_SENTENCES}. Take some out.")
    for number, sentence in enumerate(sentences, 1):
        check_text(f"Sentence {number}", sentence, MAX_SENTENCE_CHARACTERS)
    return sentences


def similarities(checkpoint: Checkpoint, sentences: list[str], instruction: str | None = None) -> np.ndarray:
    """Cosines, (N, N), with bidirectional attention; `instruction=None` uses the checkpoint's, `""` none."""
    vectors = checkpoint.model.encode(sentences, checkpoint.tokenizer, instruction=instruction)  # (N, d)
    return vectors @ vectors.T


def nearest(checkpoint: Checkpoint, sentences: list[str], query: str, instruction: str | None = None) -> list[list]:
    """Rows of rank, cosine and sentence, nearest to the query first."""
    check_text("The query", query, MAX_SENTENCE_CHARACTERS)
    vectors = checkpoint.model.encode([query, *sentences], checkpoint.tokenizer, instruction=instruction)  # (N + 1, d)
    cosines = vectors[1:] @ vectors[0]
    order = np.argsort(-cosines, kind="stable")
    return [[rank, round(float(cosines[i]), 3), sentences[i]] for rank, i in enumerate(order, 1)]


def heat_map(cosines: np.ndarray, sentences: list[str]) -> Figure:
    """Heat map of the similarities; rows are labelled with sentences, columns with their numbers."""
    count = len(sentences)
    labels = [f"{_shortened(sentence)}  {number}" for number, sentence in enumerate(sentences, 1)]
    width = 1.6 + 0.075 * max(map(len, labels)) + 0.55 * count
    # no pyplot: it keeps figures in a list that all threads share
    figure = Figure(figsize=(width, 0.9 + 0.5 * count), layout="constrained")
    axis = figure.add_subplot()
    lowest = min(0, float(cosines.min()))
    image = axis.imshow(cosines, cmap="GnBu", vmin=lowest, vmax=1)
    axis.set_xticks(range(count), range(1, count + 1))
    axis.set_yticks(range(count), labels)
    axis.tick_params(length=0, labelsize=9)
    axis.spines[:].set_visible(False)
    for i, j in np.ndindex(count, count) if count <= 14 else ():
        shade = "white" if cosines[i, j] > lowest + 0.65 * (1 - lowest) else "#333333"
        axis.text(j, i, f"{cosines[i, j]:.2f}", ha="center", va="center", fontsize=8, color=shade)
    figure.colorbar(image, ax=axis, label="cosine similarity", shrink=0.9, pad=0.02).outline.set_visible(False)
    return figure


def _shortened(sentence: str, most: int = 44) -> str:
    sentence = sentence if len(sentence) <= most else sentence[: most - 1].rstrip() + "…"
    return sentence.replace("$", r"\$")  # matplotlib would parse formulas
