"""Arguments that several commands have, and how texts are read as what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter, Token

from ir.diagnostics import Diagnostic, UsageError


def _whole(_type: object, tokens: Sequence[Token]) -> int:
    """A whole number; cyclopts itself would cut 4.5 down to 4."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from None


Count = Annotated[int, Parameter(converter=_whole)]
Json = Annotated[bool, Parameter("--json", negative=())]
TrustCode = Annotated[bool, Parameter("--trust-code", negative=())]


def parse_ids(text: str) -> list[int]:
    """Token ids, separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        help_ = ("for example --prompt-ids 1,5,9,2",)
        fault = Diagnostic("W0104", f"token ids must be integers separated by commas, not {text!r}", help=help_)
        raise UsageError(fault) from None


def parse_sizes(text: str) -> dict[str, int]:
    """``tokens=128,users=1``."""
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        return {name.strip(): int(size) for name, size in pairs}
    except ValueError:
        help_ = ("for example --fix tokens=128,users=1",)
        fault = Diagnostic("W0104", f"sizes must be name=number separated by commas, not {text!r}", help=help_)
        raise UsageError(fault) from None


def parse_parts(text: str) -> tuple[str, ...]:
    """``text,vision``."""
    return tuple(part.strip() for part in text.split(","))
