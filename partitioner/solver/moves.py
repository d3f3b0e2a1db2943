"""The fewest bytes of weights to move, for chains: runs of items on wafers of which some keep what they held.

Before, each wafer held items between a first and a last one, and no two of these spans overlap. A placement gives each
wafer in use one run of consecutive items. Let a run be *kept* if its wafer held some of its weights before.

Kept runs have their wafers in the old order: if one run comes before another, their wafers keep items of theirs that
come in this order, and so do the spans that these lie in. Every other run can take any wafer of its kind that is left,
and whichever it takes, nothing more needs to move. So of the past it matters only where the next run starts, how many
wafers of each kind are in use, and whether the old wafer whose span reaches across this cut is in use already: an
earlier wafer's span has ended, and a later one's has not begun. The most weight kept is thus that of a longest path
over such states, found by dynamic programming over cuts, on arrays over the numbers of wafers in use.

The second argument is the path's dual: potentials of the states such that no arc gains more than the potential grows.
They are checked arc by arc, and the arcs are counted out anew, by adding up each run rather than by how far runs reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from ir.objective import Objective
from partitioner.solver.counting import counting_bound
from partitioner.solver.problem import Assignment, Problem
from partitioner.solver.runs import Array, Chain, Thresholds, Wafers, furthest
from partitioner.solver.score import faults, held_fs, score

PROOF = "dynamic programming over cuts and dual potentials checked on every arc"
_OF_RUNS = (Objective.BALANCE, Objective.MACHINES, Objective.BOTTLENECK, Objective.ROOM)
"""Objectives whose threshold each run keeps or breaks by itself, or that count runs."""
_NEVER = _NONE = -1


@dataclass(frozen=True, slots=True)
class Moved:
    """A placement, the bytes of weights that it moves, and two arguments that none moves fewer ("" if they differ)."""

    assignment: Assignment
    moved_bytes: int
    proof: str


def applies(problem: Problem) -> bool:
    """Whether :func:`fewest_moves` finds the fewest: for chains without rules, whose wafers held spans that do not
    overlap, with thresholds that hold for each run alone.
    """
    simple = problem.is_chain and not problem.restrictions and len(problem.previous) == len(problem.items)
    return simple and {name for name, _ in problem.thresholds} <= set(_OF_RUNS) and _Spans(problem).are_told_apart


def fewest_moves(problem: Problem) -> Moved | None:
    """Of the placements that reach the problem's thresholds, one that moves the fewest bytes of weights; of these one
    with the least on the fullest wafer, and of these one with the least traffic over equal links. ``None`` if none
    is found that reaches the thresholds; where values skip items and links are slow, there may be one all the same.

    The problem is one that :func:`applies` allows.
    """
    for cautious in (False, True):
        found = _search(problem, cautious)
        if found is None or not faults(problem, found.assignment):
            return found
    return None


def _search(problem: Problem, cautious: bool) -> Moved | None:
    """``cautious``: what several links share counts as if one carried all of it. Otherwise the answer may break the
    threshold of a link, and if it does not, it is the best.
    """
    chain = Chain(problem, cautious)
    received = first_readers(problem)
    found = LongestPaths(chain, received).best()
    if found is None:
        return None
    assignment, kept, potentials = found
    proof = "" if cautious or not is_dual(chain, potentials, kept) else PROOF
    fullest = score(problem, assignment, Objective.BALANCE)
    least = counting_bound(problem, Objective.BALANCE)
    sizes = sorted({size for size in _run_bytes(chain) if least <= size <= fullest})
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        at_most = replace(problem, thresholds=(*problem.thresholds, (Objective.BALANCE, sizes[middle])))
        narrower = LongestPaths(Chain(at_most, cautious), received).best()
        if narrower is None or narrower[1] < kept:
            low = middle + 1
        else:
            assignment, high = narrower[0], middle
    return Moved(assignment, score(problem, assignment, Objective.MOVES), proof)


def _run_bytes(chain: Chain) -> Iterator[int]:
    """Bytes of every run that some wafer can hold: the fullest one's are among them."""
    ends = np.max(chain.reach(_thresholds(chain)), axis=0)
    for start in range(chain.count):
        yield from accumulate(item.bytes for item in chain.problem.items[start : ends[start]])


def _thresholds(chain: Chain) -> Thresholds:
    """The problem's thresholds, the tightest of each objective."""
    found: dict[str, int] = {"machines": max(chain.wafers.used)}
    for objective, limit in chain.problem.thresholds:
        tightest = max if objective.is_maximum else min
        found[objective.value] = tightest(found.get(objective.value, limit), limit)
    return Thresholds(**found)


