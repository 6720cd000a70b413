"""magnet demo: from a fresh clone to a result, offline.

    magnet demo --output_dir runs/demo

Adapts the tiny base for about two minutes and compares it with the shipped checkpoint.
"""

from .parser import Parser


def main(args: list[str]) -> None:
    parser = Parser("magnet demo", __doc__)
    parser.add_argument("--output_dir", default="runs/demo", help="checkpoint, report.md and curves.png go there")
    parser.add_argument("--max_steps", type=int, help="training steps, for a shorter look (default: the recipe's)")
    options = parser.parse_args(args)

    from magnet_train.demo import demo

    demo(options.output_dir, options.max_steps)
