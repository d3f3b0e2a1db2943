"""``waferc replan``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir.diagnostics import Diagnostic, UsageError
from ir.objective import Objective
from ir.plan import Plan, Score
from ir.target import Wafers, WaferSpeed
from partitioner.api import CompiledModel
from partitioner.cli.diff import layer_blocks, require_wafers
from partitioner.cli.difference_table import difference_record, print_difference
from partitioner.cli.output import Output, amount
from partitioner.compile import Compiled
from partitioner.folder import REPORT, PlanFolder, read_plan, refuse_foreign
from partitioner.frontends.lowered import Lowered
from partitioner.planned import plan_machine
from partitioner.problem import ExpertLayout
from partitioner.replan import Change, Replanned, replan
from partitioner.sound import require_sound


@dataclass(frozen=True, slots=True)
class Asked:
    """How wafers are laid out anew, what tells their speed, and where the new plan goes."""

    experts: str
    target: str | None
    output: Path | None

    def __post_init__(self) -> None:
        if self.experts not in [*ExpertLayout]:
            message = f"--experts is {', '.join(ExpertLayout)}, not {self.experts!r}"
            raise UsageError(Diagnostic("W0104", message, "--experts"))


def run_replan(folder: Path, change: Change, asked: Asked, out: Output) -> None:
    """Make the new plan, write it if there is where to, and say what moves.

    Raises:
        UsageError: W0105, the output is the plan's own folder, or cannot be written; W0107, more context than the model
            has positions for; W0113, a plan for devices; W0119, the lost wafers are not there.
        CheckError: the plan is not sound.
    """
    begin = time.perf_counter()
    require_wafers(folder)
    _refuse_output(folder, asked.output)
    with out.progress() as progress:
        progress("reading the plan")
        stored = read_plan(folder)
        _require_positions(stored, change)
        change.machine(stored.plan.machine)  # a wrong wafer is told at once
        model = require_sound(stored)
        speed, note = _speed(stored.plan, asked.target)
        found = replan(stored.plan, model, change, speed, ExpertLayout(asked.experts), progress)
        if asked.output is not None:
            progress("writing the plan")
            notes, longest = stored.manifest.model.notes, stored.origin.max_context
            lowered = Lowered(stored.graph, stored.origin, longest, notes)
            CompiledModel(lowered, found.compiled or Compiled(stored.plan, model, 0.0)).save(asked.output)
    if note:
        out.note(note)
    wall_s = time.perf_counter() - begin
    if out.json:
        out.result(_record(found, change, asked.output, wall_s))
        return
    _print(found, change)
    if asked.output is not None:
        print(f"plan in {asked.output}, page in {asked.output / REPORT}")


def _refuse_output(folder: Path, output: Path | None) -> None:
    if output is None:
        return
    if output.resolve() == folder.resolve():
        help_ = ("another folder with -o: `waferc diff` compares the two",)
        message = "the new plan would replace the one that it starts from"
        raise UsageError(Diagnostic("W0105", message, str(output), help=help_))
    refuse_foreign(output)


def _require_positions(stored: PlanFolder, change: Change) -> None:
    most = stored.origin.max_context
    if change.context is not None and most is not None and change.context > most:
        facts = {"context": change.context, "model_limit": most}
        raise UsageError(Diagnostic("W0107", "the context is longer than the model's", "--context", facts))


def _speed(plan: Plan, target: str | None) -> tuple[WaferSpeed | None, str]:
    """How fast the plan's wafers are, and what to tell if that is not known.

    Raises:
        UsageError: W0706, it is not known and an objective of the plan is a time; see also :func:`plan_machine`.
    """
    try:
        cluster = plan_machine(plan, target).cluster
    except UsageError:
        if target is not None or any(score.objective.unit == "fs" for score in plan.solver.scores):
            raise
        note = f"{plan.machine.name} is not bundled, so regions are no larger than they must be: --target FILE"
        return None, note
    return cluster.speed if isinstance(cluster, Wafers) else None, ""


def _record(found: Replanned, change: Change, output: Path | None, wall_s: float) -> dict[str, Any]:
    first, moves = found.after.solver.scores[0], _moves(found)
    return {
        "status": found.after.solver.status,
        "changed": found.compiled is not None,
        "objective": first.objective,
        "objective_value": first.value,
        "best_bound": first.bound,
        "gap": first.gap,
        "within": float(change.within),
        "moved_bytes_bound": moves.bound if moves else 0,
        "moved_bytes_proof": moves.proof if moves else "neither the machine nor the workload changes",
        "systems_used": len(found.after.wafers_used),
        "pipeline": list(found.after.wafers_used),
        **difference_record(found.difference),
        "output": None if output is None else str(output),
        "solve_s": round(found.compiled.solve_s, 3) if found.compiled else 0.0,
        "wall_s": round(wall_s, 3),
    }


def _moves(found: Replanned) -> Score | None:
    """What the solver says of the bytes moved; ``None`` where it was not asked."""
    scores = found.after.solver.scores if found.compiled else ()
    return next((score for score in scores if score.objective is Objective.MOVES), None)


def _print(found: Replanned, change: Change) -> None:
    if found.compiled is None:
        print("nothing moves: neither the machine nor the workload changes")
        return
    print_difference(found.difference, layer_blocks(found.after))
    first, moves = found.after.solver.scores[0], _moves(found)
    value, bound = (amount(figure, first.objective.unit) for figure in (first.value, first.bound))
    print(f"\n{first.objective} {value}, bound {bound}: gap {first.gap:.2%}, {float(change.within):.2%} allowed")
    if not found.difference.moves:
        print("no block has to leave its wafer")
    elif moves and moves.proof:
        print(f"no plan this close to the bound moves fewer bytes, by {moves.proof}")
    elif moves:
        print(f"whether fewer bytes could move is not known; {moves.bound:,} B at least")
