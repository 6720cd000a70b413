"""The list of checks, and its runner."""

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .behaviour import check_encode, check_gate, check_infill, check_threads
from .checkpoint import Checkpoint
from .code import check_card_hashes, check_installed_hashes
from .files import check_config, check_files, check_paths, check_pickles
from .modes import BACKENDS, check_modes, check_padding
from .outcome import Failed, Outcome, Skipped
from .tokens import check_sentences, check_tokens
from .weights import check_dtypes, check_headers, check_tensors, check_values

logger = logging.getLogger(__name__)

CHECKS = {
    "files": check_files,
    "paths": check_paths,
    "no pickles": check_pickles,
    "code, card": check_card_hashes,  # before anything that may run the code
    "code, installed": check_installed_hashes,
    "settings": check_config,
    "headers": check_headers,
    "tensors": check_tensors,
    "values": check_values,
    "dtypes": check_dtypes,
    "tokens": check_tokens,
    "sentences": check_sentences,
    **{f"modes, {backend}": partial(check_modes, backend=backend) for backend in BACKENDS},
    **{f"padding, {backend}": partial(check_padding, backend=backend) for backend in BACKENDS},
    "adapter's gate": check_gate,
    "threads": check_threads,
    "infill": check_infill,
    "encode": check_encode,
}
SAFE_TO_LOAD = (
    "files",
    "paths",
    "settings",
    "headers",
    "tensors",
    "values",
)  # nothing is loaded if one of them fails


def run_checks(checkpoint: Checkpoint) -> Iterator[Outcome]:
    """
    Yields the outcome of each check as it finishes, in the order of `CHECKS`. A check never stops the others.

    Example:

    ```python
    >>> from magnet_check.checkpoint import Checkpoint
    >>> from magnet_check.run import run_checks
    >>> next(run_checks(Checkpoint("examples/assets/magnet-tiny"))).status
    'ok'

    ```
    """
    needed = SAFE_TO_LOAD + (("code, card",) if checkpoint.trust_remote_code else ())
    for name, check in CHECKS.items():
        outcome = _outcome(name, check, checkpoint)
        if outcome.status == "FAIL" and name in needed:
            checkpoint.unsound.append(name)
        yield outcome


def _outcome(name, check, checkpoint) -> Outcome:
    try:
        return Outcome(name, "ok", check(checkpoint))
    except Skipped as reason:
        return Outcome(name, "skipped", str(reason))
    except Failed as reason:
        return Outcome(name, "FAIL", str(reason))
    except (KeyboardInterrupt, SystemExit):
        raise
    # a checkpoint may be broken in unforeseen ways, which are reported too; a Rust panic in tokenizers is no Exception
    except BaseException as error:
        logger.debug("where it happened:", exc_info=True)
        return Outcome(name, "FAIL", f"{type(error).__name__}: {' '.join(str(error).split())}")


def as_json(checkpoint: Checkpoint, outcomes: list[Outcome]) -> str:
    """The report as JSON."""
    report = {
        "checkpoint": Path(checkpoint.folder).name,
        "passed": all(outcome.status != "FAIL" for outcome in outcomes),
        "code": checkpoint.code_run,
        "checks": [vars(outcome) for outcome in outcomes],
    }
    return json.dumps(report, indent=1, ensure_ascii=False)
