"""Exact answers for chains: contiguous runs of items on wafers in pipeline order.

Whether a chain fits on k wafers with at most B bytes each is decided by filling wafer after wafer as far as possible:
every limit that holds for a run of items holds for its parts, so filling further never hurts. The least B is found by
bisection (parametric search; Pinar and Aykanat, "Fast optimal load balancing algorithms for 1D partitioning", 2004).
"""

from __future__ import annotations

from itertools import accumulate

from partitioner.solver.problem import Assignment, Problem


def fill(problem: Problem, most_bytes: int) -> Assignment | None:
    """A placement of at most ``most_bytes`` on each wafer, found greedily; ``None`` if a chain has none.

    For problems that are no chain ``None`` proves nothing.
    """
    wafers: list[int] = []
    wafer = used_bytes = used_tiles = 0
    run: set[int] = set()
    has_misfits = bool(problem.misfits)
    for index, item in enumerate(problem.items):
        if (
            item.bytes > most_bytes
            or item.tiles > problem.wafers[0].tiles
            or (has_misfits and problem.holds_misfit((index,)))
        ):
            return None
        run.add(index)
        too_much = used_bytes + item.bytes > most_bytes or used_tiles + item.tiles > problem.wafers[0].tiles
        if too_much or (has_misfits and problem.holds_misfit(run)):
            wafer, used_bytes, used_tiles, run = wafer + 1, 0, 0, {index}
        if wafer == len(problem.wafers):
            return None
        used_bytes += item.bytes
        used_tiles += item.tiles
        wafers.append(wafer)
    return tuple(wafers)


def smallest_bottleneck(problem: Problem) -> tuple[int, Assignment] | None:
    """The least bytes of the fullest wafer over all contiguous placements, and one that reaches it."""
    total = sum(item.bytes for item in problem.items)
    low = counting_bound(problem)
    best = fill(problem, total)
    if best is None:
        return None
    high = bottleneck(problem, best)
    while low < high:
        middle = (low + high) // 2
        found = fill(problem, middle)
        if found is None:
            low = middle + 1
        else:
            best, high = found, bottleneck(problem, found)
    return high, best


def least_traffic(problem: Problem, most_bytes: int) -> Assignment | None:
    """Of all contiguous placements with at most ``most_bytes`` on each wafer, one that sends the fewest bytes.

    Dynamic programming over cuts: what a run of items receives depends on where it begins and ends alone.
    """
    count = len(problem.items)
    best: list[dict[int, tuple[int, int]]] = [{} for _ in range(count + 1)]  # [end][wafers] -> traffic, start
    best[0][0] = (0, 0)
    received = _received(problem)
    for start in range(count):
        for end in _ends(problem, start, most_bytes):
            for wafers, (sent, _) in best[start].items():
                option = (sent + received[start][end - start - 1], start)
                if wafers < len(problem.wafers) and option < best[end].get(wafers + 1, (1 << 62, 0)):
                    best[end][wafers + 1] = option
    if not best[count]:
        return None
    wafers = min(best[count], key=lambda used: (best[count][used][0], used))
    assignment = [0] * count
    end = count
    while end:
        start = best[end][wafers][1]
        wafers -= 1
        assignment[start:end] = [wafers] * (end - start)
        end = start
    return tuple(assignment)


def _ends(problem: Problem, start: int, most_bytes: int) -> list[int]:
    """Ends of the runs from ``start`` that one wafer can hold."""
    ends: list[int] = []
    used_bytes = used_tiles = 0
    run: set[int] = set()
    for index in range(start, len(problem.items)):
        used_bytes += problem.items[index].bytes
        used_tiles += problem.items[index].tiles
        run.add(index)
        if used_bytes > most_bytes or used_tiles > problem.wafers[0].tiles or problem.holds_misfit(run):
            break
        ends.append(index + 1)
    return ends


def _received(problem: Problem) -> list[list[int]]:
    """``[start][length - 1]``: bytes per token that the run of ``length`` items from ``start`` is sent."""
    count = len(problem.items)
    arrives = [[0] * (count + 1) for _ in range(count)]
    for flow in problem.flows:
        for start in range(flow.source + 1, count):
            first = next((target for target in flow.targets if target >= start), None)
            if first is None:
                break
            arrives[start][first] += flow.bytes_per_token
    return [list(accumulate(arrives[start][start:count])) for start in range(count)]


def counting_bound(problem: Problem) -> int:
    """Bytes that the fullest wafer holds at least, whatever the placement: the mean, or the largest item."""
    total = sum(item.bytes for item in problem.items)
    return max(-(-total // len(problem.wafers)), max(item.bytes for item in problem.items))


def bottleneck(problem: Problem, assignment: Assignment) -> int:
    """Bytes of the fullest wafer."""
    loads = [0] * len(problem.wafers)
    for item, wafer in zip(problem.items, assignment, strict=True):
        loads[wafer] += item.bytes
    return max(loads)


def traffic(problem: Problem, assignment: Assignment) -> int:
    """Bytes that leave wafers for each token: a value counts once for each wafer that it is sent to."""
    return sum(
        flow.bytes_per_token * len({assignment[target] for target in flow.targets} - {assignment[flow.source]})
        for flow in problem.flows
    )
