"""The argparse of every command: the module's docstring as help, no abbreviated flags, no secrets in messages."""

import argparse
import difflib
import re
import sys

from .ending import redacted


class Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, doc: str):
        super().__init__(
            prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str):
        if unknown := re.match(r"unrecognized arguments: (--\w+)", message):
            flags = [flag for action in self._actions for flag in action.option_strings]
            meant = difflib.get_close_matches(unknown[1], flags, n=1)
            message += f" (did you mean {meant[0]}?)" if meant else ""
        super().error(redacted(message, sys.argv))
