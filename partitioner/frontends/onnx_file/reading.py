"""Opening an ONNX file: its graph, and its weights without reading them until they are asked for.

A model file is not trusted. It may name other files that hold its weights ("external data"); such a file is only
ever opened inside the model's own folder.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx.helper
import onnx.inliner
import onnx.numpy_helper
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ir.diagnostics import Diagnostic, Fact, UnsupportedModelError, UsageError
from ir.types import DType

Array = npt.NDArray[Any]

DTYPES = {
    onnx.TensorProto.DOUBLE: DType.F64,
    onnx.TensorProto.FLOAT: DType.F32,
    onnx.TensorProto.FLOAT16: DType.F16,
    onnx.TensorProto.BFLOAT16: DType.BF16,
    onnx.TensorProto.INT64: DType.I64,
    onnx.TensorProto.INT32: DType.I32,
    onnx.TensorProto.INT16: DType.I16,
    onnx.TensorProto.INT8: DType.I8,
    onnx.TensorProto.UINT8: DType.U8,
    onnx.TensorProto.BOOL: DType.BOOL,
    onnx.TensorProto.UINT64: DType.U64,
    onnx.TensorProto.UINT32: DType.U32,
    onnx.TensorProto.UINT16: DType.U16,
    onnx.TensorProto.INT4: DType.I4,
    onnx.TensorProto.UINT4: DType.U4,
    onnx.TensorProto.INT2: DType.I2,
    onnx.TensorProto.UINT2: DType.U2,
    onnx.TensorProto.FLOAT8E4M3FN: DType.F8E4M3,
    onnx.TensorProto.FLOAT8E4M3FNUZ: DType.F8E4M3FNUZ,
    onnx.TensorProto.FLOAT8E5M2: DType.F8E5M2,
    onnx.TensorProto.FLOAT8E5M2FNUZ: DType.F8E5M2FNUZ,
    onnx.TensorProto.FLOAT8E8M0: DType.F8E8M0,
    onnx.TensorProto.FLOAT4E2M1: DType.F4E2M1,
}
"""Element types that the graph has."""

_PROTOBUF_LIMIT_BYTES = 2**31
_NOT_ONNX_HELP = ("export the model again, for example with torch.onnx.export",)


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer: its header, and where its data lies. ``transposed`` swaps the two axes of a matrix."""

    tensor: Any
    folder: Path
    transposed: bool = False

    @property
    def name(self) -> str:
        """The initializer's name in the file."""
        return str(self.tensor.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as stored."""
        return tuple(self.tensor.dims)

    @property
    def is_external(self) -> bool:
        """Whether the data lies in another file."""
        return bool(self.tensor.data_location == onnx.TensorProto.EXTERNAL)

    def array(self) -> Array:
        """The data, as stored. Element type bf16 is that of ``ml_dtypes``, since numpy has none.

        Raises:
            UsageError: W0202, the data is damaged or missing; W0203, it lies outside the model's folder.
        """
        if self.is_external:
            return _read_external(self)
        try:
            return np.asarray(onnx.numpy_helper.to_array(self.tensor))
        except (ValueError, TypeError) as error:
            raise UsageError(Diagnostic("W0202", f"the weight {self.name} is damaged: {error}")) from None


class Stored(Protocol):
    """A weight that is put together from several tensors of the file."""

    @property
    def name(self) -> str:
        """The name of the tensor that makes most of it."""

    @property
    def dtype(self) -> DType:
        """The element type that operators see."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that operators see."""

    def array(self) -> Array:
        """The data."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An opened file: ``graph`` holds no initializers, they are in ``weights``."""

    graph: Any
    opsets: dict[str, int]
    weights: dict[str, Weight]
    sha256: str


def open_onnx(path: Path, check_operators: Callable[[Any], None]) -> OnnxFile:
    """Read and check the file at ``path``; weights in other files are neither read nor required to exist.

    ``check_operators`` is called with the model before ONNX's own checker, whose message about an unknown operator
    names neither the node nor the other unknown operators.

    Raises:
        UsageError: W0202, not a readable ONNX file; W0203, weights outside the model's folder.
        UnsupportedModelError: W0208, the model breaks ONNX's rules.
    """
    data = _read(path)
    model = _parse(data, path)
    sha256 = hashlib.sha256(data).hexdigest()
    del data
    return read_model(model, path, sha256, check_operators)


def read_model(model: Any, path: Path, sha256: str, check_operators: Callable[[Any], None]) -> OnnxFile:
    """What :func:`open_onnx` makes of ``model``, which it takes apart; ``path`` is where it would lie.

    Raises:
        UsageError, UnsupportedModelError: as for :func:`open_onnx`.
    """
    _name_nodes(model.graph.node)
    check_operators(model)
    weights = _take_weights(model.graph, path.parent)
    _check(model, weights, path)
    if model.functions:
        model = _inline(model, path)
        _name_nodes(model.graph.node)
        weights |= _take_weights(model.graph, path.parent)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return OnnxFile(model.graph, opsets, weights, sha256)


def _read(path: Path) -> bytes:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.glob("*.onnx"))[:3]
        help_ = (f"give one of its files: {', '.join(inside)}",) if inside else ("give the .onnx file itself",)
        raise UsageError(Diagnostic("W0202", "this is a folder, not an ONNX file", str(path), help=help_))
    try:
        size = path.stat().st_size
        if size >= _PROTOBUF_LIMIT_BYTES:
            help_ = ("save the model with its weights as external data (onnx.save with save_as_external_data=True)",)
            facts: dict[str, Fact] = {"file_bytes": size, "limit_bytes": _PROTOBUF_LIMIT_BYTES}
            raise UsageError(Diagnostic("W0202", "an ONNX file must be smaller than 2 GiB", str(path), facts, help_))
        if not path.is_file():
            raise UsageError(Diagnostic("W0202", "this is not a regular file", str(path)))
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(Diagnostic("W0202", "there is no such file", str(path))) from None
    except (OSError, ValueError) as error:
        raise UsageError(Diagnostic("W0202", f"the file cannot be read: {error}", str(path))) from None


