"""Gaps in fill-in-the-middle order, for a LoRA trained on it and for models that were pretrained on it.

Our LoRA (recipe `fim_control`) spells its markers and knows two orders. A stock model such as Qwen2.5-Coder has tokens for
them, one order (PSM), and ends a fill with a token of its own.
"""

from dataclasses import dataclass

from magnet_train.fim import FimMarkers, fim_markers, fim_row
from modeling_magnet.encoding_magnet import start_ids

from .scoring import GapExample
from .systems import System, is_adapted

OWN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")  # Qwen2.5-Coder's
ENDS = ("<|endoftext|>", *OWN, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")  # where its authors stop generation


@dataclass
class FimFormat:
    """How a model writes a gap: its markers, the token that opens a row, those that end a fill, and its orders."""

    markers: FimMarkers
    bos: int | None
    ends: list[int]  # the first is trained to follow a fill
    orders: tuple[str, ...]


def fim_format(system: System) -> FimFormat:
    """
    The format a system was trained on.

    Raises:
        `ValueError` for a model that was neither adapted nor has tokens for the format.
    """
    tokenizer = system.tokenizer
    if is_adapted(system.model):
        bos = next(iter(start_ids(system.model.config, tokenizer)), None)
        return FimFormat(fim_markers(tokenizer), bos, [tokenizer.eos_token_id], ("PSM", "SPM"))
    known = tokenizer.added_tokens_encoder
    if not {*OWN, ENDS[0]} <= known.keys():
        raise ValueError(
            f"baseline={system.name}: the model has no adapter and its tokenizer lacks {', '.join(OWN)}. Give a checkpoint of "
            "the recipe fim_control, or a model pretrained on these tokens."
        )
    return FimFormat(
        FimMarkers(*([known[each]] for each in OWN)), None, [known[e] for e in ENDS if e in known], ("PSM",)
    )


def fim_examples(example: GapExample, system: System, order: str, end: bool, middle: bool = True) -> list[GapExample]:
    """
    A row for each gap of a text; its missing tokens (and the end) are the span.

    The order has one gap per row, so several are filled from left to right: the left side holds the earlier ones, already
    filled (as for a left-to-right model), and the right side lacks the later ones.

    Args:
        example ([`GapExample`]): A text and its gaps.
        order (`str`): `"PSM"` or `"SPM"`.
        end (`bool`): Whether the end of a fill is part of the span.
        middle (`bool`, *optional*, defaults to `True`): Whether the missing tokens are in the row; else it is a prompt.
    """
    form, rows = fim_format(system), []
    opening = len(start_ids(system.model.config, system.tokenizer))
    for number, (start, length) in enumerate(example.spans):
        later = {place for first, count in example.spans[number + 1 :] for place in range(first, first + count)}
        right = [example.ids[place] for place in range(start + length, len(example.ids)) if place not in later]
        gap = example.ids[start : start + length] if middle else []
        row, first = fim_row(
            example.ids[opening:start], gap, right, form.markers, form.bos, form.ends[0], spm=order == "SPM"
        )
        rows.append(GapExample(row.tolist(), [(first, len(gap) + end)], example.story))
    return rows
