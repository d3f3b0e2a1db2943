"""What a user's step passes, process by process, and what they send each other on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ir.diagnostics import CheckError, Diagnostic
from targets.emulator.executor import Stage
from targets.program.instructions import Program


@dataclass(frozen=True, slots=True)
class Segment:
    """Stages that follow each other on the wafers of one process."""

    rank: int
    stages: range


@dataclass(frozen=True, slots=True)
class Bundle:
    """Values that go together from a segment to the next one of another process, each for some of its wafers."""

    source: int
    target: int
    values: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Route:
    """The segments of a step in order.

    ``results`` is the segment that computes each of the graph's outputs, ``readers`` the processes that read each of
    its inputs.
    """

    segments: tuple[Segment, ...]
    bundles: tuple[Bundle, ...]
    results: Mapping[str, int]
    readers: Mapping[str, frozenset[int]]

    def of(self, rank: int) -> tuple[int, ...]:
        """The segments that a process runs."""
        return tuple(index for index, segment in enumerate(self.segments) if segment.rank == rank)

    @property
    def returns(self) -> bool:
        """Whether a step comes back to a process that it has left."""
        return len({segment.rank for segment in self.segments}) < len(self.segments)


def find_route(
    stages: Sequence[Stage], groups: Sequence[Sequence[int]], inputs: Sequence[str], outputs: Sequence[str]
) -> Route:
    """The route through ``stages`` where process r has the wafers ``groups[r]``.

    Raises:
        CheckError: W0607, no block computes one of the graph's ``outputs``.
    """
    owner = {wafer: rank for rank, wafers in enumerate(groups) for wafer in wafers}
    segments = _segments([owner[stage.wafer] for stage in stages])
    programs = [[p for index in segment.stages for p in stages[index].programs] for segment in segments]
    bundles = tuple(bundle for index, own in enumerate(programs) for bundle in _bundles(index, own, segments, owner))
    made = {name: index for index, own in enumerate(programs) for program in own for name in _computed(program)}
    if missing := [name for name in outputs if name not in made and name not in inputs]:
        raise CheckError(Diagnostic("W0607", "no block of the plan computes an output of the graph", missing[0]))
    readers = {
        name: frozenset(s.rank for s, own in zip(segments, programs, strict=True) if any(_reads(p, name) for p in own))
        for name in inputs
    }
    return Route(segments, bundles, {name: made[name] for name in outputs if name in made}, readers)


def _segments(ranks: Sequence[int]) -> tuple[Segment, ...]:
    starts = [index for index, rank in enumerate(ranks) if index == 0 or ranks[index - 1] != rank]
    ends = [*starts[1:], len(ranks)]
    return tuple(Segment(ranks[start], range(start, end)) for start, end in zip(starts, ends, strict=True))


def _bundles(
    index: int, programs: Sequence[Program], segments: Sequence[Segment], owner: Mapping[int, int]
) -> list[Bundle]:
    """What a segment sends, one bundle for each process that still has a part of the step before it."""
    sent: dict[int, dict[str, list[int]]] = {}
    for program in programs:
        for transfer in program.sends:
            if (rank := owner[transfer.target_wafer]) != segments[index].rank:
                sent.setdefault(rank, {}).setdefault(transfer.value, []).append(transfer.target_wafer)
    later = range(index + 1, len(segments))
    found = []
    for rank, values in sorted(sent.items()):
        target = next((i for i in later if segments[i].rank == rank), None)
        if target is not None:
            found.append(Bundle(index, target, tuple((name, tuple(wafers)) for name, wafers in values.items())))
    return found


def _computed(program: Program) -> list[str]:
    return [value.name for instruction in program.instructions for value in instruction.node.results]


def _reads(program: Program, name: str) -> bool:
    """Whether a block reads the graph's input ``name``, for the new tokens or for those that it remembers."""
    cached = [instruction.cache for instruction in program.instructions if instruction.cache]
    everything = [*program.instructions, *(earlier for cache in cached for earlier in cache.recompute)]
    held = [
        *(value for cache in cached for value in cache.cache.values),
        *(c for cache in cached for c in cache.constants),
    ]
    return name in held or any(name in instruction.node.inputs for instruction in everything)
