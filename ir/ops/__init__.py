"""The operators of the graph, by name. One :class:`OpDef` gives type inference, reference meaning and work."""

from ir.ops.casts import CASTS
from ir.ops.definition import Kind, OpDef, OpTypeError, evaluate, follow_broadcast, torch_dtype
from ir.ops.elementwise import ELEMENTWISE
from ir.ops.layout import LAYOUT
from ir.ops.matrix import MATRIX
from ir.ops.reduce import REDUCE
from ir.ops.spatial import SPATIAL

OPS: dict[str, OpDef] = {op.name: op for op in (*ELEMENTWISE, *CASTS, *LAYOUT, *REDUCE, *MATRIX, *SPATIAL)}

ELEMENT_BY_ELEMENT = frozenset(
    name for name, op in OPS.items() if op.follow is follow_broadcast and op.kind is Kind.COMPUTE
)
"""Operators that treat each element alone."""

__all__ = ["ELEMENT_BY_ELEMENT", "OPS", "Kind", "OpDef", "OpTypeError", "evaluate", "torch_dtype"]
