"""Who looks on while the emulator runs: a trace, a book of steps, or a comparison of values with the original's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ir.plan import Transfer
from targets.counters import Counters, added_up
from targets.emulator.scope import Scope
from targets.program.instructions import Instruction


class Watcher:
    """Is told of all that runs; by default it takes no notice. Times are the host's, in ns from any beginning."""

    def ran(self, user: int, scope: Scope, instruction: Instruction, begin_ns: int, end_ns: int) -> None:
        """An operator of a user's step has run; its results are in the scope's values, its counts in the meter."""

    def sent(self, user: int, scope: Scope, transfer: Transfer, sent_bytes: int, at_ns: int) -> None:
        """What the scope's block has computed went to another wafer."""

    def done(self, user: int, remembered: int, bindings: Mapping[str, int], counted: Counters) -> None:
        """A user's step after ``remembered`` tokens is done; ``bindings`` are what the graph's symbols stand for."""


@dataclass(frozen=True, slots=True)
class CountedStep:
    """One step of a user and what it took."""

    user: int
    remembered: int
    bindings: Mapping[str, int]
    counted: Counters


@dataclass(frozen=True, slots=True)
class Steps(Watcher):
    """A book of all steps."""

    steps: list[CountedStep] = field(default_factory=list)

    @property
    def counted(self) -> Counters:
        """What all of them took together."""
        return added_up([step.counted for step in self.steps])

    def done(self, user: int, remembered: int, bindings: Mapping[str, int], counted: Counters) -> None:
        """See :class:`Watcher`."""
        self.steps.append(CountedStep(user, remembered, bindings, counted))


@dataclass(frozen=True, slots=True)
class Seen(Watcher):
    """The values named in ``wanted``, each with those of later steps after it: tensors by name, and their wafers."""

    wanted: frozenset[str]
    values: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    wafers: dict[str, int] = field(default_factory=dict)

    def ran(self, user: int, scope: Scope, instruction: Instruction, begin_ns: int, end_ns: int) -> None:  # noqa: ARG002
        """See :class:`Watcher`."""
        for value in instruction.node.results:
            if value.name in self.wanted:
                self.values.setdefault(value.name, []).append(scope.values[value.name])
                self.wafers[value.name] = scope.program.placed.wafer
