"""Why nothing fits, in figures, and what would make it fit: each lever is tried before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from ir.diagnostics import Diagnostic, Fact
from ir.machine import Machine
from ir.model import Block, Granularity, Model
from ir.workload import Workload
from partitioner.problem import ExpertLayout, footprint, least_tiles, measure
from partitioner.solver.chain import fill

Fits = Callable[[Machine, Workload], bool]
"""Whether a placement and floor plan are found for a machine and a workload."""
_MOST_TRIES = 3


def explain(
    model: Model,
    machine: Machine,
    workload: Workload,
    experts: ExpertLayout,
    proof: str,
    fits: Fits,
    finer: Iterable[Granularity] = (),
) -> Diagnostic:
    """The diagnostic of an infeasible placement: demand, capacity, gap, what makes it up, and verified levers.

    ``finer`` are the granularities at which a placement is found as things are, the coarsest first.
    """
    largest = max(model.blocks, key=lambda block: least_tiles(block, workload, machine, experts))
    help_ = (
        *(f"--granularity {granularity} would fit" for granularity in islice(finer, 1)),
        *_levers(model, machine, workload, experts, fits),
    ) or ("no context, chunk or number of users or systems tried fits",)
    if is_too_large(largest, machine, workload, experts):
        return Diagnostic(
            "W0412",
            f"{largest.name} does not fit on any wafer",
            f"{largest.name} ({_described(largest)})",
            _block_facts(largest, machine, workload, experts) | {"proof": proof},
            help_,
        )
    problem = measure(model, machine, workload, experts)
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


def counts_fit(model: Model, machine: Machine, workload: Workload, experts: ExpertLayout) -> bool:
    """Whether the items fit, in order, by their bytes and tiles, whatever rectangles they would need."""
    problem = measure(model, machine, workload, experts)
    return fill(problem, sum(item.bytes for item in problem.items)) is not None


def is_too_large(block: Block, machine: Machine, workload: Workload, experts: ExpertLayout) -> bool:
    """Whether not even an empty wafer has the tiles that ``block`` needs."""
    return least_tiles(block, workload, machine, experts) > machine.tiles


def _terms(model: Model, machine: Machine, workload: Workload) -> dict[str, Fact]:
    parts = [footprint(block, workload) for block in model.blocks]
    return {
        "weight_bytes": sum(part.weight_bytes for part in parts),
        "cache_bytes": sum(part.cache_bytes for part in parts),
        "activation_bytes": sum(part.activation_bytes for part in parts),
        "reserve_bytes_of_each_tile": machine.reserve_bytes,
    }


def _block_facts(block: Block, machine: Machine, workload: Workload, experts: ExpertLayout) -> dict[str, Fact]:
    needed, tiles = footprint(block, workload), least_tiles(block, workload, machine, experts)
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


def _levers(model: Model, machine: Machine, workload: Workload, experts: ExpertLayout, fits: Fits) -> Iterator[str]:
    """What would fit, each changing one thing: candidates by counting, confirmed by placing and laying out."""

    def counts(machine: Machine, workload: Workload) -> bool:
        return counts_fit(model, machine, workload, experts)

    more = (replace(machine, systems=machine.systems + extra) for extra in range(1, 4 * machine.systems + 1))
    roomy = (larger for larger in more if counts(larger, workload))
    for larger in islice(roomy, _MOST_TRIES):
        if fits(larger, workload):
            yield f"--systems {larger.systems} would fit"
            break
    for option, field, step in (("context", "context", 1024), ("users", "users", 1), ("prefill-chunk", "chunk", 1)):
        for smaller in islice(_smaller(machine, workload, field, step, counts), _MOST_TRIES):
            if fits(machine, smaller):
                yield f"--{option} {getattr(smaller, field)} would fit"
                break


def _smaller(machine: Machine, workload: Workload, field: str, step: int, counts_fit: Fits) -> Iterator[Workload]:
    """Workloads that fit by counting: the one with the largest ``field``, a multiple of ``step``, then smaller ones."""
    low, high = 0, getattr(workload, field) // step
    while low < high:
        middle = (low + high + 1) // 2
        if counts_fit(machine, replace(workload, **{field: middle * step})):
            low = middle
        else:
            high = middle - 1
    while low:
        yield replace(workload, **{field: low * step})
        low -= -(-low // 8)
