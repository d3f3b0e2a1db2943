"""``waferc compile``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ir.diagnostics import Diagnostic, UnsupportedModelError, UsageError
from ir.forecast import Forecast
from ir.model import BlockKind, Granularity
from ir.objective import DEFAULT_OBJECTIVES
from ir.plan import Plan, Score
from ir.target import DeviceCluster
from partitioner.api import CompiledModel, LoadOptions, Request, compile_lowered, lower
from partitioner.cli.devices import run_compile_devices
from partitioner.cli.output import Output
from partitioner.cli.page import page_of_failure, write_page
from partitioner.figures import figures
from partitioner.folder import REPORT, refuse_foreign
from partitioner.forecast import estimate
from partitioner.planned import plan_machine, planned
from partitioner.problem import ExpertLayout
from partitioner.questions import ask
from targets.host import peak_rss_bytes
from targets.machines import load_target, load_wafers


def run_compile(
    model: str,
    options: LoadOptions,
    request: Request,
    folder: Path | None,
    out: Output,
    report: Path | None = None,
    *,
    tests: bool = False,
) -> None:
    """Compile, write the plan, with its ``tests`` if wanted, to ``folder`` if there is one, and report; to the page
    ``report`` even if none fits.
    """
    begin = time.perf_counter()
    if isinstance(load_target(request.target).cluster, DeviceCluster):  # a wrong target is told at once
        _refuse_what_is_for_wafers(request, report, tests=tests)
        run_compile_devices(model, options, request, folder, out)
        return
    load_wafers(request.target, request.systems, request.reserve_bytes, request.without)
    if folder is not None:
        refuse_foreign(folder)
    with out.progress() as progress, page_of_failure(report):
        progress(f"reading {model}")
        placed = compile_lowered(lower(model, options), request, progress)
        if folder is not None:
            progress("writing the plan")
            placed.save(folder, tests=tests)
        if report is not None:
            write_page(report, placed.page())
    for note in placed.lowered.notes:
        out.note(note)
    if placed.plan.solver.interrupted:
        out.note("interrupted: this is the best placement found so far, and its gap says how good it is at least")
    speed = _forecast(placed, request)
    wall_s = time.perf_counter() - begin
    if out.json:
        out.result(_record(placed, speed, wall_s, folder))
        return
    from partitioner.cli.table import print_plan

    print_plan(placed.plan)
    if speed is not None:
        found = speed.tokens_per_s_per_user
        bounds = f" ({found.low:,.0f} to {found.high:,.0f})" if found.low < found.high else ""
        context = f"{speed.context:,} tokens of context"
        print(f"modelled: {found.value:,.0f} tokens/s{bounds} for one user with {context}; waferc estimate tells why")
    print(_summary(placed, wall_s))
    if folder is not None:
        print(f"plan in {folder}, page in {folder / REPORT}")


def _refuse_what_is_for_wafers(request: Request, report: Path | None, *, tests: bool) -> None:
    if tests:
        raise UsageError(Diagnostic("W0104", "--tests is for wafers, which are emulated", "--tests"))
    if request.experts != ExpertLayout.AUTO:
        raise UsageError(Diagnostic("W0104", "--experts is for wafers; devices deal them by rank", "--experts"))
    if request.granularity not in (Granularity.AUTO, Granularity.HALVES):
        raise UsageError(Diagnostic("W0104", "--granularity is for wafers", "--granularity"))
    if request.without:
        raise UsageError(Diagnostic("W0104", "--without is for wafers", "--without"))
    if request.rules:
        raise UsageError(Diagnostic("W0104", "rules of placement are for wafers", str(request.rules[0])))
    if request.objectives != DEFAULT_OBJECTIVES:
        raise UsageError(Diagnostic("W0104", "--objective is for wafers; devices serve soonest", "--objective"))
    if report is not None:
        raise UsageError(Diagnostic("W0104", "--report is for wafers; -o writes the plan's page", "--report"))


def _forecast(placed: CompiledModel, request: Request) -> Forecast | None:
    """What one user gets of the plan; ``None`` where the machine states no speed, or the model writes no tokens."""
    found = planned(placed.plan, placed.model)
    try:
        question = ask(None, context=placed.plan.workload.context)
        return estimate(found.profile, plan_machine(placed.plan, request.target), question, found.placed)
    except (UnsupportedModelError, UsageError):
        return None


def _record(placed: CompiledModel, speed: Forecast | None, wall_s: float, folder: Path | None) -> dict[str, Any]:
    plan, found = placed.plan, figures(placed.model)
    split = sum(1 for b in plan.blocks if len({b.wafer, *(e.wafer for e in b.experts)}) > 1)
    return {
        "status": plan.solver.status,
        **_first(plan.solver.scores[0]),
        "scores": [_shown(score) for score in plan.solver.scores],
        "interrupted": plan.solver.interrupted,
        "systems": plan.machine.systems,
        "systems_used": len(plan.wafers_used),
        "parameters": found.parameters,
        "weight_bytes": found.weight_bytes,
        "copied_bytes": found.copied_bytes,
        "kv_bytes": sum(block.cache_bytes for block in plan.blocks),
        "activation_bytes": sum(block.activation_bytes for block in plan.blocks),
        "largest_wafer_bytes": plan.largest_wafer_bytes,
        "wafer_bytes": plan.machine.wafer_bytes,
        "traffic_bytes_per_token": sum(transfer.bytes_per_token for transfer in plan.transfers),
        "layers": found.layers,
        "moe_layers": found.moe_layers,
        "experts_per_layer": found.experts_per_layer,
        "split_expert_groups": split,
        "sliced_expert_groups": sum(block.sliced for block in plan.blocks),
        "blocks": len(plan.blocks),
        "granularity": placed.model.granularity,
        "tokens_per_s_per_user": None if speed is None else asdict(speed.tokens_per_s_per_user),
        "output": None if folder is None else str(folder),
        "solve_s": round(placed.compiled.solve_s, 3),
        "wall_s": round(wall_s, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _first(score: Score) -> dict[str, Any]:
    """The score that decided first, beside the others."""
    return {
        "objective": score.objective,
        "objective_value": score.value,
        "best_bound": score.bound,
        "gap": score.gap,
        "proof": score.proof,
    }


def _shown(score: Score) -> dict[str, Any]:
    return {**asdict(score), "unit": score.objective.unit, "gap": score.gap}


def _summary(placed: CompiledModel, wall_s: float) -> str:
    model = placed.model
    groups = model.of_kind(BlockKind.EXPERTS)
    experts = f", {len(groups)} x {groups[0].experts} experts, each group on one wafer" if groups else ""
    experts += _ways(placed.plan) if groups else ""
    return (
        f"{model.parameters / 1e9:,.3f} B parameters, {model.weight_bytes / 1e9:,.3f} GB of weights{experts}; "
        f"placed in {placed.compiled.solve_s:.1f} s, {wall_s:.1f} s in all, {peak_rss_bytes() / 1e6:,.0f} MB at most"
    )


def _ways(plan: Plan) -> str:
    """How the groups of experts lie, in words."""
    sliced = [block.sliced for block in plan.blocks if block.experts]
    if all(sliced):
        return " and sliced over its region"
    return f" ({sum(sliced)} of {len(sliced)} sliced over their region)" if any(sliced) else ", experts apart"
