"""What the inputs of an exported language model mean, told by how the file uses them, never by their names.

A language model reads token ids, which choose rows of an embedding. Exports carry more inputs beside them: masks of
padding, positions, and what attention remembers of earlier tokens. The graph of a plan is a step function: it has
symbolic ``users`` and ``tokens``, and attention owns its cache. So masks are taken as all ones, and the sizes of what
is remembered become the symbol ``past`` until :mod:`partitioner.passes.step_function` takes it out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.helper

from ir.diagnostics import UsageError
from ir.graph import Graph
from ir.types import Dim, DType, Shape, Size, evaluate
from partitioner.frontends.onnx_file.inputs import Symbols, input_type
from partitioner.frontends.onnx_file.lowering import Lowering
from partitioner.frontends.onnx_file.reading import Array, Stored, Weight
from partitioner.passes.step_function import PAST, TOKENS, USERS, step_function
from partitioner.passes.tables import hold_tables, position_tables

_INTEGERS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32})
_MASKS = _INTEGERS | {onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
_RENAMES = frozenset({"Reshape", "Cast", "Identity", "Unsqueeze", "Squeeze", "Flatten"})
_MIXES = frozenset({"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"})
"""Operators that let tokens meet."""
_ENDS = _MIXES | {"CumSum", "Shape", "ReduceSum", "Size"}
"""Where a mask ends: it has become weights, a count or a position."""
_READS_POSITIONS = frozenset({"Cos", "Sin", "RotaryEmbedding"})
_CACHE_INPUTS = {"GroupQueryAttention": (3, 4), "MultiHeadAttention": (6, 7), "Attention": (4, 5)}
_CACHE_AXIS = 2


@dataclass(frozen=True, slots=True)
class Step:
    """How the inputs of a file make a step of a language model.

    Attributes:
        ids: the input of token ids [users, tokens].
        masks: inputs that are taken as all ones.
        pasts: inputs that hold what attention remembers, with their axis of tokens.
        shapes: the shape of each of these inputs.
        symbols: sizes that stand for the file's own symbols.
    """

    ids: str
    masks: frozenset[str]
    pasts: Mapping[str, int]
    shapes: Mapping[str, Shape]
    symbols: Mapping[str, Size]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        found = [f"{name} is taken as all ones: no token is padding" for name in sorted(self.masks)]
        if self.pasts:
            found.append(f"attention keeps its cache: {len(self.pasts)} inputs for earlier tokens are left out")
        return tuple(found)


def read_step(graph: Any, weights: Iterable[str]) -> Step | None:
    """How ``graph`` is a step of a language model for any number of tokens; ``None`` where it is not."""
    uses = _Uses.of(graph, frozenset(weights))
    ids = uses.token_ids()
    if ids is None or not any(node.op_type in _MIXES for node in graph.node):
        return None
    users, tokens = (_dimension(size, symbol) for size, symbol in zip(uses.dims(ids), (USERS, TOKENS), strict=True))
    if tokens != TOKENS:
        return None
    pasts = uses.pasts()
    past: Size = PAST if pasts else 0
    masks = frozenset(name for name in uses.inputs if name != ids and uses.is_mask(name))
    shapes: dict[str, Shape] = {ids: (users, tokens)}
    symbols: dict[str, Size] = {}
    for size, meaning in zip(uses.dims(ids), (users, tokens), strict=True):
        symbols |= {size.dim_param: meaning} if size.dim_param else {}
    for name in masks:
        shapes[name] = (users, past + tokens)
    for name, axis in pasts.items():
        dims = uses.dims(name)
        shapes[name] = tuple(
            PAST if index == axis else _dimension(size, USERS if index == 0 else TOKENS)
            for index, size in enumerate(dims)
        )
        symbols.setdefault(dims[axis].dim_param, PAST)
    return Step(ids, masks, pasts, shapes, symbols)


def bind_inputs(lowering: Lowering, step: Step) -> None:
    """Declare the inputs whose meaning is known: token ids, what is remembered, and ones in the place of masks."""
    symbols = Symbols(step.symbols)
    for value in lowering.file.graph.input:
        if value.name in step.shapes:
            type_ = input_type(value, symbols).with_shape(step.shapes[value.name])
            name = lowering.unique(value.name)
            if value.name in step.masks:
                one = 1.0 if type_.dtype.is_float else True if type_.dtype is DType.BOOL else 1
                ones: dict[str, Any] = {"dtype": type_.dtype, "shape": type_.shape, "value": one}
                lowering.values[value.name] = lowering.builder.add("full", [], "", [name], **ones)
            else:
                lowering.values[value.name] = lowering.builder.input(name, type_)
    lowering.notes += step.notes


def as_step(graph: Graph, step: Step, lowering: Lowering) -> Graph:
    """The step function that the file's graph computes.

    Raises:
        UnsupportedModelError: W0310, something else than attention reads what is remembered.
    """
    names = {name: value for name, value in lowering.values.items() if isinstance(value, str)}
    made = step_function(graph, names[step.ids], frozenset(names[name] for name in step.pasts))
    graph, lowering.outputs = made.graph, made.outputs
    tables = {name: _items(lowering.parameters[name]) for name in position_tables(graph)}
    return hold_tables(graph, {name: items for name, items in tables.items() if items is not None})


def original_inputs(lowering: Lowering, step: Step | None, given: Mapping[str, Array]) -> dict[str, Array]:
    """What the file's own graph reads for the inputs of the step function: ones for masks, nothing remembered."""
    if step is None:
        return dict(given)
    names = {name: value for name, value in lowering.values.items() if isinstance(value, str)}
    users, tokens = given[names[step.ids]].shape
    sizes = {"users": users, "tokens": tokens, "past": 0}
    feeds: dict[str, Array] = {}
    for value in lowering.file.graph.input:
        if value.name in lowering.file.weights:
            continue
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = tuple(evaluate(size, sizes) for size in step.shapes.get(value.name, ()))
        fill = np.ones if value.name in step.masks else np.zeros
        feeds[value.name] = given.get(names[value.name], fill(shape, dtype))
    return feeds


