"""Resizing along axes: as the graph's own operator where it has the method, else as products with matrices that hold
each result's share of each element.

Coordinates and weights follow the definition of ONNX's Resize.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ir.types import DType
from partitioner.frontends.onnx_file.constants import UnfoldableError, check_size, normal_axis
from partitioner.frontends.onnx_file.indexing import take
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, constant, fixed, term


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis of ``old`` elements that gets ``new`` ones; ``start`` and ``end`` cut a part out of it (0 to 1)."""

    dim: int
    old: int
    new: int
    scale: float
    start: float
    end: float

    @property
    def width(self) -> float:
        """The new size before it was rounded."""
        return self.scale * self.old


@operator("Resize", "Upsample")
def _resize(site: Site) -> Operand:
    x, axes = term(site, 0), _axes(site)
    mode = site.attribute("mode", "nearest")
    own = _own_method(site, axes, len(x.shape), mode)
    if own is not None and x.dtype.is_float:
        sizes, scales = tuple(a.new for a in axes), tuple(a.scale for a in axes)
        return x.apply("resize", mode=own[0], size=sizes, scales=scales, align_corners=own[1]).name
    check_size((max((axis.new for axis in axes), default=0),))
    coordinates = [_coordinates(axis, _transformation(site)) for axis in axes]
    dtype = x.dtype
    for axis, places in zip(axes, coordinates, strict=True):
        if mode == "nearest":
            x = take(x, axis.dim, [_nearest(place, axis.old, _rounding(site)) for place in places])
        elif (axis.old, axis.scale, axis.start, axis.end) != (axis.new, 1.0, 0.0, 1.0):
            x = _mixed(x.cast(dtype if dtype.is_float else DType.F32), axis, _shares(site, axis, places))
    if _transformation(site) == "tf_crop_and_resize":
        x = _outside_replaced(x, axes, coordinates, float(site.attribute("extrapolation_value", 0.0)))
    return x.cast(dtype).name


def _transformation(site: Site) -> str:
    return str(site.attribute("coordinate_transformation_mode", "half_pixel" if site.opset >= 11 else "asymmetric"))


def _rounding(site: Site) -> str:
    return str(site.attribute("nearest_mode", "round_prefer_floor" if site.opset >= 11 else "floor"))


