"""What would make a placement fit: each change is tried, by placing and laying out, before it is named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from ir.encoding import ENCODINGS, Encoding
from ir.explanation import Conflict, Lever
from ir.graph import Graph, Parameter
from ir.model import Model
from ir.ops import OPS
from ir.ops.definition import Kind
from ir.rules import Rule
from ir.types import DType
from partitioner.case import Case
from partitioner.problem import ExpertLayout
from partitioner.solver.chain import least
from partitioner.solver.filling import fill

Fits = Callable[[Case], bool]
"""Whether a placement is found and laid out."""
Progress = Callable[[str], None]

NARROWER = ("uint8_row_bf16", "int4_g32")
"""Encodings that weights may be quantised to: 8 bits with a scale for each row, and 4 bits with one for each 32."""
_CONTEXT_STEP = 1024
_MOST_TIMES_SYSTEMS = 16


@dataclass(frozen=True, slots=True)
class Trial:
    """Tries one case after the other; ``fits`` decides them, ``progress`` is told of each."""

    fits: Fits
    progress: Progress

    def lever(self, lever: Lever, case: Case) -> Lever | None:
        """``lever``, with how long it took to find that ``case``, which it leads to, fits; ``None`` if it does not."""
        begin = time.perf_counter()
        self.progress(f"trying --{lever.option} {lever.to or f'without {lever.was}'}")
        return replace(lever, solve_s=time.perf_counter() - begin) if self.fits(case) else None


def levers(case: Case, finer: Iterable[Model], conflict: Conflict | None, trial: Trial) -> Iterator[Lever]:
    """What would make ``case`` fit, each changing one thing.

    Args:
        case: what does not fit.
        finer: its model in smaller blocks, the largest first.
        conflict: the rules that stand in the way, if they do.
        trial: decides.
    """
    yield from _without_rules(case, conflict.rules if conflict else (), trial)
    yield from _first(_cut_finer(case, finer), trial)
    yield from _first(_sliced(case), trial)
    yield from _more_systems(case, trial)
    if conflict is not None and conflict.whatever_size:
        return  # and so whatever the sizes of what is placed
    for option, field, step in _NUMBERS:
        yield from _smaller(case, option, field, step, trial)
    yield from _first(_narrower(case), trial)


_NUMBERS = (("users", "users", 1), ("context", "context", _CONTEXT_STEP), ("prefill-chunk", "chunk", 1))


def _first(options: Iterable[tuple[Lever, Case]], trial: Trial) -> Iterator[Lever]:
    """The first of ``options`` that fits."""
    for lever, changed in options:
        found = trial.lever(lever, changed)
        if found:
            yield found
            return


# --- rules ------------------------------------------------------------------------------------------------------------


def _without_rules(case: Case, in_conflict: tuple[Rule, ...], trial: Trial) -> Iterator[Lever]:
    """Each rule in conflict that is one too many; where one is not enough, the first smallest set that is."""
    for size in range(1, len(in_conflict) + 1):
        found = []
        for rules in combinations(in_conflict, size):
            lever = _lifted(case, rules, trial)
            found += [lever] if lever else []
        yield from found
        if found:
            return


def _lifted(case: Case, rules: tuple[Rule, ...], trial: Trial) -> Lever | None:
    kept = tuple(rule for rule in case.rules if rule not in rules)
    texts = " and ".join(f"`{rule}`" for rule in rules)
    lever = Lever("rules", "; ".join(rule.text for rule in rules), "", f"without {texts} it would fit", 0.0)
    return trial.lever(lever, replace(case, rules=kept))


# --- how the model is cut ---------------------------------------------------------------------------------------------


def _cut_finer(case: Case, finer: Iterable[Model]) -> Iterator[tuple[Lever, Case]]:
    was = case.model.granularity
    for model in finer:
        to = model.granularity
        yield (
            Lever("granularity", was.value, to.value, f"--granularity {to} would fit", 0.0),
            replace(case, model=model),
        )


def _sliced(case: Case) -> Iterator[tuple[Lever, Case]]:
    """Experts in shares on all tiles of their region, which leaves fewer tiles half empty."""
    if case.experts is ExpertLayout.APART:
        to = ExpertLayout.SLICED
        lever = Lever("experts", case.experts.value, to.value, f"--experts {to} would fit", 0.0)
        yield lever, replace(case, experts=to)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _more_systems(case: Case, trial: Trial) -> Iterator[Lever]:
    """The fewest systems that fit, if they are not too many."""
    asked = case.machine.systems

    def with_more(extra: int) -> Case:
        return replace(case, machine=case.machine.resized(asked + extra))

    def lever(extra: int) -> Lever:
        return Lever("systems", asked, asked + extra, f"--systems {asked + extra} would fit", 0.0, 1)

    yield from _nearest(asked * (_MOST_TIMES_SYSTEMS - 1), with_more, lever, trial)


def _smaller(case: Case, option: str, field: str, step: int, trial: Trial) -> Iterator[Lever]:
    """The largest number of ``field`` that fits, a multiple of ``step`` where that is less than what was asked."""
    asked = getattr(case.workload, field)
    step = step if asked > step else 1
    count = -(-asked // step) - 1  # multiples below what was asked

    def with_less(less: int) -> Case:
        return replace(case, workload=replace(case.workload, **{field: (count + 1 - less) * step}))

    def lever(less: int) -> Lever:
        to = (count + 1 - less) * step
        return Lever(option, asked, to, f"--{option} {to} would fit", 0.0, step)

    yield from _nearest(count, with_less, lever, trial)


def _nearest(most: int, changed: Callable[[int], Case], named: Callable[[int], Lever], trial: Trial) -> Iterator[Lever]:
    """The least change of a number, in steps, that fits, if one of at most ``most`` steps does.

    Counting, which takes no time, tells from where on it may; placing and laying out are tried from there in strides
    that double, and then between the last two.
    """
    start = _least(1, most, lambda steps: may_fit(changed(steps)))
    if start is None:
        return
    counts_decide = changed(start).problem.is_plain
    found: dict[int, Lever | None] = {}

    def tried(steps: int) -> bool:
        if steps not in found:
            found[steps] = trial.lever(named(steps), changed(steps))
        return found[steps] is not None

    if not counts_decide and not tried(most):
        return
    low, high, stride = start, start, 1
    while not tried(high):
        if high == most:
            return
        low, high, stride = high + 1, min(most, high + stride), 2 * stride
    nearest = found[_least(low, high, tried) or high]
    if nearest:
        yield nearest


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The least number for which ``holds`` does, if from some number on it always does; ``None`` if there is none."""
    return least(low, high, holds) if low <= high and holds(high) else None


