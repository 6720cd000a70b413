"""magnet <command> [options]"""

import importlib
import sys

COMMANDS = {
    "demo": ("magnet_cli.demo", "adapt the tiny base for two minutes and compare it with the shipped checkpoint"),
    "train": ("magnet_cli.train", "adapt a Llama: magnet train --config default --model_name_or_path ... "),
    "paraphrase": ("magnet_cli.paraphrase", "make the sentence pairs: magnet paraphrase --model_name_or_path ... "),
}


def usage() -> str:
    lines = "\n".join(f"  {name:12}{what}" for name, (_, what) in COMMANDS.items())
    return f"usage: magnet <command> [options]\n\n{lines}\n\nmagnet <command> --help tells a command's options."


def main(args: list[str] | None = None) -> None:
    """Runs one command. Each is imported only when it is named, so that help comes at once."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] not in COMMANDS:
        sys.exit(f"magnet: no command {args[0]!r}. Known: {', '.join(COMMANDS)}.")
    importlib.import_module(COMMANDS[args[0]][0]).main(args[1:])
