"""Repeated layers: export each distinct kind once, and stamp the graph of the whole model from these bodies.

Hundreds of layers differ only in which weights they read. A graph that was exported with one layer of each kind is cut
into what comes before the layers, the layers' bodies, and what comes after; the bodies are then repeated in the order
of the model, each with its own weights and names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ir.graph import Graph, Node, Parameter, Value


@dataclass(frozen=True, slots=True)
class Layers:
    """Where the repeated layers stand.

    Attributes:
        path: module path of the list of layers.
        kind_of: for each layer of the model, the position among the exported layers whose body it repeats.
    """

    path: str
    kind_of: tuple[int, ...]


class NotRepeatableError(ValueError):
    """Layers exchange more than one value with their neighbours; the model must be exported whole."""


def stamp(graph: Graph, layers: Layers, parameters: Sequence[Parameter]) -> Graph:
    """The graph of the whole model from ``graph``, which holds one layer of each kind; ``parameters`` are the model's.

    Raises:
        NotRepeatableError: a body reads or yields more than the one value that layers hand on.
    """
    prologue, bodies, epilogue = _cut(graph, layers)
    outputs = [_only_output(graph, body) for body in bodies]
    entries = _entries(graph, prologue, bodies, outputs)
    nodes = list(prologue)
    current = entries[0]
    for index, kind in enumerate(layers.kind_of):
        old, new = f"{layers.path}.{kind}", f"{layers.path}.{index}"
        renamed = {entries[kind]: current}
        renamed |= {value.name: f"{index}/{value.name}" for node in bodies[kind] for value in node.results}
        nodes += [_rename(node, renamed, old, new) for node in bodies[kind]]
        current = renamed[outputs[kind]]
    last = {outputs[-1]: current}
    nodes += [_rename(node, last, "", "") for node in epilogue]
    names = tuple(last.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=tuple(nodes), parameters=tuple(parameters), outputs=names)


def _cut(graph: Graph, layers: Layers) -> tuple[list[Node], list[list[Node]], list[Node]]:
    """The nodes before, in and after the layers; those in a layer are known by their origin."""
    bodies: list[list[Node]] = [[] for _ in range(max(layers.kind_of) + 1)]
    prologue: list[Node] = []
    epilogue: list[Node] = []
    for node in graph.nodes:
        rest = node.origin.removeprefix(f"{layers.path}.")
        if rest != node.origin and rest.split(".")[0].isdigit():
            bodies[int(rest.split(".")[0])].append(node)
        elif any(bodies):
            epilogue.append(node)
        else:
            prologue.append(node)
    if not all(bodies):
        raise NotRepeatableError("a layer has no nodes of its own")
    return prologue, bodies, epilogue


def _only_output(graph: Graph, body: list[Node]) -> str:
    inside = {id(node) for node in body}
    read_outside = [
        value.name
        for node in body
        for value in node.results
        if value.name in graph.outputs
        or any(id(graph.nodes[reader]) not in inside for reader in graph.consumers.get(value.name, ()))
    ]
    if len(read_outside) != 1:
        raise NotRepeatableError(f"a layer yields {len(read_outside)} values")
    return read_outside[0]


def _entries(graph: Graph, prologue: list[Node], bodies: list[list[Node]], outputs: list[str]) -> list[str]:
    """For each body the name under which the value handed on by the layer before it is read."""
    results = {value.name: value for node in prologue for value in node.results}
    read = {name for node in bodies[0] for name in node.inputs}
    handed_on = graph.types[outputs[0]]
    candidates = [v.name for v in (*graph.inputs, *results.values()) if v.name in read and v.type == handed_on]
    if len(candidates) != 1:
        raise NotRepeatableError(f"the first layer reads {len(candidates)} values of the type that layers hand on")
    for before, body in enumerate(bodies[1:]):
        foreign = {name for node in body for name in node.inputs} & set(outputs) - {outputs[before]}
        if graph.types[outputs[before + 1]] != handed_on or foreign - {outputs[before + 1]}:
            raise NotRepeatableError("layers read more than the layer before them")
    return [candidates[0], *outputs[:-1]]


def _rename(node: Node, renamed: dict[str, str], old_path: str, new_path: str) -> Node:
    def name_of(name: str) -> str:
        if name in renamed:
            return renamed[name]
        return _move(name, old_path, new_path)

    return Node(
        node.op,
        tuple(name_of(name) for name in node.inputs),
        tuple(Value(renamed.get(value.name, value.name), value.type) for value in node.results),
        node.attributes,
        _move(node.origin, old_path, new_path),
    )


def _move(path: str, old: str, new: str) -> str:
    if old and (path == old or path.startswith(f"{old}.")):
        return new + path[len(old) :]
    return path
