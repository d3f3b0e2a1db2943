"""Operators over spatial axes: tensors are [batch, channels, *positions], with one to three axes of positions.

Attributes with one number for each axis of positions are tuples. What a window yields along an axis follows torch's
rule (``torch.nn.Conv2d``, ``torch.nn.MaxPool2d``).
"""

from __future__ import annotations

from typing import Any

from ir.graph import Attributes
from ir.ops.definition import Axes, Kind, OpDef, Tensors, Types, attribute, require
from ir.types import Dim, Shape, Size, TensorType, exact_quotient, product

_PAD_MODES = ("constant", "reflect", "replicate", "circular")
_RESIZE_MODES = {"nearest": (1, 2, 3), "nearest-exact": (1, 2, 3), "area": (1, 2, 3), "linear": (1,)}
_RESIZE_MODES |= {"bilinear": (2,), "bicubic": (2,), "trilinear": (3,)}


def _positions(x: TensorType) -> Shape:
    require(3 <= len(x.shape) <= 5, f"{x} is not [batch, channels] and one to three axes of positions")
    return x.shape[2:]


def _numbers(attributes: Attributes, name: str, count: int, least: int) -> tuple[int, ...]:
    """The attribute ``name``: ``count`` integers of at least ``least``."""
    given = attributes[name]
    fits = isinstance(given, tuple) and len(given) == count and all(type(n) is int and n >= least for n in given)
    require(fits, f"{name} must be {count} integers from {least} on, not {given!r}")
    return tuple(int(number) for number in given)


def _windows(size: Size, reach: int, stride: int, ceil: bool = False) -> Size:
    """How many windows of ``reach`` positions, ``stride`` apart, begin inside of ``size`` positions."""
    room = size - reach + (stride - 1 if ceil else 0)
    if isinstance(room, Dim):
        # Rounding down takes off the constant's remainder, if all else divides evenly.
        steps = exact_quotient(room - room.coefficient() % stride, stride)
        require(steps is not None, f"windows of {reach} positions every {stride} on a symbolic axis")
        assert steps is not None
        return steps + 1
    require(room >= 0, f"a window of {reach} positions does not fit in {size}")
    return room // stride + 1


# --- convolution ----------------------------------------------------------------------------------------------------


