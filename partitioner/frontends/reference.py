"""What a run is held against: the original's outputs, and values inside, from one forward over all tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ir.diagnostics import Diagnostic, UsageError
from ir.graph import Graph
from ir.interpret import interpret
from partitioner.frontends.lowered import Origin
from partitioner.frontends.original import Original
from targets.emulator.weights import unpacked

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]
REFERENCES = ("auto", "torch", "onnxruntime", "onnx")
"""``torch``: the library's own model or program, for ONNX files the graph itself, whole, in torch. ``onnxruntime`` and
``onnx`` (its own reference) are for ONNX files; ``auto`` is torch elsewhere, and there the first that is installed."""


@dataclass(frozen=True, slots=True)
class Reference:
    """``run``: inputs by name and the values asked for -> outputs in order, and those values as far as it has them."""

    name: str
    run: Callable[[Tensors, frozenset[str]], tuple[list[Tensor], dict[str, Tensor]]]


def choose_reference(asked: str, origin: Origin) -> str:
    """Which reference a plan of ``origin`` is held against.

    Raises:
        UsageError: W0661, there is none of that name, or not for such a model.
    """
    if asked not in REFERENCES:
        help_ = (f"references are {', '.join(REFERENCES)}",)
        raise UsageError(Diagnostic("W0661", f"there is no reference {asked!r}", "--reference", help=help_))
    if origin.kind != "onnx":
        if asked in ("auto", "torch"):
            return "torch"
        message = f"{asked} runs ONNX files, and the plan is of another model"
        raise UsageError(Diagnostic("W0661", message, "--reference", {"kind": origin.kind}, ("--reference torch",)))
    if asked != "auto":
        return asked
    from partitioner.frontends.onnx_file.engines import has_onnxruntime

    return "onnxruntime" if has_onnxruntime() else "onnx"


def open_reference(name: str, original: Original, graph: Graph, origin: Origin) -> Reference:
    """The reference called ``name`` (of :func:`choose_reference`) for a plan of ``graph``."""
    if original.module is not None:
        module, paths = original.module, modules_of(graph)

        def watched(inputs: Tensors, inner: frozenset[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
            with _hooked(module, {value: paths[value] for value in inner if value in paths}) as found:
                return original.forward(inputs), found

        return Reference(name, watched)
    if name in ("onnx", "onnxruntime"):
        return Reference(name, _onnx(name, Path(origin.path)))

    def interpreted(inputs: Tensors, inner: frozenset[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            values = interpret(graph, {**unpacked(original.weights, graph.parameters), **inputs})
        own = origin.kind == "onnx"
        outputs = [values[output] for output in graph.outputs] if own else original.forward(inputs)
        return outputs, {value: values[value] for value in inner}

    return Reference(name, interpreted)


def _onnx(engine: str, path: Path) -> Callable[[Tensors, frozenset[str]], tuple[list[Tensor], dict[str, Tensor]]]:
    from partitioner.frontends.onnx_file import reference_outputs

    def run(inputs: Tensors, inner: frozenset[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        outputs, found = reference_outputs(path, given, engine, inner)
        return [_tensor(array) for array in outputs], {name: _tensor(array) for name, array in found.items()}

    return run


def _tensor(array: Any) -> Tensor:
    from partitioner.frontends.onnx_file.arrays import to_torch

    return to_torch(torch, array)  # type: ignore[no-any-return]


# --- values of the graph and modules of the library ---------------------------------------------------------------


def modules_of(graph: Graph) -> dict[str, list[str]]:
    """For each value that is all that some modules give away: the paths of these modules, the innermost first."""
    computed: defaultdict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.nodes):
        for path in _above(node.origin):
            computed[path].append(index)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(computed, key=len, reverse=True):
        inside = set(computed[path])
        given = {
            value.name
            for index in inside
            for value in graph.nodes[index].results
            if value.type.dtype.is_float
            and (value.name in graph.outputs or not inside.issuperset(graph.consumers.get(value.name, ())))
        }
        if len(given) == 1:
            found[given.pop()].append(path)
    return found


def _above(origin: str) -> Iterator[str]:
    """A path and those above it: ``a.b.c``, ``a.b``, ``a``."""
    while origin:
        yield origin
        origin = origin.rpartition(".")[0]


@contextmanager
def _hooked(module: torch.nn.Module, paths: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Tensor]]:
    """What the modules at ``paths`` (by value) yield while the context lasts; of several the one that ends last."""
    found: dict[str, Tensor] = {}

    def keep(value: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if isinstance(tensor, Tensor):
                found[value] = tensor.detach().clone()

        return hook

    named = dict(module.named_modules())
    handles = [
        named[path].register_forward_hook(keep(value)) for value, own in paths.items() for path in own if path in named
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
