"""ONNX's own interface of backends: a model is lowered to our graph and runs by the graph's reference meaning.

``onnx.backend.test`` and everything else that is written for :class:`onnx.backend.base.Backend` can examine the
compiler through it. Where lowering must know the contents of an input, such as a shape, the model is lowered when
:meth:`GraphRep.run` is called, for that input's value; a file that is compiled must hold such values itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.backend.base

from ir.builder import GraphBuilder
from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.graph import Graph
from ir.interpret import interpret
from ir.types import TensorType
from ir.verify import verify
from partitioner.frontends.onnx_file import functions, lower_file
from partitioner.frontends.onnx_file.arrays import Array, element_type, to_numpy, to_torch
from partitioner.frontends.onnx_file.constants import LARGEST_ELEMENTS, Known
from partitioner.frontends.onnx_file.lowering import Lowering
from partitioner.frontends.onnx_file.nodes import ABSENT, Listed, Operand
from partitioner.frontends.onnx_file.reading import read_model
from partitioner.frontends.onnx_file.table import check_operators

_PATH = Path("model.onnx")
Tensors: TypeAlias = Mapping[str, Any]
"""Tensors of torch by name."""
Evaluate: TypeAlias = Callable[[Graph, Tensors, Tensors], Tensors]


class GraphRep(onnx.backend.base.BackendRep):  # type: ignore[misc]
    """A model that can be run again and again.

    ``evaluate`` runs a lowered graph: from the graph, weights and inputs by name, its values by name.
    """

    def __init__(self, model: onnx.ModelProto, evaluate: Evaluate | None = None) -> None:
        self._evaluate = evaluate or _by_reference
        self._data = model.SerializeToString()
        weights = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [value.name for value in model.graph.input if value.name not in weights]

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], **_kwargs: Any) -> tuple[Any, ...]:
        """The outputs of the model.

        Args:
            inputs: arrays in the order of the model's inputs, or by name; lists of arrays where the model takes
                lists, ``None`` where it takes an optional value. Inputs without a shape take that of theirs.

        Raises:
            UnsupportedModelError: as for :func:`partitioner.frontends.onnx_file.load_onnx`.
        """
        if not isinstance(inputs, Mapping):
            inputs = dict(zip(self._inputs, inputs, strict=False))
        given = {name: np.asarray(value) if _is_array(value) else value for name, value in inputs.items()}
        lowering, graph, feeds = self._lower(given)
        return _run(lowering, graph, feeds, self._evaluate)

    def _lower(self, given: Mapping[str, Any]) -> tuple[Lowering, Graph, dict[str, Array]]:
        """Lower the model; each time that it turns out that inputs must be known, once more with their values."""
        bound: dict[str, Known] = {}
        while True:
            lowering, feeds = self._open(given), dict[str, Array]()
            for value in lowering.file.graph.input:
                if value.name in given and not value.type.HasField("tensor_type"):
                    lowering.values[value.name] = _declared(lowering, value.name, given[value.name], feeds)
            try:
                graph = verify(lower_file(lowering, bound))
                names = {value.name for value in graph.inputs} - feeds.keys()
                operands = {name: lowering.values[name] for name in given}
                feeds |= {op: given[name] for name, op in operands.items() if isinstance(op, str) and op in names}
                return lowering, graph, feeds
            except UnsupportedModelError:
                more = {
                    name: given[name]
                    for name in _inputs_behind(lowering)
                    if isinstance(given.get(name), np.ndarray)
                    and name not in bound
                    and given[name].size <= LARGEST_ELEMENTS
                }
                if not more:
                    raise
                bound |= {name: Known.from_array(element_type(array), array) for name, array in more.items()}

    def _open(self, given: Mapping[str, Any]) -> Lowering:
        model = onnx.ModelProto.FromString(self._data)
        for value in model.graph.input:
            if value.name in given and value.type.HasField("tensor_type"):
                _fix_shape(value.type.tensor_type, given[value.name].shape)
        file = read_model(model, _PATH, hashlib.sha256(self._data).hexdigest(), check_operators)
        return Lowering(file, GraphBuilder(file.graph.name or "model"), functions.call)


def _fix_shape(type_: Any, shape: Sequence[int]) -> None:
    """Give a tensor's type the sizes that it lacks."""
    if not type_.HasField("shape") or len(type_.shape.dim) != len(shape):
        type_.shape.Clear()
        type_.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
        type_.shape.SetInParent()
    for dimension, size in zip(type_.shape.dim, shape, strict=True):
        if not dimension.HasField("dim_value"):
            dimension.dim_value = size


