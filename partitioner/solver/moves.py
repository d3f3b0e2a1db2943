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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise, product

import numpy as np
import numpy.typing as npt

from ir.objective import Objective
from partitioner.solver.problem import Assignment, Problem, Wafer
from partitioner.solver.score import score

PROOF = "dynamic programming over cuts and dual potentials checked on every arc"
_MOST_STATES = 20_000
"""Numbers of wafers of each kind in use that are told apart at a cut."""
_NEVER = -1

Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Moved:
    """A placement, the bytes of weights that it moves, and two arguments that none moves fewer ("" if they differ)."""

    assignment: Assignment
    moved_bytes: int
    proof: str


def applies(problem: Problem) -> bool:
    """Whether :func:`fewest_moves` is exact: a chain without rules, whose wafers held spans that do not overlap, and
    with thresholds that hold for each run alone.
    """
    simple = problem.is_chain and not problem.restrictions and len(problem.previous) == len(problem.items)
    known = all(objective in (Objective.BALANCE, Objective.MACHINES) for objective, _ in problem.thresholds)
    return simple and known and _States(problem).are_told_apart


def fewest_moves(problem: Problem) -> Moved | None:
    """Of the placements that reach the problem's thresholds, one that moves the fewest bytes of weights; of these one
    with the least on the fullest wafer, and of these one with the least traffic over equal links. ``None`` if no
    placement reaches the thresholds.

    The problem is one that :func:`applies` allows.
    """
    found = _Search(problem).best()
    if found is None:
        return None
    assignment, kept, potentials = found
    proof = PROOF if _is_dual(problem, potentials, kept) else ""
    sizes = sorted({size for size in _run_bytes(problem) if size <= score(problem, assignment, Objective.BALANCE)})
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        narrower = _Search(_within(problem, sizes[middle])).best()
        if narrower is None or narrower[1] < kept:
            low = middle + 1
        else:
            assignment, high = narrower[0], middle
    return Moved(assignment, score(problem, assignment, Objective.MOVES), proof)


def _within(problem: Problem, most_bytes: int) -> Problem:
    return replace(problem, thresholds=(*problem.thresholds, (Objective.BALANCE, most_bytes)))


def _run_bytes(problem: Problem) -> Iterator[int]:
    """Bytes of every run that some wafer can hold: the fullest one's are among them."""
    states = _States(problem)
    for start in range(len(problem.items)):
        furthest = max(states.furthest(kind, start) for kind in range(len(states.kinds)))
        yield from accumulate(item.bytes for item in problem.items[start:furthest])


