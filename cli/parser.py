"""The argparse of every command: the module's docstring as help, no abbreviated flags, no secrets in messages."""

import argparse
import sys

from .ending import redacted


class Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, doc: str):
        super().__init__(
            prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str):
        super().error(redacted(message, sys.argv))
