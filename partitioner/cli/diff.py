"""``waferc diff``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ir.diagnostics import CheckError, Diagnostic, UnsupportedModelError, UsageError
from ir.forecast import Range
from ir.plan import Plan
from partitioner.cli.difference_table import difference_record, print_difference
from partitioner.cli.output import Output
from partitioner.device_folder import is_device_plan
from partitioner.difference import Change, difference
from partitioner.folder import PlanFolder, read_plan
from partitioner.sound import require_sound


def run_diff(before: Path, after: Path, out: Output, *, speed: bool) -> None:
    """Say what changed from the plan in ``before`` to the one in ``after``.

    Raises:
        UsageError: W0106, no plan there; W0113, a plan for devices.
        CheckError: files are damaged; with ``speed``, a plan is not sound.
    """
    with out.progress() as progress:
        progress("reading the plans")
        old, new = _read(before), _read(after)
        found = difference(old.plan, new.plan)
        forecasts = None
        if speed:
            progress("forecasting both")
            forecasts = Change("tokens_per_s_per_user", _speed(old), _speed(new))
    if out.json:
        record: dict[str, Any] = {"before": str(before), "after": str(after), **difference_record(found)}
        if forecasts:
            sides = {"before": forecasts.before, "after": forecasts.after}
            record[forecasts.name] = {side: _range(value) for side, value in sides.items()}
        out.result(record)
        return
    print_difference(found, layer_blocks(new.plan))
    if forecasts:
        print(f"modelled: {_shown(forecasts.before)} before, {_shown(forecasts.after)} after, in tokens/s for one user")


def require_wafers(folder: Path) -> None:
    """Refuse what is no plan for wafers.

    Raises:
        UsageError: W0106, there is no plan; W0113, it is one for devices.
    """
    if is_device_plan(folder):
        help_ = ("`waferc view` shows such a plan",)
        message = "this command is for plans of wafers, and this is one for devices"
        raise UsageError(Diagnostic("W0113", message, str(folder), help=help_))


def _read(folder: Path) -> PlanFolder:
    require_wafers(folder)
    stored = read_plan(folder)
    if stored.faults:
        raise CheckError(*stored.faults)
    return stored


def layer_blocks(plan: Plan) -> Counter[int]:
    """How many blocks each layer has."""
    return Counter(block.layer for block in plan.blocks if block.layer is not None)


def _speed(stored: PlanFolder) -> Range | None:
    """What one user gets of a plan at its context; ``None`` where the speed of its machine is not known."""
    from partitioner.forecast import estimate
    from partitioner.planned import plan_machine, planned
    from partitioner.questions import ask

    found = planned(stored.plan, require_sound(stored))
    try:
        question = ask(None, context=stored.plan.workload.context)
        target = plan_machine(stored.plan, None)
        return estimate(found.profile, target, question, found.placed).tokens_per_s_per_user
    except (UnsupportedModelError, UsageError):
        return None


def _range(speed: Range | None) -> dict[str, float] | None:
    return None if speed is None else {"value": speed.value, "low": speed.low, "high": speed.high}


def _shown(speed: Range | None) -> str:
    return "unknown" if speed is None else f"{speed.value:,.0f} ({speed.low:,.0f} to {speed.high:,.0f})"
