"""Operators that put elements where indices say, or take them from there."""

from __future__ import annotations

from ir.types import Dim, DType, Shape, product
from partitioner.frontends.onnx_file.constants import UnfoldableError, check_size, normal_axis
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, constant, counting, fixed, flattened, full, join, term, volume

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


_BORDERS = {"constant": "constant", "edge": "replicate", "wrap": "circular"}
"""What the graph calls a border; it reflects at most once, ONNX as often as needed."""


@operator("GatherElements")
def _gather_elements(site: Site) -> Operand:
    return site.emit("gather", [site.tensor(0), site.tensor(1)], dim=site.axis(0))


@operator("ScatterElements", "Scatter")
def _scatter_elements(site: Site) -> Operand:
    return _scatter(term(site, 0), term(site, 1), term(site, 2), site.axis(0), site.attribute("reduction", "none")).name


def _scatter(data: Term, indices: Term, updates: Term, dim: int, reduction: str) -> Term:
    if reduction == "none":
        return data.apply("scatter", indices, updates, dim=dim)
    return data.apply("scatter", indices, updates, dim=dim, reduce=_REDUCTIONS[reduction])


@operator("GatherND")
def _gather_nd(site: Site) -> Operand:
    data, indices, batch = term(site, 0), term(site, 1), site.attribute("batch_dims", 0)
    depth = fixed(indices.shape[-1])
    if not batch and depth > 1 and any(isinstance(size, Dim) for size in data.shape[:depth]):
        return _axis_by_axis(data, indices, depth).name
    table = flattened(data, batch + depth)
    rows = _row_numbers(indices, data.shape[batch : batch + depth])
    if batch:
        count, each = volume(data.shape[:batch]), volume(data.shape[batch : batch + depth])
        starts = counting(site, count, step=each)
        rows = rows + starts.reshape(*data.shape[:batch], *[1] * (len(rows.shape) - batch))
    return table.rows(rows).reshape(*rows.shape, *data.shape[batch + depth :]).name


def _axis_by_axis(data: Term, indices: Term, depth: int) -> Term:
    """Data [d0, ..., rest], indices [..., depth] that are not negative -> [..., rest]: one look-up after the other."""
    count = product(indices.shape[:-1])
    flat = indices.cast(DType.I64).reshape(count, depth)
    columns = [flat.cut(1, i, i + 1) for i in range(depth)]
    rows = data.reshape(data.shape[0], product(data.shape[1:])).rows(columns[0].reshape(count))
    for axis in range(1, depth):
        rest = product(data.shape[axis + 1 :])
        rows = rows.reshape(count, data.shape[axis], rest)
        rows = rows.apply("gather", columns[axis].reshape(count, 1, 1).expand(count, 1, rest), dim=1)
    return rows.reshape(*indices.shape[:-1], *data.shape[depth:])


@operator("ScatterND")
def _scatter_nd(site: Site) -> Operand:
    data, indices, updates = (term(site, index) for index in range(3))
    depth = fixed(indices.shape[-1])
    table = flattened(data, depth)
    rows = _row_numbers(indices, data.shape[:depth])
    rows = rows.reshape(product(rows.shape), 1).expand(product(rows.shape), table.shape[1])
    put = _scatter(table, rows, updates.reshape(*rows.shape), 0, site.attribute("reduction", "none"))
    return put.reshape(*data.shape).name


def _row_numbers(indices: Term, shape: Shape) -> Term:
    """Index tuples [..., depth] into ``shape`` as single indices [...] into all its elements."""
    if len(shape) == 1 and isinstance(shape[0], Dim):  # where a negative index would be counted from is not known
        return indices.cast(DType.I64).reshape(*indices.shape[:-1])
    sizes = constant(indices.site, DType.I64, [fixed(size) for size in shape])
    indices = indices.cast(DType.I64)
    indices = indices.with_("lt", 0).apply("where", indices + sizes, indices)
    strides = constant(indices.site, DType.I64, [volume(shape[i + 1 :]) for i in range(len(shape))])
    return (indices * strides).reduce("sum", [len(indices.shape) - 1])


@operator("TensorScatter")
def _tensor_scatter(site: Site) -> Operand:
    """New entries of a cache [batch, ...], each batch's from its own place on; a circular one begins again."""
    cache, update = term(site, 0), term(site, 1)
    rank = len(cache.shape)
    axis = normal_axis(site.attribute("axis", -2), rank)
    places = counting(site, update.shape[axis]).reshape(*(update.shape[i] if i == axis else 1 for i in range(rank)))
    if site.has(2):
        places = places + term(site, 2).cast(DType.I64).reshape(update.shape[0], *[1] * (rank - 1))
    if site.attribute("mode", "linear") == "circular":
        places = places.with_("remainder", fixed(cache.shape[axis]))
    return cache.apply("scatter", places.expand(*update.shape), update, dim=axis).name


@operator("OneHot")
def _one_hot(site: Site) -> Operand:
    (depth,) = site.demanded(1).list()
    indices, values = term(site, 0).cast(DType.I64), term(site, 2)
    axis = normal_axis(site.attribute("axis", -1), len(indices.shape) + 1)
    shape = [*indices.shape]
    shape.insert(axis, 1)
    indices = indices.with_("lt", 0).apply("where", indices + int(depth), indices).reshape(*shape)
    lane = counting(site, int(depth)).reshape(*(int(depth) if i == axis else 1 for i in range(len(shape))))
    off, on = values.cut(0, 0, 1).reshape(), values.cut(0, 1, 2).reshape()
    return lane.with_("eq", indices).apply("where", on, off).name


