"""The compiler on one screen: from a lowered graph to a checked plan.

build_model   simplify, verify, find_blocks    blocks with bytes, work and caches
measure                                        integers
place                                          a wafer for each block, with proof
lay_out                                        a rectangle for each block and expert, the larger the more it speeds up
check                                          every claim derived again
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ir.diagnostics import CheckError, Diagnostic, InfeasibleError, TimeLimitError, UnsupportedModelError
from ir.graph import Graph
from ir.machine import Machine
from ir.model import Granularity, Model
from ir.plan import OBJECTIVE, PlacedBlock, Plan, SolverRecord, Transfer
from ir.target import WaferSpeed
from ir.verify import verify
from ir.workload import Workload
from partitioner.check import check
from partitioner.curves import CostCurves
from partitioner.explain import counts_fit, explain, is_too_large
from partitioner.floorplan.wafers import FloorPlanner, TooTight
from partitioner.floorplan.wishes import wishes_for
from partitioner.passes.blocks import find_blocks
from partitioner.passes.localise import localise
from partitioner.passes.profile import profile_of
from partitioner.passes.simplify import simplify
from partitioner.passes.step import require_step
from partitioner.problem import Copy, ExpertLayout, measure
from partitioner.solver.cpsat import Limits
from partitioner.solver.place import Solution, place
from partitioner.solver.problem import Problem

_MOST_ROUNDS = 20
Progress = Callable[[str], None]
"""Called with a word on what begins now."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan that passed its check, the model that it places, and how long placing it took."""

    plan: Plan
    model: Model
    solve_s: float


def build_model(graph: Graph) -> Model:
    """The model that a frontend's graph makes.

    Raises:
        UnsupportedModelError: W0301, the graph breaks a rule; W0307, it holds no block; W0308, tokens meet in an
            operator without state.
    """
    model = find_blocks(require_step(verify(simplify(localise(graph)))))
    if not model.blocks:
        raise UnsupportedModelError(Diagnostic("W0307", "the model computes nothing", graph.name))
    return model


def compile_model(
    model: Model,
    machine: Machine,
    workload: Workload,
    limits: Limits,
    progress: Progress = lambda _step: None,
    experts: ExpertLayout = ExpertLayout.AUTO,
    speed: WaferSpeed | None = None,
    granularity: Granularity = Granularity.AUTO,
) -> Compiled:
    """Place ``model`` on ``machine``, its routed experts as ``experts`` says.

    Where the machine's ``speed`` is known, blocks get the spare tiles of their wafers so that a token passes soonest.
    The plan's model has blocks of the ``granularity`` that is asked for. ``auto`` takes the model's own, and single
    operators where no place is found for those, if operators in order would fit or a block is larger than a wafer.

    Raises:
        InfeasibleError: W0411 or W0412, no placement exists; with figures and what would fit.
        TimeLimitError: W0402 or W0403, none was found.
        CheckError: the plan contradicts the model, which would be a fault of ours.
    """
    begin = time.perf_counter()
    model = _cut_as(model, granularity)

    def fits(model: Model, machine: Machine, workload: Workload) -> bool:
        return _fits(model, machine, workload, limits, experts)

    try:
        profile = profile_of(model, None)
        wishes = wishes_for(profile, machine, speed, workload, experts)
        planner = FloorPlanner(model, machine, workload, experts, wishes)
        speeds = CostCurves(profile, machine, speed, workload, experts) if speed else None
        solution, regions = _solve(measure(model, machine, workload, experts, speeds), planner, limits, progress)
    except (InfeasibleError, TimeLimitError) as error:
        ops = _cut_as(model, Granularity.OPS)
        needs_ops = any(is_too_large(block, machine, workload, experts) for block in model.blocks)
        if granularity is Granularity.AUTO and (needs_ops or counts_fit(ops, machine, workload, experts)):
            found = compile_model(ops, machine, workload, limits, progress, experts, speed, Granularity.OPS)
            return replace(found, solve_s=time.perf_counter() - begin)
        if isinstance(error, TimeLimitError):
            raise
        progress("looking for what would fit")
        proof = str(error.diagnostics[0].facts["proof"])
        finer = (finer.granularity for finer in _finer(model) if fits(finer, machine, workload))
        reason = explain(model, machine, workload, experts, proof, partial(fits, model), finer)
        raise InfeasibleError(reason) from None
    solve_s = time.perf_counter() - begin
    plan = Plan(
        model_name=model.graph.name,
        machine=machine,
        workload=workload,
        blocks=tuple(regions),
        transfers=transfers(model, regions),
        solver=_record(solution, limits),
    )
    progress("checking the plan")
    faults = check(plan, model)
    if faults:
        raise CheckError(*faults)
    return Compiled(plan, model, solve_s)


def _cut_as(model: Model, granularity: Granularity) -> Model:
    """The model in blocks of ``granularity``; itself if it is, or if the compiler is to choose."""
    if granularity in (Granularity.AUTO, model.granularity):
        return model
    return find_blocks(model.graph, granularity)


def _finer(model: Model) -> Iterator[Model]:
    """The model in smaller parts, the largest first."""
    order = (Granularity.LAYERS, Granularity.HALVES, Granularity.OPS)
    return (_cut_as(model, granularity) for granularity in order[order.index(model.granularity) + 1 :])