def _axes(site: Site) -> list[_Axis]:
    shape = [fixed(size) for size in site.shape(0)]
    dims = [normal_axis(axis, len(shape)) for axis in site.attribute("axes") or range(len(shape))]
    at = 2 if site.opset >= 11 else 1
    sizes = site.demanded(3).ints() if site.has(3) and site.shape(3) != (0,) else ()
    given = site.attribute("scales") if at == 1 and not site.has(1) else None
    scales = [] if sizes else [float(scale) for scale in (given or site.demanded(at).list())]
    region = site.demanded(1).list() if _transformation(site) == "tf_crop_and_resize" else []
    region = region or [0.0] * len(dims) + [1.0] * len(dims)
    if len(sizes or scales) != len(dims):
        raise UnfoldableError(f"{len(sizes or scales)} sizes or scales for {len(dims)} axes")
    if sizes:
        scales = [size / shape[dim] for size, dim in zip(sizes, dims, strict=True)]
        policy = site.attribute("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            scales = [(min if policy == "not_larger" else max)(scales)] * len(dims)
            sizes = tuple(math.floor(scale * shape[dim] + 0.5) for scale, dim in zip(scales, dims, strict=True))
    else:
        sizes = tuple(math.floor(scale * shape[dim]) for scale, dim in zip(scales, dims, strict=True))
    lines = zip(dims, sizes, scales, region[: len(dims)], region[len(dims) :], strict=True)
    every = [_Axis(dim, shape[dim], size, scale, start, end) for dim, size, scale, start, end in lines]
    return [axis for axis in every if (axis.old, axis.scale, axis.start, axis.end) != (axis.new, 1.0, 0.0, 1.0)]


_OWN_METHODS: dict[tuple[str, str], tuple[dict[int, str], bool]] = {
    ("linear", "half_pixel"): ({1: "linear", 2: "bilinear", 3: "trilinear"}, False),
    ("linear", "align_corners"): ({1: "linear", 2: "bilinear", 3: "trilinear"}, True),
    ("cubic", "half_pixel"): ({2: "bicubic"}, False),
    ("cubic", "align_corners"): ({2: "bicubic"}, True),
    ("floor", "asymmetric"): ({1: "nearest", 2: "nearest", 3: "nearest"}, False),
}
"""The graph's name of a method by its interpolation, or rounding, and its coordinates, for each number of axes."""


def _own_method(site: Site, axes: list[_Axis], rank: int, mode: str) -> tuple[str, bool] | None:
    """The graph's own name of the method and whether corners are aligned, if it has the method."""
    special = any(site.attribute(name) for name in ("antialias", "exclude_outside"))
    special |= mode == "cubic" and site.attribute("cubic_coeff_a", -0.75) != -0.75
    method = _rounding(site) if mode == "nearest" else mode
    names, align = _OWN_METHODS.get((method, _transformation(site)), ({}, False))
    are_positions = [axis.dim for axis in axes] == list(range(2, rank))
    # With corners aligned, the graph's operator knows the sizes alone.
    whole = not align or all(axis.width == axis.new for axis in axes)
    name = names.get(len(axes))
    return (name, align) if name is not None and are_positions and whole and not special else None


def _coordinates(axis: _Axis, transformation: str) -> list[float]:
    """Where each new element lies among the old ones."""
    last = axis.old - 1
    if transformation == "align_corners":
        return [i * last / (axis.width - 1) if axis.width != 1 else 0.0 for i in range(axis.new)]
    if transformation == "asymmetric":
        return [i / axis.scale for i in range(axis.new)]
    if transformation == "tf_crop_and_resize":
        part = axis.end - axis.start
        if axis.width == 1:
            return [(axis.start + axis.end) * last / 2] * axis.new
        return [axis.start * last + i * part * last / (axis.width - 1) for i in range(axis.new)]
    if transformation == "pytorch_half_pixel" and axis.width == 1:
        return [-0.5] * axis.new
    offset = 0.0
    if transformation == "half_pixel_symmetric":
        offset = axis.old / 2 * (1 - axis.new / axis.width)
    elif transformation not in ("half_pixel", "pytorch_half_pixel"):
        raise UnfoldableError(f"coordinates of the kind {transformation} are not supported")
    return [offset + (i + 0.5) / axis.scale - 0.5 for i in range(axis.new)]


_ROUNDINGS: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda place: math.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: math.floor(place + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


def _nearest(place: float, size: int, rounding: str) -> int:
    return min(max(_ROUNDINGS[rounding](place), 0), size - 1)


def _shares(site: Site, axis: _Axis, places: list[float]) -> list[list[float]]:
    """How much of each old element each new one is made of [new, old]."""
    check_size((axis.new, axis.old))
    mode, a = site.attribute("mode", "nearest"), float(site.attribute("cubic_coeff_a", -0.75))
    weight = _linear if mode == "linear" else lambda distance: _cubic(distance, a)
    # Shrinking without aliasing looks at as many elements as fall together.
    shrink = min(axis.scale, 1.0) if site.attribute("antialias", 0) else 1.0
    reach = (1 if mode == "linear" else 2) / shrink
    rows = []
    for place in places:
        near = range(math.floor(place - reach), math.ceil(place + reach) + 1)
        weights = {i: weight(abs(i - place) * shrink) for i in near}
        if site.attribute("exclude_outside", 0):
            weights = {i: share for i, share in weights.items() if 0 <= i < axis.old}
        total = sum(weights.values())
        row = [0.0] * axis.old
        for i, share in weights.items():
            row[min(max(i, 0), axis.old - 1)] += share / total
        rows.append(row)
    return rows


def _linear(distance: float) -> float:
    return max(0.0, 1 - distance)


def _cubic(distance: float, a: float) -> float:
    """Keys' kernel (Cubic convolution interpolation for digital image processing, 1981)."""
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1
    return (((distance - 5) * distance + 8) * distance - 4) * a if distance < 2 else 0.0


def _mixed(x: Term, axis: _Axis, shares: list[list[float]]) -> Term:
    """The axis multiplied by a matrix [new, old]."""
    matrix = constant(x.site, x.dtype, shares).transpose(1, 0)
    last = x.axis_last(axis.dim)
    rows = last if len(last.shape) > 1 else last.reshape(1, *last.shape)
    mixed = (rows @ matrix).reshape(*last.shape[:-1], axis.new)
    return mixed.axis_last(len(mixed.shape) - 1, axis.dim)


def _outside_replaced(x: Term, axes: list[_Axis], coordinates: list[list[float]], value: float) -> Term:
    for axis, places in zip(axes, coordinates, strict=True):
        outside = constant(x.site, DType.BOOL, [not 0 <= place <= axis.old - 1 for place in places])
        outside = outside.reshape(*(axis.new if i == axis.dim else 1 for i in range(len(x.shape))))
        x = x.apply("masked_fill", outside, value=value)
    return x
