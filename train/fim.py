"""Fill-in-the-middle rows: the infilling baseline that needs no new attention (Bavarian et al. 2022).

A text is cut into prefix, middle and suffix and reordered so that a causal model sees both sides first:

    PSM   [BOS] <PRE> prefix <SUF> suffix <MID> middle [EOS]
    SPM   [BOS] <PRE> <SUF> suffix <MID> prefix middle [EOS]

Llama has no tokens for the three markers and LoRA does not train the embeddings, so the markers are spelled as text.
"""

from dataclasses import dataclass

import numpy as np

MOST_MARKER_TOKENS = 24  # for all three, in any tokenizer; rows become that much longer


@dataclass
class FimMarkers:
    """The token ids of `<PRE>`, `<SUF>` and `<MID>`."""

    prefix: list[int]
    suffix: list[int]
    middle: list[int]


def fim_markers(tokenizer) -> FimMarkers:
    """Spells the markers with the tokenizer's ordinary tokens."""
    texts = ("<PRE>", "<SUF>", "<MID>")
    ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if sum(map(len, ids)) > MOST_MARKER_TOKENS:
        raise ValueError(f"fim_ratio: the tokenizer makes {sum(map(len, ids))} tokens of {texts}; 24 are allowed for.")
    return FimMarkers(*ids)


def fim_row(
    prefix, middle, suffix, markers: FimMarkers, bos: int | None, end: int, spm: bool
) -> tuple[np.ndarray, int]:
    """
    Puts a text into fill-in-the-middle order.

    Args:
        prefix, middle, suffix (lists of `int`): The three parts, as token ids.
        markers ([`FimMarkers`]): Ids of the markers.
        bos (`int`, *optional*): The token that opens a row.
        end (`int`): The token that ends the middle.
        spm (`bool`): Suffix first, so that prefix and middle stay in one piece.

    Returns:
        The row, which ends with `end`, and the index at which `middle` starts.

    Example:

    ```python
    >>> from magnet_train.fim import FimMarkers, fim_row
    >>> row, start = fim_row([5], [6], [7], FimMarkers([90], [91], [92]), bos=1, end=2, spm=False)
    >>> row.tolist(), start
    ([1, 90, 5, 91, 7, 92, 6, 2], 6)
    >>> fim_row([5], [6], [7], FimMarkers([90], [91], [92]), bos=1, end=2, spm=True)[0].tolist()
    [1, 90, 91, 7, 92, 5, 6, 2]

    ```
    """
    prefix, middle, suffix = list(prefix), list(middle), list(suffix)
    start = [] if bos is None else [bos]
    if spm:
        before = [*start, *markers.prefix, *markers.suffix, *suffix, *markers.middle, *prefix]
    else:
        before = [*start, *markers.prefix, *prefix, *markers.suffix, *suffix, *markers.middle]
    return np.array([*before, *middle, end]), len(before)
