"""magnet check: examines a checkpoint, one line per check; exit code 1 if any fails.

    magnet check runs/smol
    magnet check runs/smol --device cuda --dtype bfloat16
    magnet check runs/smol --json > report.json

Checks files, links, shard names, code, weights and tokens, then runs the model: every attention mode on every available
backend, the adapter's gate, threads, gaps, sentences. The installed package's code is run, not the checkpoint's, unless you
pass --trust_remote_code. Needs slightly more memory than the weights.
"""

import sys

from .parser import Parser

BACKENDS = ("eager", "sdpa", "flex_attention", "flash_attention_2")  # as in magnet_check.modes, which imports torch


def parse(args: list[str]):
    parser = Parser("magnet check", __doc__)
    parser.add_argument("folder", help="the checkpoint: a folder of any form that magnet export writes")
    parser.add_argument("--device", default="cpu", help="where the model is run: cpu (default), cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="what it is run in (default: as stored)",
    )
    parser.add_argument(
        "--attn_implementation",
        nargs="+",
        choices=BACKENDS,
        help="backends to try (default: all there are, but flex_attention on a GPU only: a CPU compiles it for minutes)",
    )
    parser.add_argument("--json", action="store_true", help="print a report for programs instead of lines")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the checkpoint's own code")
    return parser.parse_args(args)


def main(args: list[str]) -> None:
    options = parse(args)
    from transformers.utils import logging

    from magnet_check.checkpoint import Checkpoint
    from magnet_check.run import as_json, run_checks

    from .model import torch_device

    torch_device(options.device)  # refuses an unavailable one
    logging.set_verbosity_error()  # the checks cover transformers' warnings
    logging.disable_progress_bar()
    checkpoint = Checkpoint(
        options.folder, options.device, options.dtype, options.trust_remote_code, options.attn_implementation
    )
    outcomes = []
    for outcome in run_checks(checkpoint):
        outcomes.append(outcome)
        if not options.json:
            print(outcome.line, flush=True)
    print(as_json(checkpoint, outcomes) if options.json else summary(outcomes, checkpoint.code_run))
    if any(outcome.status == "FAIL" for outcome in outcomes):
        sys.exit(1)


def summary(outcomes, code: str) -> str:
    failed = sum(outcome.status == "FAIL" for outcome in outcomes)
    ran = {
        "none": "The model was not run.",
        "the checkpoint's": "The model ran with the checkpoint's own code.",
        "the installed package's": "The model ran with the installed package's code; the checkpoint's own was not run.",
    }
    return f"\n{failed or 'none'} of {len(outcomes)} checks failed. {ran[code]}"
