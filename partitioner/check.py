"""The independent checker: every claim of a plan is derived again from the model and the machine.

It shares no code with the solver or the floor planner, and stops at nothing: all faults are reported at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from ir.diagnostics import Diagnostic, Fact
from ir.graph import Parameter
from ir.layout import fullest_tile_bytes
from ir.machine import Machine, absurdities
from ir.model import Block, Edge, Model
from ir.objective import Objective
from ir.plan import FEASIBLE, OPTIMAL, PlacedBlock, Plan, Rectangle, Transfer, pairs
from ir.workload import Workload
from partitioner.check_rules import broken_rules, free_blocks

_MOST = 1 << 40
_MOST_BYTES = 1 << 62
Copies = Mapping[str, Sequence[PlacedBlock]]
"""The copies of each placed block, by its name."""


def check(plan: Plan, model: Model) -> tuple[Diagnostic, ...]:
    """Everything that is wrong with ``plan`` as a placement of ``model``; nothing if it is sound."""
    absurd = (*absurdities(plan.machine), *_absurd_sizes(plan))
    if absurd:
        return tuple(Diagnostic("W0514", text, plan.machine.name) for text in absurd)
    faults = list(_missing_blocks(plan, model))
    known = {block.name: block for block in model.blocks}
    placed = {name: copies for name, copies in plan.copies.items() if name in known}
    for block in (copy for copies in placed.values() for copy in copies):
        faults += _wrong_contents(block, known[block.name])
        faults += _wrong_figures(
            block, known[block.name], plan.workload.share(block.copy, len(placed[block.name])), model
        )
        faults += _outside(block, plan.machine)
        faults += _wrong_experts(block, known[block.name], plan.machine)
    sound_regions = not any(fault.code in ("W0503", "W0506") for fault in faults)
    faults += _overlaps(plan)
    if sound_regions:
        faults += _overfull_tiles((copy for copies in placed.values() for copy in copies), plan, model)
    faults += _parted(placed, model)
    faults += _backward(placed, model, free_blocks(plan, model))
    if placed.keys() == known.keys():
        faults += broken_rules(plan, model)
        faults += _wrong_transfers(plan, placed, model)
        faults += _wrong_claims(plan, model)
        faults += _not_optimal(plan, model)
    return tuple(faults)


def _absurd_sizes(plan: Plan) -> Iterator[str]:
    for name in ("users", "context", "chunk"):
        if not 1 <= getattr(plan.workload, name) <= _MOST:
            yield f"{name} must be from 1 to {_MOST:,}, not {getattr(plan.workload, name):,}"


# --- every block and every weight, once -----------------------------------------------------------------------------


def _missing_blocks(plan: Plan, model: Model) -> Iterator[Diagnostic]:
    wanted = [block.name for block in model.blocks]
    found = plan.copies
    for name in wanted:
        if name not in found:
            yield Diagnostic("W0501", "a block of the model is not placed", name)
    for name, copies in found.items():
        if name not in wanted:
            yield Diagnostic("W0501", "a placed block is not in the model", name)
        elif [block.copy for block in copies] != [*range(len(copies))]:
            facts: dict[str, Fact] = {"times": len(copies), "copies": ", ".join(str(block.copy) for block in copies)}
            yield Diagnostic("W0501", "a block is placed more than once, not as copies counted from 0", name, facts)
        elif len({block.wafer for block in copies}) < len(copies):
            wafers = {"wafers": ", ".join(str(block.wafer) for block in copies)}
            yield Diagnostic("W0501", "two copies of a block are on one wafer", name, wafers)


def _wrong_contents(placed: PlacedBlock, block: Block) -> Iterator[Diagnostic]:
    missing, extra = set(block.parameters) - set(placed.parameters), set(placed.parameters) - set(block.parameters)
    for name in sorted(missing):
        yield Diagnostic("W0502", f"the weight {name} is not placed with the block that reads it", block.name)
    for name in sorted(extra):
        yield Diagnostic("W0502", f"the weight {name} is placed with a block that does not read it", block.name)
    if len(placed.parameters) != len(set(placed.parameters)):
        yield Diagnostic("W0502", "a weight is placed twice in one block", block.name)
    if (placed.kind, placed.layer) != (block.kind, block.layer):
        yield Diagnostic("W0510", "kind or layer differ from the model's", block.name)


# --- rectangles -----------------------------------------------------------------------------------------------------


def _outside(block: PlacedBlock, machine: Machine) -> Iterator[Diagnostic]:
    if not 0 <= block.wafer < machine.systems:
        yield Diagnostic("W0503", f"wafer {block.wafer} does not exist", block.title, {"systems": machine.systems})
        return
    wafer, region = machine.wafer(block.wafer), block.region
    if not wafer.in_service:
        yield Diagnostic("W0503", f"wafer {block.wafer} is out of service", block.title)
    elif region.columns < 1 or region.rows < 1 or not Rectangle(0, 0, wafer.columns, wafer.rows).contains(region):
        facts = {"region": _shown(region), "mesh": f"{wafer.columns} x {wafer.rows}"}
        yield Diagnostic("W0503", "a region lies outside the wafer's mesh", block.title, facts)


def _overlaps(plan: Plan) -> Iterator[Diagnostic]:
    for wafer in plan.wafers_used:
        for a, b in combinations(plan.on_wafer(wafer), 2):
            if _overlap(a.region, b.region):
                facts = {a.title: _shown(a.region), b.title: _shown(b.region)}
                yield Diagnostic("W0504", f"{a.title} and {b.title} claim the same tiles", f"wafer {wafer}", facts)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    beside = a.column + a.columns <= b.column or b.column + b.columns <= a.column
    above = a.row + a.rows <= b.row or b.row + b.rows <= a.row
    return not beside and not above


def _wrong_experts(placed: PlacedBlock, block: Block, machine: Machine) -> Iterator[Diagnostic]:
    """Each expert once, on the group's wafer, in the group's region: on tiles of its own, or on all of them."""
    count = Counter(expert.index for expert in placed.experts)
    wrong = [index for index in range(block.experts) if count[index] != 1]
    if wrong or len(placed.experts) != block.experts:
        shown = ", ".join(map(str, wrong[:5])) or "others than the model's"
        facts = {"placed": len(placed.experts), "experts": block.experts}
        yield Diagnostic("W0506", f"experts are not placed exactly once: {shown}", block.name, facts)
    for expert in placed.experts:
        where = f"{block.name}, expert {expert.index}"
        if expert.wafer != placed.wafer:
            wafers = {"wafer": expert.wafer, "wafer_of_the_group": placed.wafer}
            yield Diagnostic("W0506", "an expert is not on the wafer of its layer's other experts", where, wafers)
        elif not placed.region.contains(expert.region) or expert.region.tiles < 1:
            regions = {"expert": _shown(expert.region), "group": _shown(placed.region)}
            yield Diagnostic("W0506", "an expert's region is not inside its group's", where, regions)
    if _experts_overlap(placed, machine):
        yield Diagnostic("W0504", "two experts claim the same tile", block.name)


def _experts_overlap(placed: PlacedBlock, machine: Machine) -> bool:
    """Whether any tile is claimed twice, by counting claims on the mesh."""
    if not placed.experts or placed.sliced:
        return False
    wafer = machine.wafer(placed.wafer)
    claims = np.zeros((wafer.rows, wafer.columns), dtype=np.int32)
    for expert in placed.experts:
        region = expert.region
        if min(region.column, region.row, region.columns, region.rows) >= 0 and expert.wafer == placed.wafer:
            claims[region.row : region.row + region.rows, region.column : region.column + region.columns] += 1
    return bool((claims > 1).any())


# --- memory ---------------------------------------------------------------------------------------------------------


def _wrong_figures(placed: PlacedBlock, block: Block, workload: Workload, model: Model) -> Iterator[Diagnostic]:
    weights = sum(model.graph.parameter[name].stored_bytes for name in block.parameters)
    derived = {
        "weight_bytes": weights,
        "cache_bytes": block.cache_bytes(workload.users, workload.context),
        "activation_bytes": block.live_bytes(workload.chunk),
        "macs_per_token": block.macs_per_token,
        "active_experts": block.active_experts,
    }
    for name, value in derived.items():
        if getattr(placed, name) != value:
            facts = {"stated": getattr(placed, name), "derived": value}
            yield Diagnostic("W0510", f"{name.replace('_', ' ')} is wrong", placed.title, facts)


def _overfull_tiles(placed: Iterable[PlacedBlock], plan: Plan, model: Model) -> Iterator[Diagnostic]:
    limit = plan.machine.tile_bytes
    for block in placed:
        parameters = [model.graph.parameter[name] for name in block.parameters if name in model.graph.parameter]
        fullest = _fullest_tile(block, parameters)
        if fullest > limit:
            facts: dict[str, Fact] = {
                "bytes_on_fullest_tile": fullest,
                "bytes_of_a_tile": limit,
                "reserve_bytes": plan.machine.reserve_bytes,
                "region": _shown(block.region),
            }
            yield Diagnostic("W0505", "a tile holds more than its memory", f"{block.title}, wafer {block.wafer}", facts)
        if fullest != block.tile_bytes:
            both = {"stated": block.tile_bytes, "derived": fullest}
            yield Diagnostic("W0510", "bytes of the fullest tile are wrong", block.title, both)


def _fullest_tile(block: PlacedBlock, parameters: list[Parameter]) -> int:
    spread = block.cache_bytes + block.activation_bytes
    if not block.experts:
        return fullest_tile_bytes(parameters, spread, block.region.rows, block.region.columns)
    own = [replace(p, type=p.type.with_shape(p.type.shape[1:])) for p in parameters]
    if block.sliced:
        return fullest_tile_bytes(own, spread, block.region.rows, block.region.columns, len(block.experts))
    share = -(-spread // len(block.experts))
    sizes = {(expert.region.rows, expert.region.columns) for expert in block.experts}
    return max(fullest_tile_bytes(own, share, rows, columns) for rows, columns in sizes if rows > 0 and columns > 0)


# --- between wafers -------------------------------------------------------------------------------------------------


def _parted(placed: Copies, model: Model) -> Iterator[Diagnostic]:
    """Blocks of one layer's routing on several wafers; their copies go together by number."""
    for group in model.together:
        members = [placed[name] for name in (model.blocks[i].name for i in group) if name in placed]
        for number in range(max(map(len, members), default=0)):
            together = [copies[number % len(copies)] for copies in members]
            if len({member.wafer for member in together}) > 1:
                facts = {member.title: member.wafer for member in together}
                yield Diagnostic("W0507", "blocks that exchange routed tokens are on different wafers", "", facts)


