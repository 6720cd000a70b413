"""Draws the attention rule as in Figure 2 of the paper: rows are queries, columns are keys.

python -m magnet_hub.draw_mask                                # causal, bidirectional, one span, two spans
python -m magnet_hub.draw_mask 0 0 1 1 1 0 2 2 0 --output mask.png
"""

import argparse

import torch

from modeling_magnet import span_attention_rule

FIGURE_2 = {
    "causal": [1] * 8,
    "bidirectional": [0] * 8,
    "one span": [0, 0, 0, 1, 1, 1, 0, 0],
    "two spans": [0, 1, 1, 0, 0, 2, 2, 2],
}
COLORS = ["white", "cornflowerblue", "mediumseagreen"]  # forbidden, seen by a context token, seen by a span token


def allowed(span_ids: list[int]) -> torch.Tensor:
    """
    The rule as a matrix, (L, L): `True` where the row's token attends to the column's.

    Example:

    ```python
    >>> from magnet_hub.draw_mask import allowed
    >>> allowed([0, 1, 1]).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)

    ```
    """
    rule, index = span_attention_rule(torch.tensor([span_ids])), torch.arange(len(span_ids))
    return rule(0, 0, index[:, None], index[None, :])


def draw(patterns: dict[str, list[int]], output: str) -> None:
    """Draws one panel per pattern; span tokens green, context tokens blue, forbidden pairs white."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap

    figure, axes = pyplot.subplots(1, len(patterns), figsize=(3 * len(patterns), 3.2), squeeze=False)
    for axis, (name, span_ids) in zip(axes[0], patterns.items()):
        is_span = (torch.tensor(span_ids) > 0).int()
        axis.imshow(allowed(span_ids) * (1 + is_span[:, None]), cmap=ListedColormap(COLORS), vmin=0, vmax=2)
        axis.set(title=name, xlabel="key", ylabel="query")
        axis.set_xticks(range(len(span_ids)), span_ids)
        axis.set_yticks(range(len(span_ids)), span_ids)
    figure.tight_layout()
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("span_ids", type=int, nargs="*", help="0 = context, g = g-th span; default: Figure 2")
    parser.add_argument("--output", default="attention_mask.png", help="picture to write")
    args = parser.parse_args()
    draw({"hybrid": args.span_ids} if args.span_ids else FIGURE_2, args.output)
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
