"""``waferc compile``."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from ir.diagnostics import Diagnostic, UsageError
from ir.model import BlockKind
from ir.workload import Workload
from partitioner.cli.output import Output
from partitioner.compile import Compiled, build_model, compile_model
from partitioner.folder import REPORT, refuse_foreign, write_plan
from partitioner.frontends.load import load
from partitioner.solver.cpsat import Limits
from partitioner.viewer.report import render_report
from targets.machines import load_machine

_DEFAULT_CONTEXT = 4096


def run_compile(
    model: str,
    target: str,
    systems: int | None,
    reserve_bytes: int | None,
    users: int,
    context: int | None,
    chunk: int,
    seed: int,
    time_limit: float,
    output: Path | None,
    out: Output,
) -> None:
    """Compile and report; see :func:`partitioner.cli.app.compile_command` for the options."""
    begin = time.perf_counter()
    machine = load_machine(target, systems, reserve_bytes)
    if output is not None:
        refuse_foreign(output)
    with out.progress() as progress:
        progress(f"reading {model}")
        lowered = load(model)
        workload = Workload(users, _context(context, lowered.max_context), chunk)
        progress("finding blocks")
        built = build_model(lowered.graph)
        compiled = compile_model(built, machine, workload, Limits(time_limit, seed), progress)
        if output is not None:
            progress("writing the plan")
            write_plan(output, compiled.plan, compiled.model, lowered, _report(compiled))
    for note in lowered.notes:
        out.note(note)
    if out.json:
        out.result(_record(compiled, time.perf_counter() - begin, output))
        return
    from partitioner.cli.table import print_plan

    print_plan(compiled.plan)
    print(_summary(compiled, time.perf_counter() - begin))
    if output is not None:
        print(f"plan in {output}, page in {output / REPORT}")


def _context(asked: int | None, most: int | None) -> int:
    if asked is not None and most is not None and asked > most:
        facts = {"context": asked, "model_limit": most}
        raise UsageError(Diagnostic("W0107", "the context is longer than the model's", "--context", facts))
    return asked or min(_DEFAULT_CONTEXT, most or _DEFAULT_CONTEXT)


def _report(compiled: Compiled) -> str:
    model = compiled.model
    return render_report(
        compiled.plan,
        model_weight_bytes=model.weight_bytes,
        model_parameters=model.parameters,
        unplaced_parameters=[parameter.name for parameter in model.unplaced],
    )


def _record(compiled: Compiled, wall_s: float, output: Path | None) -> dict[str, Any]:
    plan, model = compiled.plan, compiled.model
    groups = model.of_kind(BlockKind.EXPERTS)
    split = sum(1 for b in plan.blocks if len({b.wafer, *(e.wafer for e in b.experts)}) > 1)
    return {
        "status": plan.solver.status,
        "objective": plan.solver.objective,
        "objective_value": plan.solver.objective_value,
        "best_bound": plan.solver.best_bound,
        "gap": plan.solver.gap,
        "proof": plan.solver.proof,
        "systems": plan.machine.systems,
        "systems_used": len(plan.wafers_used),
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "copied_bytes": model.copied_bytes,
        "kv_bytes": sum(block.cache_bytes for block in plan.blocks),
        "activation_bytes": sum(block.activation_bytes for block in plan.blocks),
        "largest_wafer_bytes": plan.largest_wafer_bytes,
        "wafer_bytes": plan.machine.wafer_bytes,
        "traffic_bytes_per_token": plan.solver.traffic_bytes_per_token,
        "layers": model.layers,
        "moe_layers": len(groups),
        "experts_per_layer": max((block.experts for block in groups), default=0),
        "split_expert_groups": split,
        "blocks": len(plan.blocks),
        "output": None if output is None else str(output),
        "solve_s": round(compiled.solve_s, 3),
        "wall_s": round(wall_s, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _summary(compiled: Compiled, wall_s: float) -> str:
    model = compiled.model
    groups = model.of_kind(BlockKind.EXPERTS)
    experts = f", {len(groups)} x {groups[0].experts} experts, each group on one wafer" if groups else ""
    return (
        f"{model.parameters / 1e9:,.3f} B parameters, {model.weight_bytes / 1e9:,.3f} GB of weights{experts}; "
        f"placed in {compiled.solve_s:.1f} s, {wall_s:.1f} s in all, {peak_rss_bytes() / 1e6:,.0f} MB at most"
    )