def may_fit(case: Case) -> bool:
    """Whether nothing that can be counted forbids a placement; for a chain without rules, whether one exists."""
    problem = case.problem
    if problem.is_plain and problem.is_chain and len(set(problem.wafers)) == 1:
        return fill(problem, sum(item.bytes for item in problem.items)) is not None
    fits_alone = all(item.tiles <= max(wafer.tiles for wafer in problem.wafers) for item in problem.items)
    return fits_alone and sum(item.tiles for item in problem.items) <= sum(wafer.tiles for wafer in problem.wafers)


# --- encodings --------------------------------------------------------------------------------------------------------


def _narrower(case: Case) -> Iterator[tuple[Lever, Case]]:
    for name in NARROWER:
        model = quantised(case.model, ENCODINGS[name])
        if model.weight_bytes < case.model.weight_bytes:
            was = ", ".join(sorted({p.encoding.name for p in _wide_weights(case.model.graph).values()}))
            bits = ENCODINGS[name].bits
            text = f"quantising the products' {was} weights to {bits} bits ({name}) would fit; it changes the model"
            yield Lever("encoding", was, name, text, 0.0), replace(case, model=model)


def quantised(model: Model, encoding: Encoding) -> Model:
    """The model as it would be if the weights of its products that are stored as floats were stored as ``encoding``."""
    wide = _wide_weights(model.graph)
    parameters = tuple(
        replace(parameter, encoding=encoding) if parameter.name in wide else parameter
        for parameter in model.graph.parameters
    )
    size = {parameter.name: parameter.stored_bytes for parameter in parameters}
    blocks = tuple(replace(block, weight_bytes=sum(size[name] for name in block.parameters)) for block in model.blocks)
    return replace(model, graph=replace(model.graph, parameters=parameters), blocks=blocks)


def _wide_weights(graph: Graph) -> dict[str, Parameter]:
    """Weights of products that are stored as floats of 16 bits or more."""
    floats = {dtype.value for dtype in (DType.BF16, DType.F16, DType.F32)}
    read = {node.inputs[1] for node in graph.nodes if OPS[node.op].kind is Kind.MATRIX}
    return {p.name: p for p in graph.parameters if p.name in read and p.encoding.name in floats}