class _States:
    """Wafers by kind, how many of each are in use, and the spans of items that they held."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.count = len(problem.items)
        self.most_bytes = min([1 << 62, *(most for name, most in problem.thresholds if name is Objective.BALANCE)])
        machines = [most for name, most in problem.thresholds if name is Objective.MACHINES]
        self.most_wafers = min([self.count, *machines])
        usable = [wafer for wafer in problem.wafers if wafer.tiles > 0]
        self.kinds: tuple[Wafer, ...] = tuple(dict.fromkeys(usable))
        self.members = tuple(
            tuple(number for number, wafer in enumerate(problem.wafers) if wafer == kind) for kind in self.kinds
        )
        self.kind_of = {number: kind for kind, members in enumerate(self.members) for number in members}

    @cached_property
    def spans(self) -> dict[int, tuple[int, int]]:
        """[wafer in service] -> the first item that it held, and the one behind its last."""
        found: dict[int, tuple[int, int]] = {}
        for item, wafer in enumerate(self.problem.previous):
            if wafer is not None and wafer in self.kind_of:
                found[wafer] = (found.get(wafer, (item, 0))[0], item + 1)
        return found

    @property
    def are_told_apart(self) -> bool:
        """Whether no two spans overlap, and the numbers of wafers in use are few enough to tell apart."""
        spans = sorted(self.spans.values())
        numbers = np.prod([min(len(own), self.count) + 1.0 for own in self.members])
        apart = all(one[1] <= other[0] for one, other in pairwise(spans))
        return apart and numbers <= _MOST_STATES

    @cached_property
    def across(self) -> list[int | None]:
        """[cut] -> the wafer whose span reaches across it."""
        found: list[int | None] = [None] * (self.count + 1)
        for wafer, (first, end) in self.spans.items():
            found[first + 1 : end] = [wafer] * (end - first - 1)
        return found

    @cached_property
    def held(self) -> list[tuple[int, ...]]:
        """[start of a run] -> the wafers whose spans end behind it, in their order."""
        order = sorted(self.spans, key=lambda wafer: self.spans[wafer])
        return [tuple(w for w in order if self.spans[w][1] > start) for start in range(self.count)]

    @cached_property
    def weights_before(self) -> dict[int, list[int]]:
        """[wafer][cut] -> bytes of weights of the items before the cut that it held."""
        sums = {wafer: [0] for wafer in self.spans}
        for item, was in zip(self.problem.items, self.problem.previous, strict=True):
            for wafer, own in sums.items():
                own.append(own[-1] + (item.weight_bytes if wafer == was else 0))
        return sums

    def kept(self, wafer: int, start: int, end: int) -> int:
        """Bytes of weights that ``wafer`` keeps if it gets the items from ``start`` to before ``end``."""
        return self.weights_before[wafer][end] - self.weights_before[wafer][start]

    def flag(self, start: int, end: int, used: bool, wafer: int | None) -> bool:
        """Whether the old wafer across the cut ``end`` is in use after a run from ``start``, which ``wafer`` keeps, or
        none; ``used``: whether the one across ``start`` was.
        """
        across = self.across[end]
        return across is not None and (across == wafer or (used and across == self.across[start]))

    def furthest(self, kind: int, start: int) -> int:
        """The last cut where a run from ``start`` may end on a wafer of ``kind``."""
        wafer, run = self.kinds[kind], set[int]()
        tiles = size = 0
        for index in range(start, self.count):
            item = self.problem.items[index]
            tiles, size = tiles + item.tiles, size + item.bytes
            run.add(index)
            if tiles > wafer.tiles or size > min(wafer.bytes, self.most_bytes) or self.problem.holds_misfit(run):
                return index
        return self.count


_Found = tuple[Assignment, int, Array]


class _Search:
    """Longest paths; arrays are over [cut, whether the wafer across it is in use, numbers in use]."""

    def __init__(self, problem: Problem) -> None:
        self._states = states = _States(problem)
        counts = [min(len(own), states.count) for own in states.members]
        numbers = [used for used in product(*(range(most + 1) for most in counts)) if sum(used) <= states.most_wafers]
        index = {used: number for number, used in enumerate(numbers)}
        self._one_more: list[tuple[Array, Array]] = []
        for kind in range(len(counts)):
            more = ((*used[:kind], used[kind] + 1, *used[kind + 1 :]) for used in numbers)
            pairs = [(index[used], index[after]) for used, after in zip(numbers, more, strict=True) if after in index]
            self._one_more.append(tuple(np.array(pairs, np.int64).reshape(-1, 2).T))  # type: ignore[arg-type]
        shape = (states.count + 1, 2, len(numbers))
        self._kept = np.full(shape, _NEVER, np.int64)
        self._sent = np.zeros(shape, np.int64)
        self._arc = np.full(shape, _NEVER, np.int64)
        self._arcs: list[tuple[int, int, int, int | None]] = []  # start, flag, kind, wafer that keeps
        self._kept[0, 0, index[(0,) * len(counts)]] = 0

    def best(self) -> _Found | None:
        """The best placement, the weight that it keeps, and the potentials."""
        states = self._states
        for start in range(states.count):
            for kind in range(len(states.kinds)):
                self._runs(start, kind)
        end = self._kept[states.count, 0]
        kept = int(end.max(initial=_NEVER))
        if kept == _NEVER:
            return None
        among = np.flatnonzero(end == kept)
        last = int(among[np.argmin(self._sent[states.count, 0][among])])
        return self._assignment(last), kept, self._kept

    def _runs(self, start: int, kind: int) -> None:
        """Extend the paths that end at ``start`` by all runs on a wafer of ``kind``."""
        states = self._states
        received = _received(states.problem, start)
        furthest = states.furthest(kind, start)
        for used in (0, 1):
            if (self._kept[start, used] == _NEVER).all():
                continue
            for end in range(start + 1, furthest + 1):
                for wafer in self._choices(start, end, kind, bool(used)):
                    self._extend(start, used, end, kind, wafer, received[end - start - 1])

    def _choices(self, start: int, end: int, kind: int, used: bool) -> Iterator[int | None]:
        """Wafers that would keep some of a run, and none of them."""
        states = self._states
        for wafer in states.held[start]:
            if states.spans[wafer][0] >= end:
                break
            if states.kind_of[wafer] == kind and not (used and states.across[start] == wafer):
                yield wafer
        yield None

    def _extend(self, start: int, used: int, end: int, kind: int, wafer: int | None, received: int) -> None:
        states = self._states
        gain = 0 if wafer is None else states.kept(wafer, start, end)
        before, after = self._one_more[kind]
        kept = self._kept[start, used][before]
        reached, kept, sent = kept != _NEVER, kept + gain, self._sent[start, used][before] + received
        flag = int(states.flag(start, end, bool(used), wafer))
        old_kept, old_sent = self._kept[end, flag][after], self._sent[end, flag][after]
        better = reached & ((kept > old_kept) | ((kept == old_kept) & (sent < old_sent)))
        if better.any():
            target = after[better]
            self._kept[end, flag, target] = kept[better]
            self._sent[end, flag, target] = sent[better]
            self._arc[end, flag, target] = len(self._arcs)
            self._arcs.append((start, used, kind, wafer))

    def _assignment(self, number: int) -> Assignment:
        """The path that ends with so many wafers in use; runs that keep nothing take what is left, lowest first."""
        states = self._states
        runs: list[tuple[int, int, int, int | None]] = []  # start, end, kind, wafer that keeps
        end, flag = states.count, 0
        while end:
            start, used, kind, wafer = self._arcs[self._arc[end, flag, number]]
            before, after = self._one_more[kind]
            number = int(before[np.flatnonzero(after == number)[0]])
            runs.append((start, end, kind, wafer))
            end, flag = start, used
        taken = {wafer for *_, wafer in runs}
        spare = [[wafer for wafer in own if wafer not in taken] for own in states.members]
        assignment = [0] * states.count
        for start, end, kind, wafer in reversed(runs):
            lies_on = spare[kind].pop(0) if wafer is None else wafer
            assignment[start:end] = [lies_on] * (end - start)
        return tuple(assignment)


def _received(problem: Problem, start: int) -> list[int]:
    """[length - 1] -> bytes per token that the run of so many items from ``start`` is sent."""
    arrives = [0] * (len(problem.items) - start)
    for flow in problem.flows:
        first = next((target for target in flow.targets if target >= start), None)
        if flow.source < start and first is not None:
            arrives[first - start] += flow.bytes_per_token
    return [int(total) for total in np.cumsum(arrives)]


# --- the second argument ----------------------------------------------------------------------------------------------


def _is_dual(problem: Problem, potentials: Array, value: int) -> bool:
    """Whether the potentials [cut, flag, numbers in use] prove that no more than ``value`` bytes can be kept.

    Every run that some wafer can hold is counted out from its items, and every wafer of its kind tried on it.
    """
    states = _States(problem)
    counts = [min(len(own), states.count) for own in states.members]
    numbers = [used for used in product(*(range(most + 1) for most in counts)) if sum(used) <= states.most_wafers]
    index = {used: number for number, used in enumerate(numbers)}
    reached = potentials.tolist()
    if reached[0][0][index[(0,) * len(counts)]] < 0 or max(reached[states.count][0]) > value:
        return False
    for start, end, kind in _all_runs(problem, states.kinds, states.most_bytes):
        for used in (False, True):
            options = [(None, 0)] + [
                (wafer, sum(problem.items[i].weight_bytes for i in range(start, end) if problem.previous[i] == wafer))
                for wafer in states.members[kind]
                if not (used and states.across[start] == wafer)
            ]
            for wafer, gain in options:
                flag = states.flag(start, end, used, wafer)
                if not _grows(reached[start][used], reached[end][flag], numbers, index, kind, gain):
                    return False
    return True


def _grows(
    here: Sequence[int],
    there: Sequence[int],
    numbers: Sequence[tuple[int, ...]],
    index: dict[tuple[int, ...], int],
    kind: int,
    gain: int,
) -> bool:
    """Whether one wafer of ``kind`` more gains no more than the potential grows, from wherever there is a path."""
    for number, used in enumerate(numbers):
        after = index.get((*used[:kind], used[kind] + 1, *used[kind + 1 :]))
        if here[number] >= 0 and after is not None and there[after] < here[number] + gain:
            return False
    return True


def _all_runs(problem: Problem, kinds: Sequence[Wafer], most_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, kind) of every run that a wafer of the kind can hold."""
    for kind, wafer in enumerate(kinds):
        for start in range(len(problem.items)):
            for end in range(start + 1, len(problem.items) + 1):
                run = problem.items[start:end]
                if sum(item.tiles for item in run) > wafer.tiles:
                    break
                if sum(item.bytes for item in run) > min(wafer.bytes, most_bytes):
                    break
                if problem.holds_misfit(range(start, end)):
                    break
                yield start, end, kind
