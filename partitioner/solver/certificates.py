"""Second arguments: why a chain has no better placement, checked by arithmetic that shares nothing with the search.

The search hands over numbers, and whatever they are, what passes here is a proof:

- windows: how far so many wafers reach at the furthest. It holds if no wafer more can hold the items from there to
  just beyond where it is said to reach, since it then cannot hold more than those either. For equal wafers these are
  windows of consecutive items with a cut in each.
- potentials: the least that a way to each cut costs, for each number of wafers in use. It holds if no run is a short
  cut, that is if it costs at least the difference of the potentials at its ends: a solution of the shortest path's
  dual program. What a run takes on a wafer's tiles is bounded by a price for them, the dual of sharing them out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from ir.objective import Objective
from partitioner.solver.problem import Problem, Wafer
from partitioner.solver.runs import Thresholds

Array = npt.NDArray[np.int64]
State = tuple[int, ...]
Witness = Callable[[Wafer, Array, Array], Array]
"""The price of a tile for the runs [start, end) on a kind of wafer, in femtoseconds."""

OUT_OF_REACH = 1 << 61
"""Potential of a cut that no way leads to; negative where no way leads from it to the end."""

_GRID = 24
"""Prices that are tried on all runs before each gets its own."""


@dataclass(frozen=True)
class Claim:
    """No placement of the chain ``problem`` within ``thresholds`` has sums of ``objectives`` that are below ``least``.

    Sums are compared in order. Without objectives: there is none at all. ``kinds``: sizes and speeds of its wafers, in
    the order of the states, which say how many of each are in use.
    """

    problem: Problem
    thresholds: Thresholds
    kinds: tuple[Wafer, ...]
    objectives: tuple[Objective, ...] = ()
    least: tuple[int, ...] = ()

    @cached_property
    def states(self) -> frozenset[State]:
        """Numbers of wafers of each kind that may be in use together."""
        counts = Counter(wafer for wafer in self.problem.wafers if wafer.tiles)
        if set(counts) != set(self.kinds) or len(set(self.kinds)) < len(self.kinds):
            return frozenset()
        most = [min(counts[kind], len(self.problem.items)) for kind in self.kinds]
        all_ = product(*(range(count + 1) for count in most))
        return frozenset(state for state in all_ if sum(state) <= self.thresholds.machines)

    @cached_property
    def steps(self) -> tuple[tuple[tuple[State, State], ...], ...]:
        """[kind]: each state, and that with one wafer more of this kind."""
        states, found = sorted(self.states), []
        for kind in range(len(self.kinds)):
            pairs = ((state, (*state[:kind], state[kind] + 1, *state[kind + 1 :])) for state in states)
            found.append(tuple(pair for pair in pairs if pair[1] in self.states))
        return tuple(found)

    @cached_property
    def next_cut(self) -> list[int]:
        """[position]: the next place beyond it where the chain may be cut; beyond its end where there is none."""
        count, most = len(self.problem.items), self.thresholds.bottleneck
        pairs: defaultdict[tuple[int, int], int] = defaultdict(int)
        for flow in self.problem.flows:
            for target in flow.targets:
                pairs[flow.source, target] += flow.link_fs
        forbidden = {
            cut
            for (source, target), link_fs in pairs.items()
            if most is not None and link_fs > most
            for cut in range(source + 1, target + 1)
        }
        following = [count + 1] * (count + 1)
        for position in reversed(range(count)):
            following[position] = following[position + 1] if position + 1 in forbidden else position + 1
        return following


def no_placement(claim: Claim, furthest: Mapping[State, int]) -> int:
    """Windows of items that no wafer can hold, by which ``furthest`` [state] proves the claim; 0 if it does not."""
    count = len(claim.problem.items)
    if not claim.states or not all(0 <= furthest.get(state, count) < count for state in claim.states):
        return 0
    if furthest[(0,) * len(claim.kinds)] != 0:
        return 0
    holds = [_Holding(claim, kind) for kind in claim.kinds]
    windows = {
        (furthest[state], claim.next_cut[furthest[more]], kind)
        for kind, steps in enumerate(claim.steps)
        for state, more in steps
    }
    return 0 if any(holds[kind].all_of(start, end) for start, end, kind in sorted(windows)) else max(1, len(windows))


class _Holding:
    """What a wafer of one kind can hold within a claim's thresholds, each run summed for itself."""

    def __init__(self, claim: Claim, kind: Wafer) -> None:
        self.problem, self.kind, self.thresholds = claim.problem, kind, claim.thresholds
        items, most_fs = claim.problem.items, claim.thresholds.bottleneck
        self.tiles = [item.tiles for item in items]
        self.bytes = [item.bytes for item in items]
        self.state = [item.state_bytes for item in items]
        self.held: list[int] = []
        if most_fs is None:
            return
        if claim.problem.take_turns:
            curves = [item.latency.slowed(kind.slowness_permille) for item in items]
            self.held = [c.time(max(0, kind.tiles - i.tiles)) for c, i in zip(curves, items, strict=True)]
        else:
            spare = [item.slowest.slowed(kind.slowness_permille).spare(most_fs) for item in items]
            never = kind.tiles + 1
            self.held = [i.tiles + (never if s is None else s) for i, s in zip(items, spare, strict=True)]

    def all_of(self, start: int, end: int) -> bool:
        """Whether it can hold the items from ``start`` to before ``end``."""
        most = self.thresholds
        if sum(self.tiles[start:end]) > self.kind.tiles:
            return False
        size = sum(self.bytes[start:end])
        if size > self.kind.bytes or (most.balance is not None and size > most.balance):
            return False
        if self.held and sum(self.held[start:end]) > self._most_held:
            return False
        if most.room is not None and most.room > self.problem.users:
            each = sum(self.state[start:end])
            if each and (self.kind.bytes - size) // each + self.problem.users < most.room:
                return False
        return not self.problem.misfits or not self.problem.holds_misfit(range(start, end))

    @property
    def _most_held(self) -> int:
        most_fs = self.thresholds.bottleneck
        return most_fs if self.problem.take_turns and most_fs is not None else self.kind.tiles


