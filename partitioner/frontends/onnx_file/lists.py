"""Lists of values and values that may be absent. They are told apart while lowering; the graph has tensors alone."""

from __future__ import annotations

from ir.types import DType
from partitioner.frontends.onnx_file.constants import Known, UnfoldableError, check_size, normal_axis
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import ABSENT, Listed, Operand
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, fixed, join, term


def _list(site: Site, index: int = 0) -> tuple[Operand, ...]:
    operand = site.operand(index)
    if not isinstance(operand, Listed):
        raise UnfoldableError(f"its input {site.node.inputs[index]} is no list")
    return operand.items


def _place(site: Site, index: int, length: int, default: int) -> int:
    """A place in a list, counted from the front."""
    place = int(site.demanded(index).list()[0]) if site.has(index) else default
    if not -length <= place <= length:
        raise UnfoldableError(f"{place} is no place in a list of {length}")
    return place + length if place < 0 else place


@operator("SequenceEmpty")
def _empty(_site: Site) -> Operand:
    return Listed(())


@operator("SequenceConstruct")
def _construct(site: Site) -> Operand:
    return Listed(tuple(site.operand(index) for index in range(len(site.node.inputs))))


@operator("SequenceInsert")
def _insert(site: Site) -> Operand:
    items = _list(site)
    place = _place(site, 2, len(items), len(items))
    return Listed((*items[:place], site.operand(1), *items[place:]))


@operator("SequenceErase")
def _erase(site: Site) -> Operand:
    items = _list(site)
    place = _place(site, 1, len(items), len(items) - 1)
    return Listed((*items[:place], *items[place + 1 :]))


@operator("SequenceAt")
def _at(site: Site) -> Operand:
    items = _list(site)
    return items[_place(site, 1, len(items), 0)]


@operator("SequenceLength")
def _length(site: Site) -> Operand:
    return Known.of(DType.I64, len(_list(site)))


@operator("SplitToSequence")
def _split(site: Site) -> Operand:
    """Parts of the given lengths, or of one length with a shorter one at the end; without any, single elements."""
    x, axis = term(site, 0), site.axis(0)
    size = fixed(x.shape[axis])
    check_size((size,))
    known = site.demanded(1) if site.has(1) else None
    if known is None or not known.shape:
        each = int(known.list()[0]) if known is not None else 1
        lengths = [min(each, size - start) for start in range(0, size, each)] if each > 0 else []
    else:
        lengths = list(known.ints())
    if sum(lengths) != size:
        raise UnfoldableError(f"{size} elements do not split into {lengths}")
    parts, start = [], 0
    for length in lengths:
        part = x.cut(axis, start, start + length)
        if known is None and not site.attribute("keepdims", 1):
            part = part.reshape(*x.shape[:axis], *x.shape[axis + 1 :])
        parts.append(part.name)
        start += length
    return Listed(tuple(parts))


@operator("ConcatFromSequence")
def _concat(site: Site) -> Operand:
    parts = [Term(site, site.as_tensor(item)) for item in _list(site)]
    if not parts:
        raise UnfoldableError("there is nothing to join")
    rank = len(parts[0].shape)
    if not site.attribute("new_axis", 0):
        return join(parts, normal_axis(site.attribute("axis"), rank)).name
    axis = normal_axis(site.attribute("axis"), rank + 1)
    return join([part.reshape(*part.shape[:axis], 1, *part.shape[axis:]) for part in parts], axis).name


@operator("Optional")
def _optional(site: Site) -> Operand:
    return site.operand(0) if site.has(0) else ABSENT


@operator("OptionalHasElement")
def _has_element(site: Site) -> Operand:
    return Known.of(DType.BOOL, site.has(0) and site.operand(0) is not ABSENT)


@operator("OptionalGetElement")
def _get_element(site: Site) -> Operand:
    if site.operand(0) is ABSENT:
        raise UnfoldableError("there is no element to get")
    return site.operand(0)
