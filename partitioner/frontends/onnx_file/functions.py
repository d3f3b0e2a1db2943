"""Operators without a rule of their own that ONNX defines by others: their bodies are lowered in their place."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.defs
import onnx.helper

from ir.types import Dim, DType
from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Listed, Operand, Results, Scope, decode
from partitioner.frontends.onnx_file.reading import DTYPES
from partitioner.frontends.onnx_file.table import schema_with_body

_ONNX_TYPES = {dtype: element_type for element_type, dtype in DTYPES.items()}


def call(site: Site) -> Results:
    """The results of the body that ONNX gives for the operator of ``site``.

    Raises:
        UnfoldableError: there is no body for these types.
    """
    schema = schema_with_body(site.node.domain, site.node.op_type, site.opset)
    if schema is None:
        raise UnfoldableError("the operator is not supported")
    body, opset = _body(site, schema)
    scope = Scope(opset, f"{site.node.name}/")
    inputs = (*site.node.inputs, *[""] * len(body.input))
    scope.names.update(zip(body.input, inputs, strict=False))
    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    given = {name: _encoded(name, value) for name, value in site.node.attributes.items()}
    for index, inner in enumerate(body.node):
        lower_inside(site, _with_attributes(inner, index, defaults | given), scope)
    wanted = zip(body.output, site.node.outputs, strict=False)
    return tuple(result_of(site, scope, name) if output else "" for name, output in wanted)


def lower_inside(site: Site, node: Any, scope: Scope) -> None:
    """Lower ``node`` of a body or of a graph inside of the node of ``site``; its outputs are defined in ``scope``."""
    values = site.lowering.values
    for output in filter(None, node.output):
        name = f"{scope.prefix}{output}"
        while name in values:
            name += "'"
        scope.names[output] = name
    site.lowering.lower(decode(node, scope))


def result_of(site: Site, scope: Scope, name: str) -> Operand:
    """What ``name`` became in ``scope``."""
    return site.lowering.values[scope.resolve(name)]


def _body(site: Site, schema: Any) -> tuple[Any, int]:
    """The function and the version of ONNX's operators that it is written in."""
    plain, by_types = schema.function_opset_versions, schema.context_dependent_function_opset_versions
    # A body may be written in a later opset than the operator; then its first one is meant.
    known = sorted({*plain, *by_types})
    version = max((version for version in known if version <= site.opset), default=known[0])
    try:
        if version in by_types:
            types = [_type(site, index).SerializeToString() for index in range(len(site.node.inputs))]
            node = _node(site).SerializeToString()
            data = schema.get_context_dependent_function_with_opset_version(version, node, types)
        else:
            data = schema.get_function_with_opset_version(version)
        return onnx.FunctionProto.FromString(data), version
    except (ValueError, RuntimeError) as error:
        raise UnfoldableError(f"it has no body of other operators here: {error}") from None


def _type(site: Site, index: int) -> Any:
    if not site.has(index):
        return onnx.TypeProto()
    operand = site.operand(index)
    if isinstance(operand, Listed):
        items = [site.lowering.type(item) for item in operand.items]
        dtype = items[0].dtype if items else DType.F32
        return onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(_ONNX_TYPES[dtype], None))
    type_ = site.type(index)
    sizes = [str(size) if isinstance(size, Dim) else size for size in type_.shape]
    return onnx.helper.make_tensor_type_proto(_ONNX_TYPES[type_.dtype], sizes)


def _node(site: Site) -> Any:
    node = onnx.NodeProto(op_type=site.node.op_type, domain=site.node.domain, name=site.node.name)
    node.input.extend(site.node.inputs)
    node.output.extend(site.node.outputs)
    node.attribute.extend(_encoded(name, value) for name, value in site.node.attributes.items())
    return node


def _encoded(name: str, value: Any) -> Any:
    if isinstance(value, list) and not value:
        return onnx.helper.make_attribute(name, value, attr_type=onnx.AttributeProto.INTS)
    return onnx.helper.make_attribute(name, value)


def _with_attributes(node: Any, index: int, given: dict[str, Any]) -> Any:
    """``node`` with references to attributes of the function replaced by what was given, or left out."""
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    copy.name = f"{copy.name or copy.op_type}_{index}"
    del copy.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy.attribute.append(attribute)
        elif given.get(attribute.ref_attr_name) is not None and given[attribute.ref_attr_name].type:
            resolved = onnx.AttributeProto.FromString(given[attribute.ref_attr_name].SerializeToString())
            resolved.name = attribute.name
            copy.attribute.append(resolved)
    return copy