def _crossing(
    placed: Copies, model: Model, free: frozenset[str] = frozenset()
) -> Iterator[tuple[Edge, PlacedBlock, PlacedBlock]]:
    """Values that go to another wafer, from copy to copy, unless to or from a ``free`` block."""
    for edge in model.edges:
        source, target = model.blocks[edge.source].name, model.blocks[edge.target].name
        if free.isdisjoint((source, target)):
            for one, other in pairs(placed.get(source, ()), placed.get(target, ())):
                if one.wafer != other.wafer:
                    yield edge, one, other


def _backward(placed: Copies, model: Model, free: frozenset[str]) -> Iterator[Diagnostic]:
    """Values that break the pipeline: wafers need not follow each other by number, but in some order values must go on.

    There is one exactly if, taking away wafers that receive from none that is left, all go; and none is left then.
    Of what remains, whatever goes against the order of the wafers' first blocks is told.
    """
    crossing = [*_crossing(placed, model, free)]
    circling = _circling({(source.wafer, target.wafer) for _, source, target in crossing})
    first: dict[int, int] = {}
    for number, block in enumerate(model.blocks):
        for copy in placed.get(block.name, ()):
            first.setdefault(copy.wafer, number)
    for edge, source, target in crossing:
        if {source.wafer, target.wafer} <= circling and first[source.wafer] > first[target.wafer]:
            facts = {source.title: source.wafer, target.title: target.wafer}
            yield Diagnostic("W0508", "a value would flow back along the pipeline", edge.value, facts)


