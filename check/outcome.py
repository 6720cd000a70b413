"""How a check ends: it returns what it found, or raises one of these two."""

from dataclasses import dataclass


class Failed(Exception):
    """Something is wrong; the message says where."""


class Skipped(Exception):
    """The check does not apply, or could not be made; the message says why."""


@dataclass
class Outcome:
    """
    A line of the report.

    Args:
        name (`str`): Of the check.
        status (`str`): `"ok"`, `"FAIL"` or `"skipped"`.
        detail (`str`): What was found, what is wrong, or why it was skipped.
    """

    name: str
    status: str
    detail: str

    @property
    def line(self) -> str:
        return f"{self.status:8}{self.name:27}{self.detail}"
