"""What is placed, on what, and what is asked of it: all that a change could make fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ir.machine import Machine
from ir.model import Model
from ir.objective import DEFAULT_OBJECTIVES, Objective
from ir.profile import Profile
from ir.rules import Rule
from ir.target import WaferSpeed
from ir.workload import Workload
from partitioner.curves import CostCurves
from partitioner.floorplan.wafers import FloorPlanner
from partitioner.floorplan.wishes import wishes_for
from partitioner.former import Former, Placer
from partitioner.passes.profile import profile_of
from partitioner.problem import ExpertLayout, measure
from partitioner.solver.cpsat import Limits
from partitioner.solver.place import place
from partitioner.solver.problem import Problem


@dataclass(frozen=True)
class Case:
    """One question of placement.

    Attributes:
        experts: how routed experts lie.
        rules: of the user.
        speed: of the machine; ``None`` where it is not known, and nothing takes time.
        objectives: what the placement is made best for, the first first.
        limits: how hard to try.
        former: a plan to stay close to, rather than only make the best one.
    """

    model: Model
    machine: Machine
    workload: Workload
    experts: ExpertLayout = ExpertLayout.AUTO
    rules: tuple[Rule, ...] = ()
    speed: WaferSpeed | None = None
    objectives: tuple[Objective, ...] = DEFAULT_OBJECTIVES
    limits: Limits = field(default_factory=Limits)
    former: Former | None = None

    @cached_property
    def problem(self) -> Problem:
        """The case in integers.

        Raises:
            UsageError: see :func:`partitioner.problem.measure`.
        """
        speeds = None
        if self.speed is not None:
            speeds = CostCurves(self._profile, self.machine, self.speed, self.workload, self.experts)
        problem = measure(self.model, self.machine, self.workload, self.experts, speeds, self.rules)
        return self.former.recalled(problem, self.model, self.machine) if self.former else problem

    def planner(self) -> FloorPlanner:
        """Who lays out its wafers; where the machine's speed is known, with tiles to spare where they save time."""
        wishes = None
        if self.speed is not None:
            wishes = wishes_for(self._profile, self.machine, self.speed, self.workload, self.experts)
        former = self.former.plan if self.former else None
        return FloorPlanner(self.model, self.machine, self.workload, self.experts, wishes, former)

    @property
    def placer(self) -> Placer:
        """What finds a wafer for each item."""
        return self.former.place if self.former else place

    @cached_property
    def _profile(self) -> Profile:
        return profile_of(self.model, None)
