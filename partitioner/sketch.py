"""Where a model's blocks would lie, without solving: the fewest wafers that hold them, and regions in proportion.

The wafers are filled as a compile would fill them (the exact placement of a chain, on wafers of their own sizes where
the machine file tells them apart), and each wafer's tiles are shared out so that a token passes soonest.
Rectangles are not laid out: that is the floor planner's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ir.diagnostics import Diagnostic, InfeasibleError
from ir.machine import Machine
from ir.objective import Objective
from ir.profile import Profile
from ir.target import Wafers
from ir.workload import Workload
from partitioner.problem import footprint, room, wafers_of
from partitioner.solver.chain import best_runs
from partitioner.solver.filling import fill, smallest_bottleneck
from partitioner.solver.problem import Assignment, Flow, Item, Problem, equal_wafers
from targets.cost.wafer import Stage, allocate

_MANY = 1 << 40


@dataclass(frozen=True, slots=True)
class Sketch:
    """A stage for each block, on ``systems`` wafers; ``largest_wafer_bytes`` are kept on the fullest."""

    stages: tuple[Stage, ...]
    systems: int
    largest_wafer_bytes: int


def sketch(
    profile: Profile, wafers: Wafers, workload: Workload, systems: int | None = None, experts: str = "auto"
) -> Sketch:
    """Stages for ``profile`` on ``systems`` wafers, or on the fewest that hold it.

    Raises:
        InfeasibleError: W0701, no number of wafers holds it, or ``systems`` are too few.
    """
    machine = wafers.machine if systems is None or wafers.machine.is_even else wafers.machine.resized(systems)
    problem = _problem(profile, machine, workload)
    found = _on_equal_wafers(problem, machine, systems) if machine.is_even else _on_odd_wafers(problem, systems)
    if found is None:
        raise _does_not_fit(profile, problem, machine, systems)
    bottleneck, assignment, count = found
    stages: list[Stage] = []
    known: dict[tuple[object, ...], tuple[Stage, ...]] = {}
    for system in sorted(set(assignment)):
        odd = machine.wafer(system)
        own = replace(wafers, machine=replace(machine, columns=odd.columns, rows=odd.rows))
        blocks = [b for item, s in zip(problem.items, assignment, strict=True) if s == system for b in item.blocks]
        rooms = [room(profile.blocks[b], b, workload, machine) for b in blocks]
        claims = tuple((profile.alike[room.block], room.tiles, room.expert_tiles) for room in rooms)
        alike = odd.columns, odd.rows, claims
        if alike not in known:  # wafers with the same layers are laid out alike
            known[alike] = allocate(profile.blocks, rooms, own, workload.context, experts)
            _require_room(profile, known[alike], own)
        stages += [
            replace(stage, block=b, system=system, slowness_permille=odd.slowness_permille)
            for stage, b in zip(known[alike], blocks, strict=True)
        ]
    return Sketch(tuple(sorted(stages, key=lambda stage: stage.block)), count, bottleneck)


_Found = tuple[int, Assignment, int]
"""Bytes of the fullest wafer, the wafer of each item, and the number of systems."""


def _on_equal_wafers(problem: Problem, machine: Machine, systems: int | None) -> _Found | None:
    """On so many wafers, or on the fewest: there may be more than the machine file has."""
    count = fewest_systems(problem) if systems is None else systems
    if count is None:
        return None
    # More wafers than items cannot help, and would only make the problem larger.
    found = smallest_bottleneck(replace(problem, wafers=equal_wafers(min(count, len(problem.items)), machine.tiles)))
    return (*found, count) if found else None


def _on_odd_wafers(problem: Problem, systems: int | None) -> _Found | None:
    """On the wafers that there are, which are told apart, or on the fewest of them."""
    objectives = (Objective.BALANCE,) if systems else (Objective.MACHINES, Objective.BALANCE)
    found = best_runs(problem, objectives)
    return (found.values[-1], found.assignment, systems or found.values[0]) if found else None


def _require_room(profile: Profile, stages: tuple[Stage, ...], wafers: Wafers) -> None:
    """Refuse rectangles of experts apart that need more than the wafer; other regions were counted before, by bytes."""
    needed = sum(stage.tiles for stage in stages)
    if needed > wafers.machine.tiles and any(stage.expert_rows for stage in stages):
        facts = {"tiles_needed": needed, "tiles_of_a_wafer": wafers.machine.tiles}
        help_ = ("--experts sliced needs no more tiles than bytes; one more system gives room",)
        message = "blocks of one wafer need more tiles than it has"
        raise InfeasibleError(Diagnostic("W0701", message, profile.name, facts, help_))


def fewest_systems(problem: Problem) -> int | None:
    """The least number of wafers on which a contiguous placement exists; ``None`` if a block is larger than one."""
    enough = equal_wafers(max(1, len(problem.items)), problem.wafers[0].tiles)
    found = fill(replace(problem, wafers=enough), sum(item.bytes for item in problem.items))
    return None if found is None else len({*found, 0})


def most_users(profile: Profile, machine: Machine, workload: Workload, systems: int) -> int:
    """Users whose caches of ``workload.context`` tokens fit on ``systems`` wafers; without caches, 2^40."""

    def fit(users: int) -> bool:
        needed = replace(workload, users=users)
        if not machine.is_even:
            found = _on_odd_wafers(_problem(profile, machine, needed), None)
            return found is not None and found[2] <= systems
        fewest = fewest_systems(_problem(profile, machine, needed))
        return fewest is not None and fewest <= systems

    most = 1
    while fit(most * 2) and most < _MANY:
        most *= 2
    low, high = most, most * 2
    while high - low > 1 and low < _MANY:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return low


def _problem(profile: Profile, machine: Machine, workload: Workload) -> Problem:
    known: dict[object, tuple[int, int]] = {}  # layers repeat

    def needs(index: int) -> tuple[int, int]:
        block = profile.blocks[index]
        key = block.weight_bytes, block.caches, block.live_bytes_per_token, block.takes_tokens, block.experts
        if key not in known:
            known[key] = footprint(block, workload).bytes, room(block, index, workload, machine).tiles
        return known[key]

    items = tuple(
        Item(blocks, bytes=sum(needs(b)[0] for b in blocks), tiles=sum(needs(b)[1] for b in blocks))
        for blocks in profile.items
    )
    item_of = {block: number for number, blocks in enumerate(profile.items) for block in blocks}
    flows = tuple(
        Flow(item_of[flow.source], (item_of[flow.target],), flow.bytes_per_token)
        for flow in profile.flows
        if item_of[flow.source] != item_of[flow.target]
    )
    costs = tuple((link.one, link.other, link.cost) for link in machine.odd_links)
    return Problem(items, flows, wafers_of(machine, machine.systems), link_costs=costs)


def _does_not_fit(profile: Profile, problem: Problem, machine: Machine, systems: int | None) -> InfeasibleError:
    largest = max(problem.items, key=lambda item: item.tiles)
    fewest = fewest_systems(problem)
    if not machine.is_even:
        offered = {"model_bytes": sum(item.bytes for item in problem.items), "bytes_of_all_wafers": machine.total_bytes}
        message = f"the model does not fit on the {len(machine.in_service)} wafers in service"
        return InfeasibleError(Diagnostic("W0701", message, machine.name, offered))
    facts: dict[str, int | float | str | bool] = {
        "model_bytes": sum(item.bytes for item in problem.items),
        "wafer_bytes": machine.wafer_bytes,
    }
    if fewest is None:
        names = ", ".join(profile.blocks[block].name for block in largest.blocks)
        facts |= {"tiles_needed": largest.tiles, "tiles_of_a_wafer": machine.tiles}
        message = "blocks that stay together are larger than a wafer"
        return InfeasibleError(Diagnostic("W0701", message, names, facts))
    help_ = (f"--systems {fewest} would hold it",)
    message = f"the model does not fit on {systems:,} systems"
    return InfeasibleError(Diagnostic("W0701", message, machine.name, facts, help_))