def _circling(routes: set[tuple[int, int]]) -> set[int]:
    """Wafers from which values come back to them, and those between such."""
    left = {wafer for route in routes for wafer in route}
    while True:
        inner = {route for route in routes if left.issuperset(route)}
        kept = {source for source, _ in inner} & {target for _, target in inner}
        if kept == left:
            return left
        left = kept


def _wrong_transfers(plan: Plan, placed: Copies, model: Model) -> Iterator[Diagnostic]:
    wanted = Counter(
        {
            Transfer(edge.value, source.name, source.wafer, target.wafer, edge.bytes_per_token): 1
            for edge, source, target in _crossing(placed, model)
        }
    )
    stated = Counter(plan.transfers)
    for word, transfers in (("is missing", wanted - stated), ("does not follow the graph", stated - wanted)):
        for transfer in transfers:
            route = f"wafer {transfer.source_wafer} to wafer {transfer.target_wafer}"
            yield Diagnostic("W0509", f"a transfer {word}: {route}", transfer.value)


def _wrong_claims(plan: Plan, model: Model) -> Iterator[Diagnostic]:
    solver = plan.solver
    derived = _derived(plan, model)
    for score in solver.scores:
        if score.value != derived.get(score.objective, score.value):
            facts = {"stated": score.value, "derived": derived[score.objective]}
            yield Diagnostic("W0510", f"the solver's {score.objective} is wrong", "", facts)
        short = score.value - score.bound if score.objective.is_maximum else score.bound - score.value
        if short > 0 or (score.proof and short):
            claim = {"value": score.value, "bound": score.bound}
            yield Diagnostic("W0510", f"value and bound of {score.objective} contradict each other", "", claim)
    if not solver.scores or len({score.objective for score in solver.scores}) < len(solver.scores):
        yield Diagnostic("W0510", "objectives are missing or named twice", "", {"scores": len(solver.scores)})
    proven = all(score.proof for score in solver.scores)
    if solver.status != (OPTIMAL if proven else FEASIBLE):
        stated: dict[str, Fact] = {"status": solver.status, "proven": proven}
        yield Diagnostic("W0510", "status and proofs contradict each other", "", stated)