@dataclass(frozen=True)
class Potentials:
    """``at`` [state]: [objective, position]; ``reach`` [kind][start]: where a run ends at the latest."""

    at: Mapping[State, Array]
    reach: Sequence[Sequence[int]]


def no_shortcut(claim: Claim, potentials: Potentials, witness: Witness) -> bool:
    """Whether ``potentials`` prove the claim."""
    if not claim.states or not claim.states <= potentials.at.keys():
        return False
    if potentials.at[(0,) * len(claim.kinds)][:, 0].any():
        return False
    if any(tuple(potentials.at[state][:, -1].tolist()) < claim.least for state in claim.states):
        return False
    return all(_no_run_is_a_shortcut(claim, potentials, witness, kind) for kind in range(len(claim.kinds)))


def _no_run_is_a_shortcut(claim: Claim, potentials: Potentials, witness: Witness, kind: int) -> bool:
    reach = np.array(potentials.reach[kind], np.int64)
    if not _reaches_no_further(claim, kind, reach.tolist()):
        return False
    needed = _needed(claim, potentials, kind, max(1, int((reach - np.arange(len(reach))).max())))
    costs = _Costs(claim.problem, claim.kinds[kind])
    is_cut = np.zeros(len(reach), bool)
    is_cut[[0, *(cut for cut in claim.next_cut if cut < len(reach))]] = True
    open_: list[tuple[Array, Array, Array, Array]] = []
    for length in range(1, needed.shape[2] + 1):
        starts = np.flatnonzero((reach[:-length] >= np.arange(length, len(reach))) & is_cut[:-length] & is_cut[length:])
        wanted = needed[:, starts + length, length - 1]
        costly = wanted[0] >= 0
        starts, wanted = starts[costly], wanted[:, costly]
        known = np.array([costs.at_least(objective, starts, length) for objective in claim.objectives])
        short = _less(known, wanted)
        if short.any():
            open_.append((starts[short], starts[short] + length, wanted[:, short], known[:, short]))
    if not open_ or Objective.LATENCY not in claim.objectives:
        return not open_
    starts, ends, wanted, known = (np.concatenate(parts, axis=-1) for parts in zip(*open_, strict=True))
    prices = witness(claim.kinds[kind], starts, ends)
    known[claim.objectives.index(Objective.LATENCY)] = costs.at_own_prices(starts, ends, prices)
    return not _less(known, wanted).any()


def _reaches_no_further(claim: Claim, kind: int, reach: list[int]) -> bool:
    """Whether no run from any cut ends beyond where it is said to."""
    count = len(claim.problem.items)
    holds = _Holding(claim, claim.kinds[kind])
    starts = (start for start in [0, *claim.next_cut] if start < count)
    return not any(
        claim.next_cut[reach[start]] <= count and holds.all_of(start, claim.next_cut[reach[start]])
        for start in sorted(set(starts))
    )


def _needed(claim: Claim, potentials: Potentials, kind: int, longest: int) -> Array:
    """[objective, end, length - 1]: what a run has to cost at least, so that it is in no state a short cut."""
    count, number = len(claim.problem.items), {state: nth for nth, state in enumerate(claim.states)}
    needed = np.full((len(claim.objectives), count + 1, longest), -2 * OUT_OF_REACH)
    padded = np.full((len(number), len(claim.objectives), longest + count + 1), OUT_OF_REACH)
    for state, nth in number.items():
        padded[nth, :, longest:] = potentials.at[state]
    before, at = np.lib.stride_tricks.sliding_window_view(padded, longest, axis=2)[..., ::-1], padded[:, :, longest:]
    # A run is no short cut where it begins out of reach, or ends where no way leads on.
    last, first = (
        (count - np.argmax(at[:, 0, ::-1] < OUT_OF_REACH, axis=1)).tolist(),
        np.argmax(at[:, 0] > -OUT_OF_REACH, axis=1).tolist(),
    )
    for source, target in claim.steps[kind]:
        one, other = number[source], number[target]
        rows = slice(first[other], min(last[one] + longest, count) + 1)
        if rows.start < rows.stop:
            _raise_to(needed[:, rows], at[other, :, rows, None] - before[one, :, rows])
    return needed


