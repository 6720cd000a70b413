"""magnet demo: from a fresh clone to a result, offline.

    magnet demo --output_dir runs/demo

Adapts the tiny base for about two minutes and compares it with the shipped checkpoint.
"""

from .parser import Parser


def main(args: list[str]) -> None:
    parser = Parser("magnet demo", __doc__)
    parser.add_argument(
        "--output_dir", default="runs/demo", help="output folder for the checkpoint, report.md and curves.png"
    )
    parser.add_argument("--max_steps", type=int, help="number of training steps (default: the recipe's)")
    options = parser.parse_args(args)

    from magnet_train.demo import demo

    demo(options.output_dir, options.max_steps)
