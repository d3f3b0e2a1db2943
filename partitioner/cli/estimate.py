"""``waferc estimate``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ir.diagnostics import CheckError, Diagnostic, UsageError
from ir.forecast import Forecast, Range
from ir.profile import Profile
from ir.target import Target
from partitioner.cli.output import Output
from partitioner.estimate import Placed, Question
from partitioner.forecast import estimate, simulated
from partitioner.options import LoadOptions
from partitioner.profiles import load_profile
from partitioner.questions import ask, machine, speculation
from targets.speculation import Speculation

DEFAULT_TARGET = "cs3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """The options on speculative decoding, as given."""

    short: str = ""
    draft_tokens: int | None = None
    acceptance: float | None = None
    draft: str | None = None

    def read(self) -> Speculation | None:
        """What they say.

        Raises:
            UsageError: W0104, W0704; and what loading a draft model raises.
        """

        def load(model: str) -> Profile:
            return load_profile(model, LoadOptions())

        return speculation(self.short, self.draft_tokens, self.acceptance, self.draft, load)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of a forecast, as given."""

    target: str | None = None
    mesh: tuple[int, int] | None = None
    changes: Mapping[str, float] = field(default_factory=dict)
    drafting: Drafting = field(default_factory=Drafting)
    simulate: bool = False
    question: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a forecast is of, once everything is read."""

    profile: Profile
    target: Target
    question: Question
    placed: Placed | None = None


def run_estimate(model: str, options: LoadOptions, asked: Asked, out: Output) -> None:
    """Forecast, and report."""
    begin = time.perf_counter()
    with out.progress() as progress:
        progress(f"reading {model}")
        subject = _planned(Path(model), asked) if is_plan(model) else _unplanned(model, options, asked)
        progress("forecasting")
        found = estimate(subject.profile, subject.target, subject.question, subject.placed)
        events = (
            simulated(subject.profile, subject.target, subject.question, subject.placed) if asked.simulate else None
        )
    wall_s = time.perf_counter() - begin
    if subject.placed is not None:
        found = replace(found, layout=f"{found.layout}, as the plan in {model} has it")
    if out.json:
        record = forecast_record(found) | ({"simulated": asdict(events)} if events else {})
        out.result(record | {"wall_s": round(wall_s, 3)})
        return
    from partitioner.cli.forecast_report import print_forecast

    print_forecast(found, subject.target, events)


def is_plan(model: str) -> bool:
    """Whether the user names the folder of a plan."""
    try:
        return (Path(model) / "manifest.json").is_file()
    except (OSError, ValueError):
        return False


def _unplanned(model: str, options: LoadOptions, asked: Asked) -> Subject:
    target = machine(asked.target or DEFAULT_TARGET, asked.mesh, asked.changes)  # a wrong target is told at once
    drafting = asked.drafting.read()
    ask(None, **asked.question)
    profile = load_profile(model, options)
    return Subject(profile, target, ask(profile.max_context, **asked.question, speculation=drafting))


_OF_A_PLAN = ("tile.sram_bytes", "tile.reserve_bytes", "cluster.systems")


def _planned(folder: Path, asked: Asked) -> Subject:
    from partitioner.device_folder import is_device_plan
    from partitioner.folder import read_plan
    from partitioner.planned import plan_machine, planned, require_room
    from partitioner.sound import require_sound
    from targets.machines import with_changes

    if asked.mesh is not None:
        raise UsageError(Diagnostic("W0707", "the plan has a mesh of its own", "--mesh"))
    fixed = [name for name in asked.changes if name.startswith("mesh.") or name in _OF_A_PLAN]
    if fixed:
        raise UsageError(*(Diagnostic("W0707", f"the plan has its own {name}", "--set") for name in fixed))
    if asked.question.get("experts", "auto") != "auto":
        raise UsageError(Diagnostic("W0707", "the plan says how its experts lie", "--experts"))
    if is_device_plan(folder):
        help_ = ("forecast the model with --target, which chooses the degrees again",)
        raise UsageError(Diagnostic("W0707", "plans for devices are not forecast as they lie", str(folder), help=help_))
    stored = read_plan(folder)
    if stored.faults:
        raise CheckError(*stored.faults)
    plan = stored.plan
    target = with_changes(plan_machine(plan, asked.target), asked.changes)
    defaults = {"users": plan.workload.users, "context": plan.workload.context}
    given = {name: value for name, value in asked.question.items() if value is not None}
    question = ask(plan.workload.context, **{**defaults, **given}, speculation=asked.drafting.read())
    require_room(plan, question)
    found = planned(plan, require_sound(stored))
    return Subject(found.profile, target, question, found.placed)


def forecast_record(forecast: Forecast) -> dict[str, Any]:
    """The object that ``--json`` prints of a forecast: plain figures, and ``ranges`` of those that have one."""
    record = asdict(forecast)
    ranges = {name: value for name in record if isinstance(value := getattr(forecast, name), Range)}
    speed = forecast.tokens_per_s_per_user
    return {
        **record,
        **{name: value.value for name, value in ranges.items()},
        "low": speed.low,
        "high": speed.high,
        "ranges": {name: asdict(value) for name, value in ranges.items()},
        "kwh_per_million_tokens": forecast.joules_per_token / 3.6,
    }
