"""Rules for constants, copies and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ir.types import Dim, DType, Size, exact_quotient
from partitioner.frontends.aten.registry import Translator, cast, expand, part, positive, rank, reshape, rule, taken


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
    return cast(t, x, t.result.dtype)


@rule("copy")
def _copy_into(t: Translator, target: str, source: str, non_blocking: bool = False) -> str:
    return expand(t, cast(t, source, t.type(target).dtype), t.type(target).shape)


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "reshape_as")
def _view(t: Translator, x: str, *_: Any) -> str:
    return reshape(t, x, t.result.shape)


@rule("expand", "expand_as")
def _expand_to(t: Translator, x: str, *_: Any, **__: Any) -> str:
    return expand(t, x, t.result.shape)


@rule("permute")
def _permute(t: Translator, x: str, dims: Sequence[int]) -> str:
    return t.add("transpose", x, permutation=tuple(positive(d, rank(t, x)) for d in dims))


@rule("transpose")
def _transpose(t: Translator, x: str, a: int, b: int) -> str:
    order = list(range(rank(t, x)))
    a, b = positive(a, len(order)), positive(b, len(order))
    order[a], order[b] = order[b], order[a]
    return t.add("transpose", x, permutation=tuple(order))


rule("t")(lambda t, x: _transpose(t, x, 0, 1) if rank(t, x) == 2 else x)


@rule("slice")
def _slice_axis(t: Translator, x: str, dim: int = 0, start: int | None = 0, end: Any = None, step: int = 1) -> str:
    dim = positive(dim, rank(t, x))
    start, end = _bounds(t.type(x).shape[dim], start, end)
    return x if end is None else part(t, x, dim, start, end, step)


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
    dim = positive(dim, rank(t, x))
    size = t.type(x).shape[dim]
    first, last = _bounds(size, start, end)
    if last is None:
        return source
    if step != 1 or not isinstance(size, int):
        raise NotImplementedError("writing with a step")
    before = [part(t, x, dim, 0, first)] if first else []
    after = [part(t, x, dim, last, size)] if last < size else []
    return _concat(t, [*before, source, *after], dim)


@rule("select")
def _select(t: Translator, x: str, dim: int, index: int) -> str:
    dim = positive(dim, rank(t, x))
    size = t.type(x).shape[dim]
    if isinstance(size, int):
        index = positive(index, size)
    elif index != 0:
        raise NotImplementedError("one element of a symbolic axis, other than the first")
    return reshape(t, part(t, x, dim, index, index + 1), t.result.shape)


@rule("select_scatter")
def _select_scatter(t: Translator, x: str, source: str, dim: int, index: int) -> str:
    dim = positive(dim, rank(t, x))
    shape = t.type(x).shape
    size = shape[dim]
    index = positive(index, size) if isinstance(size, int) else index
    return _slice_scatter(t, x, reshape(t, source, (*shape[:dim], 1, *shape[dim + 1 :])), dim, index, index + 1)


@rule("unbind")
def _unbind(t: Translator, x: str, dim: int = 0) -> tuple[str, ...]:
    parts = _split(t, x, 1, dim)
    return tuple(reshape(t, one, t.result.shape) for one in parts)


@rule("split_with_sizes", "split")
def _split(t: Translator, x: str, sizes: int | Sequence[int], dim: int = 0) -> tuple[str, ...]:
    dim = positive(dim, rank(t, x))
    length = t.type(x).shape[dim]
    if not isinstance(length, int):
        raise NotImplementedError("splitting a symbolic axis")
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(part(t, x, dim, start, start + size) for start, size in zip(starts, sizes, strict=True))


@rule("chunk")
def _chunk(t: Translator, x: str, chunks: int, dim: int = 0) -> tuple[str, ...]:
    length = t.type(x).shape[dim]
    return _split(t, x, -(-length // chunks) if isinstance(length, int) else 1, dim)


@rule("cat", "concat", "concatenate")
def _concat(t: Translator, parts: Sequence[str], dim: int = 0) -> str:
    dtype = t.result.dtype
    dim = positive(dim, rank(t, parts[0]))
    alike = [cast(t, one, dtype) for one in parts]
    return alike[0] if len(alike) == 1 else t.add("concat", *alike, dim=dim)


@rule("stack")
def _stack(t: Translator, parts: Sequence[str], dim: int = 0) -> str:
    shape = list(t.result.shape)
    dim = positive(dim, len(shape))
    shape[dim] = 1
    return _concat(t, [reshape(t, one, shape) for one in parts], dim)


@rule("repeat_interleave.self_int")
def _repeat_interleave(t: Translator, x: str, count: int, dim: int | None = None, **_: Any) -> str:
    if dim is None:
        raise NotImplementedError("repeating a flattened tensor")
    shape = t.type(x).shape
    dim = positive(dim, len(shape))
    alone = t.add("reshape", x, shape=(*shape[: dim + 1], 1, *shape[dim + 1 :]))
    wide = t.add("expand", alone, shape=(*shape[: dim + 1], count, *shape[dim + 1 :]))
    return t.add("reshape", wide, shape=t.result.shape)


@rule("flip")
def _flip(t: Translator, x: str, dims: Sequence[int]) -> str:
    for dim in dims:
        x = _picked(t, x, positive(dim, rank(t, x)), -1)
    return x


def _picked(t: Translator, x: str, dim: int, step: int) -> str:
    """The elements of an axis in another order: last to first, where ``step`` is -1."""
    size = t.type(x).shape[dim]
    if not isinstance(size, int):
        raise NotImplementedError("turning a symbolic axis round")
    order = t.add("arange", shape=(size,), start=size - 1, step=step, dtype=DType.I64)
    return taken(t, x, dim, order)


@rule("roll")
def _roll(t: Translator, x: str, shifts: Sequence[int], dims: Sequence[int] = ()) -> str:
    if not dims:
        raise NotImplementedError("rolling a flattened tensor")
    for shift, given in zip(shifts, dims, strict=True):
        dim = positive(given, rank(t, x))
        size = t.type(x).shape[dim]
        if not isinstance(size, int):
            raise NotImplementedError("rolling a symbolic axis")
        if first := -shift % max(size, 1):
            x = _concat(t, [part(t, x, dim, first, size), part(t, x, dim, 0, first)], dim)
    return x


@rule("tril")
def _triangle(t: Translator, x: str, diagonal: int = 0) -> str:
    return t.add("where", _below(t, x, diagonal), x, t.add("full", shape=(), value=0, dtype=t.type(x).dtype))


rule("triu")(lambda t, x, diagonal=0: _above(t, x, diagonal))


def _above(t: Translator, x: str, diagonal: int) -> str:
    zero = t.add("full", shape=(), value=0, dtype=t.type(x).dtype)
    return t.add("where", t.add("logical_not", _below(t, x, diagonal - 1)), x, zero)


def _below(t: Translator, x: str, diagonal: int) -> str:
    """Where the column is at most ``diagonal`` more than the row."""
    rows, columns = t.type(x).shape[-2:]
    row = t.add("arange", shape=(rows,), start=diagonal, step=1, dtype=DType.I64)
    column = t.add("arange", shape=(columns,), start=0, step=1, dtype=DType.I64)
    return t.add("le", column, t.add("reshape", row, shape=(rows, 1)))


@rule("one_hot")
def _one_hot(t: Translator, x: str, classes: int = -1) -> str:
    if classes < 0:
        raise NotImplementedError("as many classes as the data holds")
    numbers = t.add("arange", shape=(classes,), start=0, step=1, dtype=DType.I64)
    return cast(t, t.add("eq", reshape(t, x, (*t.type(x).shape, 1)), numbers), DType.I64)


@rule("pixel_shuffle")
def _pixel_shuffle(t: Translator, x: str, factor: int) -> str:
    *batch, channels, height, width = t.type(x).shape
    n = len(batch)
    inner = exact_quotient(channels, factor * factor)
    assert inner is not None
    apart = reshape(t, x, (*batch, inner, factor, factor, height, width))
    order = (*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return reshape(t, t.add("transpose", apart, permutation=order), t.result.shape)


@rule("pixel_unshuffle")
def _pixel_unshuffle(t: Translator, x: str, factor: int) -> str:
    *batch, channels, height, width = t.type(x).shape
    n = len(batch)
    down, across = exact_quotient(height, factor), exact_quotient(width, factor)
    assert down is not None and across is not None
    apart = reshape(t, x, (*batch, channels, down, factor, across, factor))
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return reshape(t, t.add("transpose", apart, permutation=order), t.result.shape)


@rule("repeat")
def _repeat(t: Translator, x: str, counts: Sequence[Size]) -> str:
    shape = (*(1,) * (len(counts) - rank(t, x)), *t.type(x).shape)
    alone = reshape(t, x, tuple(size for length in shape for size in (1, length)))
    wide = expand(t, alone, tuple(size for pair in zip(counts, shape, strict=True) for size in pair))
    return reshape(t, wide, t.result.shape)


@rule("tril_indices")
def _tril_indices(t: Translator, rows: int, columns: int, offset: int = 0, **_: Any) -> str:
    return _positions(t, [(r, c) for r in range(rows) for c in range(columns) if c - r <= offset])


@rule("triu_indices")
def _triu_indices(t: Translator, rows: int, columns: int, offset: int = 0, **_: Any) -> str:
    return _positions(t, [(r, c) for r in range(rows) for c in range(columns) if c - r >= offset])


def _positions(t: Translator, pairs: Sequence[tuple[int, int]]) -> str:
    values = tuple(pair[i] for i in (0, 1) for pair in pairs)
    return t.add("constant", values=values, shape=(2, len(pairs)), dtype=t.result.dtype)
