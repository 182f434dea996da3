"""Errors that a user can act on: what is wrong, where, and how to mend it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One defect of the input, found before training.

    Args:
        where: the file, row, column or key, in the user's own terms (``manifest.csv row 17, column age``).
        what: what is wrong there, with the offending value.
        remedy: what to write or do instead.
    """

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.remedy}".rstrip()


class OpenfinoError(Exception):
    """A failure with a message for the user; the command line prints it without a traceback."""


class InputProblemsError(OpenfinoError):
    """All the defects of the input at once."""

    def __init__(self, problems: Sequence[Problem], *, shown: int = 50) -> None:
        self.problems = list(problems)
        lines = [f"  {number}. {problem}" for number, problem in enumerate(self.problems[:shown], start=1)]
        if len(self.problems) > shown:
            lines.append(f"  ... and {len(self.problems) - shown} more")
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(f"{len(self.problems)} {noun}:\n" + "\n".join(lines))