def _derived(plan: Plan, model: Model) -> dict[Objective, int]:
    """Scores that follow from where blocks lie; times do not."""
    return {
        Objective.MACHINES: len(plan.wafers_used),
        Objective.BALANCE: plan.largest_wafer_bytes,
        Objective.TRAFFIC: sum(
            transfer.bytes_per_token * plan.machine.link_cost(transfer.source_wafer, transfer.target_wafer)
            for transfer in plan.transfers
        ),
        Objective.ROOM: min(_users_of_wafer(plan, model, wafer) for wafer in plan.wafers_used),
    }


def _users_of_wafer(plan: Plan, model: Model, wafer: int) -> int:
    """Users whose caches fit on a wafer beside what else lies there."""
    known, copies = {block.name: block for block in model.blocks}, plan.copies
    blocks = [block for block in plan.on_wafer(wafer) if block.name in known]
    caches = ((known[block.name].cache_bytes(1, plan.workload.context), len(copies[block.name])) for block in blocks)
    each = sum(-(-size // served) for size, served in caches)
    fixed = sum(block.bytes for block in blocks) - each * plan.workload.users
    return min(_MOST, (plan.machine.bytes_of(wafer) - fixed) // each) if each else _MOST


def _not_optimal(plan: Plan, model: Model) -> Iterator[Diagnostic]:
    """A plan called the best whose blocks, in order, could be spread better in what it was made best for first.

    Wafer after wafer is filled as far as one step beyond the stated optimum allows. For a chain that finds a
    placement whenever there is one; for other models what it finds is still a placement.
    """
    best = plan.solver.scores[0] if plan.solver.scores else None
    if best is None or not best.proof or plan.rules or any(block.copy for block in plan.blocks):
        return
    systems, users = len(plan.machine.in_service), plan.workload.users
    match best.objective:
        case Objective.BALANCE:
            reached = _fill(plan, model, best.value - 1, users)
        case Objective.MACHINES:
            reached, systems = _fill(plan, model, _MOST_BYTES, users), best.value - 1
        case Objective.ROOM if best.value < _MOST:
            reached = _fill(plan, model, _MOST_BYTES, best.value + 1)
        case _:
            return
    if reached is not None and reached <= systems:
        facts = {"objective": best.objective, "stated_optimum": best.value, "reached_with_more_on": reached}
        yield Diagnostic("W0515", "the plan is called optimal, but is not", "", facts)


def _fill(plan: Plan, model: Model, most_bytes: int, users: int) -> int | None:
    """Wafers that blocks in order take, the largest first, each filled as far as it goes; ``None`` if that is no
    placement.

    Caches are counted for ``users``, tiles for the users of the plan. The pipeline may take wafers in any order: the
    largest are filled first.
    """
    machine = plan.machine
    offered = sorted((machine.wafer(wafer).tiles for wafer in machine.in_service), reverse=True)
    wafer = used_bytes = used_tiles = 0
    reached: dict[int, int] = {}

    def holds(size: int, tiles: int) -> bool:
        return size <= min(most_bytes, offered[wafer] * machine.tile_bytes) and tiles <= offered[wafer]

    for own, size, tiles in _items(plan, model, users):
        if not holds(used_bytes + size, used_tiles + tiles):
            wafer, used_bytes, used_tiles = wafer + 1, 0, 0
        if wafer == len(offered) or not holds(used_bytes + size, used_tiles + tiles):
            return None
        used_bytes, used_tiles = used_bytes + size, used_tiles + tiles
        reached |= dict.fromkeys(own, wafer)
    # A block between two that stay together has no place of its own: such a spread is no placement.
    return None if any(reached[edge.source] > reached[edge.target] for edge in model.edges) else wafer + 1


def _items(plan: Plan, model: Model, users: int) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Blocks in order, their bytes for ``users``, and tiles at least; blocks that stay together as one, where the first
    stands.
    """
    placed = {name: copies[0] for name, copies in plan.copies.items()}
    members = {group[0]: group for group in model.together}
    later = {index for group in model.together for index in group[1:]}
    more = users - plan.workload.users
    for index in (i for i in range(len(model.blocks)) if i not in later):
        group = members.get(index, (index,))
        own = [placed[model.blocks[i].name] for i in group]
        caches = more * sum(model.blocks[i].cache_bytes(1, plan.workload.context) for i in group)
        yield group, caches + sum(block.bytes for block in own), sum(_least_tiles(b, plan.machine) for b in own)


def _least_tiles(placed: PlacedBlock, machine: Machine) -> int:
    """Tiles that hold the block's bytes, however they are spread; experts apart have tiles of their own."""
    parts = 1 if placed.sliced else max(1, len(placed.experts))
    return parts * -(-placed.bytes // (parts * machine.tile_bytes))


def _shown(region: Rectangle) -> str:
    return f"{region.columns} x {region.rows} at ({region.column}, {region.row})"
