"""Convolutions, pooling and normalisation over positions: tensors are [batch, channels, *positions]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ir.types import DType, Size
from partitioner.frontends.onnx_file.constants import UnfoldableError, check_size
from partitioner.frontends.onnx_file.indexing import take
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand, Results
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, counting, fixed, full, optional, term, volume


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel moves over positions, one number for each axis of them."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Positions from a kernel's first to its last element."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))


def window_of(site: Site, positions: Sequence[Size], kernel: Sequence[Size]) -> Window:
    """The window that the node's attributes describe."""
    axes = len(positions)
    sizes = tuple(fixed(size) for size in kernel)
    stride = tuple(site.attribute("strides") or (1,) * axes)
    dilation = tuple(site.attribute("dilations") or (1,) * axes)
    pads = tuple(site.attribute("pads") or (0,) * 2 * axes)
    mode = site.attribute("auto_pad", "NOTSET")
    window = Window(sizes, stride, dilation, pads[:axes], pads[axes:])
    if not mode.startswith("SAME"):
        return window if mode == "NOTSET" else Window(sizes, stride, dilation, (0,) * axes, (0,) * axes)
    lines = zip(positions, stride, window.reach, strict=True)
    whole = [max(0, (-(-fixed(size) // s) - 1) * s + r - fixed(size)) for size, s, r in lines]
    less, more = tuple(p // 2 for p in whole), tuple(p - p // 2 for p in whole)
    return Window(sizes, stride, dilation, *((less, more) if mode == "SAME_UPPER" else (more, less)))


def padded(x: Term, before: Sequence[int], after: Sequence[int], value: float) -> Term:
    """``x`` with a border of ``value`` around its positions."""
    if not any((*before, *after)):
        return x
    return x.apply("pad", before=(0, 0, *before), after=(0, 0, *after), mode="constant", value=value)


# --- convolution ----------------------------------------------------------------------------------------------------


def convolved(site: Site, x: Term, weight: Term, bias: Term | None) -> Term:
    """The convolution that the node's attributes describe."""
    window = window_of(site, x.shape[2:], weight.shape[2:])
    padding = window.before
    if window.before != window.after:
        x, padding = padded(x, window.before, window.after, 0.0), (0,) * len(window.kernel)
    operands = (weight,) if bias is None else (weight, bias)
    return x.apply(
        "convolution",
        *operands,
        stride=window.stride,
        padding=padding,
        dilation=window.dilation,
        output_padding=(0,) * len(padding),
        groups=int(site.attribute("group", 1)),
        transposed=False,
    )


@operator("Conv")
def _convolution(site: Site) -> Operand:
    return convolved(site, term(site, 0), term(site, 1), optional(site, 2)).name


@operator("ConvTranspose")
def _transposed_convolution(site: Site) -> Operand:
    """All that the kernel reaches, and then the part of it that pads and shape leave."""
    x, weight, bias = term(site, 0), term(site, 1), optional(site, 2)
    axes = len(x.shape) - 2
    zeros = (0,) * axes
    stride = tuple(site.attribute("strides") or (1,) * axes)
    dilation = tuple(site.attribute("dilations") or (1,) * axes)
    window = {"stride": stride, "dilation": dilation, "padding": zeros, "output_padding": zeros}
    whole = x.apply("convolution", weight, **window, groups=int(site.attribute("group", 1)), transposed=True)
    extra = tuple(site.attribute("output_padding") or zeros)
    cuts = _cuts(site, [fixed(s) + e for s, e in zip(whole.shape[2:], extra, strict=True)], x.shape[2:], stride)
    whole = padded(whole, zeros, extra, 0.0)
    # A negative number of elements to cut off adds them.
    sides = ([-before for before, _ in cuts], [-after for _, after in cuts])
    whole = padded(whole, *sides, 0.0)
    return whole.name if bias is None else (whole + bias.reshape(*bias.shape, *[1] * axes)).name


def _cuts(site: Site, whole: list[int], positions: Sequence[Size], stride: Sequence[int]) -> list[tuple[int, int]]:
    """Elements to cut off before and after each axis of ``whole`` elements."""
    axes, mode = len(whole), site.attribute("auto_pad", "NOTSET")
    pads, wanted = site.attribute("pads"), site.attribute("output_shape")
    if wanted is None and not mode.startswith("SAME"):
        pads = pads or [0] * 2 * axes
        return list(zip(pads[:axes], pads[axes:], strict=True))
    wanted = wanted or [fixed(size) * s for size, s in zip(positions, stride, strict=True)]
    totals = [size - target for size, target in zip(whole, wanted[-axes:], strict=True)]
    if mode == "SAME_UPPER":
        return [(total // 2, total - total // 2) for total in totals]
    return [(total - total // 2, total // 2) for total in totals]


# --- pooling --------------------------------------------------------------------------------------------------------


def _pool_window(site: Site, x: Term) -> tuple[Window, tuple[int, ...]]:
    """The window of a pooling, and how many of them there are along each axis."""
    positions = tuple(fixed(size) for size in x.shape[2:])
    window = window_of(site, positions, site.attribute("kernel_shape"))
    counts = []
    for size, s, reach, before, after in zip(
        positions, window.stride, window.reach, window.before, window.after, strict=True
    ):
        room = size + before + after - reach
        count = (-(-room // s) if site.attribute("ceil_mode", 0) else room // s) + 1
        # The last window begins inside of the positions or the border before them.
        counts.append(count - 1 if (count - 1) * s >= size + before else count)
    return window, tuple(counts)


def _windows(x: Term, window: Window, counts: tuple[int, ...], value: float) -> Term:
    """The elements of every window [batch, channels, *windows, elements of a kernel]."""
    lines = zip(x.shape[2:], counts, window.stride, window.reach, window.before, strict=True)
    beyond = tuple(max(0, (count - 1) * s + r - fixed(size) - b) for size, count, s, r, b in lines)
    x = padded(x, window.before, beyond, value)
    axes = len(counts)
    for axis in range(axes):
        check_size((counts[axis], window.kernel[axis]))
        at = [
            place * window.stride[axis] + element * window.dilation[axis]
            for place in range(counts[axis])
            for element in range(window.kernel[axis])
        ]
        x = take(x, axis + 2, at)
    split = x.reshape(*x.shape[:2], *(size for pair in zip(counts, window.kernel, strict=True) for size in pair))
    order = (0, 1, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2))
    return split.transpose(*order).reshape(*x.shape[:2], *counts, math.prod(window.kernel))


def _is_plain(site: Site, window: Window) -> bool:
    """Whether the graph's own operator covers the window."""
    half = all(2 * pad <= size for pad, size in zip(window.before, window.kernel, strict=True))
    return half and window.before == window.after and not site.attribute("ceil_mode", 0) and len(window.kernel) <= 3


@operator("MaxPool")
def _max_pool(site: Site) -> Results:
    x = term(site, 0)
    window, counts = _pool_window(site, x)
    has_places = any(site.node.outputs[1:])
    if x.dtype.is_float and _is_plain(site, window) and not has_places:
        attributes = {"kernel": window.kernel, "stride": window.stride, "dilation": window.dilation}
        return x.apply("max_pool", padding=window.before, ceil=False, **attributes).name
    least = -math.inf if x.dtype.is_float else x.dtype.integer_range[0]
    windows = _windows(x, window, counts, least)
    largest = windows.reduce("amax", [2 + len(counts)])
    if not has_places:
        return largest.name
    chosen = windows.reduce("argmax", [2 + len(counts)], keepdim=True)
    places = _windows(_places(site, x), window, counts, 0).expand(*windows.shape)
    return largest.name, places.apply("gather", chosen, dim=2 + len(counts)).reshape(*largest.shape).name


def _places(site: Site, x: Term) -> Term:
    """The index of each element of ``x`` among all of them, its positions counted row by row or column by column."""
    positions = tuple(fixed(size) for size in x.shape[2:])
    if site.attribute("storage_order", 0) == 0:
        return counting(site, volume(x.shape)).reshape(*x.shape)
    axes = len(positions)
    order = (0, 1, *range(1 + axes, 1, -1))
    return counting(site, volume(x.shape)).reshape(*x.shape[:2], *positions[::-1]).transpose(*order)


@operator("AveragePool")
def _average_pool(site: Site) -> Operand:
    x = term(site, 0)
    window, counts = _pool_window(site, x)
    with_border = bool(site.attribute("count_include_pad", 0))
    if _is_plain(site, window) and set(window.dilation) == {1}:
        attributes = {"kernel": window.kernel, "stride": window.stride, "padding": window.before}
        return x.apply("avg_pool", ceil=False, count_padding=with_border, **attributes).name
    total = _windows(x, window, counts, 0.0).reduce("sum", [2 + len(counts)])
    ones = full(site, x.dtype, (1, 1, *x.shape[2:]), 1.0)
    bare = window
    if with_border:
        ones = padded(ones, window.before, window.after, 1.0)
        bare = Window(window.kernel, window.stride, window.dilation, *((0,) * len(counts),) * 2)
    return (total / _windows(ones, bare, counts, 0.0).reduce("sum", [2 + len(counts)])).name


@operator("LpPool")
def _norm_pool(site: Site) -> Operand:
    x, power = term(site, 0), float(site.attribute("p", 2))
    window, counts = _pool_window(site, x)
    powers = _windows(x, window, counts, 0.0).apply("abs").with_("pow", power)
    return powers.reduce("sum", [2 + len(counts)]).with_("pow", 1 / power).name


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(site: Site) -> Operand:
    x, op = term(site, 0), "mean" if site.node.op_type == "GlobalAveragePool" else "amax"
    return x.reduce(op, range(2, len(x.shape)), keepdim=True).name


@operator("MaxUnpool")
def _max_unpool(site: Site) -> Operand:
    """Maxima back to where they came from; the places count in the shape that pooling would come from."""
    x, places = term(site, 0), term(site, 1).cast(DType.I64)
    window = window_of(site, x.shape[2:], site.attribute("kernel_shape"))
    lines = zip(x.shape[2:], window.kernel, window.stride, window.before, window.after, strict=True)
    inferred = tuple((fixed(size) - 1) * s + k - b - a for size, k, s, b, a in lines)
    wanted = site.demanded(2).ints()[2:] if site.has(2) else inferred
    shape = (*x.shape[:2], *inferred)
    empty = full(site, x.dtype, (volume(shape),), 0)
    filled = empty.apply("scatter", places.reshape(x.elements()), x.reshape(x.elements()), dim=0).reshape(*shape)
    return padded(filled, (0,) * len(wanted), [w - i for w, i in zip(wanted, inferred, strict=True)], 0).name


# --- normalisation --------------------------------------------------------------------------------------------------


@operator("BatchNormalization")
def _batch_norm(site: Site) -> Results:
    x, scale, shift, mean, variance = (term(site, index) for index in range(5))
    epsilon = float(site.attribute("epsilon", 1e-5))
    if not site.attribute("training_mode", 0):
        if any(site.node.outputs[1:]):
            raise UnfoldableError("training is not supported before opset 14")
        return x.apply("batch_norm", mean, variance, scale, shift, epsilon=epsilon).name
    axes, momentum = [0, *range(2, len(x.shape))], float(site.attribute("momentum", 0.9))
    own_mean = x.reduce("mean", axes)
    centred = x - own_mean.reshape(*own_mean.shape, *[1] * (len(x.shape) - 2))
    own_variance = (centred * centred).reduce("mean", axes)
    normal = x.apply("batch_norm", own_mean, own_variance, scale, shift, epsilon=epsilon)
    blended = [
        (old * momentum + new * (1 - momentum)).name for old, new in ((mean, own_mean), (variance, own_variance))
    ]
    return (normal.name, *blended)


@operator("InstanceNormalization")
def _instance_norm(site: Site) -> Operand:
    x, scale, shift = (term(site, index) for index in range(3))
    groups = fixed(x.shape[1])
    return x.apply("group_norm", scale, shift, groups=groups, epsilon=float(site.attribute("epsilon", 1e-5))).name


@operator("LRN")
def _local_response(site: Site) -> Operand:
    """Each channel by the squares of those around it."""
    x, size = term(site, 0), int(site.attribute("size"))
    before, after = (size - 1) // 2, size // 2
    none = (0,) * (len(x.shape) - 2)
    sides = {"before": (0, before, *none), "after": (0, after, *none)}
    squares = (x * x).apply("pad", **sides, mode="constant", value=0.0)
    channels = fixed(x.shape[1])
    total = squares.cut(1, 0, channels)
    for shift in range(1, size):
        total = total + squares.cut(1, shift, shift + channels)
    scale = total * (float(site.attribute("alpha", 1e-4)) / size) + float(site.attribute("bias", 1.0))
    return (x / scale.with_("pow", float(site.attribute("beta", 0.75)))).name


@operator("Col2Im")
def _columns_to_image(site: Site) -> Operand:
    """The sum of overlapping blocks, each put back where it was cut from."""
    x, positions, kernel = term(site, 0), site.demanded(1).ints(), site.demanded(2).ints()
    window = window_of(site, positions, kernel)
    lines = zip(positions, window.stride, window.reach, window.before, window.after, strict=True)
    counts = [(size + b + a - r) // s + 1 for size, s, r, b, a in lines]
    sizes = tuple(size + b + a for size, b, a in zip(positions, window.before, window.after, strict=True))
    places = counting(site, math.prod(sizes)).reshape(1, 1, *sizes)
    bare = Window(kernel, window.stride, window.dilation, (0,) * len(kernel), (0,) * len(kernel))
    at = _windows(places, bare, tuple(counts), 0).reshape(math.prod(counts), math.prod(kernel)).transpose(1, 0)
    batch, channels = x.shape[0], fixed(x.shape[1]) // math.prod(kernel)
    elements = math.prod(counts) * math.prod(kernel)
    rows = x.reshape(batch, channels, elements)
    at = at.reshape(1, 1, elements).expand(batch, channels, elements)
    image = full(site, x.dtype, (batch, channels, math.prod(sizes)), 0)
    image = image.apply("scatter", at, rows, dim=2, reduce="sum").reshape(batch, channels, *sizes)
    for axis, (size, before) in enumerate(zip(positions, window.before, strict=True), start=2):
        image = image.cut(axis, before, before + size)
    return image.name


@operator("GridSample")
def _grid_sample(site: Site) -> Operand:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = site.attribute("mode", "linear" if site.opset >= 20 else "bilinear")
    return site.emit(
        "grid_sample",
        [site.tensor(0), site.tensor(1)],
        mode=names.get(mode, mode),
        padding=site.attribute("padding_mode", "zeros"),
        align_corners=bool(site.attribute("align_corners", 0)),
    )
