"""The step property: tokens meet only in operators that declare state.

Only a graph with this property serves prefill and decode alike: what it computes for a token is then a function of that
token, its position, and what the state remembers. It is proved axis by axis. Every value that depends on an input knows
of which symbols and constants each of its axes is made, in order (``users`` before ``tokens`` where both were joined),
and every operator says which axes of its result follow its operands' (:data:`ir.ops.definition.Axes`). Then

- no operator but a stateful one lets elements meet along an axis of users or tokens,
- operands whose elements are paired agree on the order of users and tokens,
- nothing counts tokens from the start of the step, which is not the start of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ir.diagnostics import Diagnostic, Fact, UnsupportedModelError
from ir.graph import Graph, Node
from ir.liveness import token_dependent
from ir.ops import OPS, Kind
from ir.types import Dim, Size, symbols_of

STEP_SYMBOLS = ("users", "tokens")
"""What a step is of any number of; their order where an axis joins both."""

Factor = int | str | Dim
"""Of an axis: a constant, one symbol, or a size that is no product."""
Layout = tuple[tuple[Factor, ...], ...]
"""For each axis its factors, slowest first."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A node at which tokens, or users, meet outside of an operator with state."""

    node: Node
    reason: str


TEXT_INPUTS = frozenset({"input_ids", "position_ids"})
"""What a step takes of a text, at most."""


def takes_tokens(graph: Graph) -> bool:
    """Whether a step is of any number of tokens; else its sizes are fixed."""
    return any("tokens" in symbols_of(size) for value in graph.inputs for size in value.type.shape)


def continues_text(graph: Graph) -> bool:
    """Whether a step takes token ids (and positions) alone, which see earlier ones only: what continues a text."""
    causal = all(node.attributes["causal"] for node in graph.nodes if node.op == "attention")
    names = {value.name for value in graph.inputs}
    return takes_tokens(graph) and causal and "input_ids" in names and names <= TEXT_INPUTS


def require_step(graph: Graph) -> Graph:
    """Return ``graph`` unchanged if it has the step property, is of no tokens, or of whole texts: an encoder, whose
    tokens see later ones, is never run token by token.

    Raises:
        UnsupportedModelError: W0308, once for each kind of node that breaks it, at the first.
    """
    breaches = find_breaches(graph) if takes_tokens(graph) and not takes_whole_texts(graph) else ()
    alike: dict[tuple[str, str], list[Breach]] = {}
    for breach in breaches:
        alike.setdefault((breach.node.op, breach.reason), []).append(breach)
    if alike:
        raise UnsupportedModelError(*map(_report, alike.values()))
    return graph


def takes_whole_texts(graph: Graph) -> bool:
    """Whether some token sees tokens after it, so that a step is a text from its beginning to its end."""
    return any(
        OPS[node.op].kind is Kind.STATE
        and not node.attributes.get("causal", True)
        and all("tokens" in symbols_of(graph.types[name].shape[2]) for name in node.inputs[:2])
        for node in graph.nodes
    )


def find_breaches(graph: Graph) -> tuple[Breach, ...]:
    """The nodes that break the step property; what is computed from them is not looked at again."""
    depends = token_dependent(graph)
    layouts: dict[str, Layout] = {value.name: _declared(value.type.shape) for value in graph.inputs}
    breaches: list[Breach] = []
    for node in graph.nodes:
        try:
            result = _layout(graph, node, layouts)
        except _MeetingError as error:
            breaches.append(Breach(node, str(error)))
            result = None
        for value in node.results:
            if value.name in depends:
                layouts[value.name] = result if result is not None else _declared(value.type.shape)
    return (*breaches, *_pairs(graph, layouts))


def _pairs(graph: Graph, layouts: dict[str, Layout]) -> list[Breach]:
    """Outputs that have more than one axis of tokens: each of their elements is of two tokens."""
    return [
        Breach(graph.nodes[graph.producer[name]], "the output is of pairs of tokens")
        for name in graph.outputs
        if name in graph.producer and sum("tokens" in _symbols(axis) for axis in layouts.get(name, ())) > 1
    ]


class _MeetingError(ValueError):
    """Why a node breaks the property."""


