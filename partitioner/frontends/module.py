"""Modules of PyTorch, as they are in memory."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ir.diagnostics import Diagnostic, UnsupportedModelError, UsageError
from partitioner.frontends.configuration import quietly
from partitioner.frontends.lowered import Origin
from partitioner.frontends.program import LoweredProgram, data_dependent, lower_program, not_exported


def lower_module(
    module: nn.Module,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> LoweredProgram:
    """Lower a module by exporting it, as it is in evaluation.

    Args:
        module: what to lower; its weights stay where they are, and so does its mode.
        example_inputs: positional inputs of its forward.
        example_kwargs: inputs by keyword.
        dynamic_shapes: as for ``torch.export.export``; sizes are fixed as in the example where it says nothing. A
            ``Dim`` gives its size its name.
        name: the graph's name; the class's if not given.

    Raises:
        UsageError: W0108, the example is no tuple of inputs.
        UnsupportedModelError: W0206, the module cannot be exported; W0240, it writes into a buffer; W0241, a size
            depends on the data; W0201, an operator.
    """
    name = name or type(module).__name__
    if isinstance(example_inputs, torch.Tensor) or not isinstance(example_inputs, Sequence):
        message = f"example_inputs is a tuple of the module's inputs, not {type(example_inputs).__name__}"
        raise UsageError(Diagnostic("W0108", message, name))
    args, kwargs = tuple(example_inputs), dict(example_kwargs or {})
    try:
        with quietly(), _in_evaluation(module), torch.no_grad():
            program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        if "data-dependent" in str(error):
            raise UnsupportedModelError(data_dependent(_path_of(module, error) or name)) from None
        raise not_exported(error, _path_of(module, error) or name) from None
    axes = _named_axes(program, (args, kwargs), dynamic_shapes)
    return lower_program(program, name, Origin("module", {}), axes or None)


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    """The module in evaluation for a while; afterwards every part is in its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _path_of(module: nn.Module, error: BaseException) -> str:
    """The path of the innermost module whose forward was running when ``error`` was raised."""
    paths = {id(part): path for path, part in module.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "forward" and frame.f_code.co_varnames:
            found = paths.get(id(frame.f_locals.get(frame.f_code.co_varnames[0])), found)
    return found


def _named_axes(program: ExportedProgram, inputs: Any, dynamic_shapes: Any) -> dict[tuple[str, int], str]:
    """The names that dimensions were given, by input and axis."""
    if not dynamic_shapes:
        return {}
    given = list(_dimensions(inputs, dynamic_shapes))
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return {
        (name, axis): dim.__name__
        for name, dims in zip(names, given, strict=False)
        for axis, dim in dims
        if isinstance(getattr(dim, "__name__", None), str) and dim.__name__.isidentifier()
    }


def _dimensions(inputs: Any, dynamic_shapes: Any) -> Iterator[list[tuple[int, Any]]]:
    """What ``dynamic_shapes`` says of each tensor among ``inputs`` (positional and by keyword), in order."""
    args, kwargs = inputs
    by_name = isinstance(dynamic_shapes, Mapping)
    shapes = list(dynamic_shapes.values()) if by_name else list(dynamic_shapes)
    for value, shape in zip([*args, *kwargs.values()], shapes, strict=False):
        for leaf in pytree.tree_leaves(value):
            known = shape if isinstance(leaf, torch.Tensor) and leaf is value else None
            if isinstance(known, Mapping):
                yield list(known.items())
            else:
                yield list(enumerate(known)) if isinstance(known, (list, tuple)) else []
