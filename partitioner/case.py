"""What is placed, on what, and what is asked of it: all that a change could make fit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ir.machine import Machine
from ir.model import Model
from ir.rules import Rule
from ir.workload import Workload
from partitioner.problem import ExpertLayout, measure
from partitioner.solver.problem import Problem


@dataclass(frozen=True)
class Case:
    """One question of placement."""

    model: Model
    machine: Machine
    workload: Workload
    experts: ExpertLayout = ExpertLayout.AUTO
    rules: tuple[Rule, ...] = ()

    @cached_property
    def problem(self) -> Problem:
        """The case in integers; nothing takes time in it.

        Raises:
            UsageError: see :func:`partitioner.problem.measure`.
        """
        return measure(self.model, self.machine, self.workload, self.experts, rules=self.rules)
