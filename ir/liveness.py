"""Which values are alive while a part of a graph runs, and what they take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

from ir.graph import Graph
from ir.ops import OPS, Kind


def token_dependent(graph: Graph) -> frozenset[str]:
    """Names of values that depend on an input of the graph (others are constants of the model)."""
    depends = {value.name for value in graph.inputs}
    for node in graph.nodes:
        if depends.intersection(node.inputs):
            depends.update(value.name for value in node.results)
    return frozenset(depends)


def live_bytes(graph: Graph, nodes: Sequence[int], depends: frozenset[str]) -> tuple[int, ...]:
    """Bytes of the values alive at once, for one token: before the first of ``nodes`` (indices, in order), and while
    each of them runs.

    What is read elsewhere stays to the end. Views take no memory, and what does not depend on the token (``depends``)
    is counted with the weights.
    """
    inside = set(nodes)
    base: dict[str, str] = {}
    last_read: dict[str, int] = {}
    for index in nodes:
        node = graph.nodes[index]
        operands = [base.get(name, name) for name in node.inputs if name in depends]
        last_read |= dict.fromkeys(operands, index)
        if OPS[node.op].kind is Kind.VIEW and operands:
            base[node.result.name] = operands[0]
    for value in chain.from_iterable(graph.nodes[index].results for index in nodes):
        readers = graph.consumers.get(value.name, ())
        if value.name in graph.outputs or any(reader not in inside for reader in readers):
            last_read[base.get(value.name, value.name)] = nodes[-1]
    dying: defaultdict[int, list[str]] = defaultdict(list)
    for name, index in last_read.items():
        dying[index].append(name)
    alive = {name for name in last_read if graph.producer.get(name, -1) not in inside}
    total = sum(graph.token_bytes[name] for name in alive)
    held = [total]
    for index in nodes:
        results = [value.name for value in graph.nodes[index].results]
        born = {name for name in results if name in depends and name not in base} - alive
        alive |= born
        total += sum(graph.token_bytes[name] for name in born)
        held.append(total)
        dead = alive.intersection((*dying[index], *(name for name in born if name not in last_read)))
        alive -= dead
        total -= sum(graph.token_bytes[name] for name in dead)
    return tuple(held)
