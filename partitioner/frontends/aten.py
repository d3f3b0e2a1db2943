"""What each ATen operator means in the graph's operators: one small rule for each, found by its name.

A rule gets the :class:`Translator` and the operator's arguments, tensors as names in the graph and sizes as numbers or
polynomials, and returns the name (or tuple of names) of its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ir.graph import Attribute
from ir.types import Dim, DType, Size, TensorType, product

Rule = Callable[..., Any]
F = TypeVar("F", bound=Rule)
RULES: dict[str, Rule] = {}


class Translator(Protocol):
    """What a rule may use: types of names, the result type that torch states, and adding nodes."""

    @property
    def result(self) -> TensorType:
        """Type of the (first) result, as torch states it."""

    def type(self, name: str) -> TensorType:
        """Type of a name in the graph."""

    def add(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        """Add a node; the name of its first result."""

    def is_parameter(self, name: str) -> bool:
        """Whether ``name`` is a stored weight."""


def rule(*names: str) -> Callable[[F], F]:
    """Register a rule for the ATen operators ``names`` (``name`` or ``name.overload``)."""

    def register(function: F) -> F:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _positive(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _rank(t: Translator, x: str) -> int:
    return len(t.type(x).shape)


def _reshape(t: Translator, x: str, shape: Sequence[Size]) -> str:
    return x if t.type(x).shape == tuple(shape) else t.add("reshape", x, shape=tuple(shape))


def _cast(t: Translator, x: str, dtype: DType) -> str:
    return x if t.type(x).dtype is dtype else t.add("cast", x, dtype=dtype)


def _expand(t: Translator, x: str, shape: Sequence[Size]) -> str:
    return x if t.type(x).shape == tuple(shape) else t.add("expand", x, shape=tuple(shape))


def _slice(t: Translator, x: str, dim: int, start: int, end: int, step: int = 1) -> str:
    size = t.type(x).shape[dim]
    if start == 0 and step == 1 and end == size:
        return x
    return t.add("slice", x, dim=dim, start=start, end=end, step=step)


# --- element by element ---------------------------------------------------------------------------------------------

for _name in (
    *("neg", "abs", "floor", "ceil", "round", "sign", "relu", "bitwise_not", "exp", "log", "sqrt", "rsqrt"),
    *("reciprocal", "sin", "cos", "tanh", "sigmoid", "erf", "silu", "mish", "hardswish", "hardsigmoid", "logical_not"),
):
    rule(_name)(lambda t, x, _name=_name: t.add(_name, x))


@rule("gelu")
def _gelu(t: Translator, x: str, approximate: str = "none") -> str:
    return t.add("gelu", x, approximate=approximate)


rule("square")(lambda t, x: t.add("mul", x, x))
rule("expm1")(lambda t, x: t.add("sub", t.add("exp", x), scalar=1))
rule("log1p")(lambda t, x: t.add("log", t.add("add", x, scalar=1)))
rule("relu6")(lambda t, x: t.add("clamp", x, min=0, max=6))


@rule("softplus")
def _softplus(t: Translator, x: str, beta: float = 1, threshold: float = 20) -> str:
    if (beta, threshold) != (1, 20):
        raise NotImplementedError("softplus with its own beta or threshold")
    return t.add("softplus", x)


def _operate(t: Translator, op: str, x: str, y: str | float) -> str:
    """A binary operator whose second operand may be a number."""
    return t.add(op, x, y) if isinstance(y, str) else t.add(op, x, scalar=y)


for _op, _aliases in {
    "mul": ("mul",),
    "pow": ("pow.Tensor_Scalar", "pow.Tensor_Tensor"),
    "maximum": ("maximum", "max.other"),
    "minimum": ("minimum", "min.other"),
    "eq": ("eq",),
    "ne": ("ne",),
    "lt": ("lt",),
    "le": ("le",),
    "gt": ("gt",),
    "ge": ("ge",),
    "logical_and": ("logical_and",),
    "logical_or": ("logical_or",),
    "bitwise_and": ("bitwise_and", "__and__"),
    "bitwise_or": ("bitwise_or", "__or__"),
    "remainder": ("remainder",),
    "floor_divide": ("floor_divide",),
}.items():
    rule(*_aliases)(lambda t, x, y, _op=_op: _operate(t, _op, x, y))


@rule("pow.Scalar")
def _pow_of_number(t: Translator, base: float, exponent: str) -> str:
    return t.add("pow", t.add("full", shape=(), value=base, dtype=t.result.dtype), exponent)


@rule("add")
def _add(t: Translator, x: str, y: str | float, alpha: float = 1, op: str = "add") -> str:
    if alpha != 1:
        y = t.add("mul", y, scalar=alpha) if isinstance(y, str) else y * alpha
    return _operate(t, op, x, y)


rule("sub")(lambda t, x, y, alpha=1: _add(t, x, y, alpha, "sub"))


@rule("rsub")
def _rsub(t: Translator, x: str, y: str | float, alpha: float = 1) -> str:
    negative = t.add("neg", x if alpha == 1 else t.add("mul", x, scalar=alpha))
    return _operate(t, "add", negative, y)


@rule("div")
def _div(t: Translator, x: str, y: str | float, rounding_mode: str | None = None) -> str:
    if rounding_mode == "trunc":
        raise NotImplementedError("division that rounds towards zero")
    return _operate(t, "floor_divide" if rounding_mode == "floor" else "div", x, y)


@rule("clamp", "clamp_min")
def _clamp(t: Translator, x: str, min: float | None = None, max: float | None = None) -> str:  # noqa: A002
    if isinstance(min, str) or isinstance(max, str):
        raise NotImplementedError("clamp by tensors")
    bounds = {name: bound for name, bound in (("min", min), ("max", max)) if bound is not None}
    return t.add("clamp", x, **bounds)


rule("clamp_max")(lambda t, x, bound: _clamp(t, x, None, bound))


@rule("where")
def _where(t: Translator, condition: str, x: str | float, y: str | float) -> str:
    x, y = (v if isinstance(v, str) else t.add("full", shape=(), value=v, dtype=t.result.dtype) for v in (x, y))
    return t.add("where", condition, x, y)


@rule("masked_fill.Scalar")
def _masked_fill(t: Translator, x: str, mask: str, value: float) -> str:
    return t.add("masked_fill", x, mask, value=value)


@rule("masked_fill.Tensor")
def _masked_fill_tensor(t: Translator, x: str, mask: str, value: str) -> str:
    return t.add("where", mask, _cast(t, value, t.type(x).dtype), x)


@rule("index_put")
def _index_put(t: Translator, x: str, indices: list[str | None], value: str, accumulate: bool = False) -> str:
    """``x[mask] = scalar``; other forms have no functional meaning of their own here."""
    mask, *others = indices
    is_mask = mask is not None and not others and t.type(mask).dtype is DType.BOOL
    if mask is None or not is_mask or accumulate or t.type(value).shape:
        raise NotImplementedError("writing by index, other than a scalar under a mask")
    missing = (1,) * (_rank(t, x) - _rank(t, mask))
    mask = _reshape(t, mask, (*t.type(mask).shape, *missing))
    return t.add("where", mask, _cast(t, value, t.type(x).dtype), x)


# --- constants, copies and views ------------------------------------------------------------------------------------


@rule("zeros", "new_zeros", "zeros_like", "empty", "new_empty", "empty_like")
def _full(t: Translator, *args: Any, value: float = 0, **_: Any) -> str:
    return t.add("full", shape=t.result.shape, value=value, dtype=t.result.dtype)


rule("ones", "new_ones", "ones_like")(lambda t, *args, **_: _full(t, value=1))
rule("full", "full_like")(lambda t, _shape, value, **_: _full(t, value=value))
rule("zero")(lambda t, _x: _full(t))
rule("fill.Scalar")(lambda t, _x, value: _full(t, value=value))
rule("new_full")(lambda t, _x, _shape, value, **_: _full(t, value=value))
rule("scalar_tensor")(lambda t, value, **_: _full(t, value=value))


@rule("arange")
def _arange(t: Translator, *args: Any, **_: Any) -> str:
    start, step = {1: (0, 1), 2: (args[0], 1)}.get(len(args), (args[0], args[-1]))
    return t.add("arange", shape=t.result.shape, start=start, step=step, dtype=t.result.dtype)


@rule("_to_copy", "to", "clone", "alias", "detach", "contiguous", "dropout", "type_as")
def _copy(t: Translator, x: str, *_: Any, **__: Any) -> str:
    return _cast(t, x, t.result.dtype)


@rule("copy")
def _copy_into(t: Translator, target: str, source: str, non_blocking: bool = False) -> str:
    return _expand(t, _cast(t, source, t.type(target).dtype), t.type(target).shape)


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten")
def _view(t: Translator, x: str, *_: Any) -> str:
    return _reshape(t, x, t.result.shape)


@rule("expand", "expand_as")
def _expand_to(t: Translator, x: str, *_: Any, **__: Any) -> str:
    return _expand(t, x, t.result.shape)


@rule("permute")
def _permute(t: Translator, x: str, dims: Sequence[int]) -> str:
    return t.add("transpose", x, permutation=tuple(_positive(d, _rank(t, x)) for d in dims))


@rule("transpose")
def _transpose(t: Translator, x: str, a: int, b: int) -> str:
    order = list(range(_rank(t, x)))
    a, b = _positive(a, len(order)), _positive(b, len(order))
    order[a], order[b] = order[b], order[a]
    return t.add("transpose", x, permutation=tuple(order))


rule("t")(lambda t, x: _transpose(t, x, 0, 1) if _rank(t, x) == 2 else x)


@rule("slice")
def _slice_axis(t: Translator, x: str, dim: int = 0, start: int | None = 0, end: Any = None, step: int = 1) -> str:
    dim = _positive(dim, _rank(t, x))
    start, end = _bounds(t.type(x).shape[dim], start, end)
    return x if end is None else _slice(t, x, dim, start, end, step)


def _bounds(size: Size, start: int | None, end: Any) -> tuple[int, int | None]:
    """Bounds as a slice takes them; the end is ``None`` where a symbolic axis is taken whole."""
    if not isinstance(size, int):
        if start in (0, None) and (end is None or end == size or (isinstance(end, int) and end >= 2**31)):
            return 0, None
        raise NotImplementedError("a part of a symbolic axis")
    if isinstance(start, Dim) or isinstance(end, Dim):
        raise NotImplementedError("a part whose length is symbolic")
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


@rule("slice_scatter")
def _slice_scatter(
    t: Translator, x: str, source: str, dim: int = 0, start: int = 0, end: Any = None, step: int = 1
) -> str:
    """``x`` with ``source`` written over a part of one axis: the parts joined again."""
    dim = _positive(dim, _rank(t, x))
    size = t.type(x).shape[dim]
    first, last = _bounds(size, start, end)
    if last is None:
        return source
    if step != 1 or not isinstance(size, int):
        raise NotImplementedError("writing with a step")
    before = [_slice(t, x, dim, 0, first)] if first else []
    after = [_slice(t, x, dim, last, size)] if last < size else []
    return _concat(t, [*before, source, *after], dim)


@rule("select")
def _select(t: Translator, x: str, dim: int, index: int) -> str:
    dim = _positive(dim, _rank(t, x))
    size = t.type(x).shape[dim]
    if isinstance(size, int):
        index = _positive(index, size)
    elif index != 0:
        raise NotImplementedError("one element of a symbolic axis, other than the first")
    return _reshape(t, _slice(t, x, dim, index, index + 1), t.result.shape)


@rule("select_scatter")
def _select_scatter(t: Translator, x: str, source: str, dim: int, index: int) -> str:
    dim = _positive(dim, _rank(t, x))
    shape = t.type(x).shape
    size = shape[dim]
    index = _positive(index, size) if isinstance(size, int) else index
    return _slice_scatter(t, x, _reshape(t, source, (*shape[:dim], 1, *shape[dim + 1 :])), dim, index, index + 1)


@rule("unbind")
def _unbind(t: Translator, x: str, dim: int = 0) -> tuple[str, ...]:
    parts = _split(t, x, 1, dim)
    return tuple(_reshape(t, part, t.result.shape) for part in parts)


@rule("split_with_sizes", "split")
def _split(t: Translator, x: str, sizes: int | Sequence[int], dim: int = 0) -> tuple[str, ...]:
    dim = _positive(dim, _rank(t, x))
    length = t.type(x).shape[dim]
    if not isinstance(length, int):
        raise NotImplementedError("splitting a symbolic axis")
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(_slice(t, x, dim, start, start + size) for start, size in zip(starts, sizes, strict=True))


@rule("chunk")
def _chunk(t: Translator, x: str, chunks: int, dim: int = 0) -> tuple[str, ...]:
    length = t.type(x).shape[dim]
    return _split(t, x, -(-length // chunks) if isinstance(length, int) else 1, dim)


@rule("cat", "concat", "concatenate")
def _concat(t: Translator, parts: Sequence[str], dim: int = 0) -> str:
    dtype = t.result.dtype
    dim = _positive(dim, _rank(t, parts[0]))
    cast = [_cast(t, part, dtype) for part in parts]
    return cast[0] if len(cast) == 1 else t.add("concat", *cast, dim=dim)


@rule("stack")
def _stack(t: Translator, parts: Sequence[str], dim: int = 0) -> str:
    shape = list(t.result.shape)
    dim = _positive(dim, len(shape))
    shape[dim] = 1
    return _concat(t, [_reshape(t, part, shape) for part in parts], dim)


@rule("repeat_interleave.self_int")
def _repeat_interleave(t: Translator, x: str, count: int, dim: int | None = None, **_: Any) -> str:
    if dim is None:
        raise NotImplementedError("repeating a flattened tensor")
    shape = t.type(x).shape
    dim = _positive(dim, len(shape))
    alone = t.add("reshape", x, shape=(*shape[: dim + 1], 1, *shape[dim + 1 :]))
    wide = t.add("expand", alone, shape=(*shape[: dim + 1], count, *shape[dim + 1 :]))
    return t.add("reshape", wide, shape=t.result.shape)


@rule("repeat")
def _repeat(t: Translator, x: str, counts: Sequence[Size]) -> str:
    shape = (*(1,) * (len(counts) - _rank(t, x)), *t.type(x).shape)
    alone = _reshape(t, x, tuple(size for length in shape for size in (1, length)))
    wide = _expand(t, alone, tuple(size for pair in zip(counts, shape, strict=True) for size in pair))
    return _reshape(t, wide, t.result.shape)


# --- along axes -----------------------------------------------------------------------------------------------------


@rule("sum")
def _reduce(t: Translator, x: str, dim: Any = None, keepdim: bool = False, *, op: str = "sum", **_: Any) -> str:
    rank = _rank(t, x)
    given = [dim] if isinstance(dim, int) else dim
    dims = tuple(sorted(_positive(d, rank) for d in given)) if given else tuple(range(rank))
    wanted = t.result.dtype
    if op in ("sum", "mean") and wanted.is_float:
        x = _cast(t, x, wanted)
    return t.add(op, x, dims=dims, keepdim=keepdim)


for _op in ("mean", "amax", "amin", "argmax"):
    rule(_op)(lambda t, x, dim=None, keepdim=False, _op=_op, **_: _reduce(t, x, dim, keepdim, op=_op))


@rule("softmax", "_softmax")
def _softmax(t: Translator, x: str, dim: int, *_: Any, op: str = "softmax", **__: Any) -> str:
    return t.add(op, _cast(t, x, t.result.dtype), dim=_positive(dim, _rank(t, x)))


rule("log_softmax", "_log_softmax")(lambda t, x, dim, *_, **__: _softmax(t, x, dim, op="log_softmax"))


@rule("cumsum")
def _cumsum(t: Translator, x: str, dim: int, **_: Any) -> str:
    x = _cast(t, x, t.result.dtype) if t.result.dtype.is_float else x
    return t.add("cumsum", x, dim=_positive(dim, _rank(t, x)))


@rule("layer_norm")
def _layer_norm(t: Translator, x: str, shape: Sequence[int], *rest: Any) -> str:
    affine = [v for v in rest[:2] if isinstance(v, str)]
    epsilon = next((v for v in rest if isinstance(v, float)), 1e-5)
    if len(shape) != 1 or (len(affine) == 1 and rest[0] is None):
        raise NotImplementedError("normalising over several axes, or with a shift alone")
    return t.add("layer_norm", x, *affine, epsilon=epsilon)


@rule("rms_norm")
def _rms_norm(t: Translator, x: str, shape: Sequence[int], weight: str | None = None, eps: float | None = None) -> str:
    if len(shape) != 1:
        raise NotImplementedError("normalising over several axes")
    smallest = {DType.BF16: 2.0**-7, DType.F16: 2.0**-10, DType.F32: 2.0**-23, DType.F64: 2.0**-52}
    epsilon = smallest[t.type(x).dtype] if eps is None else eps
    return t.add("rms_norm", x, *([weight] if weight else []), epsilon=epsilon)


@rule("topk")
def _topk(t: Translator, x: str, k: int, dim: int = -1, largest: bool = True, *_: Any) -> tuple[str, str]:
    if not largest:
        raise NotImplementedError("the smallest elements")
    values = t.add("topk", x, k=k, dim=_positive(dim, _rank(t, x)))
    return values, f"{values}.indices"


@rule("gather")
def _gather(t: Translator, x: str, dim: int, indices: str, **_: Any) -> str:
    return t.add("gather", x, indices, dim=_positive(dim, _rank(t, x)))


@rule("scatter")
def _scatter(t: Translator, x: str, dim: int, indices: str, value: str | float) -> str:
    dim = _positive(dim, _rank(t, x))
    if isinstance(value, str):
        return t.add("scatter", x, indices, value, dim=dim)
    return t.add("scatter", x, indices, dim=dim, value=value)


@rule("embedding")
def _embedding(t: Translator, table: str, indices: str, *_: Any) -> str:
    return t.add("embedding", table, indices)


@rule("index")
def _index(t: Translator, x: str, indices: list[str | None]) -> str:
    (rows, *others), size = indices, t.type(x).shape[0]
    if rows is None or others or t.type(rows).dtype is DType.BOOL:
        raise NotImplementedError("indexing, other than the first axis by one tensor of positions")
    table = _reshape(t, x, (size, product(t.type(x).shape[1:])))
    return _reshape(t, t.add("embedding", table, rows), t.result.shape)


# --- products -------------------------------------------------------------------------------------------------------


@rule("linear")
def _linear(t: Translator, x: str, weight: str, bias: str | None = None) -> str:
    return t.add("linear", x, weight, *([bias] if bias else []), transposed=False)


@rule("addmm")
def _addmm(t: Translator, bias: str, x: str, weight: str, **scales: float) -> str:
    if any(scale != 1 for scale in scales.values()):
        raise NotImplementedError("scaled addmm")
    if _rank(t, bias) == 1:
        return t.add("linear", x, weight, bias, transposed=True)
    return t.add("add", _matmul(t, x, weight), bias)


@rule("mm", "bmm", "matmul")
def _matmul(t: Translator, x: str, y: str) -> str:
    if _rank(t, y) == 2 and t.is_parameter(y):
        return t.add("linear", x, y, transposed=True)
    if min(_rank(t, x), _rank(t, y)) < 2:
        raise NotImplementedError("products with vectors")
    return t.add("matmul", x, y)


@rule("waferc.attention")
def _attention(
    t: Translator,
    q: str,
    k: str,
    v: str,
    sinks: str | None,
    scale: float,
    causal: bool,
    window: int,
    chunk: int,
    softcap: float,
) -> str:
    operands = (q, k, v, *([sinks] if sinks else []))
    chunked = {"chunk": chunk} if chunk else {}
    return t.add("attention", *operands, scale=scale, causal=causal, window=window, softcap=softcap, **chunked)


@rule("waferc.grouped_linear")
def _grouped_linear(t: Translator, x: str, weight: str, bias: str | None, indices: str, transposed: bool) -> str:
    return t.add("grouped_linear", x, weight, indices, *([bias] if bias else []), transposed=transposed)


@rule("scaled_dot_product_attention")
def _scaled_dot_product_attention(
    t: Translator,
    q: str,
    k: str,
    v: str,
    mask: str | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> str:
    if mask is not None or dropout:
        raise NotImplementedError("attention with a mask of its own, or dropout")
    width = t.type(q).shape[-1]
    assert isinstance(width, int)
    factor = 1 / math.sqrt(width) if scale is None else scale
    result = t.add("attention", q, k, v, scale=factor, causal=is_causal, window=0, softcap=0.0)
    return t.add("transpose", result, permutation=(0, 2, 1, 3))
