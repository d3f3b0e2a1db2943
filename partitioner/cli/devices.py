"""``waferc compile``, ``check`` and ``view`` of plans for devices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.device_plan import DevicePlan, Rank
from ir.diagnostics import CheckError, Diagnostic, UnsupportedModelError
from ir.verify import verify
from partitioner.check_devices import check_devices
from partitioner.cli.output import Output
from partitioner.device_folder import engine_flags, read_device_plan
from partitioner.folder import refuse_foreign
from partitioner.manifest import model_entry
from partitioner.passes.blocks import find_blocks
from targets.host import peak_rss_bytes
from targets.machines import load_devices

if TYPE_CHECKING:
    from partitioner.api import LoadOptions, Request
    from partitioner.device_compile import CompiledForDevices
    from targets.parallel import Candidate

_MOST_SHOWN = 8
"""Layouts beside the chosen one that a person is shown."""


def run_compile_devices(model: str, options: LoadOptions, request: Request, folder: Path | None, out: Output) -> None:
    """Compile for devices, write the plan to ``folder`` if there is one, and report."""
    from partitioner.api import lower
    from partitioner.device_compile import compile_for_devices

    begin = time.perf_counter()
    load_devices(request.target, request.systems, request.reserve_bytes)  # a wrong target is told at once
    if folder is not None:
        refuse_foreign(folder)
    with out.progress() as progress:
        progress(f"reading {model}")
        placed = compile_for_devices(lower(model, options), request, progress)
        if folder is not None:
            progress("writing the plan")
            placed.save(folder)
    for note in placed.lowered.notes:
        out.note(note)
    wall_s = time.perf_counter() - begin
    if out.json:
        out.result(_record(placed, wall_s, folder))
        return
    from partitioner.cli.device_table import print_device_plan, print_layouts

    print_layouts(best_layouts(placed, _MOST_SHOWN))
    print_device_plan(placed.plan)
    print(
        f"{len(placed.choice.candidates)} layouts fit; {wall_s:.1f} s in all, {peak_rss_bytes() / 1e6:,.0f} MB at most"
    )
    if folder is not None:
        print(f"plan in {folder}")


def best_layouts(placed: CompiledForDevices, most: int) -> list[Candidate]:
    """The chosen layout, the one with the most tokens in all, and the next fastest."""
    choice = placed.choice
    ranked = sorted(choice.candidates, key=lambda candidate: -candidate.tokens_per_s_per_user)
    by_degrees = {candidate.placement.degrees: candidate for candidate in (choice.fastest, choice.most, *ranked)}
    return [*by_degrees.values()][:most]


def run_check_devices(folder: Path, out: Output) -> None:
    """Check the plan in ``folder`` and say what was found.

    Raises:
        CheckError: with every fault.
    """
    stored = read_device_plan(folder)
    try:
        model = find_blocks(verify(stored.graph))
    except UnsupportedModelError as error:
        raise CheckError(*stored.faults, *error.diagnostics) from None
    plan, entry = stored.plan, stored.manifest.model
    faults = [*stored.faults, *check_devices(plan, model)]
    if entry != model_entry(model.graph.name, model, entry.notes) or plan.model_name != entry.name:
        faults.append(Diagnostic("W0510", "the manifest's figures of the model are wrong", "manifest.json"))
    if stored.manifest.engines != engine_flags(plan.degrees):
        faults.append(Diagnostic("W0510", "the flags of serving engines are wrong", "manifest.json"))
    if faults:
        raise CheckError(*faults)
    if out.json:
        out.result({"ok": True, "diagnostics": [], "blocks": len(model.blocks), "ranks": len(plan.ranks)})
    else:
        print(
            f"sound: {len(model.blocks)} blocks on {len(plan.ranks)} ranks in {plan.degrees.pipeline} stages, "
            "every byte of weights held, no device over its memory"
        )


def run_view_devices(folder: Path, out: Output) -> None:
    """Show the plan in ``folder``.

    Raises:
        UsageError: W0106, no plan there.
        CheckError: its files are damaged.
    """
    stored = read_device_plan(folder)
    if stored.faults:
        raise CheckError(*stored.faults)
    if out.json:
        out.result({**_layout(stored.plan), "ranks": [_rank(rank) for rank in stored.plan.ranks]})
        return
    from partitioner.cli.device_table import print_device_plan

    print_device_plan(stored.plan)


def _record(placed: CompiledForDevices, wall_s: float, folder: Path | None) -> dict[str, Any]:
    plan, chosen = placed.plan, placed.choice.fastest
    return {
        "status": "feasible",
        "objective": "tokens_per_s_per_user",
        "objective_value": chosen.tokens_per_s_per_user,
        **_layout(plan),
        "tokens_per_s_per_user": chosen.tokens_per_s_per_user,
        "total_tokens_per_s": chosen.total_tokens_per_s,
        "max_users": chosen.placement.most_users,
        "parameters": placed.model.parameters,
        "weight_bytes": placed.model.weight_bytes,
        "layouts": [*_layouts(placed)],
        "output": None if folder is None else str(folder),
        "wall_s": round(wall_s, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _layout(plan: DevicePlan) -> dict[str, Any]:
    degrees = plan.degrees
    return {
        "target": plan.target,
        "systems": plan.nodes,
        "devices": degrees.devices * degrees.replicas,
        "tensor_parallel": degrees.tensor,
        "expert_parallel": degrees.expert,
        "pipeline_parallel": degrees.pipeline,
        "replicas": degrees.replicas,
        "engines": engine_flags(degrees),
        "step_s": plan.step_s,
        "largest_device_bytes": max(rank.bytes for rank in plan.ranks),
        "device_bytes": plan.device_bytes,
    }


def _layouts(placed: CompiledForDevices) -> Iterator[dict[str, Any]]:
    for candidate in placed.choice.candidates:
        degrees, seconds = candidate.placement.degrees, candidate.step.cost.seconds
        yield {
            "tensor_parallel": degrees.tensor,
            "expert_parallel": degrees.expert,
            "pipeline_parallel": degrees.pipeline,
            "replicas": degrees.replicas,
            "systems": candidate.placement.nodes,
            "tokens_per_s_per_user": candidate.tokens_per_s_per_user,
            "total_tokens_per_s": candidate.total_tokens_per_s,
            "step_s": candidate.step.step_s,
            "compute_s": seconds.compute,
            "memory_s": seconds.memory,
            "communication_s": seconds.communication,
            "launch_s": seconds.launch,
            "max_users": candidate.placement.most_users,
        }


def _rank(rank: Rank) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "node": rank.node,
        "stage": rank.stage,
        "holds": [holding.rule for holding in rank.holdings],
        "weight_bytes": rank.weight_bytes,
        "kv_bytes": rank.cache_bytes,
        "activation_bytes": rank.activation_bytes,
    }
