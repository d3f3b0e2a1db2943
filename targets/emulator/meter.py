"""Counting while a step runs.

A region is a mesh of tiles. A kernel touches a tile's own memory and what came through collectives, so whatever it
does could be done by tiles. Two figures are counted for each collective: *hops*, the links on its longest path, and
*bytes*, summed over all links that it crosses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from targets.counters import Counters, Ints, OpCount, Traffic

K = TypeVar("K")
Op = tuple[str, str]
Moved = tuple[Op, str, int, int]
"""What one run of a collective moved: the operator it ran for, its name, hops, and bytes over links."""


@dataclass(slots=True)
class Meter:
    """Counts of one step; ``op`` is what runs now: the block's title and the name of the value.

    What collectives move is written down as they run and added up when it is asked for.
    """

    op: Op = ("", "")
    work: defaultdict[Op, int] = field(default_factory=lambda: defaultdict(int))
    moved: list[Moved] = field(default_factory=list)
    links: defaultdict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    by_reference: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    routing: dict[str, Ints] = field(default_factory=dict)

    def multiply_adds(self, count: int) -> None:
        """Count multiply-adds of what runs now."""
        self.work[self.op] += count

    def record(self, collective: str, hops: int, link_bytes: int) -> None:
        """Count one run of ``collective``: hops on its longest path, bytes over all links. One of no hops is none."""
        if hops:
            self.moved.append((self.op, collective, hops, link_bytes))

    def since(self, multiply_adds: int, collectives: int) -> OpCount:
        """What was counted after so many multiply-adds and runs of collectives, all operators together."""
        moved = [("", name, hops, link_bytes) for _, name, hops, link_bytes in self.moved[collectives:]]
        return self._counts(moved, {"": sum(self.work.values()) - multiply_adds})[""]

    def counters(self) -> Counters:
        """What was counted so far."""
        ops = self._counts(self.moved, self.work)
        routing = {name: np.copy(counts) for name, counts in self.routing.items()}
        return Counters(ops, dict(self.links), dict(self.by_reference), routing)

    @staticmethod
    def _counts(moved: Iterable[tuple[K, str, int, int]], work: Mapping[K, int]) -> dict[K, OpCount]:
        sums: dict[K, dict[str, list[int]]] = {op: {} for op in work}
        for op, collective, hops, link_bytes in moved:
            total = sums.setdefault(op, {}).setdefault(collective, [0, 0, 0])
            total[0] += 1
            total[1] += hops
            total[2] += link_bytes
        return {
            op: OpCount(work.get(op, 0), {name: Traffic(*total) for name, total in collectives.items()})
            for op, collectives in sums.items()
        }
