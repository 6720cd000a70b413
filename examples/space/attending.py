"""Attention masks of a text with gaps in the three modes (Figure 2), for the Attention tab."""

import torch
from checkpoint import Checkpoint, check_text
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

MAX_TOKENS = 48
GAP = "<|gap|>"
COLORS = ["#f4f4f6", "#6d8fe8", "#3fae83"]  # forbidden, seen by a context token, seen by a span token
MEANINGS = ["may not attend", "a context token attends", "a span token attends"]


def read_spans(checkpoint: Checkpoint, text: str, tokens_per_gap: int) -> tuple[list[str], list[int]]:
    """The tokens of a text with `tokens_per_gap` tokens per gap, and their span ids: 0 for context, g in gap g."""
    check_text("The text", text)
    infilling, config, tokenizer = checkpoint.module("infilling_magnet"), checkpoint.model.config, checkpoint.tokenizer
    if len(infilling.split_at_gaps(text, GAP)) == 1:
        document = infilling.Document([text], [])
    else:
        document = infilling.read_document("The text", text, GAP, infilling.Gap(tokens_per_gap), {})
    ids = infilling.context_ids(document, config, tokenizer)
    names = [gap.name or f"gap {number}" for number, gap in enumerate(document.gaps, 1)]
    labels, spans = [], []
    for number, part in enumerate(ids):
        if number:
            labels += [f"{names[number - 1]}·{n}" for n in range(1, tokens_per_gap + 1)]
            spans += [number] * tokens_per_gap
        labels += [_shown(token) for token in tokenizer.convert_ids_to_tokens(part)]
        spans += [0] * len(part)
    if len(labels) > MAX_TOKENS:
        raise ValueError(f"The text has {len(labels)} tokens, of at most {MAX_TOKENS} in a picture. Shorten it.")
    return labels, spans


def _shown(token: str) -> str:
    token = token.replace("Ġ", "").replace("▁", "").replace("Ċ", "⏎") or "␣"
    return (token if len(token) <= 12 else token[:11] + "…").replace("$", r"\$")


def masks(checkpoint: Checkpoint, spans: list[int]) -> dict[str, torch.Tensor]:
    """For each mode, (L, L): 0 if a query (row) may not attend to a key, 1 if it may as context, 2 as span token."""
    index = torch.arange(len(spans))
    modes = {"causal": [1] * len(spans), "bidirectional": [0] * len(spans), "hybrid": spans}
    pictures = {}
    for mode, ids in modes.items():
        rule = checkpoint.module("modeling_magnet").span_attention_rule(torch.tensor([ids]))
        allowed = rule(0, 0, index[:, None], index[None, :])
        pictures[mode] = allowed * (1 + (torch.tensor(ids) > 0).int()[:, None])
    return pictures


def draw(labels: list[str], spans: list[int], pictures: dict[str, torch.Tensor]) -> Figure:
    """Draws three panels; gap tokens are green."""
    size = max(3.6, 0.2 * len(labels))
    figure = Figure(figsize=(3 * size + 1.4, size + 1.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (mode, picture) in zip(axes, pictures.items()):
        axis.imshow(picture, cmap=ListedColormap(COLORS), vmin=0, vmax=2)
        axis.set_title(f"{mode} attention", fontsize=12, fontweight="bold", pad=10)
        axis.set_xlabel("key", fontsize=10)
        axis.set_xticks(range(len(labels)), labels, rotation=90)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xticks([n - 0.5 for n in range(1, len(labels))], minor=True)
        axis.set_yticks([n - 0.5 for n in range(1, len(labels))], minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
        axis.tick_params(which="both", length=0, labelsize=8.5)
        axis.spines[:].set_visible(False)
        for tick in [*axis.get_xticklabels(), *axis.get_yticklabels()]:
            position = tick.get_position()[0] or tick.get_position()[1]
            tick.set_color("#1d7a57" if spans[int(position)] else "#333333")
    axes[0].set_ylabel("query", fontsize=10)
    keys = [Patch(facecolor=color, label=meaning) for color, meaning in zip(COLORS, MEANINGS)]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure
