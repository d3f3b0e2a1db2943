"""Which process runs which wafers: neighbours of the pipeline, with as few bytes as can be for the fullest process."""

from __future__ import annotations

from itertools import accumulate

from ir.plan import Plan

_NONE = float("inf")


def share_out(plan: Plan, processes: int) -> tuple[tuple[int, ...], ...]:
    """The wafers of each process, in the order of the pipeline: at least one for each, and each for one process.

    ``processes`` is from 1 to the number of wafers in use.
    """
    wafers = plan.wafers_used
    sums = (0, *accumulate(plan.wafer_bytes(wafer) for wafer in wafers))
    fullest: list[float] = [0, *[_NONE] * len(wafers)]
    starts: list[list[int]] = []
    for _ in range(processes):
        best = [
            min(((max(fullest[start], sums[end] - sums[start]), start) for start in range(end)), default=(_NONE, 0))
            for end in range(len(sums))
        ]
        fullest, start_of = [most for most, _ in best], [start for _, start in best]
        starts.append(start_of)
    groups: list[tuple[int, ...]] = []
    end = len(wafers)
    for start_of in reversed(starts):
        groups.insert(0, wafers[start_of[end] : end])
        end = start_of[end]
    return tuple(groups)
