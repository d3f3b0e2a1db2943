"""A plan as forecasts need it: its profile, its own regions as stages, and its machine with speeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm

from ir.diagnostics import Diagnostic, UsageError
from ir.machine import Machine
from ir.model import Model
from ir.plan import PlacedBlock, Plan
from ir.profile import Profile
from ir.target import LayerRegions, Target, Wafers
from partitioner.estimate import Placed, Question
from partitioner.passes.profile import profile_of
from partitioner.serving import Pipeline
from targets.cost.wafer import Stage
from targets.machines import catalog, load_target


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, what its model is in figures, and where its blocks lie."""

    plan: Plan
    profile: Profile
    placed: Placed


def planned(plan: Plan, model: Model) -> Planned:
    """A plan that passed its check, for a forecast."""
    profile, copies = profile_of(model, None), plan.copies
    counts = [len(own) for own in copies.values()]
    turns = max(*counts, min(lcm(*counts), plan.workload.users), 1)
    pipelines = [
        Pipeline(
            profile,
            tuple(
                _stage(own[turn % len(own)], index, len(own), plan.machine)
                for index, own in enumerate(copies[block.name] for block in profile.blocks)
            ),
            odd=plan.machine.odd_links,
        )
        for turn in range(turns)
    ]
    placed = Placed(pipelines[0], len(plan.wafers_used), plan.workload.users, tuple(pipelines[1:]))
    return Planned(plan, profile, placed)


def _stage(block: PlacedBlock, index: int, copies: int, machine: Machine) -> Stage:
    """A block's own region; experts that all have the block's region are sliced over it."""
    slowness = machine.wafer(block.wafer).slowness_permille
    region = block.region
    own = Stage(index, block.wafer, region.rows, region.columns, slowness_permille=slowness, copies=copies)
    apart = [expert.region for expert in block.experts if expert.region != block.region]
    if not apart:
        return own
    least = min(apart, key=lambda region: region.tiles)
    return replace(own, expert_rows=least.rows, expert_columns=least.columns)


def plan_machine(plan: Plan, target: str | None) -> Target:
    """The machine of a plan with its speeds: of ``target``, or of the bundled machine that the plan names.

    Raises:
        UsageError: W0706, there is none, or its wafers are not the plan's; see also :func:`load_target`.
    """
    machine = plan.machine
    if target is None and machine.name not in catalog():
        help_ = ("--target with the machine file that the plan was made for",)
        message = f"the plan's machine {machine.name} is not bundled, so its speed is not known"
        raise UsageError(Diagnostic("W0706", message, "--target", help=help_))
    name = target or machine.name
    changes = {"cluster.systems": machine.systems, "tile.reserve_bytes": machine.reserve_bytes}
    found = load_target(name, changes if isinstance(load_target(name).cluster, Wafers) else None)
    wafers = found.cluster
    if not isinstance(wafers, Wafers) or not _alike(plan, wafers):
        facts = {"plan_columns": machine.columns, "plan_rows": machine.rows, "plan_tile_bytes": machine.tile_sram_bytes}
        message = f"{found.name} has other wafers than the plan"
        help_ = ("--target with the machine file that the plan was made for",)
        raise UsageError(Diagnostic("W0706", message, "--target", facts, help_))
    odd = replace(wafers.machine, odd_wafers=machine.odd_wafers, odd_links=machine.odd_links)
    if wafers.speed is None:
        return replace(found, cluster=replace(wafers, machine=odd))
    # Whatever layers do elsewhere on this machine, those of a plan have tiles of their own.
    return replace(found, cluster=Wafers(odd, replace(wafers.speed, layers=LayerRegions.OWN_TILES)))


def _alike(plan: Plan, wafers: Wafers) -> bool:
    one, other = plan.machine, wafers.machine
    return (one.columns, one.rows, one.tile_sram_bytes) == (other.columns, other.rows, other.tile_sram_bytes)


def require_room(plan: Plan, question: Question) -> None:
    """Refuse what the plan was not made for.

    Raises:
        UsageError: W0707, more users or context than the plan has room for, another number of systems, or a draft.
    """
    faults = []
    for name, asked, room in (
        ("users", question.users, plan.workload.users),
        ("context", question.tokens, plan.workload.context),
    ):
        if asked > room:
            facts = {"asked": asked, "plan": room}
            faults.append(Diagnostic("W0707", f"the plan has no room for so many {name}", f"--{name}", facts))
    if question.systems not in (None, plan.machine.systems, len(plan.wafers_used)):
        facts = {"asked": question.systems or 0, "plan": len(plan.wafers_used)}
        faults.append(Diagnostic("W0707", "the plan is for another number of systems", "--systems", facts))
    if question.speculation is not None:
        help_ = ("forecast the model instead of the plan",)
        faults.append(Diagnostic("W0707", "the plan has no draft", "--draft-tokens", help=help_))
    if faults:
        raise UsageError(*(replace(fault, help=fault.help or ("compile the plan for it",)) for fault in faults))
