"""ONNX files. Only this package imports onnx."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ir.builder import GraphBuilder
from ir.graph import Graph
from ir.verify import verify
from partitioner.frontends.lowered import Lowered, Origin
from partitioner.frontends.onnx_file import (
    attention,
    contributed,
    contributed_attention,
    contributed_products,
    control,
    einsum,
    elementwise,
    fourier,
    functions,
    indexing,
    lists,
    movement,
    products,
    quantized,
    recurrent,
    reductions,
    resizing,
    sorted_experts,
    spatial,
)
from partitioner.frontends.onnx_file.constants import Known
from partitioner.frontends.onnx_file.engines import run_file
from partitioner.frontends.onnx_file.lowering import Lowering
from partitioner.frontends.onnx_file.nodes import decode
from partitioner.frontends.onnx_file.reading import Stored, Weight, open_onnx
from partitioner.frontends.onnx_file.scopes import module_paths
from partitioner.frontends.onnx_file.sorted_experts import regroup
from partitioner.frontends.onnx_file.step import as_step, bind_inputs, original_inputs, read_step
from partitioner.frontends.onnx_file.table import OPERATORS, check_operators

__all__ = ["OPERATORS", "load_onnx", "read_weights", "stored_weights"]

TABLES = (
    *(attention, contributed, contributed_attention, contributed_products, control, einsum, elementwise, fourier),
    *(indexing, lists, movement, products, quantized, recurrent, reductions, resizing, sorted_experts, spatial),
)
"""The modules whose functions fill :data:`OPERATORS`."""


def load_onnx(path: Path) -> Lowered:
    """The graph of the ONNX file at ``path``. Weights that lie in other files are not read.

    Raises:
        UsageError: W0202, not a readable ONNX file; W0203, its weights lie outside its own folder.
        UnsupportedModelError: W0201 for operators, or forms of them, that are not supported; W0208, the model breaks
            ONNX's rules; W0209, an input has no shape or holds no numbers; W0301 to W0304, operands do not fit.
    """
    path = Path(path)
    lowering, graph = _lower(path)
    origin = Origin("onnx", {}, str(path.absolute()), lowering.file.sha256)
    return Lowered(verify(graph), origin, notes=tuple(lowering.notes))


def read_weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The data of every parameter of ``load_onnx(path).graph``, by the parameter's name and in its shape.

    Weights of type bf16 have the element type of ``ml_dtypes``, since numpy has none.

    Raises:
        UsageError: W0202, the file or its data is missing or damaged; W0203, data outside the model's folder.
        UnsupportedModelError: as for :func:`load_onnx`.
    """
    return {name: weight.array() for name, weight in stored_weights(path).items()}


def stored_weights(path: Path) -> dict[str, Weight | Stored]:
    """Every parameter of ``load_onnx(path).graph`` as the file has it, by its name; nothing is read.

    Raises:
        UsageError, UnsupportedModelError: as for :func:`load_onnx`.
    """
    lowering, graph = _lower(Path(path))
    return {p.name: lowering.parameters[p.name] for p in graph.parameters}


def _lower(path: Path) -> tuple[Lowering, Graph]:
    file = open_onnx(path, check_operators)
    regroup(file.graph, file.weights)
    step = read_step(file.graph, file.weights)
    origins, sizes = module_paths(file.graph.node), step.symbols if step else {}
    lowering = Lowering(file, GraphBuilder(file.graph.name or path.stem), functions.call, origins, sizes)
    if step:
        bind_inputs(lowering, step)
    graph = lower_file(lowering)
    return lowering, (as_step(graph, step, lowering) if step else graph)


def lower_file(lowering: Lowering, bound: Mapping[str, Known] | None = None) -> Graph:
    """The graph of the file that ``lowering`` was made for; the contents of the inputs in ``bound`` are known."""
    lowering.add_inputs(bound)
    for node in lowering.file.graph.node:
        lowering.lower(decode(node, lowering.scope))
    return lowering.finish()


def reference_outputs(
    path: Path, inputs: dict[str, npt.NDArray[Any]], engine: str = "onnx", inner: Collection[str] = ()
) -> tuple[list[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """What ONNX's own reference implementation, or the ``engine`` onnxruntime, yields for ``inputs`` of the graph.

    Returns:
        The graph's outputs in order, and the values named in ``inner`` as far as the file has tensors of that name.

    Raises:
        UsageError: W0615, it cannot run the file; W0661, onnxruntime is not installed.
    """
    lowering, _graph = _lower(Path(path))
    step = read_step(lowering.file.graph, lowering.file.weights)
    results, found = run_file(engine, Path(path), original_inputs(lowering, step, inputs), inner)
    kept = range(len(results)) if lowering.outputs is None else lowering.outputs
    return [results[index] for index in kept], found