def _layout(graph: Graph, node: Node, layouts: dict[str, Layout]) -> Layout | None:
    """How the results of ``node`` are laid out; ``None`` where they depend on no input.

    Raises:
        _MeetingError: tokens or users meet.
    """
    if node.op == "arange" and _symbols(_declared(node.result.type.shape)[0]):
        raise _MeetingError("it counts within the step, which says nothing of a token's position in the text")
    if not any(name in layouts for name in node.inputs):
        return None
    if node.op == "reshape":
        return _regrouped(layouts[node.inputs[0]], node.result.type.shape)
    definition = OPS[node.op]
    operands = [graph.types[name] for name in node.inputs]
    follow = definition.follow(operands, [value.type for value in node.results], node.attributes)
    shape = node.result.type.shape
    found: list[tuple[Factor, ...] | None] = [None] * len(shape)
    for name, axes in zip(node.inputs, follow, strict=True):
        for factors, size, target in zip(layouts.get(name, ()), graph.types[name].shape, axes, strict=False):
            if target is None:
                _require_no_meeting(factors, definition.kind)
            elif size == shape[target]:
                found[target] = _agreed(found[target], factors)
    return tuple(factors if factors is not None else _factors(size) for factors, size in zip(found, shape, strict=True))


def _require_no_meeting(factors: tuple[Factor, ...], kind: Kind) -> None:
    symbols = _symbols(factors)
    if symbols and kind is not Kind.STATE:
        raise _MeetingError(f"{' and '.join(symbols)} meet outside of an operator with state")


def _agreed(known: tuple[Factor, ...] | None, factors: tuple[Factor, ...]) -> tuple[Factor, ...]:
    if known is not None and _order(known) != _order(factors):
        raise _MeetingError("it pairs elements of different users or tokens")
    return factors if known is None else known


def _order(factors: Iterable[Factor]) -> tuple[Factor, ...]:
    """The factors without constants where no symbol is among them: then they say nothing about tokens."""
    factors = tuple(factors)
    return _merged(factors) if _symbols(factors) else ()


def _declared(shape: Sequence[Size]) -> Layout:
    return tuple(_factors(size) for size in shape)


def _factors(size: Size) -> tuple[Factor, ...]:
    """The factors of a size that no operand decides."""
    if isinstance(size, int):
        return (size,)
    if len(size.terms) != 1:
        return (size,)
    ((symbols, coefficient),) = size.terms
    first = sorted(symbols, key=lambda name: (STEP_SYMBOLS.index(name) if name in STEP_SYMBOLS else 2, name))
    return (*first, *((coefficient,) if coefficient != 1 else ()))


def _symbols(factors: Iterable[Factor]) -> tuple[str, ...]:
    """The step's symbols among the factors of an axis."""
    held = {name for factor in factors for name in ({factor} if isinstance(factor, str) else symbols_of(factor))}
    return tuple(name for name in STEP_SYMBOLS if name in held)


def _merged(factors: Iterable[Factor]) -> tuple[Factor, ...]:
    """The same factors with constants beside each other as one, and no ones."""
    merged: list[Factor] = []
    for factor in factors:
        if factor == 1:
            continue
        last = merged[-1] if merged else None
        if isinstance(factor, int) and isinstance(last, int):
            merged[-1] = last * factor
        else:
            merged.append(factor)
    return tuple(merged)


def _regrouped(layout: Layout, shape: Sequence[Size]) -> Layout:
    """The layout after a reshape: the same factors in the same order, divided anew among axes."""
    rest = list(_merged(factor for axis in layout for factor in axis))
    return tuple(_take(rest, size) for size in shape)


def _take(rest: list[Factor], size: Size) -> tuple[Factor, ...]:
    """Take from the front of ``rest`` the factors that make ``size``."""
    wanted = list(_factors(size))
    symbols = [factor for factor in wanted if not isinstance(factor, int)]
    constant = next((factor for factor in wanted if isinstance(factor, int)), 1)
    taken: list[Factor] = []
    while symbols or constant != 1:
        factor = rest.pop(0) if rest else 1
        if factor in symbols:
            symbols.remove(factor)
        elif isinstance(factor, int) and factor > 1 and constant % factor == 0:
            constant //= factor
        elif isinstance(factor, int) and constant > 1 and factor % constant == 0 and not symbols:
            rest.insert(0, factor // constant)
            factor, constant = constant, 1
        else:
            raise _MeetingError("it regroups users or tokens")
        taken.append(factor)
    return tuple(taken) or (1,)


def _report(alike: Sequence[Breach]) -> Diagnostic:
    breach = alike[0]
    facts: dict[str, Fact] = {"operator": breach.node.op, "value": breach.node.result.name, "occurrences": len(alike)}
    help_ = ("at fixed sizes the model can still be compiled: --fix tokens=128, for example",)
    fault = f"the model cannot be run token by token: at {breach.node.op}, {breach.reason}"
    return Diagnostic("W0308", fault, breach.node.origin, facts, help_)