def _parse(data: bytes, path: Path) -> Any:
    if not data:
        raise UsageError(Diagnostic("W0202", "the file is empty", str(path), help=_NOT_ONNX_HELP))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        message = "this is not an ONNX file, or it is damaged"
        raise UsageError(Diagnostic("W0202", message, str(path), {"file_bytes": len(data)}, _NOT_ONNX_HELP)) from None
    if not _is_text(model):
        raise UsageError(Diagnostic("W0202", "the file is damaged: a name in it is no text", str(path)))
    if not model.ir_version or not model.HasField("graph"):
        raise UsageError(Diagnostic("W0202", "this file holds no ONNX model", str(path), help=_NOT_ONNX_HELP))
    return model


def _is_text(message: Any) -> bool:
    """Whether all names in ``message`` are text; protobuf itself only looks when a name is first used."""
    if isinstance(message, onnx.TensorProto):
        return _has_text(message, "name") and all(map(_is_text, message.external_data))
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING and not _has_text(message, field.name):
            return False
        if field.type == field.TYPE_MESSAGE:
            value = getattr(message, field.name)
            is_single = hasattr(value, "ListFields")
            parts = value if not is_single else [value] if message.HasField(field.name) else []
            if not all(map(_is_text, parts)):
                return False
    return True


def _has_text(message: Any, name: str) -> bool:
    try:
        value = getattr(message, name)
        return all(isinstance(text, str) for text in ([value] if isinstance(value, str | bytes) else value))
    except UnicodeDecodeError:
        return False


def _name_nodes(nodes: Any) -> None:
    for index, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{index}"


def _take_weights(graph: Any, folder: Path) -> dict[str, Weight]:
    """Take the initializers and the tensors of Constant nodes out of ``graph``.

    Without their data the rest of the model is small enough to be checked and rewritten at no cost.
    """
    tensors = list(graph.initializer)
    del graph.initializer[:]
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and not node.domain and value is not None and len(node.output) == 1:
            value.name = node.output[0]
            tensors.append(value)
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)
    weights = {tensor.name: Weight(tensor, folder) for tensor in tensors}
    for weight in weights.values():
        _check_weight(weight)
    return weights


def _check_weight(weight: Weight) -> None:
    if any(size < 0 for size in weight.shape):
        raise UnsupportedModelError(Diagnostic("W0208", f"{weight.name} has a negative size: {weight.shape}"))
    if weight.is_external:
        _external_path(weight)
        return
    try:
        onnx.checker.check_tensor(weight.tensor)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise UnsupportedModelError(_against_the_rules(error, weight.name)) from None


