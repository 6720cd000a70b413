"""The argparse of every command: help is the module's docstring, no abbreviated flags, no secret in a message."""

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
