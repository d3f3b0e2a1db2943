"""A plan for a machine or a workload that has changed, close to the one before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from ir.diagnostics import Diagnostic, InfeasibleError, UsageError
from ir.explanation import Lever
from ir.machine import Machine
from ir.model import Model
from ir.objective import Objective
from ir.plan import Plan
from ir.target import WaferSpeed
from ir.workload import Workload
from partitioner.case import Case
from partitioner.compile import Compiled, compile_model
from partitioner.difference import Difference, difference
from partitioner.former import Former
from partitioner.options import MOST
from partitioner.passes.step import takes_whole_texts
from partitioner.placing import Progress
from partitioner.problem import ExpertLayout
from partitioner.solver.cpsat import Limits

_MOST_SYSTEMS = 10_000
_OPTIONS = ("users", "context", "prefill-chunk", "experts")
"""Levers that replanning has too."""
MOST_WITHIN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has changed since a plan was made.

    Attributes:
        lost: wafers out of service from now on; their numbers stay theirs.
        added: ordinary wafers with new numbers.
        users, context, chunk: of the workload; as the plan's if ``None``.
        within: how far from the optimum of the plan's first objective the new plan may be, relative to it.
    """

    lost: tuple[int, ...] = ()
    added: int = 0
    users: int | None = None
    context: int | None = None
    chunk: int | None = None
    within: Fraction = Fraction(1, 20)

    def __post_init__(self) -> None:
        given = {"--users": (self.users, 1, MOST), "--context": (self.context, 1, MOST)}
        given["--prefill-chunk"] = (self.chunk, 1, MOST)
        given["--added"] = (self.added, 0, _MOST_SYSTEMS)
        faults = [
            Diagnostic("W0103", f"{name} must be from {low} to {most:,}, not {value:,}", name)
            for name, (value, low, most) in given.items()
            if value is not None and not low <= value <= most
        ]
        if not 0 <= self.within <= MOST_WITHIN:
            message = f"--within must be from 0 % to {MOST_WITHIN * 100:,} %, not {float(self.within * 100):g} %"
            faults.append(Diagnostic("W0103", message, "--within"))
        if faults:
            raise UsageError(*faults)

    def machine(self, before: Machine) -> Machine:
        """The machine as it is now.

        Raises:
            UsageError: W0119, a wafer is lost that was not in service, or none is left; W0103, there are too many.
        """
        faults = [_not_there(before, wafer) for wafer in self.lost if wafer not in before.in_service]
        if faults:
            raise UsageError(*faults)
        if before.systems + self.added > _MOST_SYSTEMS:
            message = f"a machine has at most {_MOST_SYSTEMS:,} systems"
            raise UsageError(Diagnostic("W0103", message, "--added", {"systems": before.systems + self.added}))
        now = replace(before, systems=before.systems + self.added).without(self.lost)
        if not now.in_service:
            raise UsageError(Diagnostic("W0119", "no wafer is left", "--lost", {"lost": len(self.lost)}))
        return now

    def workload(self, before: Workload) -> Workload:
        """The workload as it is now."""
        return Workload(self.users or before.users, self.context or before.context, self.chunk or before.chunk)


def _not_there(machine: Machine, wafer: int) -> Diagnostic:
    if 0 <= wafer < machine.systems:
        return Diagnostic("W0119", f"wafer {wafer} is out of service already", "--lost")
    facts = {"systems": machine.systems}
    return Diagnostic("W0119", f"there is no wafer {wafer}", "--lost", facts, ("wafers are counted from 0",))


@dataclass(frozen=True, slots=True)
class Replanned:
    """The new plan, and what is different in it. ``compiled`` is ``None`` where nothing has changed."""

    before: Plan
    after: Plan
    compiled: Compiled | None
    difference: Difference


def replan(
    plan: Plan,
    model: Model,
    change: Change,
    speed: WaferSpeed | None,
    experts: ExpertLayout,
    progress: Progress = lambda _step: None,
) -> Replanned:
    """The plan that moves the fewest bytes of weights among those within the gap of the optimum.

    Rules, objectives and limits are those of ``plan``, a sound plan of ``model``; ``speed`` is its wafers'.

    Raises:
        UsageError: W0119, the lost wafers are not there, or none is left.
        InfeasibleError, TimeLimitError: as :func:`partitioner.compile.compile_model`.
    """
    machine, workload = change.machine(plan.machine), change.workload(plan.workload)
    if takes_whole_texts(model.graph):
        workload = replace(workload, chunk=workload.context)
    if (machine, workload) == (plan.machine, plan.workload):
        return Replanned(plan, plan, None, difference(plan, plan))
    case = Case(
        model,
        machine,
        workload,
        experts,
        plan.rules,
        speed,
        tuple(score.objective for score in plan.solver.scores if score.objective is not Objective.MOVES),
        Limits(plan.solver.deterministic_time_limit, plan.solver.seed),
        Former(plan, change.within),
    )
    try:
        compiled = compile_model(case, model.granularity, progress)
    except InfeasibleError as error:
        raise InfeasibleError(*(_with_own_levers(fault, plan.machine) for fault in error.diagnostics)) from None
    return Replanned(plan, compiled.plan, compiled, difference(plan, compiled.plan))


def _with_own_levers(fault: Diagnostic, before: Machine) -> Diagnostic:
    """What would fit, in options of replanning, or where there is none, of compiling anew."""
    if fault.explanation is None:
        return fault
    levers = tuple(_own_lever(lever, before) for lever in fault.explanation.levers)
    help_ = tuple(lever.text for lever in levers) or fault.help
    return replace(fault, explanation=fault.explanation.with_levers(levers), help=help_)


def _own_lever(lever: Lever, before: Machine) -> Lever:
    if lever.option == "systems" and isinstance(lever.was, int) and isinstance(lever.to, int):
        was, to = lever.was - before.systems, lever.to - before.systems
        return replace(lever, option="added", was=was, to=to, text=f"--added {to} would fit")
    if lever.option in _OPTIONS:
        return lever
    return replace(lever, text=f"{lever.text}, if the model is compiled anew")
