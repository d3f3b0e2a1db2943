"""Rules for operators along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ir.types import DType, Size, exact_quotient, product
from partitioner.frontends.aten.registry import Translator, cast, positive, rank, reshape, rule, taken


@rule("sum")
def _reduce(t: Translator, x: str, dim: Any = None, keepdim: bool = False, *, op: str = "sum", **_: Any) -> str:
    axes = rank(t, x)
    given = [dim] if isinstance(dim, int) else dim
    dims = tuple(sorted(positive(d, axes) for d in given)) if given else tuple(range(axes))
    wanted = t.result.dtype
    if op in ("sum", "mean") and wanted.is_float:
        x = cast(t, x, wanted)
    return t.add(op, x, dims=dims, keepdim=keepdim)


for _op in ("mean", "amax", "amin", "argmax"):
    rule(_op)(lambda t, x, dim=None, keepdim=False, _op=_op, **_: _reduce(t, x, dim, keepdim, op=_op))


@rule("softmax", "_softmax")
def _softmax(t: Translator, x: str, dim: int, *_: Any, op: str = "softmax", **__: Any) -> str:
    return t.add(op, cast(t, x, t.result.dtype), dim=positive(dim, rank(t, x)))


rule("log_softmax", "_log_softmax")(lambda t, x, dim, *_, **__: _softmax(t, x, dim, op="log_softmax"))


@rule("cumsum")
def _cumsum(t: Translator, x: str, dim: int, **_: Any) -> str:
    x = cast(t, x, t.result.dtype) if t.result.dtype.is_float else x
    return t.add("cumsum", x, dim=positive(dim, rank(t, x)))


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
    return _sorted(t, x, positive(dim, rank(t, x)), largest, k)


@rule("gather")
def _gather(t: Translator, x: str, dim: int, indices: str, **_: Any) -> str:
    return t.add("gather", x, indices, dim=positive(dim, rank(t, x)))


@rule("scatter")
def _scatter(t: Translator, x: str, dim: int, indices: str, value: str | float) -> str:
    dim = positive(dim, rank(t, x))
    if isinstance(value, str):
        return t.add("scatter", x, indices, value, dim=dim)
    return t.add("scatter", x, indices, dim=dim, value=value)


@rule("embedding")
def _embedding(t: Translator, table: str, indices: str, *_: Any) -> str:
    return t.add("embedding", table, indices)


@rule("index")
def _index(t: Translator, x: str, indices: Sequence[str | None]) -> str:
    """Whole axes, then axes by tensors of positions side by side: those axes as one, looked up at one position."""
    if any(i is not None and t.type(i).dtype is DType.BOOL for i in indices):
        raise NotImplementedError("indexing by a mask")
    given = [(dim, i) for dim, i in enumerate(indices) if i is not None]
    first = given[0][0]
    if [dim for dim, _ in given] != list(range(first, first + len(given))):
        raise NotImplementedError("indexing axes that lie apart")
    shape = t.type(x).shape
    sizes = shape[first : first + len(given)]
    position = given[0][1]
    for size, (_, other) in zip(sizes[1:], given[1:], strict=True):
        if not isinstance(size, int):
            raise NotImplementedError("indexing a symbolic axis behind another")
        position = t.add("add", t.add("mul", position, scalar=size), other)
    joined = reshape(t, x, (*shape[:first], product(sizes), *shape[first + len(given) :]))
    return reshape(t, taken(t, joined, first, position), t.result.shape)


@rule("index_select")
def _index_select(t: Translator, x: str, dim: int, rows: str) -> str:
    return taken(t, x, positive(dim, rank(t, x)), rows)


@rule("sort", "sort.stable")
def _sort(t: Translator, x: str, *args: Any, **options: Any) -> tuple[str, str]:
    numbers = [a for a in args if not isinstance(a, bool)]
    dim = positive(options.get("dim", numbers[0] if numbers else -1), rank(t, x))
    descending = options.get("descending", args[-1] if args and isinstance(args[-1], bool) else False)
    return _sorted(t, x, dim, descending, t.type(x).shape[dim])


def _sorted(t: Translator, x: str, dim: int, descending: bool, count: Size) -> tuple[str, str]:
    """Values and their positions, the first ``count`` of an order."""
    if not isinstance(count, int):
        raise NotImplementedError("sorting a symbolic axis")
    if not descending and not t.type(x).dtype.is_float:
        raise NotImplementedError("the smallest integers")
    values = t.add("topk", x if descending else t.add("neg", x), k=count, dim=dim)
    return values if descending else t.add("neg", values), f"{values}.indices"


@rule("argsort", "argsort.stable")
def _argsort(t: Translator, x: str, *args: Any, **options: Any) -> str:
    return _sort(t, x, *args, **options)[1]


for _op in ("amax", "amin"):
    rule(_op[1:], f"{_op[1:]}.dim")(lambda t, x, dim=None, keepdim=False, _op=_op: _extreme(t, x, dim, keepdim, _op))


def _extreme(t: Translator, x: str, dim: int | None, keepdim: bool, op: str) -> str | tuple[str, str]:
    if dim is None:
        return _reduce(t, x, op=op)
    at = positive(dim, rank(t, x))
    turned = x if op == "amax" else t.add("neg", x)
    return t.add(op, x, dims=(at,), keepdim=keepdim), t.add("argmax", turned, dims=(at,), keepdim=keepdim)


@rule("argmin")
def _argmin(t: Translator, x: str, dim: int | None = None, keepdim: bool = False) -> str:
    return _reduce(t, t.add("neg", x), dim, keepdim, op="argmax")


@rule("any", "all")
def _any(t: Translator, x: str, dim: Any = None, keepdim: bool = False) -> str:
    return _of_bits(t, x, dim, keepdim, "amax")


rule("all")(lambda t, x, dim=None, keepdim=False: _of_bits(t, x, dim, keepdim, "amin"))


def _of_bits(t: Translator, x: str, dim: Any, keepdim: bool, op: str) -> str:
    bits = x if t.type(x).dtype is DType.BOOL else t.add("ne", x, scalar=0)
    return cast(t, _reduce(t, cast(t, bits, DType.U8), dim, keepdim, op=op), DType.BOOL)


@rule("var", "var.correction", "std", "std.correction")
def _variance(t: Translator, x: str, dim: Any = None, *args: Any, keepdim: bool = False, **options: Any) -> str:
    correction = options.get("correction", options.get("unbiased", args[0] if args else 1))
    correction = 1 if correction is None else correction
    axes = rank(t, x)
    given = [dim] if isinstance(dim, int) and not isinstance(dim, bool) else dim
    dims = tuple(sorted(positive(d, axes) for d in given)) if given else tuple(range(axes))
    count = product(t.type(x).shape[d] for d in dims)
    if not isinstance(count, int):
        raise NotImplementedError("the variance along a symbolic axis")
    apart = t.add("sub", x, t.add("mean", x, dims=dims, keepdim=True))
    total = t.add("sum", t.add("mul", apart, apart), dims=dims, keepdim=keepdim)
    return t.add("div", total, scalar=float(count - correction))


rule("std", "std.correction")(lambda t, *args, **options: t.add("sqrt", _variance(t, *args, **options)))


@rule("linalg_vector_norm")
def _norm(t: Translator, x: str, order: float | None = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> str:
    if order in (None, 2, 2.0):
        return t.add("sqrt", _reduce(t, t.add("mul", x, x), dim, keepdim))
    size = t.add("abs", x)
    if order in (math.inf, -math.inf):
        return _reduce(t, size, dim, keepdim, op="amax" if order > 0 else "amin")
    if order == 1:
        return _reduce(t, size, dim, keepdim)
    return t.add("pow", _reduce(t, t.add("pow", size, scalar=order), dim, keepdim), scalar=1 / order)


@rule("cosine_similarity")
def _cosine_similarity(t: Translator, x: str, y: str, dim: int = 1, eps: float = 1e-8) -> str:
    """Torch bounds each length from below, not their product."""
    lengths = [t.add("clamp", _norm(t, v, 2, dim, keepdim=True), min=eps) for v in (x, y)]
    both = [t.add("div", v, length) for v, length in zip((x, y), lengths, strict=True)]
    return _reduce(t, t.add("mul", *both), dim)


@rule("embedding_bag")
def _embedding_bag(
    t: Translator,
    table: str,
    indices: str,
    offsets: str,
    _scale_grad: bool = False,
    mode: int = 0,
    _sparse: bool = False,
    weights: str | None = None,
    _include_last: bool = False,
    padding: int | None = None,
) -> tuple[str]:
    """Bags of equally many rows each, as a module makes them of a table of indices [bags, rows]."""
    begins = t.maker(offsets)
    bags, count = t.type(offsets).shape[0], t.type(indices).shape[0]
    rows = exact_quotient(count, bags)
    even = begins is not None and begins.op == "arange" and begins.attributes["start"] == 0
    if not even or begins is None or rows is None or begins.attributes["step"] != rows:
        raise NotImplementedError("bags of different sizes")
    if padding is not None and padding >= 0:
        raise NotImplementedError("bags with rows that do not count")
    found = t.add("embedding", table, reshape(t, indices, (bags, rows)))
    if weights is not None:
        found = t.add("mul", found, reshape(t, weights, (bags, rows, 1)))
    return (t.add(("sum", "mean", "amax")[mode], found, dims=(1,), keepdim=False),)
