"""The Attention tab: which tokens attend to which in the three modes (Figure 2), from the model's own rule."""

import importlib

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

MAX_TOKENS = 48
GAP = "<|gap|>"
MODES = {"causal": "generates", "bidirectional": "embeds", "hybrid": "fills gaps"}
COLORS = {
    "attends to context": "#6d8fe8",
    "attends to itself or an earlier token of its span": "#3fae83",
    "does not attend": "#ececf0",
}


def read_spans(model, tokenizer, text: str, tokens_per_gap: int) -> tuple[list[str], list[int]]:
    """The tokens of a text with `tokens_per_gap` tokens per gap, and their span ids: 0 for context, g in gap g."""
    infilling = importlib.import_module(type(model).__module__.rpartition(".")[0] + ".infilling_magnet")
    if not text.strip():
        raise ValueError("The text is empty. Write something, or choose an example.")
    document = infilling.Document([text], [])  # without a gap
    if len(infilling.split_at_gaps(text, GAP)) > 1:
        document = infilling.read_document("The text", text, GAP, infilling.Gap(tokens_per_gap), {})
    labels, spans = [], []
    for number, ids in enumerate(infilling.context_ids(document, model.config, tokenizer)):
        if number:
            name = document.gaps[number - 1].name or f"gap {number}"
            labels += [f"{name}·{n}" for n in range(1, tokens_per_gap + 1)]
            spans += [number] * tokens_per_gap
        labels += [_shown(token) for token in tokenizer.convert_ids_to_tokens(ids)]
        spans += [0] * len(ids)
    if len(labels) > MAX_TOKENS:
        raise ValueError(f"The text has {len(labels)} tokens; the picture shows at most {MAX_TOKENS}. Shorten it.")
    return labels, spans


def _shown(token: str) -> str:
    token = token.replace("Ġ", "").replace("▁", "").replace("Ċ", "⏎") or "␣"
    return (token if len(token) <= 12 else token[:11] + "…").replace("$", r"\$")


def masks(model, spans: list[int]) -> dict[str, torch.Tensor]:
    """For each mode, (L, L): 0 where the row's token attends to the column's as context, 1 in its own span, 2 not at all."""
    rule = importlib.import_module(type(model).__module__).span_attention_rule
    index = torch.arange(len(spans))
    pictures = {}
    for mode, ids in zip(MODES, ([1] * len(spans), [0] * len(spans), spans)):
        ids = torch.tensor([ids])
        seen = rule(ids)(0, 0, index[:, None], index[None, :])
        pictures[mode] = torch.where(seen, (ids > 0).int(), 2)
    return pictures


def draw(labels: list[str], spans: list[int], pictures: dict[str, torch.Tensor]) -> Figure:
    """Draws a panel per mode; the names of gap tokens are green."""
    size = max(3.6, 0.2 * len(labels))
    # no pyplot: it keeps figures in a list that all threads share
    height = size + (1.7 if len(pictures) > 1 else 2.3)  # the legend needs a line, or three
    figure = Figure(figsize=((size + 0.8) * len(pictures), height), layout="constrained")
    for axis, (mode, picture) in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures.items()):
        axis.imshow(picture, cmap=ListedColormap(list(COLORS.values())), vmin=0, vmax=2)
        axis.set_title(f"{mode} attention: {MODES[mode]}", fontsize=12, fontweight="bold", pad=10)
        axis.set_xlabel("column: the token attended to (key)", fontsize=10)
        axis.set_ylabel("row: the attending token (query)", fontsize=10)
        axis.set_xticks(range(len(labels)), labels, rotation=90)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xticks([n - 0.5 for n in range(1, len(labels))], minor=True)
        axis.set_yticks([n - 0.5 for n in range(1, len(labels))], minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
        axis.tick_params(which="both", length=0, labelsize=8.5)
        axis.spines[:].set_visible(False)
        for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
            for tick, span in zip(ticks, spans):
                tick.set_color("#1d7a57" if span else "#333333")
    patches = [Patch(facecolor=color, label=meaning) for meaning, color in COLORS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(pictures), frameon=False, fontsize=10)
    return figure
