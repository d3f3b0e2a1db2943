"""How long the items of a placement take, as curves over tiles that a solver can reason about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ir.machine import Machine
from ir.profile import Profile
from ir.target import LayerRegions, WaferSpeed
from ir.workload import Workload
from partitioner.problem import ExpertLayout, Times, room
from partitioner.solver.problem import Curve
from targets.cost.wafer import Stage, block_cycles, region_options

FS = 10**15
"""Femtoseconds in a second."""


@dataclass(frozen=True)
class CostCurves:
    """Times of one model's items on wafers of one speed; what ``measure`` asks for them."""

    profile: Profile
    machine: Machine
    speed: WaferSpeed
    workload: Workload
    experts: ExpertLayout

    def times(self, group: Sequence[int]) -> Times:
        """One token of one user on the blocks ``group`` (indices), which share a wafer."""
        curves = [self._block(block) for block in group]
        return Times(in_turn(curves), at_once(curves))

    @property
    def take_turns(self) -> bool:
        """Whether blocks of a wafer work one after the other, each on the whole mesh."""
        return self.speed.layers is LayerRegions.WHOLE_MESH

    @property
    def hand_over_fs(self) -> int:
        """From one wafer to the next, its bytes left out."""
        return round(self.speed.system_latency_s * FS)

    def link_fs(self, size: int) -> int:
        """How long ``size`` bytes hold a link."""
        return round(size / self.speed.system_bytes_per_s * FS)

    def _block(self, index: int) -> Curve:
        block, rows, columns = self.profile.blocks[index], self.machine.rows, self.machine.columns
        context = self.workload.context
        if self.take_turns:
            return Curve(self._fs(block_cycles(block, Stage(index, 0, rows, columns), 1, context, self.speed).total))
        claim = room(block, index, self.workload, self.machine)
        options = region_options(block, claim, rows, columns, context, self.speed, self.experts.value)
        fewest = min(tiles for tiles, _, _ in options)  # rectangles may need a few tiles more than bytes do
        return falling((tiles - fewest, self._fs(cycles)) for tiles, cycles, _ in options)

    def _fs(self, cycles: float) -> int:
        return round(cycles * FS / self.speed.clock_hz)


def falling(points: Iterable[tuple[int, int]]) -> Curve:
    """The convex, falling curve under ``points`` (spare tiles, fs), the first at 0, to within a femtosecond a tile."""
    hull: list[tuple[int, int]] = []
    for spare, time_fs in sorted(points):
        if hull and time_fs >= hull[-1][1]:
            continue
        while len(hull) > 1 and _is_above(hull[-1], hull[-2], (spare, time_fs)):
            hull.pop()
        if not hull or spare > hull[-1][0]:
            hull.append((spare, time_fs))
    drops = [(there[0] - here[0], (here[1] - there[1]) // (there[0] - here[0])) for here, there in pairwise(hull)]
    return Curve(hull[0][1], tuple((tiles, saved) for tiles, saved in drops if saved))


def _is_above(middle: tuple[int, int], start: tuple[int, int], end: tuple[int, int]) -> bool:
    """Whether ``middle`` lies on the line from ``start`` to ``end``, or above it."""
    return (middle[1] - start[1]) * (end[0] - start[0]) >= (end[1] - start[1]) * (middle[0] - start[0])


def in_turn(curves: Sequence[Curve]) -> Curve:
    """The least sum of times on so many tiles in all: they go where each saves most (convex, so exact)."""
    pieces = sorted(((saved, tiles) for curve in curves for tiles, saved in curve.drops), reverse=True)
    return Curve(sum(curve.time_fs for curve in curves), tuple((tiles, saved) for saved, tiles in pieces))


def at_once(curves: Sequence[Curve]) -> Curve:
    """The least time of the slowest on so many tiles in all, between the times at which one of the curves bends."""
    ends = [curve.time(sum(tiles for tiles, _ in curve.drops)) for curve in curves]
    least = max(ends)
    bends = {
        curve.time(sum(tiles for tiles, _ in curve.drops[:n])) for curve in curves for n in range(len(curve.drops))
    }
    points = []
    for time_fs in {least, max(curve.time_fs for curve in curves), *(bend for bend in bends if bend > least)}:
        needed = [curve.spare(time_fs) for curve in curves]
        points.append((sum(tiles or 0 for tiles in needed), time_fs))
    return falling(points)
