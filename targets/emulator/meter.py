"""Counting while a step runs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from targets.counters import Counters, Ints, OpCount, Traffic


@dataclass(slots=True)
class Meter:
    """Counts of one step; ``op`` is what runs now: the block's title and the name of the value."""

    op: tuple[str, str] = ("", "")
    work: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    moved: dict[tuple[str, str], dict[str, Traffic]] = field(default_factory=dict)
    links: defaultdict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    by_reference: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    routing: dict[str, Ints] = field(default_factory=dict)

    def multiply_adds(self, count: int) -> None:
        """Count multiply-adds of what runs now."""
        self.work[self.op] += count

    def record(self, collective: str, hops: int, link_bytes: int) -> None:
        """Count one run of ``collective``: hops on its longest path, and bytes over all links."""
        moved = self.moved.setdefault(self.op, {})
        moved[collective] = moved.get(collective, Traffic()) + Traffic(1, hops, link_bytes)

    def count_of(self, op: tuple[str, str]) -> OpCount:
        """What one operator took so far."""
        return OpCount(self.work.get(op, 0), dict(self.moved.get(op, {})))

    def counters(self) -> Counters:
        """What was counted so far."""
        ops = {op: self.count_of(op) for op in {**self.moved, **self.work}}
        routing = {name: np.copy(counts) for name, counts in self.routing.items()}
        return Counters(ops, dict(self.links), dict(self.by_reference), routing)