def _check(model: Any, weights: dict[str, Weight], path: Path) -> None:
    """Let ONNX's checker see the model without the weights' data: they pass for inputs."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    given = {value.name for value in skeleton.graph.input}
    skeleton.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, weight.tensor.data_type, weight.shape)
        for name, weight in weights.items()
        if name not in given
    )
    for value in (*skeleton.graph.input, *skeleton.graph.output):
        if value.type.HasField("tensor_type"):
            # The checker asks for a shape. We need none of outputs, and have a better message for inputs.
            value.type.tensor_type.shape.SetInParent()
    _adopt_simplified_layer_norm(skeleton)
    try:
        onnx.checker.check_model(skeleton)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, TypeError) as error:
        raise UnsupportedModelError(_against_the_rules(error, str(path))) from None


def _adopt_simplified_layer_norm(model: Any) -> None:
    """Onnxruntime writes this operator into ONNX's own domain, where the checker does not know it."""
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization" and not node.domain:
            node.domain = "com.microsoft"
            if all(entry.domain != node.domain for entry in model.opset_import):
                model.opset_import.append(onnx.helper.make_opsetid(node.domain, 1))


def _inline(model: Any, path: Path) -> Any:
    try:
        return onnx.inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(_against_the_rules(error, str(path))) from None


def _against_the_rules(error: Exception, where: str) -> Diagnostic:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = f"the model breaks ONNX's rules: {lines[0] if lines else 'no reason given'}"
    return Diagnostic("W0208", message, where, help=("onnx.checker.check_model reports all details",))


def _external_fields(weight: Weight) -> dict[str, str]:
    return {entry.key: entry.value for entry in weight.tensor.external_data}


def _external_path(weight: Weight) -> Path:
    """The file that holds the data of ``weight``, inside the model's folder even when links are followed."""
    location = _external_fields(weight).get("location", "")
    reason = _outside(location) or ("" if _resolved(weight, location) else "a link that leads out of the folder")
    if reason:
        message = f"the data of {weight.name} lies outside the model's folder: {reason}"
        facts: dict[str, Fact] = {"location": location, "folder": str(weight.folder)}
        help_ = ("put the file with the weights beside the ONNX file, and save the model with its plain name",)
        raise UsageError(Diagnostic("W0203", message, weight.name, facts, help_))
    return weight.folder / location


def _outside(location: str) -> str:
    """Why ``location`` cannot be a file inside a folder, on this or any other system; empty if it can."""
    if not location or "\0" in location:
        return "no file is named"
    for flavour in (PurePosixPath(location), PureWindowsPath(location)):
        if flavour.is_absolute() or flavour.anchor:
            return "an absolute path"
        if ".." in flavour.parts:
            return "a path with '..'"
    return ""


def _resolved(weight: Weight, location: str) -> bool:
    try:
        return (weight.folder / location).resolve().is_relative_to(weight.folder.resolve())
    except (OSError, RuntimeError):
        return False


def _read_external(weight: Weight) -> Array:
    path = _external_path(weight)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(weight.tensor.data_type))
    known = DTYPES.get(weight.tensor.data_type)
    packed = known is not None and known.bits < 8
    expected = math.prod(weight.shape) * dtype.itemsize
    if known is not None and packed:
        expected = -(-math.prod(weight.shape) * known.bits // 8)
    try:
        offset, length = _extent(weight, expected)
        available = max(0, path.stat().st_size - offset)
        if not path.is_file():
            raise ValueError("it is not a regular file")
        if length != expected or available < expected:
            raise ValueError(f"{expected:,} bytes are expected, {min(length, available):,} are there")
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(expected)
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(Diagnostic("W0202", f"the data of {weight.name} cannot be read: {error}", str(path))) from None
    if packed:
        tensor = onnx.TensorProto(dims=weight.shape, data_type=weight.tensor.data_type, raw_data=data)
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    return np.frombuffer(data, dtype=dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(weight.shape)


def _extent(weight: Weight, expected: int) -> tuple[int, int]:
    """Offset and length in bytes of external data; a missing length means all that is expected."""
    fields = _external_fields(weight)
    offset, length = int(fields.get("offset", 0)), int(fields.get("length", expected))
    if offset < 0 or length < 0:
        raise ValueError(f"offset {offset} or length {length} is negative")
    return offset, length


def nodes_everywhere(model: Any) -> Iterator[Any]:
    """The nodes of the graph, of the model's own functions and of graphs inside nodes, calls of these functions left
    out.
    """
    own = {(function.domain, function.name) for function in model.functions}
    waiting = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop(0).node:
            waiting += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            if (node.domain, node.op_type) not in own:
                yield node


def type_name(data_type: int) -> str:
    """ONNX's own name of an element type."""
    try:
        return str(onnx.TensorProto.DataType.Name(data_type))
    except ValueError:
        return str(data_type)
