"""The compiler on one screen: from a lowered graph to a checked plan.

build_model         simplify, verify, find_blocks    blocks with bytes, work and caches
Case.problem        measure                          integers and curves
place_and_lay_out   place                            a wafer for each block, with proof
                    lay_out                          a rectangle for each block, the larger the more it speeds up
check                                                every claim derived again
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ir.diagnostics import CheckError, Diagnostic, InfeasibleError, TimeLimitError, UnsupportedModelError
from ir.graph import Graph
from ir.model import Granularity, Model
from ir.plan import PlacedBlock, Plan, SolverRecord, Transfer, pairs, status_of
from ir.verify import verify
from partitioner.case import Case
from partitioner.check import check
from partitioner.explain import explain, is_too_large
from partitioner.levers import may_fit
from partitioner.passes.blocks import find_blocks
from partitioner.passes.localise import localise
from partitioner.passes.simplify import simplify
from partitioner.passes.step import require_step
from partitioner.placing import Progress, place_and_lay_out
from partitioner.solver.place import Solution


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
    case: Case, granularity: Granularity = Granularity.AUTO, progress: Progress = lambda _step: None
) -> Compiled:
    """Place the model of ``case``, in blocks of ``granularity``.

    Where the machine's speed is known, blocks get the spare tiles of their wafers so that a token passes soonest.
    ``auto`` takes the model's own blocks, and single operators where no place is found for those, if operators in
    order would fit or a block is larger than a wafer. Close to a former plan, if the case has one, as much as can be
    stays where it lies.

    Raises:
        InfeasibleError: W0411 to W0413, no placement exists; with figures and what would fit.
        UsageError: W0117 or W0118, rules that name what does not exist, or that mean nothing.
        TimeLimitError: W0402 or W0403, none was found.
        CheckError: the plan contradicts the model, which would be a fault of ours.
    """
    begin = time.perf_counter()
    case = replace(case, model=_cut_as(case.model, granularity))
    try:
        solution, regions = place_and_lay_out(
            case.problem, case.planner(), case.objectives, case.limits, progress, case.placer
        )
    except (InfeasibleError, TimeLimitError) as error:
        ops = replace(case, model=_cut_as(case.model, Granularity.OPS))
        if granularity is Granularity.AUTO and _ops_may_fit(case, ops):
            found = compile_model(ops, Granularity.OPS, progress)
            return replace(found, solve_s=time.perf_counter() - begin)
        alone = replace(case, former=None)
        raise type(error)(explain(alone, error.diagnostics[0], _finer(case.model), fits, progress)) from None
    solve_s = time.perf_counter() - begin
    plan = plan_of(case, solution, regions)
    progress("checking the plan")
    faults = check(plan, case.model)
    if faults:
        raise CheckError(*faults)
    return Compiled(plan, case.model, solve_s)


def fits(case: Case) -> bool:
    """Whether a placement is found and laid out."""
    if not may_fit(case):
        return False
    bare = replace(case, speed=None)
    try:
        place_and_lay_out(bare.problem, bare.planner(), bare.objectives, bare.limits, lambda _step: None)
    except (InfeasibleError, TimeLimitError):
        return False
    return True


def plan_of(case: Case, solution: Solution, regions: Sequence[PlacedBlock]) -> Plan:
    """The plan that a placement with its regions makes."""
    limits = case.limits
    return Plan(
        model_name=case.model.graph.name,
        machine=case.machine,
        workload=case.workload,
        blocks=tuple(regions),
        transfers=transfers(case.model, regions),
        solver=SolverRecord(
            status_of(solution.scores), solution.scores, limits.seed, limits.deterministic_time, solution.interrupted
        ),
        rules=case.rules,
    )


def _ops_may_fit(case: Case, ops: Case) -> bool:
    """Whether single operators promise more than the blocks of ``case``, of which some may be larger than a wafer.

    Where rules stand in the way, smaller blocks, of which they may mean something else, are not for us to choose.
    """
    if case.rules:
        return False
    too_large = any(is_too_large(block, case.machine, case.workload, case.experts) for block in case.model.blocks)
    return too_large or may_fit(replace(ops, speed=None))


def _cut_as(model: Model, granularity: Granularity) -> Model:
    """The model in blocks of ``granularity``; itself if it is, or if the compiler is to choose."""
    if granularity in (Granularity.AUTO, model.granularity):
        return model
    return find_blocks(model.graph, granularity)


def _finer(model: Model) -> Iterator[Model]:
    """The model in smaller parts, the largest first."""
    order = (Granularity.LAYERS, Granularity.HALVES, Granularity.OPS)
    return (_cut_as(model, granularity) for granularity in order[order.index(model.granularity) + 1 :])


def transfers(model: Model, placed: Sequence[PlacedBlock]) -> tuple[Transfer, ...]:
    """What crosses between wafers: a value once for each wafer that reads it."""
    copies: defaultdict[str, list[PlacedBlock]] = defaultdict(list)
    for block in placed:
        copies[block.name].append(block)
    crossing = {
        (edge.value, source.name, source.wafer, target.wafer): edge
        for edge in model.edges
        for source, target in pairs(copies[model.blocks[edge.source].name], copies[model.blocks[edge.target].name])
        if source.wafer != target.wafer
    }
    return tuple(Transfer(*route, edge.bytes_per_token) for route, edge in crossing.items())
