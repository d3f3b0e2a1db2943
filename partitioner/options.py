"""How to read a model: apart from what reads it, so that commands which need no frontend start fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ir.diagnostics import Diagnostic, UsageError
from partitioner.frontends.load import TEXT_ALONE

MOST = 1 << 40
"""The greatest size or count that an option takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to read a model.

    Attributes:
        fix: numbers for sizes of the model's inputs that are not fixed, such as ``{"tokens": 128}``.
        trust_code: open a ``.pt2`` file, which can run code.
        parts: ``text``, or ``text`` and ``vision``: of a multimodal model of transformers, the vision tower too.
    """

    fix: Mapping[str, int] = field(default_factory=dict)
    trust_code: bool = False
    parts: tuple[str, ...] = TEXT_ALONE

    def __post_init__(self) -> None:
        faults = [
            Diagnostic("W0103", f"--fix {name} must be from 1 to {MOST:,}, not {size:,}", "--fix")
            for name, size in self.fix.items()
            if not 1 <= size <= MOST
        ]
        if self.parts not in (TEXT_ALONE, (*TEXT_ALONE, "vision")):
            message = f"--parts is text or text,vision, not {','.join(self.parts)!r}"
            faults.append(Diagnostic("W0104", message, "--parts"))
        if faults:
            raise UsageError(*faults)
