"""magnet check: checks a checkpoint, one line per check; exit code 1 if any fails.

    magnet check runs/smol
    magnet check runs/smol --device cuda --dtype bfloat16
    magnet check runs/smol --json > report.json

Checks files, code, weights and tokens, then runs the model: the adapter gate, and every attention mode on every available
backend. Runs the installed package's code, never the checkpoint's. Needs slightly more memory than the weights.
"""

import json
import sys

from .parser import Parser

BACKENDS = ("eager", "sdpa", "flex_attention", "flash_attention_2")  # as in magnet_hub.check, which imports torch


def parse(args: list[str]):
    parser = Parser("magnet check", __doc__)
    parser.add_argument("folder", help="checkpoint folder, in any form that magnet export writes")
    parser.add_argument("--device", default="cpu", help="device to run on: cpu (default), cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="dtype to run in (default: that of config.json)",
    )
    parser.add_argument(
        "--attn_implementation",
        nargs="+",
        choices=BACKENDS,
        help="backends to check (default: all available, flex_attention only on a GPU: it compiles for minutes on a CPU)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON report")
    return parser.parse_args(args)


def main(args: list[str]) -> None:
    options = parse(args)
    from transformers.utils import logging

    from magnet_hub.check import Checkpoint, run_checks

    from .model import torch_device

    torch_device(options.device)  # raises if it is not available
    logging.set_verbosity_error()  # the checks cover transformers' warnings
    logging.disable_progress_bar()
    checkpoint = Checkpoint(options.folder, options.device, options.dtype, options.attn_implementation)
    outcomes = []
    for outcome in run_checks(checkpoint):
        outcomes.append(outcome)
        if not options.json:
            print(f"{outcome.status:8}{outcome.name:25}{outcome.detail}", flush=True)
    failed = sum(outcome.status == "FAIL" for outcome in outcomes)
    if options.json:
        report = {"checkpoint": checkpoint.folder.name, "passed": not failed}
        report["checks"] = [outcome._asdict() for outcome in outcomes]
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print(f"\n{failed or 'none'} of {len(outcomes)} checks failed.")
    if failed:
        sys.exit(1)