def _convolution(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """X [batch, in, *positions], weight [out, in / groups, *kernel] (or [in, out / groups, *kernel] when
    ``transposed``), bias [out] -> [batch, out, *positions].
    """
    x, weight, *bias = operands
    positions = _positions(x)
    count = len(positions)
    require(len(weight.shape) == 2 + count, f"{x} does not fit a kernel {weight}")
    stride, dilation = (_numbers(attributes, name, count, 1) for name in ("stride", "dilation"))
    padding, extra = (_numbers(attributes, name, count, 0) for name in ("padding", "output_padding"))
    groups, transposed = attribute(attributes, "groups", int), attribute(attributes, "transposed", bool)
    require(groups > 0, "there is at least one group")
    first, second, *kernel = weight.shape
    channels, outputs = (first, second * groups) if transposed else (second * groups, first)
    require(x.shape[1] == channels, f"{x} does not fit a kernel {weight} in {groups} groups")
    require(exact_quotient(first, groups) is not None, f"{first} channels do not make {groups} groups")
    require(all(b.shape == (outputs,) for b in bias), "the bias must be as long as the outputs")
    require(transposed or not any(extra), "only a transposed convolution has output padding")
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        lines = zip(positions, stride, padding, reach, extra, strict=True)
        after = tuple((size - 1) * s - 2 * p + r + e for size, s, p, r, e in lines)
    else:
        lines_ = zip(positions, stride, padding, reach, strict=True)
        after = tuple(_windows(size + 2 * p, int(r), s) for size, s, p, r in lines_)  # type: ignore[arg-type]
    return (x.with_shape((x.shape[0], outputs, *after)),)


def _reference_convolution(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    x, weight, *bias = tensors
    window = [attributes[name] for name in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")]
    return torch.convolution(x, weight, bias[0] if bias else None, *window)


def _convolution_work(operands: Types, results: Types, attributes: Attributes) -> Size:
    """Each position of the result (of the input, where transposed) meets one kernel of each of its group's channels."""
    x, weight, *_ = operands
    at = x if attributes["transposed"] else results[0]
    return at.elements * product(weight.shape[1:])


# --- pooling --------------------------------------------------------------------------------------------------------


def _pool(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    (x,) = operands
    positions = _positions(x)
    count = len(positions)
    kernel, stride = (_numbers(attributes, name, count, 1) for name in ("kernel", "stride"))
    padding = _numbers(attributes, "padding", count, 0)
    dilation = _numbers(attributes, "dilation", count, 1) if "dilation" in attributes else (1,) * count
    ceil = attribute(attributes, "ceil", bool)
    require(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)), "padding is at most half of the kernel")
    after: list[Size] = []
    for size, k, s, p, d in zip(positions, kernel, stride, padding, dilation, strict=True):
        windows = _windows(size + 2 * p, d * (k - 1) + 1, s, ceil)
        # The last window must begin inside of the positions or the padding before them.
        beyond = isinstance(windows, int) and isinstance(size, int) and (windows - 1) * s >= size + p
        after.append(windows - 1 if ceil and beyond else windows)
    return (x.with_shape((*x.shape[:2], *after)),)


def _average(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    attribute(attributes, "count_padding", bool)
    require(operands[0].dtype.is_float, f"{operands[0].dtype} has no mean; cast it first")
    return _pool(operands, attributes)


def _reference_max_pool(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    pool = getattr(torch.nn.functional, f"max_pool{tensors[0].dim() - 2}d")
    window = [attributes[name] for name in ("kernel", "stride", "padding", "dilation", "ceil")]
    return pool(tensors[0], *window)


def _reference_avg_pool(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    pool = getattr(torch.nn.functional, f"avg_pool{tensors[0].dim() - 2}d")
    return pool(*tensors, *(attributes[name] for name in ("kernel", "stride", "padding", "ceil", "count_padding")))


def _adaptive(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    (x,) = operands
    size = _numbers(attributes, "size", len(_positions(x)), 1)
    return (x.with_shape((*x.shape[:2], *size)),)


def _reference_adaptive(kind: str) -> Any:
    def reference(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
        return getattr(torch.nn.functional, f"adaptive_{kind}_pool{tensors[0].dim() - 2}d")(
            *tensors, attributes["size"]
        )

    return reference


# --- normalisation --------------------------------------------------------------------------------------------------


def _batch_norm(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """X [batch, channels, ...], then the running mean and variance, scale and shift, each [channels] -> as x."""
    x, *statistics = operands
    attribute(attributes, "epsilon", float)
    require(len(x.shape) >= 2, f"{x} has no channels")
    require(all(s.shape == x.shape[1:2] for s in statistics), "statistics, scale and shift have one value a channel")
    return (x,)


def _reference_batch_norm(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    return torch.nn.functional.batch_norm(*tensors, training=False, eps=attributes["epsilon"])


def _group_norm(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """X [batch, channels, ...], scale and shift [channels] -> as x: each of ``groups`` groups of channels alone."""
    x, *affine = operands
    attribute(attributes, "epsilon", float)
    groups = attribute(attributes, "groups", int)
    fits = len(x.shape) >= 2 and groups > 0 and exact_quotient(x.shape[1], groups) is not None
    require(fits, f"{x} has no channels in {groups} groups")
    require(all(a.shape == x.shape[1:2] for a in affine), "scale and shift have one value a channel")
    return (x,)


def _reference_group_norm(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    x, *affine = tensors
    return torch.nn.functional.group_norm(x, attributes["groups"], *affine, eps=attributes["epsilon"])


# --- borders and sizes ----------------------------------------------------------------------------------------------


def _pad(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """``before`` and ``after``: elements added at both ends of each axis (cut off, where negative)."""
    (x,) = operands
    mode = attribute(attributes, "mode", str)
    attribute(attributes, "value", bool, int, float)
    require(mode in _PAD_MODES, f"padding is {', '.join(_PAD_MODES)}, not {mode}")
    sides = []
    for name in ("before", "after"):
        given = attributes[name]
        fits = isinstance(given, tuple) and len(given) == len(x.shape) and all(type(n) is int for n in given)
        require(fits, f"{name} must be an integer for each axis, not {given!r}")
        sides.append(given)
    for size, before, after in zip(x.shape, *sides, strict=True):
        most = max(before, after)
        if mode != "constant":
            require(min(before, after) >= 0, "only a constant border can be negative")
            reflected = mode == "reflect"
            require(not isinstance(size, int) or most <= size - reflected or mode == "replicate", f"{most} of {size}")
        require(not isinstance(size, int) or size + before + after >= 0, f"{before} and {after} are more than {size}")
    return (x.with_shape(tuple(size + b + a for size, b, a in zip(x.shape, *sides, strict=True))),)


def _reference_pad(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    (x,) = tensors
    sides = list(zip(attributes["before"], attributes["after"], strict=True))
    if attributes["mode"] == "constant":
        flat = [number for pair in reversed(sides) for number in pair]
        return torch.nn.functional.pad(x, flat, value=attributes["value"])
    for axis, (before, after) in enumerate(sides):
        size = x.shape[axis]
        at = torch.arange(-before, size + after)
        if attributes["mode"] == "replicate":
            at = at.clamp(0, size - 1)
        elif attributes["mode"] == "circular":
            at = at % size
        else:
            at = (size - 1) - ((size - 1) - at.abs()).abs()
        x = x.index_select(axis, at)
    return x


def _resize(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """``size``: positions afterwards; ``scales``: how many for each of before, where that says where they lie (none:
    the ratio of the sizes); ``align_corners``: the outermost positions of both coincide (interpolating modes alone).
    """
    (x,) = operands
    count = len(_positions(x))
    mode, scales = attribute(attributes, "mode", str), attributes["scales"]
    align = attribute(attributes, "align_corners", bool)
    require(count in _RESIZE_MODES.get(mode, ()), f"no {mode} of {count} axes")
    require(not align or mode in ("linear", "bilinear", "bicubic", "trilinear"), f"{mode} aligns no corners")
    fits = isinstance(scales, tuple) and len(scales) in (0, count) and all(s > 0 for s in scales)
    require(fits, f"scales must be {count} positive numbers or none, not {scales!r}")
    size = _numbers(attributes, "size", count, 1)
    return (x.with_shape((*x.shape[:2], *size)),)


def _reference_resize(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    (x,) = tensors
    mode, size, scales = (attributes[name] for name in ("mode", "size", "scales"))
    if mode == "area":
        return torch.nn.functional.interpolate(x, size, mode=mode)
    axes = len(size)
    name = {"nearest": f"nearest{axes}d", "nearest-exact": f"_nearest_exact{axes}d", "linear": "linear1d"}
    name |= {"bilinear": "bilinear2d", "bicubic": "bicubic2d", "trilinear": "trilinear3d"}
    prefix = "_upsample" if mode == "nearest-exact" else "upsample_"
    operator = getattr(torch.ops.aten, prefix + name[mode])
    align = () if mode.startswith("nearest") else (attributes["align_corners"],)
    return operator.default(x, list(size), *align, *(scales or (None,) * axes))


def _grid_sample(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """X [batch, channels, *positions], grid [batch, *places, axes], from -1 to 1, the last axis first, where to look
    -> [batch, channels, *places].
    """
    x, grid = operands
    axes = len(_positions(x))
    attribute(attributes, "align_corners", bool)
    fits = len(grid.shape) == axes + 2 and grid.shape[-1] == axes and grid.shape[0] == x.shape[0]
    require(axes in (2, 3) and fits, f"{grid} does not say where to look in {x}")
    require(attributes["mode"] in ("bilinear", "nearest", "bicubic"), f"no interpolation {attributes['mode']}")
    require(attributes["mode"] != "bicubic" or axes == 2, "bicubic interpolation is of two axes")
    require(attributes["padding"] in ("zeros", "border", "reflection"), f"no padding {attributes['padding']}")
    return (x.with_shape((*x.shape[:2], *grid.shape[1:-1])),)


def _reference_grid_sample(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    options = (attributes[name] for name in ("mode", "padding", "align_corners"))
    return torch.nn.functional.grid_sample(*tensors, *options)


def _follow_channels(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    """Statistics are given: each element is treated alone."""
    x, *statistics = operands
    return (tuple(range(len(x.shape))), *((1,),) * len(statistics))


def _follow_batch(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    """Positions meet in windows, and channels in products; the batch alone stays apart."""
    x, *others = operands
    return ((0, *(None,) * (len(x.shape) - 1)), *((None,) * len(other.shape) for other in others))


def _follow_windows(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    """Positions meet in windows; batch and channels stay apart."""
    return ((0, 1, *(None,) * (len(operands[0].shape) - 2)),)


def _follow_pad(_operands: Types, _results: Types, attributes: Attributes) -> Axes:
    """Along an axis with a border elements move."""
    sides = zip(attributes["before"], attributes["after"], strict=True)
    return (tuple(axis if sizes == (0, 0) else None for axis, sizes in enumerate(sides)),)


def _follow_grid(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    """A place says where to look, anywhere in the positions."""
    x, _ = operands
    count = len(x.shape) - 2
    return ((0, 1, *(None,) * count), (0, *range(2, 2 + count), None))


SPATIAL = (
    OpDef("convolution", _convolution, _reference_convolution, (2, 3), _convolution_work, Kind.MATRIX, _follow_batch),
    OpDef("max_pool", _pool, _reference_max_pool, (1, 1), follow=_follow_windows),
    OpDef("avg_pool", _average, _reference_avg_pool, (1, 1), follow=_follow_windows),
    OpDef("adaptive_avg_pool", _adaptive, _reference_adaptive("avg"), (1, 1), follow=_follow_windows),
    OpDef("adaptive_max_pool", _adaptive, _reference_adaptive("max"), (1, 1), follow=_follow_windows),
    OpDef("batch_norm", _batch_norm, _reference_batch_norm, (3, 5), follow=_follow_channels),
    OpDef("group_norm", _group_norm, _reference_group_norm, (1, 3), follow=_follow_batch),
    OpDef("pad", _pad, _reference_pad, (1, 1), follow=_follow_pad),
    OpDef("grid_sample", _grid_sample, _reference_grid_sample, (2, 2), follow=_follow_grid),
    OpDef("resize", _resize, _reference_resize, (1, 1), follow=_follow_windows),
)
