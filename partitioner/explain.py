"""Why nothing fits, in figures, and what would make it fit: each lever is tried before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ir.diagnostics import Diagnostic, Fact
from ir.machine import Machine
from ir.model import Block, Model
from ir.workload import Workload
from partitioner.problem import footprint, least_tiles, measure

Fits = Callable[[Machine, Workload], bool]
"""Whether a placement and floor plan are found for a machine and a workload."""
_MOST_TRIES = 6


def explain(model: Model, machine: Machine, workload: Workload, proof: str, fits: Fits) -> Diagnostic:
    """The diagnostic of an infeasible placement: demand, capacity, gap, what makes it up, and verified levers."""
    largest = max(model.blocks, key=lambda block: least_tiles(block, workload, machine))
    help_ = tuple(_levers(model, machine, workload, fits)) or ("no context or number of users or systems tried fits",)
    if least_tiles(largest, workload, machine) > machine.tiles:
        return Diagnostic(
            "W0412",
            f"{largest.name} does not fit on any wafer",
            f"{largest.name} ({_described(largest)})",
            _block_facts(largest, machine, workload) | {"proof": proof},
            help_,
        )
    problem = measure(model, machine, workload)
    needed, offered = sum(item.tiles for item in problem.items), machine.systems * machine.tiles
    message = f"{model.graph.name} does not fit on {machine.systems} {machine.name} systems"
    if needed <= offered:
        message += ": its layers are too large to fill them evenly"
    facts: dict[str, Fact] = {
        "tiles_needed": needed,
        "tiles_offered": offered,
        "tiles_short": max(0, needed - offered),
        **_terms(model, machine, workload),
        "bytes_offered": machine.systems * machine.wafer_bytes,
        "proof": proof,
    }
    return Diagnostic("W0411", message, model.graph.name, facts, help_)


def _terms(model: Model, machine: Machine, workload: Workload) -> dict[str, Fact]:
    parts = [footprint(block, workload) for block in model.blocks]
    return {
        "weight_bytes": sum(part.weight_bytes for part in parts),
        "cache_bytes": sum(part.cache_bytes for part in parts),
        "activation_bytes": sum(part.activation_bytes for part in parts),
        "reserve_bytes_of_each_tile": machine.reserve_bytes,
    }


def _block_facts(block: Block, machine: Machine, workload: Workload) -> dict[str, Fact]:
    needed, tiles = footprint(block, workload), least_tiles(block, workload, machine)
    return {
        "tiles_needed": tiles,
        "tiles_of_a_wafer": machine.tiles,
        "tiles_short": tiles - machine.tiles,
        "weight_bytes": needed.weight_bytes,
        "cache_bytes": needed.cache_bytes,
        "activation_bytes": needed.activation_bytes,
    }


def _described(block: Block) -> str:
    experts = f"{block.experts} experts, " if block.experts else ""
    return f"{experts}{block.weight_bytes / 1e9:,.2f} GB of weights"


def _levers(model: Model, machine: Machine, workload: Workload, fits: Fits) -> Iterator[str]:
    """What would fit, each changing one thing."""
    problem = measure(model, machine, workload)
    fewest = -(-sum(item.tiles for item in problem.items) // machine.tiles)
    for systems in range(max(machine.systems + 1, fewest), max(machine.systems + 1, fewest) + _MOST_TRIES):
        if fits(replace(machine, systems=systems), workload):
            yield f"--systems {systems} would fit"
            break
    for field in ("context", "users"):
        smaller = _largest_that_fits(workload, field, lambda w: fits(machine, w))
        if smaller:
            yield f"--{field} {smaller} would fit"


def _largest_that_fits(workload: Workload, field: str, fits: Callable[[Workload], bool]) -> int | None:
    """The largest of a few smaller settings of one field that fits; the smallest is tried first, as it often fails."""
    now = getattr(workload, field)
    options = sorted({now >> shift for shift in range(1, now.bit_length())}, reverse=True)
    if not options or not fits(replace(workload, **{field: options[-1]})):
        return None
    low, high = 0, len(options) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(replace(workload, **{field: options[middle]})):
            high = middle
        else:
            low = middle + 1
    return int(options[low])