@operator("Compress")
def _compress(site: Site) -> Operand:
    """The condition must be known, as it decides on the result's size."""
    x, kept = term(site, 0), [index for index, keep in enumerate(site.demanded(1).list()) if keep]
    if site.attribute("axis") is None:
        return x.reshape(x.elements(), 1).rows(constant(site, DType.I64, kept)).reshape(len(kept)).name
    axis = site.axis(0)
    indices = constant(site, DType.I64, kept).reshape(*(len(kept) if i == axis else 1 for i in range(len(x.shape))))
    shape = tuple(len(kept) if i == axis else size for i, size in enumerate(x.shape))
    return x.apply("gather", indices.expand(*shape), dim=axis).name


@operator("ReverseSequence")
def _reverse_sequence(site: Site) -> Operand:
    """The first ``lengths[b]`` steps of each batch in reverse."""
    x, batch, time = term(site, 0), site.attribute("batch_axis", 1), site.attribute("time_axis", 0)
    rank = len(x.shape)
    steps = counting(site, x.shape[time]).reshape(*(x.shape[i] if i == time else 1 for i in range(rank)))
    lengths = term(site, 1).cast(DType.I64).reshape(*(x.shape[i] if i == batch else 1 for i in range(rank)))
    source = steps.with_("lt", lengths).apply("where", lengths - steps - 1, steps)
    return x.apply("gather", source.expand(*x.shape), dim=time).name


@operator("Trilu")
def _triangle(site: Site) -> Operand:
    x = term(site, 0)
    rows, columns = x.shape[-2:]
    distance = counting(site, columns).reshape(1, columns) - counting(site, rows).reshape(rows, 1)
    known = site.known(1) if site.has(1) else None
    diagonal = int(known.list()[0]) if known is not None else term(site, 1).reshape() if site.has(1) else 0
    gone = distance.with_("lt" if site.attribute("upper", 1) else "gt", diagonal)
    return x.apply("masked_fill", gone, value=0).name


@operator("EyeLike")
def _eye(site: Site) -> Operand:
    rows, columns = site.shape(0)
    dtype = site.element_type("dtype", site.type(0).dtype)
    distance = counting(site, columns).reshape(1, columns) - counting(site, rows).reshape(rows, 1)
    return distance.with_("eq", int(site.attribute("k", 0))).cast(dtype).name


@operator("Tile")
def _tile(site: Site) -> Operand:
    x, repeats = term(site, 0), site.demanded(1).sizes()
    spread = x.reshape(*(size for old in x.shape for size in (1, old)))
    spread = spread.expand(*(size for pair in zip(repeats, x.shape, strict=True) for size in pair))
    return spread.reshape(*(count * old for count, old in zip(repeats, x.shape, strict=True))).name


@operator("Pad")
def _pad(site: Site) -> Operand:
    """Each axis is joined with what lies beyond its ends; a negative number of elements cuts them off."""
    x, mode = term(site, 0), site.attribute("mode", "constant")
    rank, pads = len(x.shape), site.ints("pads", 1)
    if pads is None:
        raise UnfoldableError("the numbers of elements are missing")
    axes = (site.demanded(3).ints() if site.has(3) else None) or tuple(range(rank))
    value = _pad_value(site)
    if mode in _BORDERS and not isinstance(value, Term):
        dims = [normal_axis(axis, rank) for axis in axes]
        starts, ends = (dict(zip(dims, numbers, strict=False)) for numbers in (pads, pads[len(axes) :]))
        sides = {"before": tuple(starts.get(i, 0) for i in range(rank))}
        sides["after"] = tuple(ends.get(i, 0) for i in range(rank))
        return x.apply("pad", **sides, mode=_BORDERS[mode], value=value).name
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        dim = normal_axis(axis, rank)
        if before < 0 or after < 0:
            x = x.cut(dim, max(0, -before), fixed(x.shape[dim]) - max(0, -after))
        if before > 0 or after > 0:
            x = _extended(x, dim, max(0, before), max(0, after), mode, value)
    return x.name


def _pad_value(site: Site) -> Term | int | float:
    known = site.known(2) if site.has(2) else None
    if site.has(2) and known is None:
        return term(site, 2)
    number: int | float = known.list()[0] if known is not None and known.items.size else site.attribute("value", 0)
    return number


def _extended(x: Term, dim: int, before: int, after: int, mode: str, value: Term | int | float) -> Term:
    if mode == "constant":
        return join([_border(x, dim, before, value), x, _border(x, dim, after, value)], dim)
    size = fixed(x.shape[dim])
    check_size((before + size + after,))
    if mode == "edge":
        places = [min(max(i, 0), size - 1) for i in range(-before, size + after)]
    elif mode == "wrap":
        places = [i % size for i in range(-before, size + after)]
    else:
        turn = max(1, 2 * (size - 1))
        places = [min(i % turn, turn - i % turn) if size > 1 else 0 for i in range(-before, size + after)]
    return take(x, dim, places)


def _border(x: Term, dim: int, count: int, value: Term | int | float) -> Term:
    shape = tuple(count if i == dim else size for i, size in enumerate(x.shape))
    if isinstance(value, Term):
        return value.reshape(*[1] * len(shape)).expand(*shape)
    return full(x.site, x.dtype, shape, value)


def take(x: Term, dim: int, places: list[int]) -> Term:
    """The elements of an axis at ``places``."""
    indices = constant(x.site, DType.I64, places)
    others = tuple(size for i, size in enumerate(x.shape) if i != dim)
    table = x.transpose(dim, *(i for i in range(len(x.shape)) if i != dim)).reshape(x.shape[dim], product(others))
    rows = table.rows(indices).reshape(len(places), *others)
    return rows.transpose(*range(1, dim + 1), 0, *range(dim + 1, len(x.shape)))
