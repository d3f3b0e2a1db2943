"""What a run has taken, held against what the cost model says of the same steps."""

from __future__ import annotations

from ir.diagnostics import Diagnostic, Fact
from partitioner.running.setup import Opened
from targets.cost.traffic import Predictor, Step
from targets.counters import Counters, OpCount
from targets.emulator.watch import CountedStep, Steps


def predicted_for(opened: Opened, book: Steps) -> tuple[Counters, Diagnostic | None]:
    """What the cost model says of the same steps, given which experts their tokens met; and W0662 for the first
    operator, link or operator by reference that was not counted so.
    """
    predictor = Predictor.of(opened.runnable.model, opened.runnable.plan)
    total, fault = Counters(), None
    for step in book.steps:
        predicted = predictor.step(_planned(step), step.counted.routing)
        fault = fault or first_difference(step.counted, predicted)
        total += predicted
    return total, fault


def _planned(step: CountedStep) -> Step:
    sizes = {name: size for name, size in step.bindings.items() if name not in ("users", "tokens")}
    return Step(step.bindings.get("tokens", 1), step.remembered, step.user, sizes)


def first_difference(ours: Counters, predicted: Counters) -> Diagnostic | None:
    """W0662: the first operator, link or operator by reference of which the two say different things, if any."""
    help_ = ("this is a fault of waferc: the emulator or its cost model is wrong",)
    for block, value in {**ours.ops, **predicted.ops}:
        one, other = (found.ops.get((block, value), OpCount()) for found in (ours, predicted))
        if one != other:
            facts: dict[str, Fact] = {"counted": str(one), "predicted": str(other)}
            return Diagnostic("W0662", f"{value} was not counted as predicted", block, facts, help_)
    for source, target in {**ours.links, **predicted.links}:
        sent, said = (found.links.get((source, target), 0) for found in (ours, predicted))
        if sent != said:
            facts = {"counted_bytes": sent, "predicted_bytes": said}
            return Diagnostic("W0662", "bytes were not counted as predicted", f"link {source}-{target}", facts, help_)
    if ours.by_reference != predicted.by_reference:
        facts = {"counted": str(dict(ours.by_reference)), "predicted": str(dict(predicted.by_reference))}
        return Diagnostic("W0662", "operators by reference were not counted as predicted", "", facts, help_)
    return None
