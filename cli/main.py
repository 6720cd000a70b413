"""magnet <command> [options]: each command is a small file, imported only when called."""

import difflib
import importlib
import io
import os
import sys

from .ending import ended_by, take_debug

COMMANDS = {
    "demo": "show the shipped model, and train for a minute",
    "fetch": "download the shipped model, or its base",
    "train": "adapt a decoder-only model",
    "paraphrase": "make sentence pairs for training",
    "infill": "fill gaps in texts",
    "encode": "embed texts",
    "evaluate": "evaluate a checkpoint: infilling perplexity, sentence similarity",
    "export": "export a checkpoint to one of five forms",
    "push": "upload a checkpoint to the Hugging Face Hub",
    "check": "check a checkpoint for errors",
}


def usage() -> str:
    lines = "\n".join(f"  {name:12}{what}" for name, what in COMMANDS.items())
    return (
        f"usage: magnet <command> [options]\n\n{lines}\n\n"
        "Use magnet <command> --help for a command's options, --debug for the full traceback of an error,\n"
        "magnet --version for the version."
    )


def main(args: list[str] | None = None) -> None:
    """
    Runs one command.

    Raises:
        `SystemExit` with 1 after an error (one line on stderr), 2 after a wrong option, 130 after Ctrl-C.
    """
    args, debug = take_debug(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):  # regardless of locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    if not args or args[0] in ("-h", "--help"):
        return print(usage())
    if args[0] == "--version":
        return print(version())
    if args[0] not in COMMANDS:
        meant = difflib.get_close_matches(args[0], COMMANDS, n=1)
        advice = f"Did you mean {meant[0]!r}?" if meant else f"Choose from {', '.join(COMMANDS)}."
        sys.exit(f"magnet: error: unknown command {args[0]!r}. {advice}")
    if not {"-h", "--help"} & set(args):
        keep_to_the_cores()
    try:
        importlib.import_module(f"magnet_cli.{args[0]}").main(args[1:])
        sys.stdout.flush()  # at the latest, a closed pipe (`| head`) is detected here
    except SystemExit:
        raise
    except BaseException as error:  # also Ctrl-C and Rust panics in tokenizers
        ended_by(error, f"magnet {args[0]}", args, debug)


def keep_to_the_cores() -> None:
    """
    Before torch is imported: one thread per core that the process may use (a container may have fewer than the machine), and
    waiting threads sleep early instead of spinning, which on a shared machine doubles the time of a training step (figures in
    docs/LOG.md). Variables already set are kept.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "OMP_NUM_THREADS" not in os.environ:
        from joblib import cpu_count

        os.environ["OMP_NUM_THREADS"] = str(cpu_count())


def version() -> str:
    from importlib.metadata import version as installed

    return f"magnet-llm {installed('magnet-llm')}"
