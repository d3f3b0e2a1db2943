"""Writing in place, made functional: who shares memory with whom, and what a write through a view means for the whole.

``torch.export`` keeps writes, and ``run_decompositions`` removes them by tracing everything a second time, which takes
longer than the export itself. Fake tensors know which storage they lie in, so it takes no second trace: after a write
through a view the tensor that is viewed gets a new value, and its other views are computed again when they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ir.types import Size
from partitioner.frontends.aten import RULES, Translator

_RESHAPES = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten")
_REPEATS = ("alias", "detach", "contiguous", "to", "_to_copy", "type_as", "dropout", "clone", "expand_as")


def is_write(node: fx.Node) -> bool:
    """Whether ``node`` writes into its first operand."""
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


class Memory:
    """The nodes of a program that lie in written memory: what each is a view of, and whether its value is of today."""

    def __init__(self, graph: fx.Graph) -> None:
        self._storage: dict[fx.Node, int] = {}
        self._source: dict[fx.Node, fx.Node] = {}
        self._writes: Counter[int] = Counter()
        self._seen: dict[fx.Node, int] = {}
        written = {_storage_of(node.args[0]) for node in graph.nodes if is_write(node)}
        for node in graph.nodes if written else ():
            storage = _storage_of(node)
            if storage is not None and storage in written:
                self._storage[node] = storage
                sources = [other for other in node.all_input_nodes if self._storage.get(other) == storage]
                self._source |= {node: sources[0]} if sources else {}

    def is_stale(self, node: fx.Node) -> bool:
        """Whether the memory of ``node`` was written since its value was computed."""
        return node in self._storage and self._seen.get(node, 0) != self._writes[self._storage[node]]

    def is_fresh(self, node: fx.Node) -> None:
        """The value of ``node`` has just been computed."""
        if node in self._storage:
            self._seen[node] = self._writes[self._storage[node]]

    def path(self, node: fx.Node) -> list[fx.Node]:
        """``node``, what it views, and so on, to the tensor that owns the memory."""
        found = [node]
        while found[-1] in self._source:
            found.append(self._source[found[-1]])
        return found

    def write(self, path: Sequence[fx.Node]) -> None:
        """All views of the memory but those of ``path`` are out of date from now on."""
        self._writes[self._storage[path[0]]] += 1
        for node in path:
            self.is_fresh(node)


def _storage_of(node: fx.Node) -> int | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def functional_name(name: str) -> str:
    """The name of the operator that computes what ``name`` writes: ``add`` for ``add_``."""
    base, dot, overload = name.partition(".")
    return base.removesuffix("_") + dot + overload


def written_back(t: Translator, name: str, source: str, value: str, *args: Any, **kwargs: Any) -> str:
    """``source`` after ``value`` was written into its view ``name(source, *args)``.

    Raises:
        NotImplementedError: writing through such a view.
    """
    base = name.split(".")[0]
    if base != functional_name(base):
        return value  # what a write yields is what it wrote to
    if base in _RESHAPES:
        return _shaped(t, value, t.type(source).shape)
    if base in _REPEATS and t.type(value) == t.type(source):
        return value
    undo = _UNDO.get(base)
    if undo is None:
        raise NotImplementedError(f"writing through {base}")
    return undo(t, source, value, *args, **kwargs)


def _shaped(t: Translator, x: str, shape: tuple[Size, ...]) -> str:
    return x if t.type(x).shape == shape else t.add("reshape", x, shape=shape)


def _transposed_back(t: Translator, source: str, value: str, *axes: int) -> str:
    order = list(range(len(t.type(source).shape)))
    a, b = axes or (0, 1)
    order[a], order[b] = order[b], order[a]
    return t.add("transpose", value, permutation=tuple(order))


def _permuted_back(t: Translator, _source: str, value: str, dims: Sequence[int]) -> str:
    positive = [dim % len(dims) for dim in dims]
    return t.add("transpose", value, permutation=tuple(positive.index(axis) for axis in range(len(dims))))


_UNDO: dict[str, Callable[..., str]] = {
    "slice": lambda t, source, value, *args: RULES["slice_scatter"](t, source, value, *args),
    "select": lambda t, source, value, *args: RULES["select_scatter"](t, source, value, *args),
    "transpose": _transposed_back,
    "t": _transposed_back,
    "permute": _permuted_back,
}
