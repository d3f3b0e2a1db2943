"""Why nothing fits, as data: what is needed and offered, which rules stand in the way, and what would fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ir.rules import Rule


@dataclass(frozen=True, slots=True)
class Amount:
    """Memory, in tiles and in the bytes that they can be filled with."""

    tiles: int
    bytes: int

    def less(self, other: Amount) -> Amount:
        """What is left of it when ``other`` is taken away, and nothing if that is more."""
        return Amount(max(0, self.tiles - other.tiles), max(0, self.bytes - other.bytes))

    def to_dict(self) -> dict[str, int]:
        """Its figures by name."""
        return {"tiles": self.tiles, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Terms:
    """Of what the demand is the sum, in bytes; ``reserve_bytes`` is what code and buffers take of the tiles needed."""

    weight_bytes: int
    cache_bytes: int
    activation_bytes: int
    reserve_bytes: int

    def to_dict(self) -> dict[str, int]:
        """Its figures by name."""
        return {
            "weights": self.weight_bytes,
            "cache": self.cache_bytes,
            "activations": self.activation_bytes,
            "reserve": self.reserve_bytes,
        }


@dataclass(frozen=True, slots=True)
class Whole:
    """The largest part that shares a wafer as a whole: the names of its blocks, and what it needs of the wafer."""

    blocks: tuple[str, ...]
    demand: Amount
    capacity: Amount

    @property
    def gap(self) -> Amount:
        """What the largest wafer has too little of."""
        return self.demand.less(self.capacity)


@dataclass(frozen=True, slots=True)
class Lever:
    """One change with which a placement was found and laid out: ``option`` from what was asked ``was`` to ``to``.

    ``step`` is what numbers were tried by: the option's value one step nearer to what was asked did not fit; 0 for
    other changes. ``text`` is the change in words.
    """

    option: str
    was: int | str
    to: int | str
    text: str
    solve_s: float
    step: int = 0
    verified: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "option": self.option,
            "from": self.was,
            "to": self.to,
            "step": self.step,
            "text": self.text,
            "verified": self.verified,
            "solve_s": round(self.solve_s, 3),
        }


@dataclass(frozen=True, slots=True)
class Conflict:
    """Rules that cannot all be kept, though all of them but any one can.

    ``smallest``: no smaller set of the user's rules is in conflict. ``whatever_size``: not even on wafers without
    bounds; ``None`` if that could not be decided.
    """

    rules: tuple[Rule, ...]
    smallest: bool
    whatever_size: bool | None

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        rules = [
            {
                "kind": rule.kind.value,
                "blocks": list(rule.blocks),
                "wafers": list(rule.wafers),
                "count": rule.count,
                "text": rule.text,
                "source": rule.source,
            }
            for rule in self.rules
        ]
        return {"rules": rules, "smallest": self.smallest, "whatever_size": self.whatever_size}


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is known of a placement that cannot be; ``proof`` are the arguments that agree that it cannot."""

    demand: Amount
    capacity: Amount
    terms: Terms
    largest: Whole
    proof: tuple[str, ...]
    levers: tuple[Lever, ...] = ()
    conflict: Conflict | None = None

    @property
    def gap(self) -> Amount:
        """What the machine has too little of, all wafers together."""
        return self.demand.less(self.capacity)

    def with_levers(self, levers: tuple[Lever, ...]) -> Explanation:
        """The same, with what would fit."""
        return replace(self, levers=levers)

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "demand": self.demand.to_dict(),
            "capacity": self.capacity.to_dict(),
            "gap": self.gap.to_dict(),
            "terms": self.terms.to_dict(),
            "largest": {
                "blocks": list(self.largest.blocks),
                "demand": self.largest.demand.to_dict(),
                "capacity": self.largest.capacity.to_dict(),
                "gap": self.largest.gap.to_dict(),
            },
            "proof": list(self.proof),
            "conflict": None if self.conflict is None else self.conflict.to_dict(),
            "levers": [lever.to_dict() for lever in self.levers],
        }
