"""What one wafer can hold: runs of consecutive items within thresholds, and how far so many wafers reach.

Every limit that holds for a run of items holds for its parts, so for each kind of wafer a run is allowed if it ends
no later than a position that depends on its start alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, permutations, product
from math import prod

import numpy as np
import numpy.typing as npt

from partitioner.solver.problem import Curve, Problem, Wafer

Array = npt.NDArray[np.int64]

_MOST_STATES = 20_000
"""Numbers of wafers of each kind that are told apart."""

_MOST_ORDERS = 24
"""Orders of the kinds in which they are used up, where their numbers are too many to be told apart."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a placement may reach at most: wafers, bytes of one, and femtoseconds; and the users that it must have room
    for. ``None``: anything.
    """

    machines: int
    balance: int | None = None
    bottleneck: int | None = None
    room: int | None = None


@dataclass(frozen=True)
class Wafers:
    """Wafers told apart by kind, and the numbers of each kind that may be in use together.

    Attributes:
        kinds: size and speed; wafers without tiles are none.
        members: indices of the wafers of each kind.
        states: how many wafers of each kind are in use, the fewest first; the first is none.
        steps: [target state] -> (source state, kind): one wafer more.
        exact: whether all states are there.
    """

    kinds: tuple[Wafer, ...]
    members: tuple[tuple[int, ...], ...]
    states: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]
    exact: bool

    @cached_property
    def used(self) -> tuple[int, ...]:
        """Wafers in use in each state."""
        return tuple(sum(state) for state in self.states)

    @classmethod
    def of(cls, problem: Problem) -> Wafers:
        """Those of ``problem``; no more of a kind than there are items."""
        kinds = tuple(sorted({wafer for wafer in problem.wafers if wafer.tiles}, key=_rank))
        members = tuple(tuple(i for i, wafer in enumerate(problem.wafers) if wafer == kind) for kind in kinds)
        counts = [min(len(wafers), len(problem.items)) for wafers in members]
        number = prod(count + 1 for count in counts)
        all_ = product(*(range(count + 1) for count in counts)) if number <= _MOST_STATES else _some_states(counts)
        states = sorted(all_, key=lambda state: (sum(state), state))
        index = {state: number for number, state in enumerate(states)}
        steps = [
            tuple((index[source], kind) for kind in range(len(kinds)) if (source := _fewer(state, kind)) in index)
            for state in states
        ]
        return cls(kinds, members, tuple(states), tuple(steps), number <= _MOST_STATES)


def _some_states(counts: Sequence[int]) -> set[tuple[int, ...]]:
    """Numbers of wafers in use where one kind after another is used up, in several orders, or all are evenly."""
    found = set()
    for order in islice(permutations(range(len(counts))), _MOST_ORDERS):
        uses = [kind for kind in order for _ in range(counts[kind])]
        evenly = [
            kind for _, kind in sorted((nth / counts[kind], kind) for kind in order for nth in range(counts[kind]))
        ]
        for way in (uses, evenly):
            state = [0] * len(counts)
            found.add(tuple(state))
            for kind in way:
                state[kind] += 1
                found.add(tuple(state))
    return found


def _rank(wafer: Wafer) -> tuple[int, int, int]:
    return -wafer.tiles, -wafer.bytes, wafer.slowness_permille


def _fewer(state: tuple[int, ...], kind: int) -> tuple[int, ...]:
    return (*state[:kind], state[kind] - 1, *state[kind + 1 :])


@dataclass(frozen=True)
class Curves:
    """Curves of all items as arrays: ``time_fs`` [items]; ``tiles`` and ``saved`` [items, pieces], padded with 0."""

    time_fs: Array
    tiles: Array
    saved: Array

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Curves:
        """``curves`` as arrays."""
        pieces = max((len(curve.drops) for curve in curves), default=0)
        padded = [curve.drops + ((0, 0),) * (pieces - len(curve.drops)) for curve in curves]
        drops = np.array(padded, np.int64).reshape(len(curves), pieces, 2)
        return cls(np.array([curve.time_fs for curve in curves], np.int64), drops[..., 0], drops[..., 1])

    def time(self, spare: Array) -> Array:
        """Femtoseconds of each with so many tiles beyond its fewest."""
        left, time_fs = np.maximum(spare, 0), self.time_fs.copy()
        for tiles, saved in zip(self.tiles.T, self.saved.T, strict=True):
            taken = np.minimum(left, tiles)
            left, time_fs = left - taken, time_fs - taken * saved
        return time_fs

    def spare(self, most_fs: int, never: int) -> Array:
        """The fewest tiles beyond the fewest with which each takes ``most_fs`` at most, or ``never``."""
        spare, time_fs = np.zeros_like(self.time_fs), self.time_fs
        for tiles, saved in zip(self.tiles.T, self.saved.T, strict=True):
            wanted = -((most_fs - time_fs) // np.maximum(saved, 1))
            taken = np.where(saved > 0, np.clip(wanted, 0, tiles), 0)
            spare, time_fs = spare + taken, time_fs - taken * saved
        return np.where(time_fs <= most_fs, spare, never)


class Chain:
    """A problem's items in a row, as arrays; cuts are positions 0 to the number of items.

    ``cautious``: what several links might share is counted as if one had to carry all of it. Otherwise a link carries
    only what it does wherever the other cuts are. For items of which each is read by the next alone there is no
    difference.
    """

    def __init__(self, problem: Problem, cautious: bool = False, stops: Array | None = None) -> None:
        self.problem = problem
        self.cautious = cautious
        self.count = len(problem.items)
        self.wafers = Wafers.of(problem)
        self.stops = stops
        self.tiles = np.array([item.tiles for item in problem.items], np.int64)
        self.bytes = np.array([item.bytes for item in problem.items])

    @property
    def exact(self) -> bool:
        """Whether no cut and no choice of wafers is left out."""
        return self.wafers.exact and self.stops is None

    def reach(self, thresholds: Thresholds) -> list[Array]:
        """[kind][start]: the furthest cut where a run from ``start`` may end; ``start`` itself if there is no run."""
        allowed = self.cuts(thresholds)
        last = np.maximum.accumulate(np.where(allowed, np.arange(self.count + 1), 0))
        reached = []
        for kind in self.wafers.kinds:
            ends = np.append(self._misfit_ends, self.count)
            for weights, most in self._weights(kind, thresholds):
                ends[:-1] = np.minimum(ends[:-1], _ends(weights, most))
            reached.append(np.maximum(last[np.maximum(ends, 0)], np.arange(self.count + 1)))
        return reached

    def cuts(self, thresholds: Thresholds) -> npt.NDArray[np.bool_]:
        """[position]: whether the chain may be cut there."""
        allowed = np.ones(self.count + 1, bool)
        if self.stops is not None:
            allowed[:] = False
            allowed[self.stops] = True
        if thresholds.bottleneck is not None:
            allowed[1:-1] &= self.held_fs[1:-1] <= thresholds.bottleneck
        return allowed

    def _weights(self, kind: Wafer, thresholds: Thresholds) -> Iterable[tuple[Array, int]]:
        """What adds up over the items of a run, and the most that a wafer of ``kind`` may have of it."""
        yield self.tiles, kind.tiles
        yield self.bytes, kind.bytes if thresholds.balance is None else min(kind.bytes, thresholds.balance)
        if thresholds.room is not None:
            more = max(0, thresholds.room - self.problem.users)
            users = [min(item.bytes + more * item.state_bytes, kind.bytes + 1) for item in self.problem.items]
            yield np.array(users), kind.bytes
        if thresholds.bottleneck is None:
            return
        if self.problem.take_turns:
            curves = self._curves("latency", kind.slowness_permille)
            yield curves.time(kind.tiles - self.tiles), thresholds.bottleneck
        else:
            curves = self._curves("slowest", kind.slowness_permille)
            spare = curves.spare(thresholds.bottleneck, kind.tiles + 1)
            yield np.minimum(self.tiles, kind.tiles + 1) + spare, kind.tiles

    def _curves(self, name: str, slowness_permille: int) -> Curves:
        key = name, slowness_permille
        if key not in self._known_curves:
            curves: list[Curve] = [getattr(item, name).slowed(slowness_permille) for item in self.problem.items]
            self._known_curves[key] = Curves.of(curves)
        return self._known_curves[key]

    @cached_property
    def _known_curves(self) -> dict[tuple[str, int], Curves]:
        return {}

    def latencies(self, kind: Wafer) -> Curves:
        """Curves of the items' latency on wafers of ``kind``."""
        return self._curves("latency", kind.slowness_permille)

    @cached_property
    def _misfit_ends(self) -> Array:
        """[start]: where a run has to end at the latest, lest it hold a combination that does not fit."""
        starts = np.arange(self.count)
        ends = np.full(self.count, self.count)
        places: dict[int, Array] = {}
        for misfit in self.problem.misfits:
            complete = starts
            for alike, needed in Counter(misfit).items():
                if alike not in places:
                    own = [i for i, item in enumerate(self.problem.items) if item.alike == alike]
                    places[alike] = np.array(own, np.int64)
                nth = np.searchsorted(places[alike], starts) + needed - 1
                complete = np.maximum(complete, np.append(places[alike], [self.count] * needed)[nth] + 1)
            ends = np.minimum(ends, complete - 1)
        return ends

    @cached_property
    def held_fs(self) -> Array:
        """[cut]: how long a link is held at least (at most, if cautious) if the chain is cut there."""
        held = np.zeros(self.count + 1, np.int64)
        pairs: Counter[tuple[int, int]] = Counter()
        for flow in self.problem.flows:
            if self.cautious:
                held[flow.source + 1 : max(flow.targets) + 1] += flow.link_fs
            else:
                pairs.update({(flow.source, target): flow.link_fs for target in flow.targets})
        for (source, target), link_fs in pairs.items():
            np.maximum(held[source + 1 : target + 1], link_fs, out=held[source + 1 : target + 1])
        return held

    @cached_property
    def way_fs(self) -> Array:
        """[cut]: what crossing it adds to a token's way at least (at most, if cautious); nothing at the start."""
        link_fs = np.zeros(self.count + 1, np.int64)
        for flow in self.problem.flows:
            end = max(flow.targets) if self.cautious else flow.source + 1
            if self.cautious or end in flow.targets:
                reached = link_fs[flow.source + 1 : end + 1]
                np.maximum(reached, flow.link_fs, out=reached)
        link_fs[1:] += self.problem.hand_over_fs
        return link_fs


