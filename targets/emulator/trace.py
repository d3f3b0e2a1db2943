"""A run as a trace that Perfetto and Chrome show: a process for each wafer, a thread for each block's region."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ir.plan import Plan, Transfer
from targets.counters import OpCount
from targets.emulator.meter import Meter
from targets.emulator.scope import Scope
from targets.emulator.watch import Watcher
from targets.program.instructions import Instruction, Program

Event = dict[str, Any]
_TIME_AXIS = (
    "host time of the emulation, in microseconds: when this computer worked on an operator, not how long the machine "
    "would take for it (waferc estimate tells that)"
)


@dataclass(frozen=True, slots=True)
class _Span:
    """Operators of one block in one step of a user, which follow each other: ``step`` counts all users' steps."""

    user: int
    step: int
    program: Program
    begin_ns: int
    end_ns: int


@dataclass(slots=True)
class Trace(Watcher):
    """Writes down all that runs."""

    plan: Plan
    events: list[Event] = field(default_factory=list)
    _spans: list[_Span] = field(default_factory=list)
    _steps: dict[int, tuple[Meter, int]] = field(default_factory=dict)
    _waiting: list[tuple[int, Transfer, int]] = field(default_factory=list)
    _threads: dict[str, int] = field(default_factory=dict)
    _told: dict[int, tuple[int, int]] = field(default_factory=dict)
    _begin_ns: int = -1
    _flows: int = 0

    def __post_init__(self) -> None:
        self._threads = {block.title: number for number, block in enumerate(self.plan.blocks, 1)}

    def ran(self, user: int, scope: Scope, instruction: Instruction, begin_ns: int, end_ns: int) -> None:
        """See :class:`Watcher`."""
        if self._begin_ns < 0:
            self._begin_ns = begin_ns
        step = self._step_of(scope.meter)
        program = scope.program
        last = self._spans[-1] if self._spans else None
        if last is not None and (last.program, last.step) == (program, step):
            self._spans[-1] = replace(last, end_ns=end_ns)
        else:
            self._spans.append(_Span(user, step, program, begin_ns, end_ns))
        self._arrive(step, program, begin_ns)
        counted = self._counted(scope.meter, step)
        about = {"value": instruction.node.result.name, "module": instruction.node.origin, "kernel": instruction.kind}
        arguments = {**about, "user": user, "step": step, **_counts(counted)}
        self.events.append(
            {"name": instruction.node.op, "cat": "operator", "ph": "X", **self._place(program, begin_ns)}
            | {"dur": _us(end_ns - begin_ns), "args": arguments}
        )

    def sent(self, user: int, scope: Scope, transfer: Transfer, sent_bytes: int, at_ns: int) -> None:
        """See :class:`Watcher`."""
        self._flows += 1
        step = self._step_of(scope.meter)
        computed_ns = self._spans[-1].end_ns
        self._spans[-1] = replace(self._spans[-1], end_ns=at_ns)
        self._waiting.append((step, transfer, self._flows))
        self.events.append(
            {"name": transfer.value, "cat": "transfer", "ph": "s", "id": self._flows}
            | self._place(scope.program, computed_ns)
            | {"args": {"bytes": sent_bytes, "user": user, "step": step, "to_wafer": transfer.target_wafer}}
        )

    def record(self) -> dict[str, Any]:
        """The whole trace, in Chrome's format of JSON objects."""
        blocks = [
            {"name": span.program.placed.title, "cat": "block", "ph": "X", **self._place(span.program, span.begin_ns)}
            | {"dur": _us(span.end_ns - span.begin_ns), "args": {"user": span.user, "step": span.step}}
            for span in self._spans
        ]
        # Of events that begin together the longer one is first, so that what it contains lies inside it.
        events = sorted([*blocks, *self.events], key=lambda event: (event["ts"], -event.get("dur", 0)))
        about = {"time_axis": _TIME_AXIS, "machine": self.plan.machine.name}
        return {"traceEvents": [*self._names(), *events], "displayTimeUnit": "ms", "otherData": about}

    def _names(self) -> list[Event]:
        wafers = [
            {"name": "process_name", "ph": "M", "ts": 0, "pid": wafer, "tid": 0, "args": {"name": f"wafer {wafer}"}}
            for wafer in self.plan.wafers_used
        ]
        threads = [
            {"name": "thread_name", "ph": "M", "ts": 0, "pid": block.wafer, "tid": number}
            | {"args": {"name": f"{block.title}, {region.rows} x {region.columns} tiles"}}
            for block, number in zip(self.plan.blocks, self._threads.values(), strict=True)
            for region in [block.region]
        ]
        return wafers + threads

    def _step_of(self, meter: Meter) -> int:
        """The number of the step that ``meter`` counts; each step has a meter of its own, kept so that it stays so."""
        return self._steps.setdefault(id(meter), (meter, len(self._steps)))[1]

    def _counted(self, meter: Meter, step: int) -> OpCount:
        """What the step has taken since this was last asked: its last operator, and what that has fetched."""
        multiply_adds, collectives = self._told.get(step, (0, 0))
        counted = meter.since(multiply_adds, collectives)
        self._told[step] = (multiply_adds + counted.multiply_adds, len(meter.moved))
        return counted

    def _arrive(self, step: int, program: Program, at_ns: int) -> None:
        """End the transfers of this step to this wafer: the block is the first there to run after them."""
        wafer = program.placed.wafer
        here = [it for it in self._waiting if it[0] == step and it[1].target_wafer == wafer]
        self._waiting = [it for it in self._waiting if it not in here]
        self.events += [
            {"name": transfer.value, "cat": "transfer", "ph": "f", "bp": "e", "id": flow, **self._place(program, at_ns)}
            | {"args": {"step": step, "from_wafer": transfer.source_wafer}}
            for _, transfer, flow in here
        ]

    def _place(self, program: Program, at_ns: int) -> Event:
        thread, wafer = self._threads[program.placed.title], program.placed.wafer
        return {"pid": wafer, "tid": thread, "ts": _us(at_ns - self._begin_ns)}


def _us(time_ns: int) -> float:
    return time_ns / 1000


def _counts(counted: OpCount) -> dict[str, Any]:
    mesh = {name: asdict(traffic) for name, traffic in counted.mesh.items()}
    return {"multiply_adds": counted.multiply_adds, **({"mesh": mesh} if mesh else {})}