def _raise_to(held: Array, offered: Array) -> None:
    """Replace the vectors of ``held`` [objective, ...] that come before those of ``offered``, in place."""
    more = _less(held, offered)
    for has, offers in zip(held, offered, strict=True):
        np.copyto(has, offers, where=more)


def _less(one: Array, other: Array) -> npt.NDArray[np.bool_]:
    """Whether the vectors of ``one`` [objective, ...] come before those of ``other``."""
    less = np.zeros(one.shape[1:], bool)
    for a, b in zip(one[::-1], other[::-1], strict=True):
        less = (a < b) | ((a == b) & less)
    return less


class _Costs:
    """What runs cost at least on one kind of wafer, of one length after another."""

    def __init__(self, problem: Problem, kind: Wafer) -> None:
        self.problem, self.kind = problem, kind
        curves = [item.latency.slowed(kind.slowness_permille) for item in problem.items]
        self.time_fs = np.array([curve.time_fs for curve in curves], np.int64)
        owner = [(number, *drop) for number, curve in enumerate(curves) for drop in curve.drops]
        self.item, self.tiles, self.saved = np.array(owner, np.int64).reshape(-1, 3).T
        self.before = np.array([0, *np.cumsum([item.tiles for item in problem.items])], np.int64)
        self.received = np.zeros(len(problem.items) + 1, np.int64)
        self.length = 0

    def at_least(self, objective: Objective, starts: Array, length: int) -> Array:
        """A bound for the runs of ``length`` items; called with each length in turn, from 1 on."""
        if objective is Objective.TRAFFIC:
            self._grow_to(length)
            return self.received[starts]
        if objective is Objective.LATENCY:
            bounds = [self._at_price(price, sums, starts, starts + length) for price, sums in self._grid]
            bound: Array = np.max(bounds, axis=0)
            return bound
        return np.zeros_like(starts)

    def at_own_prices(self, starts: Array, ends: Array, prices: Array) -> Array:
        """A bound for the latency of each run, by its own price for a tile."""
        bound = np.zeros_like(starts)
        order = np.argsort(prices, kind="stable")
        distinct, first = np.unique(prices[order], return_index=True)
        for price, runs in zip(distinct.tolist(), np.split(order, first[1:]), strict=True):
            bound[runs] = self._at_price(price, self._sums(price), starts[runs], ends[runs])
        return bound

    def _grow_to(self, length: int) -> None:
        """Add what the last item of each run of ``length`` reads, of what was made before the run and not yet read."""
        while self.length < length:
            self.length += 1
            for start, size in self._read_last.get(self.length, ()):
                self.received[start] += size

    @cached_property
    def _read_last(self) -> dict[int, list[tuple[int, int]]]:
        """[length]: (start, bytes) of the runs whose last item is the first of the run to read a value from before."""
        found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for flow in self.problem.flows:
            earlier = flow.source
            for target in sorted(flow.targets):
                for start in range(earlier + 1, target + 1):
                    found[target - start + 1].append((start, flow.bytes_per_token))
                earlier = target
        return dict(found)

    @cached_property
    def _grid(self) -> list[tuple[int, Array]]:
        """Some prices, 0 among them, with the sums of each."""
        values = np.unique(self.saved)
        chosen = values[np.linspace(0, len(values) - 1, min(_GRID, len(values))).astype(int)] if len(values) else values
        return [(price, self._sums(price)) for price in sorted({0, *chosen.tolist()})]

    def _sums(self, price: int) -> Array:
        """[position]: the least time and price of all items before it, each with as many tiles as it would buy."""
        least = self.time_fs.copy()
        np.subtract.at(least, self.item, self.tiles * np.maximum(self.saved - price, 0))
        return np.append(0, np.cumsum(least))

    def _at_price(self, price: int, sums: Array, starts: Array, ends: Array) -> Array:
        """Whoever pays for the wafer's spare tiles gets them back: no sharing takes less (weak duality)."""
        spare = self.kind.tiles - (self.before[ends] - self.before[starts])
        if price < 0 or price * int(spare.max(initial=0)) >= OUT_OF_REACH:
            return np.zeros_like(starts)
        return sums[ends] - sums[starts] - price * spare + self._way_fs[starts]

    @cached_property
    def _way_fs(self) -> Array:
        """[cut]: hand-over to the run that begins there, of the slowest value between the items beside the cut."""
        way = [0] * (len(self.problem.items) + 1)
        for flow in self.problem.flows:
            if flow.source + 1 in flow.targets:
                way[flow.source + 1] = max(way[flow.source + 1], flow.link_fs + self.problem.hand_over_fs)
        return np.array(way, np.int64)
