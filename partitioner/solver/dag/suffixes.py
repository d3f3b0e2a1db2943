"""The second argument: a search from the last machine to the first that looks for anything under a limit.

It shares the items with :mod:`partitioner.solver.dag.prefixes` and nothing else. It decides instead of minimising,
keeps the fewest machines that hold a suffix, bounds what is left by multipliers (the dual of a fractional placement),
and counts pins instead of comparing cuts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from partitioner.solver.dag.items import ItemGraph, bits
from partitioner.solver.dag.prefixes import Counts, Flags, Indices, Numbers, Work

BLOCK = 1 << 19
"""Pairs of suffixes judged at once."""


def all_suffixes(graph: ItemGraph, at_most: int) -> list[int] | None:
    """Every set of items with all that come after them, by taking away from the full set, last item first.

    ``None`` if there are more than ``at_most``.
    """
    last = sum(1 << item for item, after in enumerate(graph.after) if not after)
    found, stack = {0}, [(0, last)]
    while stack:
        suffix, ready = stack.pop()
        for item in bits(ready):
            larger = suffix | 1 << item
            if larger not in found:
                found.add(larger)
                freed = (source for source in bits(graph.before[item]) if not graph.after[source] & ~larger)
                stack.append((larger, ready & ~(1 << item) | sum(1 << source for source in freed)))
        if len(found) > at_most:
            return None
    return sorted(found)


def nothing_within(graph: ItemGraph, suffixes: list[int], most: int, work: Work) -> bool:
    """Whether no placement loads every machine with ``most`` or less; ``suffixes`` are all of the graph.

    Raises :class:`~partitioner.solver.dag.prefixes.OutOfWorkError`.
    """
    machines = tuple(kind.machines for kind in graph.kinds)
    everywhere = list(itertools.product(*(range(count + 1) for count in machines)))
    digits = "".join(format(suffix, f"0{len(graph.items)}b") for suffix in suffixes)
    held = np.frombuffer(digits.encode(), dtype=np.uint8).reshape(len(suffixes), -1)[:, ::-1] - ord("0")
    rows = _Rows.of(graph, held)
    left = {used: tuple(m - u for m, u in zip(machines, used, strict=True)) for used in everywhere}
    remainders = _Remainders(rows)
    hopeful = {used: remainders.may_be_placed(left[used], most) for used in everywhere}
    keep = np.any(list(hopeful.values()), axis=0)
    keep[0] = keep[-1] = True
    rows = _Rows.of(graph, held[keep])
    reached = {used: np.zeros(len(rows.held), dtype=np.bool_) for used in everywhere}
    reached[everywhere[0]][0] = True
    for used in everywhere:
        before = [reached[_one_more(used, kind, -1)] for kind, count in enumerate(used) if count]
        known = np.logical_or.reduce(before) if before else np.zeros(len(rows.held), dtype=np.bool_)
        fresh = np.flatnonzero(reached[used] & ~known & hopeful[used][keep])
        reached[used] |= known
        if reached[used][-1]:
            return False
        for kind, count in enumerate(machines):
            if used[kind] < count:
                following = _one_more(used, kind, 1)
                wanted = hopeful[following][keep]
                wanted[-1] = True
                # What fewer machines reach is of no interest.
                _reach(rows, kind, fresh, np.flatnonzero(wanted & ~reached[used]), reached[following], most, work)
    return True


def _reach(rows: _Rows, kind: int, sources: Indices, targets: Indices, reached: Flags, most: int, work: Work) -> None:
    """Flag in ``reached`` those targets that a machine of ``kind`` more than some source reaches."""
    busy = rows.busy[kind]
    sources = sources[np.argsort(busy[sources], kind="stable")]
    targets = targets[np.argsort(busy[targets], kind="stable")]
    at = 0
    while at < len(sources) and len(targets):
        targets = targets[~reached[targets]]
        size = max(16, min(256, BLOCK // max(1, len(targets))))
        block = sources[at : at + size]
        near = targets[(busy[targets] >= busy[block[0]]) & (busy[targets] <= busy[block[-1]] + most)]
        work.spend(len(block) * len(near))
        if len(near):
            reached[near[rows.fits(kind, block, near, most).any(axis=0)]] = True
        at += size


def _one_more(used: Counts, kind: int, change: int) -> Counts:
    return tuple(count + change * (index == kind) for index, count in enumerate(used))


class _Remainders:
    """What suffixes leave to be placed, priced by multipliers.

    For any multipliers m an item costs at least its least m[kind] x time over kinds, and a machine of a kind has no
    more than m[kind] x ``most`` to give (the dual of dividing work as if it were fluid).
    """

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self._prices: dict[tuple[int, ...], tuple[list[tuple[float, ...]], Numbers]] = {}

    def may_be_placed(self, left: Counts, most: int) -> Flags:
        """Flags of suffixes whose other items the machines ``left`` may hold, each within its bytes and ``most``."""
        kinds = self._rows.graph.kinds
        able = tuple(kind for kind, count in enumerate(left) if count)
        if not able:
            return np.asarray(self._rows.held.all(axis=1))
        possible = np.ones(len(self._rows.held), dtype=np.bool_)
        for scales, costs in zip(*self._priced(able), strict=True):
            offered = sum(left[kind] * scale for kind, scale in zip(able, scales, strict=True)) * most
            # Sums of floats: what is over by a rounding error is given the benefit of the doubt.
            possible &= costs <= offered * (1 + 1e-9)
        if all(kinds[kind].bytes is not None for kind in able):
            limit = sum((kinds[kind].bytes or 0) * left[kind] for kind in able)
            possible &= self._rows.stored[-1] - self._rows.stored <= limit
        return possible

    def _priced(self, able: tuple[int, ...]) -> tuple[list[tuple[float, ...]], Numbers]:
        """Multipliers, and for each of them and each suffix what its other items cost at least."""
        if able not in self._prices:
            times = self._rows.times
            scales = list(_multipliers(times, list(able), self._rows.unable))
            cheapest = [np.min([times[k] * s for k, s in zip(able, row, strict=True)], axis=0) for row in scales]
            sums = np.concatenate([np.array(cheapest) @ (1.0 - part).T for part in _parts(self._rows.held)], axis=1)
            self._prices[able] = scales, sums
        return self._prices[able]


def _parts(held: NDArray[np.uint8]) -> Iterator[Numbers]:
    """The rows as floats, some thousands at once."""
    for at in range(0, len(held), 4096):
        yield held[at : at + 4096].astype(np.float64)


def _multipliers(times: Numbers, able: list[int], unable: float) -> Iterator[tuple[float, ...]]:
    """Ratios of times on the first kind to those on the others, at a few of their quantiles."""
    runs = np.all(times[able] < unable, axis=0)
    totals = times[able][:, runs].sum(axis=1)
    if len(able) == 1 or not totals.all():
        yield (1.0,) * len(able)
        return
    yield tuple(totals[0] / totals)
    positive = np.flatnonzero(runs & np.all(times[able] > 0, axis=0))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0) if len(positive) else ():
        yield tuple(float(np.quantile(times[able[0]][positive] / times[kind][positive], share)) for kind in able)


@dataclass(frozen=True)
class _Rows:
    """Suffixes as rows: ``held[suffix, item]``; ``times[kind, item]``; sums over rows; pins held."""

    graph: ItemGraph
    held: NDArray[np.uint8]
    times: Numbers
    busy: Numbers  # [kind, suffix]
    stored: Numbers  # [suffix]
    pins: NDArray[np.int32]  # [value, suffix]
    unable: float  # the time of an item that cannot run: more than any load

    @classmethod
    def of(cls, graph: ItemGraph, held: NDArray[np.uint8]) -> _Rows:
        items, kinds = graph.items, range(len(graph.kinds))
        longest = sum(max(time or 0 for time in item.times) for item in items)
        unable = 1.0 + longest + sum(value.charge for value in graph.values)
        times = np.array(
            [[unable if (time := item.times[k]) is None else time for item in items] for k in kinds], float
        )
        times = times.reshape(len(graph.kinds), len(items))
        in_bytes = np.array([item.bytes for item in items], float)
        figures = np.concatenate([np.array([*times, in_bytes]) @ part.T for part in _parts(held)], axis=1)
        columns = np.ascontiguousarray(held.T)
        pins = [columns[list(bits(value.pins))].sum(axis=0, dtype=np.int32) for value in graph.values]
        counts = np.array(pins, np.int32).reshape(-1, len(held))
        return cls(graph, held, times, figures[:-1], figures[-1], counts, unable)

    def fits(self, kind: int, sources: Indices, targets: Indices, most: int) -> Flags:
        """``[source, target]``: whether one machine of ``kind`` can take what the target holds more than the source."""
        load = self.busy[kind][targets] - self.busy[kind][sources][:, None]
        fits = load <= most
        limit = self.graph.kinds[kind].bytes
        if limit is not None:
            fits &= self.stored[targets] - self.stored[sources][:, None] <= limit
        fits &= _contained(self.held[sources], self.held[targets])
        open_to = fits.any(axis=0)
        if self.graph.kinds[kind].charged and open_to.any():
            fits[:, open_to] &= load[:, open_to] + self._charges(sources, targets[open_to]) <= most
        return np.asarray(fits)

    @cached_property
    def _values(self) -> tuple[Numbers, Numbers]:
        """Charge and number of pins of each value."""
        values = self.graph.values
        charges = np.array([value.charge for value in values], float)
        return charges, np.array([value.pins.bit_count() for value in values], float)

    def _charges(self, sources: Indices, targets: Indices) -> Numbers:
        """A value is charged unless the machine holds none of its pins (the count is the same) or all of them."""
        ours, theirs = self.pins[:, sources], self.pins[:, targets]
        changing = np.flatnonzero(theirs.max(axis=1) > ours.min(axis=1))
        charges, sizes = (figures[changing] for figures in self._values)
        ours, theirs = ours[changing], theirs[changing]
        total = np.full((len(sources), len(targets)), charges.sum())
        none, every = ours == 0, theirs == sizes[:, None]
        total -= (none * charges[:, None]).T @ every.astype(np.float64)
        for count in range(int(sizes.max(initial=0)) + 1):
            same, also = ours == count, theirs == count
            both = np.flatnonzero(same.any(axis=1) & also.any(axis=1))
            if len(both):
                total -= (same[both] * charges[both, None]).T @ also[both].astype(np.float64)
        return total


def _contained(sources: NDArray[np.uint8], targets: NDArray[np.uint8]) -> Flags:
    """``[source, target]``: whether the target has every item of the source; judged by the items that could lack."""
    lacking = np.flatnonzero(sources.any(axis=0) & ~targets.all(axis=0))
    missing = sources[:, lacking].astype(np.float32) @ (1 - targets[:, lacking]).T.astype(np.float32)
    return np.asarray(missing == 0)
