"""Operators that make constants, tell sizes, or move elements; all of them also work on known contents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx.numpy_helper

from ir.diagnostics import Diagnostic, UsageError
from ir.types import DType, Shape, Size, broadcast_shapes, exact_quotient, product
from partitioner.frontends.onnx_file.constants import Known, UnfoldableError, bounds, check_size, normal_axis
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand, Results
from partitioner.frontends.onnx_file.reading import DTYPES, Weight
from partitioner.frontends.onnx_file.table import operator


@operator("Constant")
def _constant(site: Site) -> Operand:
    """Constants given as attributes; a tensor outside of functions was taken for a weight when the file was opened."""
    if site.attribute("value") is not None:
        return site.lowering.add_weight(site.attribute("value"), site.node.outputs[0])
    for name, dtype in (("int", DType.I64), ("ints", DType.I64), ("float", DType.F32), ("floats", DType.F32)):
        value = site.attribute(f"value_{name}")
        if value is not None:
            return Known.of(dtype, value)
    raise UnfoldableError("only constants that are dense tensors of numbers are supported")


@operator("Shape")
def _shape(site: Site) -> Operand:
    shape = site.shape(0)
    return _sizes(shape[slice(site.attribute("start", 0), site.attribute("end", len(shape)))])


@operator("Size")
def _size(site: Site) -> Operand:
    return Known.of(DType.I64, product(site.shape(0)))


def _sizes(sizes: Sequence[Size]) -> Known:
    return Known(DType.I64, np.array([*sizes, None], dtype=object)[:-1])


@operator("ConstantOfShape")
def _constant_of_shape(site: Site) -> Operand:
    shape = site.demanded(0).sizes()
    tensor = site.attribute("value")
    if tensor is not None and tensor.external_data:
        raise UsageError(Diagnostic("W0203", "the value of a constant lies in another file", site.node.name))
    dtype = DType.F32 if tensor is None else DTYPES.get(tensor.data_type)
    if dtype is None:
        raise UnfoldableError(f"the graph has no element type {tensor.data_type}")
    item = 0.0 if tensor is None else Known.from_array(dtype, onnx.numpy_helper.to_array(tensor)).list()[0]
    if not dtype.is_float and all(isinstance(size, int) for size in shape) and _is_small(shape):
        return Known.of(dtype, np.full(tuple(map(int, shape)), item))  # type: ignore[arg-type]
    return site.emit("full", [], dtype=dtype, shape=shape, value=item)


def _is_small(shape: Shape) -> bool:
    try:
        check_size([int(size) for size in shape])  # type: ignore[arg-type]
    except UnfoldableError:
        return False
    return True


@operator("Range")
def _range(site: Site) -> Operand:
    (start,), (limit,), (step,) = (site.demanded(index).list() for index in range(3))
    dtype = site.type(0).dtype
    if all(isinstance(item, int | float) for item in (start, limit, step)):
        steps = max(0, math.ceil((limit - start) / step))
        if isinstance(start, int) and _is_small((steps,)):
            return Known.of(dtype, range(start, start + steps * step, step))
        count: Size | None = steps
    else:
        count = exact_quotient(limit - start, step)
    if count is None or not isinstance(start, int | float):
        raise UnfoldableError(f"the range {start}, {limit}, {step} depends on the symbols")
    return site.emit("arange", [], dtype=dtype, shape=(count,), start=start, step=step)


@operator("Reshape")
def _reshape(site: Site) -> Operand:
    given = tuple(site.ints("shape", 1) or ()) if site.attribute("shape") is not None else site.demanded(1).sizes()
    shape = _resolved(given, site.shape(0), zero_is_zero=bool(site.attribute("allowzero", 0)))
    return _in_shape(site, shape)


def _in_shape(site: Site, shape: Shape) -> Operand:
    known = site.known(0)
    if known is not None and all(isinstance(size, int) for size in shape):
        return Known(known.dtype, known.items.reshape(shape))  # type: ignore[arg-type]
    return site.reshape(site.tensor(0), shape) if site.shape(0) != shape else site.operand(0)


def _resolved(given: Shape, old: Shape, *, zero_is_zero: bool) -> Shape:
    """``given`` with 0 (the size that was there) and -1 (all that is left) replaced by sizes."""
    shape = [old[axis] if size == 0 and not zero_is_zero else size for axis, size in enumerate(given)]
    if -1 not in shape:
        return tuple(shape)
    # Sizes that occur on both sides cancel first: a quotient of two sums is no polynomial in general.
    others = Counter(size for size in shape if size != -1)
    left = Counter(old) - others
    others -= Counter(old)
    quotient = exact_quotient(product(left.elements()), product(others.elements()))
    if quotient is None or shape.count(-1) > 1:
        raise UnfoldableError(f"the size that -1 stands for in {_list(given)} cannot be told for {_list(old)}")
    return tuple(quotient if size == -1 else size for size in shape)


def _list(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


@operator("Flatten")
def _flatten(site: Site) -> Operand:
    shape, axis = site.shape(0), site.attribute("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return _in_shape(site, (product(shape[:axis]), product(shape[axis:])))


@operator("Unsqueeze")
def _unsqueeze(site: Site) -> Operand:
    given = site.ints("axes", 1) or ()
    shape = list(site.shape(0))
    rank = len(shape) + len(given)
    for axis in sorted(normal_axis(axis, rank) for axis in given):
        shape.insert(axis, 1)
    return _in_shape(site, tuple(shape))


@operator("Squeeze")
def _squeeze(site: Site) -> Operand:
    shape, given = site.shape(0), site.ints("axes", 1)
    if given is None and not all(isinstance(size, int) for size in shape):
        raise UnfoldableError("which axes have one element depends on the symbols")
    axes = [i for i, size in enumerate(shape) if size == 1] if given is None else given
    gone = {normal_axis(axis, len(shape)) for axis in axes}
    if any(shape[axis] != 1 for axis in gone):
        raise UnfoldableError(f"the axes {sorted(gone)} of {_list(shape)} do not all have one element")
    return _in_shape(site, tuple(size for axis, size in enumerate(shape) if axis not in gone))


@operator("Transpose")
def _transpose(site: Site) -> Operand:
    rank, operand, known = len(site.shape(0)), site.operand(0), site.known(0)
    order = tuple(site.attribute("perm") or range(rank)[::-1])
    if known is not None:
        return Known(known.dtype, known.items.transpose(order))
    if isinstance(operand, Weight) and order == (1, 0):
        return Weight(operand.tensor, operand.folder, not operand.transposed)
    if order == tuple(range(rank)):
        return operand
    return site.emit("transpose", [site.tensor(0)], permutation=order)


@operator("Expand")
def _expand(site: Site) -> Operand:
    given, old, known = site.demanded(1).sizes(), site.shape(0), site.known(0)
    shape = broadcast_shapes((old, given))
    if shape is None:
        raise UnfoldableError(f"{_list(old)} does not expand to {_list(given)}")
    if shape == old:
        return site.operand(0)
    if known is not None and all(isinstance(size, int) for size in shape) and _is_small(shape):
        return Known(known.dtype, np.broadcast_to(known.items, shape))  # type: ignore[arg-type]
    return site.emit("expand", [site.tensor(0)], shape=shape)


@operator("Concat")
def _concat(site: Site) -> Operand:
    every = range(len(site.node.inputs))
    filled = [i for i in every if site.shape(i)[site.axis(0, i)] != 0]
    if len(filled) < 2:
        return site.operand((filled or every)[0])
    parts = [site.tensor(i) for i in filled]
    return site.emit("concat", parts, dim=site.axis(0))


@operator("Split")
def _split(site: Site) -> Results:
    axis, known = site.axis(0), site.known(0)
    length, count = site.shape(0)[axis], len(site.node.outputs)
    sizes = site.ints("split", 1)
    if not isinstance(length, int):
        raise UnfoldableError(f"an axis of {length} elements cannot be split")
    if sizes is None:
        # As even as possible, the last part the smallest.
        share = -(-length // int(site.attribute("num_outputs", count)))
        sizes = tuple(min(share, length - start) for start in range(0, length, share))
    if len(sizes) != count or sum(sizes) != length or min(sizes) < 0:
        raise UnfoldableError(f"{length} elements do not split into {count} parts of {sizes}")
    ends = np.cumsum(sizes).tolist()
    if known is not None:
        return tuple(Known(known.dtype, items) for items in np.split(known.items, ends[:-1], axis=axis))
    x = site.tensor(0)
    spans = zip([0, *ends], ends, strict=False)
    return tuple(
        site.emit("slice", [x], output=index, dim=axis, start=start, end=end, step=1)
        for index, (start, end) in enumerate(spans)
    )


@operator("Slice")
def _slice(site: Site) -> Operand:
    shape, known = site.shape(0), site.known(0)
    starts, axes = site.ints("starts", 1), site.ints("axes", 3)
    ends = site.ints("ends", 2) if site.attribute("ends") is not None else site.demanded(2).sizes()
    if starts is None or ends is None:
        raise UnfoldableError("the bounds are missing")
    steps = (site.ints("steps", 4) if site.has(4) else None) or (1,) * len(starts)
    axes = axes or tuple(range(len(starts)))
    cuts = []
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = normal_axis(given, len(shape))
        first, count = bounds(start, end, step, shape[axis])
        if (first, count, step) != (0, shape[axis], 1):
            cuts.append((axis, first, count, step))
    if known is not None and all(isinstance(count, int) for _, _, count, _ in cuts):
        return Known(known.dtype, _cut_items(known, cuts))
    if not cuts:
        return site.operand(0)
    result = site.tensor(0)
    for index, (axis, first, count, step) in enumerate(cuts):
        result = _cut(site, result, axis, first, count, step, last=index == len(cuts) - 1)
    return result


def _cut_items(known: Known, cuts: Sequence[tuple[int, int, Size, int]]) -> np.typing.NDArray[np.object_]:
    items = known.items
    for axis, first, count, step in cuts:
        items = np.take(items, [first + step * i for i in range(int(count))], axis=axis)  # type: ignore[arg-type]
    return items


def _cut(site: Site, x: str, axis: int, first: int, count: Size, step: int, *, last: bool) -> str:
    """``count`` elements of an axis from ``first`` on; where their number is symbolic, they are looked up."""
    size = site.value_type(x).shape[axis]
    if isinstance(count, int) and isinstance(size, int) and step > 0:
        end = min(size, first + count * step)
        return (site.emit if last else site.step)("slice", [x], dim=axis, start=first, end=end, step=step)
    indices = site.step("arange", [], dtype=DType.I64, shape=(count,), start=first, step=step)
    return _look_up(site, x, indices, axis, last=last)


@operator("Gather")
def _gather(site: Site) -> Operand:
    shape, axis, indices = site.shape(0), site.axis(0), site.known(1)
    if indices is None:
        return _look_up(site, site.tensor(0), site.tensor(1), axis)
    size = shape[axis]
    places = [place + size if isinstance(size, int) and place < 0 else place for place in indices.ints()]
    if min(places, default=0) < 0:
        raise UnfoldableError(f"an element counted from the end of {size} depends on the symbols")
    first = places[0] if places else 0
    if isinstance(size, int) and places and places == list(range(first, first + len(places))) and places[-1] < size:
        wanted = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
        whole = (*shape[:axis], len(places), *shape[axis + 1 :])
        cut = _cut(site, site.tensor(0), axis, first, len(places), 1, last=wanted == whole)
        return site.reshape(cut, wanted)
    constant = site.constant(Known(DType.I64, np.array(places, dtype=object).reshape(indices.shape)))
    return _look_up(site, site.tensor(0), constant, axis)


def _look_up(site: Site, x: str, indices: str, axis: int, *, last: bool = True) -> str:
    """The elements of an axis that ``indices`` name, as rows of a table."""
    shape = site.value_type(x).shape
    chosen = site.value_type(indices).shape
    if axis == 0 and len(shape) == 2:
        return (site.emit if last else site.step)("embedding", [x, indices])
    order = (axis, *(i for i in range(len(shape)) if i != axis))
    rest = tuple(shape[i] for i in order[1:])
    table = x if axis == 0 else site.step("transpose", [x], permutation=order)
    rows = site.step("embedding", [site.reshape(table, (shape[axis], product(rest)), last=False), indices])
    if axis == 0:
        return site.reshape(rows, (*chosen, *rest), last=last)
    rows = site.reshape(rows, (*chosen, *rest), last=False)
    width = len(chosen)
    back = (*range(width, width + axis), *range(width), *range(width + axis, width + len(rest)))
    return (site.emit if last else site.step)("transpose", [rows], permutation=back)
