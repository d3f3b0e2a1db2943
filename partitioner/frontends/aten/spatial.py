"""Rules for convolution, pooling, normalisation of channels, borders and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ir.types import Size, exact_quotient
from partitioner.frontends.aten.registry import Translator, cast, rank, reshape, rule

Numbers = int | Sequence[int]


def _each(numbers: Numbers, count: int) -> tuple[int, ...]:
    """A number for each axis of positions."""
    given = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return given * count if len(given) == 1 else given


def _batched(t: Translator, x: str, axes: int) -> str:
    """With an axis for the batch, which operators of torch do without."""
    return x if rank(t, x) == axes + 2 else reshape(t, x, (1, *t.type(x).shape))


@rule("im2col")
def _im2col(
    t: Translator, x: str, kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> str:
    """Patches of a picture [batch, channels, height, width] side by side: [batch, channels * patch, patches]."""
    batch, channels, height, width = t.type(x).shape
    rows, columns = (exact_quotient(size, step) for size, step in zip((height, width), kernel, strict=True))
    if stride != kernel or any(padding) or any(step != 1 for step in dilation) or rows is None or columns is None:
        raise NotImplementedError("patches that overlap or leave a border")
    parts = reshape(t, x, (batch, channels, rows, kernel[0], columns, kernel[1]))
    return reshape(t, t.add("transpose", parts, permutation=(0, 1, 3, 5, 2, 4)), t.result.shape)


# --- convolution ----------------------------------------------------------------------------------------------------


@rule("convolution")
def _convolution(
    t: Translator,
    x: str,
    weight: str,
    bias: str | None,
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    transposed: bool,
    output_padding: Numbers,
    groups: int,
) -> str:
    axes = rank(t, weight) - 2
    names = ("stride", "padding", "dilation", "output_padding")
    numbers = (stride, padding, dilation, output_padding)
    window = {name: _each(given, axes) for name, given in zip(names, numbers, strict=True)}
    operands = (_batched(t, x, axes), weight, *([bias] if bias else []))
    result = t.add("convolution", *operands, groups=groups, transposed=transposed, **window)
    return reshape(t, result, t.result.shape)


@rule("conv1d", "conv2d", "conv3d")
def _conv(
    t: Translator,
    x: str,
    weight: str,
    bias: str | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> str:
    axes = rank(t, weight) - 2
    if padding == "same":
        x = _same(t, _batched(t, x, axes), weight, _each(dilation, axes))
    border = 0 if isinstance(padding, str) else padding
    return _convolution(t, x, weight, bias, stride, border, dilation, False, 0, groups)  # noqa: FBT003


rule("conv1d.padding", "conv2d.padding", "conv3d.padding")(_conv)


def _same(t: Translator, x: str, weight: str, dilation: Sequence[int]) -> str:
    """A border that keeps the number of positions; what is odd of it stands behind."""
    reach = [d * (int(k) - 1) for d, k in zip(dilation, t.type(weight).shape[2:], strict=True)]  # type: ignore[arg-type]
    before = (0, 0, *(r // 2 for r in reach))
    after = (0, 0, *(r - r // 2 for r in reach))
    return t.add("pad", x, before=before, after=after, mode="constant", value=0.0) if any(reach) else x


@rule("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(
    t: Translator,
    x: str,
    weight: str,
    bias: str | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> str:
    return _convolution(t, x, weight, bias, stride, padding, dilation, True, output_padding, groups)  # noqa: FBT003


# --- pooling --------------------------------------------------------------------------------------------------------


def _pool(t: Translator, x: str, op: str, kernel: Numbers, stride: Numbers | None, **more: Any) -> str:
    axes = more.pop("axes")
    step = _each(stride, axes) if stride else _each(kernel, axes)
    lists = {name: _each(given, axes) for name, given in more.items() if name in ("padding", "dilation")}
    result = t.add(op, _batched(t, x, axes), kernel=_each(kernel, axes), stride=step, **{**more, **lists})
    return reshape(t, result, t.result.shape)


for _axes in (1, 2, 3):

    @rule(f"max_pool{_axes}d")
    def _max_pool(
        t: Translator,
        x: str,
        kernel: Numbers,
        stride: Numbers | None = None,
        padding: Numbers = 0,
        dilation: Numbers = 1,
        ceil: bool = False,
        _axes: int = _axes,
    ) -> str:
        return _pool(t, x, "max_pool", kernel, stride, padding=padding, dilation=dilation, ceil=ceil, axes=_axes)

    if _axes > 1:
        rule(f"max_pool{_axes}d_with_indices")(lambda t, *args, _rule=_max_pool: (_rule(t, *args),))

    @rule(f"avg_pool{_axes}d")
    def _avg_pool(
        t: Translator,
        x: str,
        kernel: Numbers,
        stride: Numbers | None = None,
        padding: Numbers = 0,
        ceil: bool = False,
        count_padding: bool = True,
        divisor: int | None = None,
        _axes: int = _axes,
    ) -> str:
        if divisor is not None:
            raise NotImplementedError("a mean with its own divisor")
        return _pool(
            t, x, "avg_pool", kernel, stride, padding=padding, ceil=ceil, count_padding=count_padding, axes=_axes
        )

    for _kind in ("avg", "max"):

        @rule(
            f"adaptive_{_kind}_pool{_axes}d", *([f"_adaptive_avg_pool{_axes}d"] if _kind == "avg" and _axes > 1 else [])
        )
        def _adaptive_pool(t: Translator, x: str, size: Numbers, _axes: int = _axes, _kind: str = _kind) -> Any:
            pooled = t.add(f"adaptive_{_kind}_pool", _batched(t, x, _axes), size=_each(size, _axes))
            result = reshape(t, pooled, t.result.shape)
            return (result,) if _kind == "max" else result


# --- normalisation --------------------------------------------------------------------------------------------------


@rule("batch_norm")
def _batch_norm(
    t: Translator,
    x: str,
    weight: str | None,
    bias: str | None,
    mean: str | None,
    variance: str | None,
    training: bool,
    _momentum: float,
    epsilon: float,
    _cudnn: bool = False,
) -> str:
    if training or mean is None or variance is None:
        raise NotImplementedError("statistics of the batch itself, which would let its users meet")
    if (weight is None) != (bias is None):
        raise NotImplementedError("a scale without a shift")
    affine = (weight, bias) if weight and bias else ()
    return t.add("batch_norm", x, mean, variance, *affine, epsilon=epsilon)


@rule("_native_batch_norm_legit_no_training")
def _batch_norm_in_eval(
    t: Translator,
    x: str,
    weight: str | None,
    bias: str | None,
    mean: str,
    variance: str,
    _momentum: float,
    epsilon: float,
) -> tuple[str]:
    return (_batch_norm(t, x, weight, bias, mean, variance, False, 0.0, epsilon),)  # noqa: FBT003


@rule("group_norm")
def _group_norm(
    t: Translator,
    x: str,
    groups: int,
    weight: str | None = None,
    bias: str | None = None,
    epsilon: float = 1e-5,
    _cudnn: bool = True,
) -> str:
    if (weight is None) != (bias is None):
        raise NotImplementedError("a scale without a shift")
    return t.add("group_norm", x, *((weight, bias) if weight and bias else ()), groups=groups, epsilon=epsilon)


@rule("native_group_norm")
def _native_group_norm(
    t: Translator, x: str, weight: str | None, bias: str | None, _n: Size, _c: Size, _hw: Size, groups: int, eps: float
) -> tuple[str]:
    return (_group_norm(t, x, groups, weight, bias, eps),)


@rule("instance_norm")
def _instance_norm(
    t: Translator,
    x: str,
    weight: str | None,
    bias: str | None,
    mean: str | None,
    _variance: str | None,
    use_input_stats: bool,
    _momentum: float,
    epsilon: float,
    _cudnn: bool = False,
) -> str:
    if not use_input_stats:
        raise NotImplementedError("running statistics of single instances")
    channels = t.type(x).shape[1]
    assert isinstance(channels, int)
    return _group_norm(t, x, channels, weight, bias, epsilon)


# --- borders and sizes ----------------------------------------------------------------------------------------------


@rule("pad", "constant_pad_nd")
def _pad(
    t: Translator, x: str, sides: Sequence[int], mode: str | float = "constant", value: float | None = None
) -> str:
    fill, mode = (value, mode) if isinstance(mode, str) else (mode, "constant")
    pairs = [(sides[i], sides[i + 1]) for i in range(0, len(sides), 2)]
    pairs = [(0, 0)] * (rank(t, x) - len(pairs)) + pairs[::-1]
    before, after = zip(*pairs, strict=True)
    if not any(before + after):
        return x
    return t.add("pad", x, before=before, after=after, mode=mode, value=fill or 0.0)


for _name, _mode in {
    **{f"upsample_nearest{axes}d": "nearest" for axes in (1, 2, 3)},
    **{f"_upsample_nearest_exact{axes}d": "nearest-exact" for axes in (1, 2, 3)},
}.items():

    @rule(f"{_name}.vec")
    def _nearest(t: Translator, x: str, _size: Any = None, scales: Any = None, _mode: str = _mode) -> str:
        return _resize(t, x, _mode, scales, aligned=False)


for _name, _mode in {
    "linear1d": "linear",
    "bilinear2d": "bilinear",
    "bicubic2d": "bicubic",
    "trilinear3d": "trilinear",
}.items():

    @rule(f"upsample_{_name}.vec")
    def _interpolate(
        t: Translator, x: str, _size: Any, aligned: bool = False, scales: Any = None, _mode: str = _mode
    ) -> str:
        return _resize(t, x, _mode, scales, aligned=aligned)


def _resize(t: Translator, x: str, mode: str, scales: Sequence[float] | None, *, aligned: bool) -> str:
    ratios = tuple(float(scale) for scale in scales or ())
    wide = cast(t, x, t.result.dtype)
    return t.add("resize", wide, size=t.result.shape[2:], scales=ratios, mode=mode, align_corners=aligned)