def _inputs_behind(lowering: Lowering) -> Iterable[str]:
    """The model's inputs from which the values are computed that had to be known."""
    wanted = set(lowering.wanted)
    for node in reversed(lowering.builder.nodes):
        if any(value.name in wanted for value in node.results):
            wanted |= set(node.inputs)
    found = {value.name: lowering.values.get(value.name) for value in lowering.file.graph.input}
    return [name for name, operand in found.items() if isinstance(operand, str) and operand in wanted]


def _is_array(value: Any) -> bool:
    return value is not None and not isinstance(value, list | tuple)


def _is_small(value: Any) -> bool:
    return _is_array(value) and value.size <= LARGEST_ELEMENTS


def _declared(lowering: Lowering, name: str, value: Any, feeds: dict[str, Array]) -> Operand:
    """An input that is a list of tensors, or may be absent, as inputs of the graph, whose arrays go into ``feeds``."""
    if value is None:
        return ABSENT
    if not _is_array(value):
        return Listed(tuple(_declared(lowering, f"{name}.{i}", item, feeds) for i, item in enumerate(value)))
    array, own = np.asarray(value), lowering.unique(name)
    feeds[own] = array
    return lowering.builder.input(own, TensorType(element_type(array), array.shape))


def _by_reference(graph: Graph, weights: Tensors, inputs: Tensors) -> Tensors:
    return interpret(graph, {**weights, **inputs})


def _run(lowering: Lowering, graph: Graph, feeds: Mapping[str, Array], evaluate: Evaluate) -> tuple[Any, ...]:
    import torch

    weights = {name: to_torch(torch, weight.array()) for name, weight in lowering.parameters.items()}
    values = evaluate(graph, weights, {name: to_torch(torch, array) for name, array in feeds.items()})
    results = iter([to_numpy(torch, values[name], graph.types[name].dtype) for name in graph.outputs])
    return tuple(_assembled(lowering.values[value.name], results) for value in lowering.file.graph.output)


def _assembled(operand: Operand, results: Iterator[Array]) -> Any:
    """An output from the arrays of its single values."""
    if isinstance(operand, Listed):
        return [_assembled(item, results) for item in operand.items]
    return None if operand is ABSENT else next(results)


class GraphBackend(onnx.backend.base.Backend):  # type: ignore[misc]
    """Runs models by the reference meaning of our graph, on the CPU."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_kwargs: Any) -> bool:
        """Whether the model's operators are all in the table."""
        try:
            check_operators(model)
        except UnsupportedModelError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_kwargs: Any) -> GraphRep:
        """A handle that runs ``model``.

        Raises:
            UnsupportedModelError: W0201, operators that are not supported; W0210, another device than the CPU.
        """
        if not cls.supports_device(device):
            raise UnsupportedModelError(
                Diagnostic("W0210", f"there is no device {device}; models run on CPU", "device")
            )
        check_operators(model)
        return GraphRep(model)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Sequence[Any], device: str = "CPU", _outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Array, ...]:
        """The outputs of one node for ``inputs``, which are those that it names, in order."""
        arrays = [np.asarray(array) for array in inputs]
        names = [name for name in dict.fromkeys(node.input) if name]
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        # A model must state the types of its outputs; nobody reads them.
        outputs = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output if name
        ]
        graph = onnx.helper.make_graph([node], "node", values, outputs)
        opset = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
        return cls.prepare(model, device).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only the CPU."""
        return device.split(":")[0] == "CPU"


is_compatible = GraphBackend.is_compatible
prepare = GraphBackend.prepare
run_model = GraphBackend.run_model
run_node = GraphBackend.run_node
supports_device = GraphBackend.supports_device
