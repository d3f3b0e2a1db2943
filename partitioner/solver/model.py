"""The placement problem as a CP-SAT model: which item lies on which stage of the pipeline, and which wafer that is.

Stages are wafers in use in the order in which values flow, so that a pipeline in order is one by construction, and
wafers that nothing tells apart are never permuted: they are dealt out to stages only once the search is over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from ir.rules import RuleKind
from partitioner.solver.problem import Assignment, Problem, Restriction, Wafer
from partitioner.solver.score import pipeline

if TYPE_CHECKING:
    # It takes pandas with it, half a second that who only looks at a model need not wait.
    from ortools.sat.python import cp_model

    Expression: TypeAlias = cp_model.LinearExpr | int
    Row: TypeAlias = list[cp_model.IntVar]


class Formulation:
    """Variables and restrictions.

    Attributes:
        on: [item][stage], whether the item lies there; items that stay together share their variables.
        kinds: wafers that nothing tells apart, as tuples of their numbers.
        is_kind: [stage][kind], whether the stage is a wafer of that kind; none where there is one kind alone.
    """

    def __init__(self, problem: Problem) -> None:
        from ortools.sat.python import cp_model

        self.problem = problem
        self.model = cp_model.CpModel()
        self.kinds = alike_wafers(problem)
        usable = sum(len(kind) for kind in self.kinds)
        self.stages = range(min(usable, len(problem.items)))
        self._at: dict[int, Row] = {}
        leader = _leaders(problem)
        rows = {first: self._row(f"on_{first}") for first in sorted(set(leader))}
        self._leader = leader
        self.on = [rows[first] for first in leader]
        for row in rows.values():
            self.model.add_exactly_one(row)
        self._keep_order()
        self.used = self._use_in_order(list(rows.values()))
        self.is_kind = self._choose_kinds()
        self._keep_capacity()
        for misfit in problem.misfits:
            for stage in self.stages:
                self._part(misfit, stage)
        for rule in problem.restrictions:
            self._keep(rule)

    def _row(self, name: str) -> Row:
        return [self.model.new_bool_var(f"{name}_{stage}") for stage in self.stages]

    def _keep_order(self) -> None:
        """What comes before lies on the same stage, or on an earlier one; in the order encoding, as clauses."""
        upto: dict[int, Row] = {}
        for one, other in _needed(self.problem.precedences):
            before, after = (self._upto(upto, self._leader[item]) for item in (one, other))
            for earlier, later in zip(before, after, strict=True):
                self.model.add_implication(later, earlier)
        self._upto_of = upto

    def _upto(self, known: dict[int, Row], item: int) -> Row:
        """[stage]: whether ``item`` lies there or before."""
        if item not in known:
            row = self._row(f"upto_{item}")
            self.model.add(row[-1] == 1)
            self.model.add_implication(self.on[item][0], row[0])
            self.model.add_implication(row[0], self.on[item][0])
            for stage, (before, here) in enumerate(pairwise(row), start=1):
                self.model.add_implication(before, here)
                self.model.add_implication(self.on[item][stage], here)
                self.model.add_implication(self.on[item][stage], ~before)
                self.model.add_bool_or(~here, before, self.on[item][stage])
            known[item] = row
        return known[item]

    def _use_in_order(self, rows: Sequence[Row]) -> Row:
        """No stage is left empty before one that is used."""
        used = self._row("used")
        for stage in self.stages:
            self.model.add_bool_or(*(row[stage] for row in rows), ~used[stage])
            for row in rows:
                self.model.add_implication(row[stage], used[stage])
        for before, after in pairwise(used):
            self.model.add_implication(after, before)
        return used

    def _choose_kinds(self) -> list[Row]:
        if len(self.kinds) <= 1:
            return []
        chosen = [
            [self.model.new_bool_var(f"kind_{stage}_{kind}") for kind in range(len(self.kinds))]
            for stage in self.stages
        ]
        for stage, row in enumerate(chosen):
            self.model.add(sum(row) == self.used[stage])
        for kind, wafers in enumerate(self.kinds):
            self.model.add(sum(row[kind] for row in chosen) <= len(wafers))
        return chosen

    def wafer(self, kind: int) -> Wafer:
        """What the wafers of a kind are like."""
        return self.problem.wafers[self.kinds[kind][0]]

    def of_stage(self, stage: int, figures: Sequence[int]) -> Expression:
        """The figure of the kind of wafer that ``stage`` is; 0 where it is unused and there are several kinds."""
        if not self.is_kind:
            return figures[0]
        return sum(figure * chosen for figure, chosen in zip(figures, self.is_kind[stage], strict=True))

    def _keep_capacity(self) -> None:
        wafers = [self.wafer(kind) for kind in range(len(self.kinds))]
        for needs, offers in (
            ([item.tiles for item in self.problem.items], [wafer.tiles for wafer in wafers]),
            ([item.bytes for item in self.problem.items], [wafer.bytes for wafer in wafers]),
        ):
            if sum(needs) > min(offers, default=0):
                for stage in self.stages:
                    self.model.add(self.load(stage, needs) <= self.of_stage(stage, offers))

    def load(self, stage: int, figures: Sequence[int]) -> Expression:
        """The sum of ``figures`` of the items on ``stage``."""
        from ortools.sat.python import cp_model

        return cp_model.LinearExpr.weighted_sum([row[stage] for row in self.on], list(figures))

    def _part(self, misfit: Sequence[int], stage: int) -> None:
        """Of some kind of item in the combination ``misfit``, ``stage`` holds fewer than the combination has."""
        missing = []
        for alike, count in sorted(Counter(misfit).items()):
            held = [row[stage] for item, row in zip(self.problem.items, self.on, strict=True) if item.alike == alike]
            fewer = self.model.new_bool_var(f"fewer_{stage}_{alike}")
            self.model.add(sum(held) < count).only_enforce_if(fewer)
            missing.append(fewer)
        self.model.add_bool_or(missing)

    # --- rules --------------------------------------------------------------------------------------------------------

    def _keep(self, rule: Restriction) -> None:
        match rule.kind:
            case RuleKind.PIN | RuleKind.FORBID:
                for item in rule.items:
                    for kind, wafers in enumerate(self.kinds):
                        if (wafers[0] in rule.wafers) == (rule.kind is RuleKind.FORBID):
                            self.model.add_bool_and(~self.at(item)[kind])
            case RuleKind.APART:
                self._hold_at_most(rule.items, 1)
            case RuleKind.AT_MOST:
                self._hold_at_most(rule.items, rule.count)
            case RuleKind.REPLICATE:
                for copies in rule.groups:
                    self._hold_at_most(sorted(set(copies)), 1)
            case RuleKind.TOGETHER | RuleKind.ORDER | RuleKind.FREE:
                pass  # in the rows of variables, and in the order

    def _hold_at_most(self, items: Sequence[int], count: int) -> None:
        for stage in self.stages:
            self.model.add(sum(self.on[item][stage] for item in items) <= count)

    def at(self, item: int) -> Row:
        """[kind]: whether ``item`` lies on a wafer of that kind."""
        first = self._leader[item]
        if first not in self._at:
            row = [self.model.new_bool_var(f"at_{first}_{kind}") for kind in range(len(self.kinds))]
            self.model.add_exactly_one(row)
            for stage, chosen in enumerate(self.is_kind):
                for kind, literal in enumerate(chosen):
                    self.model.add_bool_or(~self.on[item][stage], ~literal, row[kind])
                    self.model.add_bool_or(~self.on[item][stage], ~row[kind], literal)
            self._at[first] = row
        return self._at[first]

    # --- placements ---------------------------------------------------------------------------------------------------

    def suggest(self, assignment: Assignment) -> None:
        """Hint at a placement."""
        stage_of = {wafer: stage for stage, wafer in enumerate(pipeline(self.problem, assignment))}
        for item in sorted(set(self._leader)):
            for stage, literal in enumerate(self.on[item]):
                self.model.add_hint(literal, stage == stage_of[assignment[item]])
        for item, row in self._upto_of.items():
            for stage, literal in enumerate(row):
                self.model.add_hint(literal, stage >= stage_of[assignment[item]])
        on_stage = {stage: wafer for wafer, stage in stage_of.items()}
        for stage, chosen in enumerate(self.is_kind):
            for kind, literal in enumerate(chosen):
                self.model.add_hint(literal, on_stage.get(stage, -1) in self.kinds[kind])

    def require(self, assignment: Assignment) -> None:
        """Allow no other placement, but for wafers that nothing tells apart."""
        stage_of = {wafer: stage for stage, wafer in enumerate(pipeline(self.problem, assignment))}
        for item, row in enumerate(self.on):
            self.model.add(row[stage_of[assignment[item]]] == 1)
        for wafer, stage in stage_of.items():
            for kind, literal in enumerate(self.is_kind[stage] if self.is_kind else ()):
                self.model.add(literal == (wafer in self.kinds[kind]))

    def assignment(self, holds: Iterable[bool], kinds: Sequence[Sequence[bool]]) -> Assignment:
        """The placement for values of ``on``, flattened, and of ``is_kind``: wafers are dealt out by stage."""
        left = [iter(kind) for kind in self.kinds]
        chosen = [row.index(True) if True in row else None for row in kinds] if kinds else [0] * len(self.stages)
        wafers = [None if kind is None else next(left[kind], None) for kind in chosen]
        flat = list(holds)
        width = len(self.stages)
        stages = [flat[start : start + width].index(True) for start in range(0, len(flat), width)]
        found = [wafers[stage] for stage in stages]
        assert None not in found, "a stage in use has a wafer"
        return tuple(wafer for wafer in found if wafer is not None)

    @cached_property
    def slownesses(self) -> tuple[int, ...]:
        """How slow kinds of wafers are, each figure once."""
        return tuple(sorted({self.wafer(kind).slowness_permille for kind in range(len(self.kinds))}))


def alike_wafers(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Wafers that can hold an item, in classes that nothing tells apart: exchanging two of a class changes nothing.

    All wafers where none can hold anything, so that it is for the model to say that there is no placement.
    """
    least = min((item.tiles for item in problem.items), default=0)
    usable = [index for index, wafer in enumerate(problem.wafers) if wafer.tiles >= least]
    linked = {wafer for one, other, _ in problem.link_costs for wafer in (one, other)}
    before = set(problem.previous)
    classes: dict[object, list[int]] = {}
    for index in usable or range(len(problem.wafers)):
        # A wafer that had blocks before is like no other, nor is one with a link of its own.
        own = index if index in before or index in linked else None
        named = tuple(index in rule.wafers for rule in problem.restrictions)
        classes.setdefault((problem.wafers[index], own, named), []).append(index)
    return tuple(tuple(wafers) for wafers in classes.values())


def _leaders(problem: Problem) -> list[int]:
    """For each item the first of those that share its wafer by a rule."""
    leader = list(range(len(problem.items)))

    def first(item: int) -> int:
        while leader[item] != item:
            item = leader[item]
        return item

    for rule in problem.restrictions:
        if rule.kind is RuleKind.TOGETHER:
            for one, other in pairwise(rule.items):
                low, high = sorted((first(one), first(other)))
                leader[high] = low
    return [first(item) for item in range(len(problem.items))]


def _needed(pairs: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """The pairs without those that follow from two others; all of them where they go in circles."""
    if any(one >= other for one, other in pairs):
        return pairs
    after: defaultdict[int, set[int]] = defaultdict(set)
    before: defaultdict[int, set[int]] = defaultdict(set)
    for one, other in pairs:
        after[one].add(other)
        before[other].add(one)
    return [(one, other) for one, other in pairs if after[one].isdisjoint(before[other])]
