"""Why nothing fits, in figures; which rules stand in the way; and what would make it fit, tried before it is named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from ir.diagnostics import Diagnostic, Fact, InfeasibleError, TimeLimitError
from ir.explanation import Amount, Conflict, Explanation, Terms, Whole
from ir.machine import Machine
from ir.model import Block, Model
from ir.rules import Rule
from ir.workload import Workload
from partitioner.case import Case
from partitioner.conflict import Verdict, smallest_conflict
from partitioner.levers import Fits, Progress, Trial, levers
from partitioner.problem import ExpertLayout, footprint, least_tiles
from partitioner.solver.cpsat import Limits
from partitioner.solver.place import place
from partitioner.solver.problem import Problem, Wafer

_BOUNDLESS = Wafer(tiles=1 << 40, bytes=1 << 60)
_MOST_DETERMINISTIC_S = 10.0
"""Of each placement that is tried for an explanation."""


def explain(case: Case, fault: Diagnostic, finer: Iterable[Model], fits: Fits, progress: Progress) -> Diagnostic:
    """The diagnostic of a placement that cannot be: demand, capacity, gap, rules in conflict, and verified levers.

    A placement that only cannot be laid out (W0403) is told as that, with the same figures and levers; one that was
    not found in time is told as it is.

    Args:
        case: what does not fit.
        fault: what the search for a placement says, with its proof.
        finer: the model in smaller blocks, the largest first.
        fits: whether a placement of another case is found and laid out.
        progress: told what is tried.
    """
    if fault.code not in ("W0401", "W0403"):
        return fault
    limits = replace(case.limits, deterministic_time=min(case.limits.deterministic_time, _MOST_DETERMINISTIC_S))
    case = replace(case, speed=None, limits=limits)
    progress("looking for what stands in the way")
    is_proven = fault.code == "W0401"
    proof = tuple(re.split("; | and ", str(fault.facts["proof"]))) if is_proven else ()
    found = replace(figures_of(case, proof), conflict=_conflict(case) if is_proven else None)
    found = found.with_levers(tuple(levers(case, finer, found.conflict, Trial(fits, progress))))
    if is_proven:
        return _told(case, found)
    return replace(fault, help=tuple(lever.text for lever in found.levers) or fault.help, explanation=found)


def figures_of(case: Case, proof: tuple[str, ...]) -> Explanation:
    """Demand and capacity of ``case``, and what makes them up."""
    problem, machine = case.problem, case.machine
    tiles = sum(item.tiles for item in problem.items)
    copies = Counter(item.blocks for item in problem.items)
    parts = [
        footprint(case.model.blocks[block], case.workload.share(item.copy, copies[item.blocks]))
        for item in problem.items
        for block in item.blocks
    ]
    terms = Terms(
        weight_bytes=sum(part.weight_bytes for part in parts),
        cache_bytes=sum(part.cache_bytes for part in parts),
        activation_bytes=sum(part.activation_bytes for part in parts),
        reserve_bytes=tiles * machine.reserve_bytes,
    )
    largest = max(problem.items, key=lambda item: item.tiles)
    wafer = max(problem.wafers, key=lambda wafer: wafer.tiles)
    return Explanation(
        demand=Amount(tiles, sum(item.bytes for item in problem.items)),
        capacity=Amount(machine.total_tiles, machine.total_bytes),
        terms=terms,
        largest=Whole(
            tuple(case.model.blocks[block].name for block in largest.blocks),
            Amount(largest.tiles, largest.bytes),
            Amount(wafer.tiles, wafer.tiles * machine.tile_bytes),
        ),
        proof=proof,
    )


def is_too_large(block: Block, machine: Machine, workload: Workload, experts: ExpertLayout) -> bool:
    """Whether not even an empty wafer has the tiles that ``block`` needs."""
    return least_tiles(block, workload, machine, experts) > largest_wafer_tiles(machine)


def largest_wafer_tiles(machine: Machine) -> int:
    """Tiles of the largest wafer."""
    odd = [wafer.tiles for wafer in machine.odd_wafers]
    return max(odd) if len(odd) == machine.systems else max([machine.tiles, *odd])


# --- rules in conflict ------------------------------------------------------------------------------------------------


def _conflict(case: Case) -> Conflict | None:
    """The fewest rules that cannot all be kept; ``None`` where it is not for them that nothing fits."""
    limits = case.limits
    if not case.rules or _verdict(replace(case, rules=()).problem, limits) is not True:
        return None

    def with_rules(numbers: Iterable[int]) -> Case:
        return replace(case, rules=tuple(case.rules[number] for number in numbers))

    found, smallest = smallest_conflict(len(case.rules), lambda rules: _verdict(with_rules(rules).problem, limits))
    own = with_rules(found)
    free = replace(own.problem, wafers=(_BOUNDLESS,) * len(own.problem.wafers))
    fits_boundless = _verdict(free, limits)
    return Conflict(own.rules, smallest, None if fits_boundless is None else not fits_boundless)


def _verdict(problem: Problem, limits: Limits) -> Verdict:
    try:
        place(problem, (), limits)
    except InfeasibleError:
        return False
    except TimeLimitError:
        return None
    return True


# --- words ------------------------------------------------------------------------------------------------------------


def _told(case: Case, found: Explanation) -> Diagnostic:
    """The diagnostic that says what ``found`` has as data."""
    help_ = tuple(lever.text for lever in found.levers) or ("nothing fits of what was tried",)
    model, machine = case.model.graph.name, case.machine
    proof: dict[str, Fact] = {"proof": "; ".join(found.proof)}
    if found.conflict is not None:
        message = f"{_all_of(found.conflict.rules)} cannot be kept: {_reason(found.conflict)}"
        ruled = {f"rule_{number}": str(rule) for number, rule in enumerate(found.conflict.rules, 1)}
        figures = {} if found.conflict.whatever_size else _figures(case, found)
        return Diagnostic("W0413", message, model, ruled | figures | proof, help_, found)
    largest = max(case.model.blocks, key=lambda block: least_tiles(block, case.workload, machine, case.experts))
    if is_too_large(largest, machine, case.workload, case.experts):
        message = f"{largest.name} does not fit on any wafer"
        facts = _block_facts(largest, case) | proof
        return Diagnostic("W0412", message, f"{largest.name} ({_described(largest)})", facts, help_, found)
    if found.largest.gap.tiles:
        message = f"{', '.join(found.largest.blocks)} share a wafer, and do not fit on any"
        return Diagnostic("W0412", message, model, _figures(case, found) | proof, help_, found)
    message = f"{model} does not fit on {len(machine.in_service)} {machine.name} systems"
    if not found.gap.tiles:
        message += ": its layers are too large to fill them evenly"
    return Diagnostic("W0411", message, model, _figures(case, found) | proof, help_, found)


def _all_of(rules: tuple[Rule, ...]) -> str:
    return "a rule" if len(rules) == 1 else f"{len(rules)} rules together"


def _reason(conflict: Conflict) -> str:
    one = len(conflict.rules) == 1
    match conflict.whatever_size:
        case True:
            return "no placement allows it" if one else "they contradict each other"
        case False if one:
            return "there are placements that allow it, but none with enough room"
        case False:
            return "each of them leaves room without the others, and they do not contradict each other"
    return "no placement with enough room allows it" if one else "each of them leaves room without the others"


def _figures(case: Case, found: Explanation) -> dict[str, Fact]:
    return {
        "tiles_needed": found.demand.tiles,
        "tiles_offered": found.capacity.tiles,
        "tiles_short": found.gap.tiles,
        "bytes_needed": found.demand.bytes,
        "bytes_offered": found.capacity.bytes,
        "bytes_short": found.gap.bytes,
        "weight_bytes": found.terms.weight_bytes,
        "cache_bytes": found.terms.cache_bytes,
        "activation_bytes": found.terms.activation_bytes,
        "reserve_bytes_of_each_tile": case.machine.reserve_bytes,
        "largest_whole": ", ".join(found.largest.blocks),
        "largest_whole_tiles": found.largest.demand.tiles,
        "tiles_of_a_wafer": found.largest.capacity.tiles,
    }


def _block_facts(block: Block, case: Case) -> dict[str, Fact]:
    needed = footprint(block, case.workload)
    tiles = least_tiles(block, case.workload, case.machine, case.experts)
    return {
        "tiles_needed": tiles,
        "tiles_of_a_wafer": largest_wafer_tiles(case.machine),
        "tiles_short": tiles - largest_wafer_tiles(case.machine),
        "weight_bytes": needed.weight_bytes,
        "cache_bytes": needed.cache_bytes,
        "activation_bytes": needed.activation_bytes,
    }


def _described(block: Block) -> str:
    experts = f"{block.experts} experts, " if block.experts else ""
    return f"{experts}{block.weight_bytes / 1e9:,.2f} GB of weights"
