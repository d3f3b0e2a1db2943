"""One way to tell a user what is wrong: a :class:`Diagnostic`, carried by one family of errors.

The form follows rustc: a code, one line of what is wrong, where it stands, the figures, and what would help.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from ir.explanation import Explanation

Fact = int | float | str | bool


class ExitCode(IntEnum):
    """What a command's exit status means; scripts may rely on it."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    UNSUPPORTED_MODEL = 3
    INFEASIBLE = 4
    TIME_LIMIT = 5
    CHECK_FAILED = 6
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. ``facts`` are the figures that it rests on, ``help`` what the user can do about it; where nothing
    fits, the ``explanation`` has both as data.
    """

    code: str
    message: str
    where: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    help: tuple[str, ...] = ()
    explanation: Explanation | None = None

    def to_dict(self) -> dict[str, object]:
        """The object that ``--json`` prints and ``diagnostics.jsonl`` holds."""
        explained = {} if self.explanation is None else {"explanation": self.explanation.to_dict()}
        return {
            "code": self.code,
            "message": self.message,
            "where": self.where,
            "facts": dict(self.facts),
            "help": list(self.help),
            **explained,
        }

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.message}"]
        if self.where:
            lines.append(f"  --> {self.where}")
        lines += [f"   = {name.replace('_', ' ')}: {_figure(value)}" for name, value in self.facts.items()]
        lines += [f"help: {text}" for text in self.help]
        return "\n".join(lines)


def _figure(value: Fact) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class WafercError(Exception):
    """An error that a user can cause; carries its diagnostics and the command's exit code."""

    exit_code = ExitCode.INTERNAL

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__("\n".join(str(diagnostic) for diagnostic in diagnostics))
        self.diagnostics = diagnostics


class UsageError(WafercError):
    """A wrong argument, an unreadable file, an output that cannot be written."""

    exit_code = ExitCode.USAGE


class UnsupportedModelError(WafercError):
    """The model holds something that cannot be lowered."""

    exit_code = ExitCode.UNSUPPORTED_MODEL


class InfeasibleError(WafercError):
    """No placement exists, and that is proven."""

    exit_code = ExitCode.INFEASIBLE


class TimeLimitError(WafercError):
    """The limit on work was reached before any placement was found."""

    exit_code = ExitCode.TIME_LIMIT


class CheckError(WafercError):
    """A plan contradicts its model, its machine or itself; or a run differs from its reference."""

    exit_code = ExitCode.CHECK_FAILED