class _Spans:
    """The spans of items that wafers in service held."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.count = len(problem.items)

    @cached_property
    def spans(self) -> dict[int, tuple[int, int]]:
        """[wafer in service] -> the first item that it held, and the one behind its last."""
        found: dict[int, tuple[int, int]] = {}
        for item, wafer in enumerate(self.problem.previous):
            if wafer is not None and wafer < len(self.problem.wafers) and self.problem.wafers[wafer].tiles:
                found[wafer] = (found.get(wafer, (item, 0))[0], item + 1)
        return found

    @property
    def are_told_apart(self) -> bool:
        """Whether no two spans overlap, and the numbers of wafers in use are few enough to tell apart."""
        spans = sorted(self.spans.values())
        apart = all(one[1] <= other[0] for one, other in pairwise(spans))
        return apart and Wafers.of(self.problem).exact

    @cached_property
    def across(self) -> Array:
        """[cut] -> the wafer whose span reaches across it, or -1."""
        found = np.full(self.count + 1, _NONE, np.int64)
        for wafer, (first, end) in self.spans.items():
            found[first + 1 : end] = wafer
        return found

    @cached_property
    def weights_before(self) -> dict[int, Array]:
        """[wafer][cut] -> bytes of weights of the items before the cut that it held."""
        found = {}
        for wafer in self.spans:
            own = [
                item.weight_bytes if wafer == was else 0
                for item, was in zip(self.problem.items, self.problem.previous, strict=True)
            ]
            found[wafer] = np.concatenate([[0], np.cumsum(own)])
        return found

    def flags(self, start: int, ends: Array, used: bool, wafer: int) -> Array:
        """[end] -> whether the old wafer across that cut is in use after a run from ``start`` to there, which ``wafer``
        keeps, or none (-1); ``used``: whether the one across ``start`` was.
        """
        across = self.across[ends]
        known = (across == wafer) | (used & (across == self.across[start]))
        return np.where(across == _NONE, 0, known).astype(np.int64)


_Found = tuple[Assignment, int, Array]


class LongestPaths:
    """Longest paths; arrays are over [cut, whether the wafer across it is in use, numbers in use]."""

    def __init__(self, chain: Chain, received: Sequence[Sequence[tuple[int, int]]]) -> None:
        self._received = received
        self._chain, self._spans = chain, _Spans(chain.problem)
        self._kind_of = {wafer: kind for kind, own in enumerate(chain.wafers.members) for wafer in own}
        most = _thresholds(chain)
        states = sum(used <= most.machines for used in chain.wafers.used)
        self._most_wafers, self._ends = most.machines, chain.reach(most)
        self._reach = [ends.tolist() for ends in self._ends]
        self._one_more = [_one_more(chain.wafers, kind, states) for kind in range(len(chain.wafers.kinds))]
        shape = (chain.count + 1, 2, states)
        self._kept = np.full(shape, _NEVER, np.int64)
        self._sent = np.zeros(shape, np.int64)
        self._arc = np.full(shape, _NEVER, np.int64)
        self._arcs: list[tuple[int, int, int, int]] = []  # start, flag, kind, wafer that keeps
        self._kept[0, 0, 0] = 0

    def best(self) -> _Found | None:
        """The best placement, the weight that it keeps, and the potentials."""
        if max(furthest(self._chain.wafers, self._ends, self._most_wafers)) < self._chain.count:
            return None
        for start in range(self._chain.count):
            arrives = np.zeros(self._chain.count - start, np.int64)
            for first, sent in self._received[start]:
                arrives[first - start] += sent
            for kind in range(len(self._reach)):
                self._runs(start, kind, np.cumsum(arrives))
        end = self._kept[self._chain.count, 0]
        kept = int(end.max(initial=_NEVER))
        if kept == _NEVER:
            return None
        among = np.flatnonzero(end == kept)
        last = int(among[np.argmin(self._sent[self._chain.count, 0][among])])
        return self._assignment(last), kept, self._kept

    def _runs(self, start: int, kind: int, received: Array) -> None:
        """Extend the paths that end at ``start`` by all runs on a wafer of ``kind``: kept by none, or by one of those
        that held some of it.
        """
        furthest = self._reach[kind][start]
        for used in (0, 1):
            if (self._kept[start, used] == _NEVER).all() or furthest == start:
                continue
            self._extend(start, used, start + 1, furthest, kind, _NONE, received)
            for wafer, (first, end) in self._spans.spans.items():
                free = not (used and self._spans.across[start] == wafer)
                if end > start and first < furthest and self._kind_of[wafer] == kind and free:
                    self._extend(start, used, max(start, first) + 1, furthest, kind, wafer, received)

    def _extend(self, start: int, used: int, first: int, last: int, kind: int, wafer: int, received: Array) -> None:
        """Runs from ``start`` to all ends from ``first`` to ``last`` on one wafer; arrays are [end, numbers in use]."""
        ends = np.arange(first, last + 1)
        before, after = self._one_more[kind]
        weights = self._spans.weights_before.get(wafer)
        gain = np.zeros(len(ends), np.int64) if weights is None else weights[ends] - weights[start]
        here = self._kept[start, used][before]
        kept = here + gain[:, None]
        sent = self._sent[start, used][before] + received[ends - start - 1][:, None]
        place = ends[:, None], self._spans.flags(start, ends, bool(used), wafer)[:, None], after
        old_kept, old_sent = self._kept[place], self._sent[place]
        better = (here != _NEVER) & ((kept > old_kept) | ((kept == old_kept) & (sent < old_sent)))
        if better.any():
            self._kept[place] = np.where(better, kept, old_kept)
            self._sent[place] = np.where(better, sent, old_sent)
            self._arc[place] = np.where(better, len(self._arcs), self._arc[place])
            self._arcs.append((start, used, kind, wafer))

    def _assignment(self, number: int) -> Assignment:
        """The path that ends with so many wafers in use; runs that keep nothing take what is left, lowest first."""
        runs: list[tuple[int, int, int, int]] = []  # start, end, kind, wafer that keeps
        end, flag = self._chain.count, 0
        while end:
            start, used, kind, wafer = self._arcs[self._arc[end, flag, number]]
            before, after = self._one_more[kind]
            number = int(before[np.flatnonzero(after == number)[0]])
            runs.append((start, end, kind, wafer))
            end, flag = start, used
        taken = {wafer for *_, wafer in runs}
        spare = [[wafer for wafer in own if wafer not in taken] for own in self._chain.wafers.members]
        assignment = [0] * self._chain.count
        for start, end, kind, wafer in reversed(runs):
            lies_on = spare[kind].pop(0) if wafer == _NONE else wafer
            assignment[start:end] = [lies_on] * (end - start)
        return tuple(assignment)


def _one_more(wafers: Wafers, kind: int, states: int) -> tuple[Array, Array]:
    """States (indices, of the first ``states``) and those with one wafer of ``kind`` more in use."""
    pairs = [(source, after) for after in range(states) for source, more in wafers.steps[after] if more == kind]
    before, after = np.array(pairs, np.int64).reshape(-1, 2).T
    return before, after


def first_readers(problem: Problem) -> list[list[tuple[int, int]]]:
    """[start of a run] -> (the item that reads it first, bytes per token) of each value made before."""
    arrives: list[list[tuple[int, int]]] = [[] for _ in problem.items]
    for flow in problem.flows:
        reached = flow.source + 1
        for target in sorted(flow.targets):
            for start in range(reached, target + 1):
                arrives[start].append((target, flow.bytes_per_token))
            reached = max(reached, target + 1)
    return arrives


# --- the second argument ----------------------------------------------------------------------------------------------


def is_dual(chain: Chain, potentials: Array, value: int) -> bool:
    """Whether the potentials [cut, flag, numbers in use] prove that no more than ``value`` bytes can be kept.

    Every run that some wafer can hold is counted out from its items, and every wafer that held some of them tried.
    """
    spans, members, problem = _Spans(chain.problem), chain.wafers.members, chain.problem
    if potentials[0, 0, 0] < 0 or potentials[chain.count, 0].max() > value:
        return False
    steps = [_one_more(chain.wafers, kind, potentials.shape[2]) for kind in range(len(members))]
    for start, end, kind in _all_runs(problem, members):
        before, after = steps[kind]
        held = Counter[int]()
        for item, was in zip(problem.items[start:end], problem.previous[start:end], strict=True):
            if was in members[kind]:
                held[was] += item.weight_bytes
        for used in (False, True):
            here = potentials[start, int(used)][before]
            for wafer, gain in ((_NONE, 0), *held.items()):
                if used and wafer != _NONE and spans.across[start] == wafer:
                    continue
                flag = spans.flags(start, np.array([end]), used, wafer)[0]
                if ((here >= 0) & (potentials[end, flag][after] < here + gain)).any():
                    return False
    return True


def _all_runs(problem: Problem, members: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, int]]:
    """(start, end, kind) of every run that a wafer of the kind can hold within the thresholds."""
    for kind, own in enumerate(members):
        for start in range(len(problem.items)):
            for end in range(start + 1, len(problem.items) + 1):
                if not _holds(problem, own[0], range(start, end)):
                    break
                yield start, end, kind


def _holds(problem: Problem, wafer: int, run: Sequence[int]) -> bool:
    """Whether a wafer can hold ``run`` within the thresholds, links left out."""
    offered, items = problem.wafers[wafer], [problem.items[index] for index in run]
    size = sum(item.bytes for item in items)
    if sum(item.tiles for item in items) > offered.tiles or size > offered.bytes or problem.holds_misfit(run):
        return False
    state = sum(item.state_bytes for item in items)
    for objective, limit in problem.thresholds:
        if objective is Objective.BALANCE and size > limit:
            return False
        if objective is Objective.BOTTLENECK and held_fs(problem, wafer, run) > limit:
            return False
        if objective is Objective.ROOM and size + state * (limit - problem.users) > offered.bytes:
            return False
    return True