def _ends(weights: Array, most: int) -> Array:
    """[start]: the last end at which the weights from ``start`` on add up to ``most`` at most."""
    if most < 0:
        return np.arange(len(weights)) - 1
    weights = np.minimum(weights, most + 1)
    if weights.sum(dtype=np.float64) + most > float(1 << 62):
        weights = weights.astype(object)
    before = np.concatenate([weights[:1] * 0, np.cumsum(weights)])
    ends: Array = np.searchsorted(before, before[:-1] + min(most, before[-1]), side="right") - 1
    return ends


def furthest(wafers: Wafers, reach: Sequence[Array], machines: int) -> list[int]:
    """[state]: the furthest cut that so many wafers reach; for the states of at most ``machines`` wafers."""
    ways = [kind.tolist() for kind in reach]
    found = [0]
    for state in range(1, len(wafers.states)):
        if wafers.used[state] > machines:
            break
        found.append(max(ways[kind][found[source]] for source, kind in wafers.steps[state]))
    return found


def earliest(wafers: Wafers, reach: Sequence[Array], states: int, count: int) -> list[int]:
    """[state]: the earliest cut from which the rest of the wafers, of the first ``states`` states, reach the end."""
    first = [np.searchsorted(kind, np.arange(count + 1)).tolist() for kind in reach]
    found = [count] * states
    for state in range(states - 1, 0, -1):
        for source, kind in wafers.steps[state]:
            found[source] = min(found[source], first[kind][found[state]])
    return found