def _solve(
    problem: Problem, planner: FloorPlanner, limits: Limits, progress: Progress
) -> tuple[Solution, list[PlacedBlock]]:
    """Place and lay out; what turns out not to fit on one wafer is kept apart, and the rest placed again."""
    blocks = sum(len(item.blocks) for item in problem.items)
    bound: int | None = None
    asked = problem
    for _ in range(_MOST_ROUNDS):
        progress(f"placing {blocks} blocks on {len(problem.wafers)} wafers")
        solution = _place_or_give_up(problem, limits, as_asked=problem is asked)
        # That the floor planner fails on a set of blocks proves nothing, so the bound stays the first problem's.
        bound = solution.bound_bytes if bound is None else bound
        progress("laying out tiles")
        regions = planner.lay_out(_by_wafer(problem, solution))
        if not isinstance(regions, TooTight):
            proof = solution.proof if solution.bottleneck_bytes == bound else ""
            return replace(solution, bound_bytes=bound, proof=proof), regions
        misfits = [i for i, wafer in enumerate(solution.assignment) if wafer == regions.wafer]
        misfits = _fewest_misfits(problem, planner, misfits, regions.wafer)
        problem = _kept_apart(problem, planner, misfits, regions.wafer)
    facts = {"placements_tried": _MOST_ROUNDS}
    raise TimeLimitError(Diagnostic("W0403", "no placement tried could be laid out in tiles", facts=facts))


def _place_or_give_up(problem: Problem, limits: Limits, *, as_asked: bool) -> Solution:
    """A placement; where only our own floor planner stands in the way, infeasible is too strong a word."""
    try:
        return place(problem, limits)
    except InfeasibleError:
        if as_asked:
            raise
        facts = {"combinations_kept_apart": len(problem.misfits)}
        help_ = ("the bytes fit, but not as rectangles of tiles: one more system, or less context, gives room",)
        raise TimeLimitError(
            Diagnostic("W0403", "no placement tried could be laid out in tiles", facts=facts, help=help_)
        ) from None


def _fewest_misfits(problem: Problem, planner: FloorPlanner, misfits: Sequence[int], wafer: int) -> list[int]:
    """A part of ``misfits`` that still does not fit on ``wafer``, with none to spare."""
    kept = list(misfits)
    for item in misfits:
        rest = [other for other in kept if other != item]
        if not planner.fits(_copies(problem, rest), planner.mesh(wafer)):
            kept = rest
    return kept


def _kept_apart(problem: Problem, planner: FloorPlanner, misfits: Sequence[int], wafer: int) -> Problem:
    """The problem in which ``misfits``, which do not fit on ``wafer`` together, are never put there again.

    What fits on no other wafer either is kept apart everywhere. Else the wafers that are too small for it, of those
    with the mesh of ``wafer``, offer fewer tiles than it counts.
    """
    blocks, mesh = _copies(problem, misfits), planner.mesh(wafer)
    meshes = {planner.mesh(other) for other, offered in enumerate(problem.wafers) if offered.tiles}
    if not any(planner.fits(blocks, other) for other in sorted(meshes - {mesh})):
        kinds = tuple(sorted(problem.items[item].alike for item in misfits))
        return replace(problem, misfits=(*problem.misfits, kinds))
    most = sum(problem.items[item].tiles for item in misfits) - 1
    wafers = (
        replace(offered, tiles=min(offered.tiles, most)) if planner.mesh(other) == mesh else offered
        for other, offered in enumerate(problem.wafers)
    )
    return replace(problem, wafers=tuple(wafers))


def _fits(model: Model, machine: Machine, workload: Workload, limits: Limits, experts: ExpertLayout) -> bool:
    if not counts_fit(model, machine, workload, experts):
        return False
    try:
        planner = FloorPlanner(model, machine, workload, experts)
        _solve(measure(model, machine, workload, experts), planner, limits, lambda _step: None)
    except (InfeasibleError, TimeLimitError):
        return False
    return True


def _by_wafer(problem: Problem, solution: Solution) -> list[list[Copy]]:
    """The copies of blocks on each wafer, by its number."""
    held: list[list[int]] = [[] for _ in range(len(problem.wafers))]
    for item, wafer in enumerate(solution.assignment):
        held[wafer].append(item)
    return [_copies(problem, items) for items in held]


def _copies(problem: Problem, items: Sequence[int]) -> list[Copy]:
    """The blocks of ``items`` (indices), each with the number of its copy and how many there are."""
    copies = Counter(block for item in problem.items for block in item.blocks)
    return [Copy(block, problem.items[i].copy, copies[block]) for i in items for block in problem.items[i].blocks]


def transfers(model: Model, placed: Sequence[PlacedBlock]) -> tuple[Transfer, ...]:
    """What crosses between wafers: a value once for each wafer that reads it."""
    copies: defaultdict[str, list[PlacedBlock]] = defaultdict(list)
    for block in placed:
        copies[block.name].append(block)
    crossing = {
        (edge.value, source.name, source.wafer, target.wafer): edge
        for edge in model.edges
        for source in copies[model.blocks[edge.source].name]
        for target in copies[model.blocks[edge.target].name]
        if source.wafer != target.wafer
    }
    return tuple(Transfer(*route, edge.bytes_per_token) for route, edge in crossing.items())


def _record(solution: Solution, limits: Limits) -> SolverRecord:
    return SolverRecord(
        status="optimal" if solution.bottleneck_bytes == solution.bound_bytes else "feasible",
        objective=OBJECTIVE,
        objective_value=solution.bottleneck_bytes,
        best_bound=solution.bound_bytes,
        proof=solution.proof,
        traffic_bytes_per_token=solution.traffic_bytes_per_token,
        seed=limits.seed,
        deterministic_time_limit=limits.deterministic_time,
    )
