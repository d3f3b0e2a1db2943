"""The inputs of an ONNX graph: their types, with symbols for the sizes that are not fixed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.types import Dim, Size, TensorType
from partitioner.frontends.onnx_file.reading import DTYPES, type_name

_RESERVED_SYMBOLS = frozenset({"context", "inf", "infinity", "nan"})
"""``context`` is the graph's own symbol for remembered tokens; the others would read as numbers."""


@dataclass(slots=True)
class Symbols:
    """Symbols for the sizes of inputs that are not fixed; ``known`` says what some of the file's own stand for."""

    known: Mapping[str, Size] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    _unnamed: int = 0

    def size(self, dimension: Any, where: str) -> Size:
        """The size of one axis, which ``where`` names."""
        # Some exporters write -1 for a size that is not fixed.
        if dimension.HasField("dim_value") and dimension.dim_value >= 0:
            return int(dimension.dim_value)
        if dimension.dim_param in self.known:
            return self.known[dimension.dim_param]
        if dimension.dim_param.isdecimal():  # as some exporters write fixed sizes
            return int(dimension.dim_param)
        if dimension.dim_param:
            return Dim.symbol(self._names.setdefault(dimension.dim_param, self._identifier(dimension.dim_param)))
        name = self._identifier(f"d{self._unnamed}")
        self._unnamed += 1
        self._names[f"\0{name}"] = name
        self.notes.append(f"{where} has no name; it is called {name}")
        return Dim.symbol(name)

    def _identifier(self, name: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_]", "_", name)
        base = f"_{base}" if base[:1].isdigit() else base
        while (
            base in self._names.values() or base in map(str, self.known.values()) or base.lower() in _RESERVED_SYMBOLS
        ):
            base += "_"
        return base


def input_type(value: Any, symbols: Symbols) -> TensorType:
    """The type of the graph's input ``value``.

    Raises:
        UnsupportedModelError: W0209, it is no tensor of numbers, or has no shape.
    """
    tensor = value.type.tensor_type
    dtype = DTYPES.get(tensor.elem_type)
    if dtype is None or not tensor.HasField("shape"):
        fault = "no shape" if dtype is not None else f"the element type {type_name(tensor.elem_type)}"
        message = f"the input {value.name} has {fault}"
        help_ = ("export the model with fixed or named sizes, and inputs that are tensors of numbers",)
        raise UnsupportedModelError(Diagnostic("W0209", message, value.name, help=help_))
    shape = tuple(
        symbols.size(dimension, f"axis {axis} of {value.name}") for axis, dimension in enumerate(tensor.shape.dim)
    )
    return TensorType(dtype, shape)