def _items(weight: Weight | Stored) -> tuple[float, ...] | None:
    """The elements of a small weight; ``None`` where its file is not there, which planning does without."""
    try:
        return tuple(float(item) for item in weight.array().reshape(-1))
    except UsageError:
        return None


def _dimension(size: Any, symbol: Dim) -> Size:
    if size.dim_param.isdecimal():
        return int(size.dim_param)
    return symbol if size.dim_param or not size.HasField("dim_value") or size.dim_value < 0 else int(size.dim_value)


@dataclass(frozen=True, slots=True)
class _Uses:
    """Who computes and who reads each value of a file."""

    inputs: Mapping[str, Any]
    weights: frozenset[str]
    producer: Mapping[str, Any]
    readers: Mapping[str, list[Any]]

    @staticmethod
    def of(graph: Any, weights: frozenset[str]) -> _Uses:
        readers: defaultdict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                readers[name].append(node)
        inputs = {value.name: value for value in graph.input if value.name not in weights}
        return _Uses(inputs, weights, {name: node for node in graph.node for name in node.output}, readers)

    def dims(self, name: str) -> Any:
        """The axes of an input."""
        return self.inputs[name].type.tensor_type.shape.dim

    def token_ids(self) -> str | None:
        """The first input of integers [users, tokens] that chooses rows of a weight."""
        for nodes in self.readers.values():
            for node in nodes:
                if self._chooses_rows(node):
                    name = str(node.input[1])
                    while name not in self.inputs and name in self.producer:
                        if self.producer[name].op_type not in _RENAMES:
                            break
                        name = str(self.producer[name].input[0])
                    if name in self.inputs and self._has_form(name, _INTEGERS, 2):
                        return name
        return None

    def _chooses_rows(self, node: Any) -> bool:
        return bool(node.op_type == "Gather" and node.input[0] in self.weights)

    def _has_form(self, name: str, types: frozenset[int], rank: int) -> bool:
        return self.inputs[name].type.tensor_type.elem_type in types and len(self.dims(name)) == rank

    def pasts(self) -> dict[str, int]:
        """Inputs that new keys or values are joined to, with the axis."""
        found: dict[str, int] = {}
        for name in self.inputs:
            for node in self.readers.get(name, ()):
                axis = self._joining_axis(name, node)
                if axis is not None and axis < len(self.dims(name)) and _dimension(self.dims(name)[axis], PAST) == PAST:
                    found[name] = axis
        return found

    def _joining_axis(self, name: str, node: Any) -> int | None:
        if node.op_type in _CACHE_INPUTS and name in [
            node.input[i] for i in _CACHE_INPUTS[node.op_type] if i < len(node.input)
        ]:
            return _CACHE_AXIS
        if node.op_type != "Concat" or node.input[0] != name:
            return None
        axis = next(entry.i for entry in node.attribute if entry.name == "axis")
        return int(axis) if axis >= 0 else int(axis) + len(self.dims(name))

    def is_mask(self, name: str) -> bool:
        """Whether the input decides nothing but which tokens see which: it ends in attention, or nowhere."""
        if not self._has_form(name, _MASKS, 2):
            return False
        mixed = self._downstream(node.output for node in self.producer.values() if node.op_type in _MIXES)
        pending, seen = [name], {name} | mixed
        while pending:
            value = pending.pop()
            for node in self.readers.get(value, ()):
                if node.op_type in _READS_POSITIONS or (self._chooses_rows(node) and value == node.input[1]):
                    return False
                if node.op_type not in _ENDS:
                    fresh = set(node.output) - seen
                    seen |= fresh
                    pending += fresh
        return True

    def _downstream(self, starts: Iterable[Iterable[str]]) -> set[str]:
        """Everything that is computed from some values, themselves included."""
        pending = [name for names in starts for name in names]
        found = set(pending)
        while pending:
            for node in self.readers.get(pending.pop(), ()):
                fresh = set(node.output) - found
                found |= fresh
                pending += fresh
        return found
