"""The table of operators: which function lowers which ONNX operator, and what the table lacks for a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx.defs

from ir.diagnostics import Diagnostic, Fact, UnsupportedModelError
from partitioner.frontends.onnx_file.reading import nodes_everywhere

if TYPE_CHECKING:
    from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Results

OLDEST_OPSET, NEWEST_OPSET = 7, 28
"""Opsets whose operators the table knows; later ones are accepted where the operator's form has not changed."""

Lower = Callable[["Site"], "Results"]

OPERATORS: dict[tuple[str, str], Lower] = {}
"""By domain and operator type; ONNX's own domain is empty."""


def operator(*op_types: str, domain: str = "") -> Callable[[Lower], Lower]:
    """Register a function as the lowering of ``op_types``."""

    def register(lower: Lower) -> Lower:
        OPERATORS.update({(domain, op_type): lower for op_type in op_types})
        return lower

    return register


def check_operators(model: Any) -> None:
    """Refuse a model with operators that the table lacks, naming all of them.

    Raises:
        UnsupportedModelError: W0201 for each kind of operator, or for an opset that is too old.
    """
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    opset = opsets.get("", NEWEST_OPSET)
    if opset < OLDEST_OPSET and not all(_is_as_in_oldest(node, opset) for node in nodes_everywhere(model)):
        help_ = ("onnx.version_converter.convert_version(model, 17) brings it up to date",)
        message = f"the model is written for opset {opset}; opsets from {OLDEST_OPSET} are supported"
        raise UnsupportedModelError(Diagnostic("W0201", message, model.graph.name, {"opset": opset}, help_))
    lacking: dict[tuple[str, str], list[str]] = {}
    for node in nodes_everywhere(model):
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if key != ("", "Constant") and not _is_supported(*key, opset):
            lacking.setdefault(key, []).append(node.name)
    if lacking:
        raise UnsupportedModelError(*(_lacking(key, names, opsets) for key, names in sorted(lacking.items())))


def _lacking(key: tuple[str, str], names: list[str], opsets: dict[str, int]) -> Diagnostic:
    domain, op_type = key
    named, version = domain or "ai.onnx", opsets.get(domain, 1)
    message = f"the operator {op_type} (domain {named}, opset {version}) is not supported"
    facts: dict[str, Fact] = {
        "operator": op_type,
        "domain": named,
        "opset": version,
        "nodes": len(names),
    }
    return Diagnostic("W0201", message, names[0], facts)


def schema_with_body(domain: str, op_type: str, opset: int) -> Any:
    """ONNX's definition of an operator that it also defines by others; ``None`` if there is none."""
    try:
        schema = onnx.defs.get_schema(op_type, opset if not domain else 1, domain)
    except onnx.defs.SchemaError:
        return None
    return schema if schema.has_function or schema.has_context_dependent_function else None


def _is_as_in_oldest(node: Any, opset: int) -> bool:
    """Whether an operator of an older opset has not changed until the oldest that the table knows."""
    if node.domain or not onnx.defs.has(node.op_type, opset):
        return bool(node.domain)
    versions = [onnx.defs.get_schema(node.op_type, version).since_version for version in (opset, OLDEST_OPSET)]
    return bool(versions[0] == versions[1])


def _is_supported(domain: str, op_type: str, opset: int) -> bool:
    if (domain, op_type) not in OPERATORS:
        return schema_with_body(domain, op_type, opset) is not None
    if domain or opset <= NEWEST_OPSET or not onnx.defs.has(op_type, opset):
        return True
    newest, known = (onnx.defs.get_schema(op_type, version) for version in (opset, NEWEST_OPSET))
    return _form(newest) == _form(known)


def _form(schema: Any) -> tuple[object, ...]:
    """What a newer version of an operator must share with an older one to be read like it."""
    return sorted(schema.attributes), [port.name for port in schema.inputs], [port.name for port in schema.outputs]
