"""Rules for products and attention."""

from __future__ import annotations

import math
from typing import Any

from ir.types import product
from partitioner.frontends.aten.registry import Translator, rank, reshape, rule
from partitioner.frontends.known import read_back


@rule("linear")
def _linear(t: Translator, x: str, weight: str, bias: str | None = None) -> str:
    return t.add("linear", x, weight, *([bias] if bias else []), transposed=False)


@rule("addmm")
def _addmm(t: Translator, bias: str, x: str, weight: str, **scales: float) -> str:
    if any(scale != 1 for scale in scales.values()):
        return _baddbmm(t, bias, x, weight, **scales)
    if rank(t, bias) == 1:
        return t.add("linear", x, weight, bias, transposed=True)
    return t.add("add", _matmul(t, x, weight), bias)


@rule("mm", "bmm", "matmul")
def _matmul(t: Translator, x: str, y: str) -> str:
    if rank(t, y) == 2 and t.is_parameter(y):
        return t.add("linear", x, y, transposed=True)
    if min(rank(t, x), rank(t, y)) < 2:
        return _matmul_of_vectors(t, x, y)
    return t.add("matmul", x, y)


def _matmul_of_vectors(t: Translator, x: str, y: str) -> str:
    row = reshape(t, x, (1, *t.type(x).shape)) if rank(t, x) == 1 else x
    column = reshape(t, y, (*t.type(y).shape, 1)) if rank(t, y) == 1 else y
    return reshape(t, t.add("matmul", row, column), t.result.shape)


rule("mv", "dot", "vdot")(_matmul_of_vectors)


@rule("baddbmm")
def _baddbmm(t: Translator, bias: str, x: str, y: str, beta: float = 1, alpha: float = 1) -> str:
    product_ = t.add("matmul", x, y)
    scaled = product_ if alpha == 1 else t.add("mul", product_, scalar=alpha)
    return t.add("add", scaled, bias if beta == 1 else t.add("mul", bias, scalar=beta))


rule("outer", "ger")(lambda t, x, y: t.add("mul", reshape(t, x, (*t.type(x).shape, 1)), y))


@rule("bilinear")
def _bilinear(t: Translator, x: str, y: str, weight: str, bias: str | None = None) -> str:
    """One matrix for each output: x W y."""
    outputs, left, right = t.type(weight).shape
    stretched = reshape(t, t.add("transpose", weight, permutation=(1, 0, 2)), (left, product((outputs, right))))
    inner = reshape(t, t.add("matmul", x, stretched), (*t.type(x).shape[:-1], outputs, right))
    column = reshape(t, y, (*t.type(y).shape, 1))
    found = reshape(t, t.add("matmul", inner, column), t.result.shape)
    return t.add("add", found, bias) if bias else found


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


@rule("waferc.constant")
def _constant(t: Translator, values: str, _shape: list[int], dtype: Any, _device: Any) -> str:
    type_ = t.result
    return t.add("constant", values=tuple(read_back(values, dtype)), shape=type_.shape, dtype=type_.dtype)


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
