"""magnet <command> [options]: each command is a small file, imported only when called."""

import importlib
import io
import sys

from .ending import ended_by, take_debug

COMMANDS = {
    "demo": "adapt the tiny base for two minutes and compare it with the shipped checkpoint",
    "fetch": "get a small model to try it on",
    "train": "adapt a decoder",
    "paraphrase": "make the sentence pairs that training learns from",
    "infill": "fill the gaps of texts",
    "encode": "texts to vectors",
    "evaluate": "measure a checkpoint: infilling perplexity, sentence similarity",
    "export": "write a checkpoint in one of its forms",
    "push": "put a checkpoint on the Hugging Face Hub",
    "check": "examine a checkpoint",
}


def usage() -> str:
    lines = "\n".join(f"  {name:12}{what}" for name, what in COMMANDS.items())
    return (
        f"usage: magnet <command> [options]\n\n{lines}\n\n"
        "magnet <command> --help tells a command's options, --debug the whole traceback of an error,\n"
        "magnet --version the version."
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
        sys.exit(f"magnet: error: no command {args[0]!r}. Known: {', '.join(COMMANDS)}.")
    try:
        importlib.import_module(f"magnet_cli.{args[0]}").main(args[1:])
        sys.stdout.flush()  # a closed pipe, as with `| head`, is detected here at the latest
    except SystemExit:
        raise
    except BaseException as error:  # also Ctrl-C and Rust panics in tokenizers
        ended_by(error, f"magnet {args[0]}", args, debug)


def version() -> str:
    from importlib.metadata import version as installed

    return f"magnet-llm {installed('magnet-llm')}"
