"""The best contiguous placement by dynamic programming over prefixes, from the first machine to the last.

Tarnawski et al. (NeurIPS 2020, section 5.1) decide for every pair of prefixes what a machine between them would be
loaded with. Here only prefixes count that the machines before and after can leave behind when none of them is loaded
with more than ``most`` (a machine takes at most that much work, whatever it is given), which is a narrow band of them
when ``most`` is close to the optimum; and loads of pairs are products of matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from partitioner.solver.dag.items import ItemGraph, bits

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]
Counts = tuple[int, ...]
"""How many machines of each kind."""

BLOCK_PAIRS = 1 << 19
"""Pairs of prefixes judged at once: tens of MB."""


class OutOfWorkError(Exception):
    """The allowance is used up."""


@dataclass
class Work:
    """An allowance of work, counted in pairs of prefixes, so that the same input gives the same answer.

    ``end_s``, on the monotonic clock, is a net where CP-SAT's work takes longer than it should.
    """

    pairs: int
    end_s: float = 1e18
    interrupted: bool = False

    def spend(self, pairs: int) -> None:
        """Take some. :class:`OutOfWorkError` if there is not as much."""
        self.pairs -= pairs
        if self.pairs < 0:
            raise OutOfWorkError

    def interrupt(self) -> None:
        """Nothing more is to be done."""
        self.pairs, self.interrupted = 0, True


def all_prefixes(graph: ItemGraph, at_most: int) -> list[int] | None:
    """Every prefix as a bit set, smaller ones first; ``None`` if there are more than ``at_most``."""
    first = sum(1 << item for item, before in enumerate(graph.before) if not before)
    after = [tuple(bits(mask)) for mask in graph.after]
    layer = {0: first}
    found = [0]
    while layer:
        following: dict[int, int] = {}
        for prefix, ready in layer.items():
            rest = ready
            while rest:
                bit = rest & -rest
                rest ^= bit
                larger = prefix | bit
                if larger not in following:
                    item = bit.bit_length() - 1
                    freed = ready ^ bit
                    for target in after[item]:
                        if not graph.before[target] & ~larger:
                            freed |= 1 << target
                    following[larger] = freed
            if len(found) + len(following) > at_most:
                return None
        found.extend(following)
        layer = following
    return found


def some_prefixes(graph: ItemGraph) -> list[int]:
    """Prefixes of a few topological orders (first in first out, last in first out, both from either end)."""
    found = {0}
    for newest, reverse in itertools.product((False, True), repeat=2):
        before, after = (graph.after, graph.before) if reverse else (graph.before, graph.after)
        full = (1 << len(graph.items)) - 1
        placed = 0
        ready = [item for item, mask in enumerate(before) if not mask]
        while ready:
            item = ready.pop(-1 if newest else 0)
            placed |= 1 << item
            found.add(full & ~placed if reverse else placed)
            ready.extend(target for target in bits(after[item]) if not before[target] & ~placed)
    return sorted(found, key=lambda prefix: (prefix.bit_count(), prefix))


def absorbed(graph: ItemGraph, kind: int, measure: int, most: int) -> int:
    """The most work, in times of ``measure``, that a machine of ``kind`` does in ``most``: a fractional knapsack."""
    pairs = [(item.times[kind], item.times[measure] or 0) for item in graph.items]
    offers = sorted(((own, gain) for own, gain in pairs if own is not None and gain), key=lambda o: o[0] / o[1])
    room, total = most, 0
    for own, gain in offers:
        if own > room:
            return total + -(-gain * room // own)
        room -= own
        total += gain
    return total


def fractional_bound(graph: ItemGraph) -> int:
    """No placement is better: work divided over all machines as if it were fluid, and each item on its fastest kind."""
    kinds = [index for index, kind in enumerate(graph.kinds) if kind.machines]
    fastest = (min((t for kind in kinds if (t := item.times[kind]) is not None), default=0) for item in graph.items)
    low = max(fastest, default=0)
    high = low + sum(max(t or 0 for t in item.times) for item in graph.items)
    while low < high:
        middle = (low + high) // 2
        enough = all(
            sum(graph.kinds[kind].machines * absorbed(graph, kind, measure, middle) for kind in kinds)
            >= sum(item.times[measure] or 0 for item in graph.items)
            for measure in kinds
        )
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


@dataclass(frozen=True)
class Table:
    """Figures of prefixes, one row each.

    Attributes:
        held: ``[prefix, item]``, whether the prefix has the item.
        words: the same as bits of 64-bit words.
        times: ``[kind, prefix]``, summed; an item that cannot run there counts more than any load may be.
        work: ``[kind, prefix]``, the same without such items.
        bytes: ``[prefix]``.
    """

    graph: ItemGraph
    held: NDArray[np.uint8]
    words: NDArray[np.uint64]
    times: Numbers
    work: Numbers
    bytes: Numbers

    def only(self, keep: Flags) -> Table:
        """The rows that are to be kept."""
        return Table(
            self.graph, self.held[keep], self.words[keep], self.times[:, keep], self.work[:, keep], self.bytes[keep]
        )

    @cached_property
    def marks(self) -> tuple[NDArray[np.uint8], Numbers, Numbers]:
        """``[prefix, mark]``, the charge of each mark, and ``[prefix]`` the charge of values that the prefix cuts.

        A machine between two prefixes is charged what either of them cuts, once for a value that both cut, and not at
        all if they cut it alike. So each value has a mark for being cut, and one for each way of being cut.
        """
        count = len(self.held)
        columns: list[NDArray[np.bool_]] = []
        charges: list[int] = []
        opened = np.zeros(count)
        for value in self.graph.values:
            pins = list(bits(value.pins))
            inside = self.held[:, pins]
            number = inside.sum(axis=1, dtype=np.int64)
            cut = (number > 0) & (number < len(pins))
            if not cut.any():
                continue
            opened[cut] += value.charge
            ways = _ways(inside, cut, number)
            columns.extend((cut, *ways))
            charges.extend([value.charge] * (1 + len(ways)))
        marks = np.array(columns, dtype=np.uint8).T if columns else np.zeros((count, 0), dtype=np.uint8)
        return np.ascontiguousarray(marks), np.array(charges, dtype=np.float64), opened


def _ways(inside: NDArray[np.uint8], cut: Flags, number: NDArray[np.int64]) -> list[Flags]:
    """For each set of pins that some prefixes cut off, which prefixes do."""
    if inside.shape[1] == 2:
        return [cut & (inside[:, 0] == 1), cut & (inside[:, 1] == 1)]
    _, way = np.unique(np.packbits(inside[cut], axis=1), axis=0, return_inverse=True)
    found = np.full(len(number), -1)
    found[cut] = way.reshape(-1)
    return [found == index for index in range(int(way.max()) + 1)]


def table(graph: ItemGraph, prefixes: Sequence[int]) -> Table:
    """Sum up what each prefix holds."""
    width = max(1, -(-len(graph.items) // 64))
    packed = np.frombuffer(b"".join(prefix.to_bytes(width * 8, "little") for prefix in prefixes), dtype=np.uint8)
    packed = packed.reshape(len(prefixes), width * 8)
    held = np.unpackbits(packed, axis=1, bitorder="little")[:, : len(graph.items)]
    never = float(1 + worst_load(graph))
    times = [[never if t is None else float(t) for t in (item.times[k] for item in graph.items)] for k in _kinds(graph)]
    work = [[float(item.times[k] or 0) for item in graph.items] for k in _kinds(graph)]
    figures = np.array([*times, *work, [float(item.bytes) for item in graph.items]]).reshape(-1, len(graph.items))
    sums = np.concatenate([figures @ held[at : at + 4096].T for at in range(0, len(held), 4096)], axis=1)
    count = len(graph.kinds)
    return Table(graph, held, packed.view(np.uint64), sums[:count], sums[count:-1], sums[-1])


def _kinds(graph: ItemGraph) -> range:
    return range(len(graph.kinds))


def worst_load(graph: ItemGraph) -> int:
    """No machine can be loaded with more."""
    slowest = sum(max(t or 0 for t in item.times) for item in graph.items)
    return slowest + sum(value.charge for value in graph.values)


@dataclass(frozen=True)
class _Band:
    """Which prefixes may be left behind by some machines, if none is loaded with more than ``most``."""

    table: Table
    absorbed: Numbers  # [kind, measure]

    @classmethod
    def of(cls, found: Table, most: int) -> _Band:
        kinds = _kinds(found.graph)
        return cls(found, np.array([[float(absorbed(found.graph, k, m, most)) for m in kinds] for k in kinds]))

    def allows(self, before: Counts, after: Counts) -> Flags:
        """Flags of prefixes that ``before`` can hold, and the rest of which ``after`` can."""
        full_work, full_bytes = self.table.work[:, -1], self.table.bytes[-1]
        return self._fits(self.table.work, self.table.bytes, before) & self._fits(
            full_work[:, None] - self.table.work, full_bytes - self.table.bytes, after
        )

    def _fits(self, work: Numbers, held_bytes: Numbers, counts: Counts) -> Flags:
        kinds = self.table.graph.kinds
        fits = np.ones(len(held_bytes), dtype=np.bool_)
        for measure, kind in enumerate(kinds):
            if kind.machines:
                fits &= work[measure] <= np.dot(counts, self.absorbed[:, measure])
        used = [kind for kind, count in zip(kinds, counts, strict=True) if count]
        if not any(kind.bytes is None for kind in used):
            limit = sum((kind.bytes or 0) * count for kind, count in zip(kinds, counts, strict=True))
            fits &= held_bytes <= limit
        return fits


@dataclass(frozen=True, slots=True)
class Stage:
    """A machine of a kind, and the items (a bit set) that it holds."""

    kind: int
    items: int


def best_stages(found: Table, least: int, most: int, work: Work) -> tuple[int, tuple[Stage, ...]] | None:
    """The smallest largest load of all sequences of stages through prefixes of the table, and one that has it.

    ``None`` if every one has a load above ``most``; ``least`` is a bound that is known already. The table's first row
    must be the empty prefix, its last row the full one. Raises :class:`OutOfWorkError`.
    """
    machines = tuple(kind.machines for kind in found.graph.kinds)
    band = _Band.of(found, most)
    everywhere = list(itertools.product(*(range(count + 1) for count in machines)))
    allowed = {c: band.allows(c, tuple(m - u for m, u in zip(machines, c, strict=True))) for c in everywhere}
    keep = np.any(list(allowed.values()), axis=0)
    if not keep[0] or not keep[-1]:
        return None
    search = _Search(found.only(keep), most, {c: flags[keep] for c, flags in allowed.items()}, work)
    return search.run(everywhere, least)


class _Search:
    """Labels ``value[used machines][prefix]``: the least largest load that reaches the prefix, and from where."""

    def __init__(self, found: Table, most: int, allowed: dict[Counts, Flags], work: Work) -> None:
        self._table, self._most, self._allowed, self._work = found, float(most), allowed, work
        count = len(found.bytes)
        self._value = {counts: np.full(count, np.inf) for counts in allowed}
        self._least: dict[Counts, Numbers] = {}  # the least value of these machines or fewer
        self._from = {counts: np.full((2, count), -1, dtype=np.int32) for counts in allowed}  # kind, prefix
        self._by_time = [np.argsort(times, kind="stable") for times in found.times]

    def run(self, everywhere: Sequence[Counts], floor: int) -> tuple[int, tuple[Stage, ...]] | None:
        self._value[everywhere[0]][0] = float(floor)
        best: tuple[float, Counts] | None = None
        for counts in everywhere:
            value = self._value[counts]
            fewer = np.full(len(value), np.inf)
            for kind, used in enumerate(counts):
                if used:
                    np.minimum(fewer, self._least[_with(counts, kind, -1)], out=fewer)
            self._least[counts] = np.minimum(fewer, value)
            if value[-1] <= self._most and (best is None or value[-1] < best[0]):
                best = float(value[-1]), counts
                self._most = best[0] - 1.0
            sources = np.flatnonzero((value <= self._most) & (value < fewer) & self._allowed[counts])
            for kind in range(len(counts)):
                following = _with(counts, kind, 1)
                if following in self._value and len(sources):
                    self._advance(counts, following, kind, sources)
        return None if best is None else (round(best[0]), self._trace(best[1]))

    def _advance(self, counts: Counts, following: Counts, kind: int, sources: Indices) -> None:
        """From prefixes left by machines ``counts`` to those that one more of ``kind`` leaves."""
        times, reached = self._table.times[kind], self._value[following]
        sources = sources[np.argsort(times[sources], kind="stable")]
        lowest = self._value[counts][sources].min()
        targets = self._by_time[kind]
        # Nothing that comes of these sources is below the lowest of them, nor better than what fewer machines reach.
        targets = targets[self._allowed[following][targets] & (self._least[counts][targets] > lowest)]
        at = 0
        while at < len(sources) and len(targets):
            targets = targets[reached[targets] > lowest]
            size = max(16, min(256, BLOCK_PAIRS // max(1, len(targets))))
            block = sources[at : at + size]
            low = np.searchsorted(times[targets], times[block[0]], side="left")
            high = np.searchsorted(times[targets], times[block[-1]] + self._most, side="right")
            at += size
            self._work.spend(int(size * (high - low)))
            if high > low:
                self._relax(counts, following, kind, block, targets[low:high])

    def _relax(self, counts: Counts, following: Counts, kind: int, sources: Indices, targets: Indices) -> None:
        loads = self._loads(kind, sources, targets)
        reached = np.maximum(loads, self._value[counts][sources][:, None])
        best = np.argmin(reached, axis=0)
        found = reached[best, np.arange(len(targets))]
        value = self._value[following]
        better = (found <= self._most) & (found < value[targets])
        at = targets[better]
        value[at] = found[better]
        self._from[following][0, at] = kind
        self._from[following][1, at] = sources[best[better]]

    def _loads(self, kind: int, sources: Indices, targets: Indices) -> Numbers:
        """``[source, target]``: the load of a machine of ``kind`` between the two; infinite where it cannot be."""
        found = self._table
        loads: Numbers = found.times[kind][targets] - found.times[kind][sources][:, None]
        limit = found.graph.kinds[kind].bytes
        if found.graph.kinds[kind].charged:
            marks, charges, opened = found.marks
            ours = marks[sources]
            shared = np.flatnonzero(ours.any(axis=0))
            loads += opened[sources][:, None] + opened[targets]
            loads -= (ours[:, shared] * charges[shared]) @ marks[np.ix_(targets, shared)].T.astype(np.float64)
        never = loads > self._most
        if limit is not None:
            never |= found.bytes[targets] - found.bytes[sources][:, None] > limit
        ours_words, their_words = found.words[sources], found.words[targets]
        lacking = np.bitwise_or.reduce(ours_words, axis=0) & ~np.bitwise_and.reduce(their_words, axis=0)
        for word in np.flatnonzero(lacking):
            never |= (ours_words[:, word][:, None] & ~their_words[:, word]) != 0
        loads[never] = np.inf
        return loads

    def _trace(self, counts: Counts) -> tuple[Stage, ...]:
        """Back from the full prefix to the empty one."""
        prefix = len(self._table.bytes) - 1
        stages: list[Stage] = []
        while any(counts):
            kind, previous = (int(number) for number in self._from[counts][:, prefix])
            held = np.flatnonzero(self._table.held[prefix] != self._table.held[previous])
            stages.append(Stage(kind, sum(1 << int(item) for item in held)))
            counts, prefix = _with(counts, kind, -1), previous
        return tuple(reversed(stages))


def _with(counts: Counts, kind: int, change: int) -> Counts:
    return (*counts[:kind], counts[kind] + change, *counts[kind + 1 :])
