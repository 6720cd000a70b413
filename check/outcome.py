"""How a check ends: it returns its findings, or raises `Failed` or `Skipped`."""

from dataclasses import dataclass


class Failed(Exception):
    """Something is wrong; the message says where."""


class Skipped(Exception):
    """The check does not apply, or could not run; the message says why."""


@dataclass
class Outcome:
    """
    A line of the report.

    Args:
        name (`str`): The check's name.
        status (`str`): `"ok"`, `"FAIL"` or `"skipped"`.
        detail (`str`): What was found, what is wrong, or why it was skipped.
    """

    name: str
    status: str
    detail: str

    @property
    def line(self) -> str:
        return f"{self.status:8}{self.name:27}{self.detail}"
