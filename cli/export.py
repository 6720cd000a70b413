"""magnet export: writes a checkpoint in one of its forms.

    magnet export --model_name_or_path runs/smol --form encoder --output_dir runs/encoder
    magnet export --model_name_or_path name/model --form generator --output_dir llama --dtype float16

forms:
  magnet     all modes, causal mode identical to the base; remote code
  merged     all modes, causal mode adapted too, as in the paper; remote code
  encoder    the family's stock decoder, bidirectional, for sentence-transformers, vLLM, TEI, llama.cpp
  generator  the family's stock language model, equivalent to causal mode
  adapter    a PEFT adapter and its MAGNET base

In Python: magnet_hub.export.export_checkpoint(). Details: docs/share.md.
"""

import sys

from magnet_hub import FORMS

from .parser import Parser


def add_form_flags(parser: Parser) -> None:
    parser.add_argument(
        "--dtype",
        help="float32, bfloat16, float16 or auto (default): float32 if the adapter is merged, else the checkpoint's",
    )
    parser.add_argument("--base_model_name_or_path", help="form adapter: its MAGNET base (a folder or Hub id)")


def main(args: list[str]) -> None:
    parser = Parser("magnet export", __doc__)
    parser.add_argument("--model_name_or_path", required=True, help="MAGNET checkpoint: a folder or a Hub id")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--form", choices=FORMS, default="magnet", help="default: magnet")
    add_form_flags(parser)
    options = parser.parse_args(args)

    from magnet_hub.export import export_checkpoint

    export_checkpoint(**vars(options) | {"dtype": options.dtype or "auto"})
    print(f"{options.output_dir}: form {options.form}", file=sys.stderr)
