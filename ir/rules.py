"""What a user asks of a placement beside that it fits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase


class RuleKind(StrEnum):
    """What a rule says of the blocks that it names.

    ``pin``: they lie on one of ``wafers``. ``forbid``: on none of them. ``apart``: none shares a wafer with one of
    another pattern; of a single pattern, no two share one. ``together``: all share one. ``order``: those of each
    pattern lie on wafers before, or the same as, those of the next pattern. ``at_most``: no wafer holds more than
    ``count`` of them. ``replicate``: each has ``count`` copies, on as many wafers, which serve users in turn. ``free``:
    they need not follow the pipeline, so values may come back to them.
    """

    PIN = "pin"
    FORBID = "forbid"
    APART = "apart"
    TOGETHER = "together"
    ORDER = "order"
    AT_MOST = "at_most"
    REPLICATE = "replicate"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``blocks`` are patterns of block names, as ``layers.*.experts``; ``text`` is the rule as given, and
    ``source`` where: a file with its line, or an option; empty for programs.
    """

    kind: RuleKind
    blocks: tuple[str, ...]
    wafers: tuple[int, ...] = ()
    count: int = 0
    text: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.source})" if self.source else self.text


def names(pattern: str, block: str) -> bool:
    """Whether ``pattern``, in the wildcards of shells, names a block, or something that it is a part of: ``layers.3``
    is ``layers.3.attention`` and ``layers.3.attention.o_proj`` too.
    """
    parts = block.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(len(parts), 0, -1))
