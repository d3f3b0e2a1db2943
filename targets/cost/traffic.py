"""What a step takes, said beforehand: every figure that the emulator counts while it runs (:mod:`targets.counters`).

Both read the same programs, and what each kind of kernel moves is defined in :mod:`targets.program.kinds`. All else is
derived apart: here in closed form, by stretches of elements (:mod:`targets.cost.paths`), without computing anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ir.layout import Ints
from ir.model import Model
from ir.plan import Plan
from ir.types import evaluate
from targets.cost.attention_traffic import attention_ops
from targets.cost.kernels import Site, broadcast, count, moved
from targets.cost.laid_out import LaidOut, lay_out
from targets.cost.paths import relay, spread
from targets.counters import Counters, OpCount, Routing
from targets.program.instructions import Instruction, Program, write_programs
from targets.program.kinds import KernelKind
from targets.program.spread import remembered_tokens
from targets.program.turns import plans_of_turns


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one user.

    Attributes:
        tokens: new ones.
        remembered: tokens of this user before them.
        user: the user's number, which decides whose copies of blocks are met.
        sizes: what other symbols of the graph stand for.
    """

    tokens: int = 1
    remembered: int = 0
    user: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def bindings(self) -> dict[str, int]:
        """What the graph's symbols stand for."""
        return {"users": 1, "tokens": self.tokens, **self.sizes}


@dataclass(frozen=True)
class Predictor:
    """A plan read once, to predict any number of steps; ``turns``: the programs that each turn of users meets, and
    where their weights lie.
    """

    model: Model
    plan: Plan
    turns: tuple[tuple[tuple[Program, LaidOut], ...], ...]

    @staticmethod
    def of(model: Model, plan: Plan) -> Predictor:
        """For ``plan``.

        Raises:
            CheckError: W0607, the plan does not fit the model; W0608, a cache does not suffice to compute keys and
                values again.
        """
        turns = (write_programs(model, turn) for turn in plans_of_turns(model, plan))
        return Predictor(model, plan, tuple(tuple((p, lay_out(p, model.graph)) for p in own) for own in turns))

    def step(self, step: Step, routing: Routing | None = None) -> Counters:
        """What one step takes; see :func:`predict`."""
        types = self.model.graph.types
        total = Counters()
        for program, weights in self.turns[step.user % len(self.turns)]:
            total += self._block(Site(program, weights, types, step.bindings, routing), step)
        return total

    def _block(self, site: Site, step: Step) -> Counters:
        """One run of one block."""
        program, title = site.program, site.program.placed.title
        ops: dict[tuple[str, str], OpCount] = {}
        by_reference: dict[str, int] = {}
        routing: dict[str, Ints] = {}

        def add(name: str, counted: OpCount) -> None:
            if counted != OpCount():
                ops[title, name] = ops.get((title, name), OpCount()) + counted

        for name, brought in _brought(site):
            add(name, brought)
        for instruction, where in _runs(site, step):
            name, op = instruction.node.result.name, instruction.node.op
            if instruction.kind is KernelKind.ATTENTION:
                add(name, self._attention(instruction, program, step))
                continue
            add(name, count(instruction, where))
            if instruction.kind is KernelKind.REFERENCE:
                by_reference[op] = by_reference.get(op, 0) + 1
            if instruction.kind is KernelKind.EXPERTS:
                routing[name] = where.routes(instruction.node)
        return Counters(ops, _sent(site), by_reference, routing)

    def _attention(self, instruction: Instruction, program: Program, step: Step) -> OpCount:
        graph, context = self.model.graph, self.plan.workload.context
        (counted,) = attention_ops(graph, program, instruction, step.tokens, step.remembered, context).values()
        return counted


def _runs(site: Site, step: Step) -> Iterator[tuple[Instruction, Site]]:
    """What a block runs; keys and values that are computed again are so for all tokens that the caches hold then."""
    for instruction in site.program.instructions:
        cached = instruction.cache
        if cached and cached.recompute:
            tokens = remembered_tokens(cached.cache, step.tokens, step.remembered)
            past = replace(site, bindings={**site.bindings, "tokens": tokens})
            yield from ((earlier, past) for earlier in cached.recompute)
        yield instruction, site


def _brought(site: Site) -> Iterator[tuple[str, OpCount]]:
    """What a block reads of others, by the values' names: over the wafer's mesh, or from another wafer."""
    for name, source in site.program.relays:
        way = (relay if site.is_apart(name) else spread)(site.elements(name), source, site.region)
        yield from ((name, piece) for piece in moved("relay", way, site.token_bytes(name)))
    for name in site.program.arrivals:
        if not site.is_apart(name):
            yield from ((name, piece) for piece in broadcast(site, name))


def _sent(site: Site) -> dict[tuple[int, int], int]:
    """Bytes that a block sends to other wafers."""
    links: dict[tuple[int, int], int] = {}
    for sent in site.program.sends:
        ends = (sent.source_wafer, sent.target_wafer)
        links[ends] = links.get(ends, 0) + evaluate(site.types[sent.value].bytes, site.bindings)
    return links


def predict(model: Model, plan: Plan, step: Step, routing: Routing | None = None) -> Counters:
    """What the emulator counts in ``step``, exactly: operator by operator, collective by collective, link by link.

    Which experts a token meets is known only afterwards. ``routing`` tells it as :attr:`Counters.routing` does, for
    each product by experts. Without it, tokens choose experts in turn, which so serve as many to within one
    (:func:`targets.cost.routing.even_routing`): multiply-adds are then those of any routing, and what moves is what
    this one moves, in whole tokens.

    Raises:
        KeyError: a symbol of the graph has no size in ``step``, or ``routing`` lacks a choice.
        CheckError: W0607, W0608, as :meth:`Predictor.of`.
    """
    return Predictor.of(model, plan).step(step, routing)
