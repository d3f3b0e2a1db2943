"""Operators that onnxruntime contributes (domain ``com.microsoft``): activations, normalisations, rotary embedding.

Their meaning is that of onnxruntime's documentation (ContribOperators.md), and they are tested against its kernels.
"""

from __future__ import annotations

from ir.types import DType, Size
from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.lowering import Operand, Results, Site
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, counting, fixed, join, optional, term

DOMAIN = "com.microsoft"


@operator("QuickGelu", domain=DOMAIN)
def _quick_gelu(site: Site) -> Operand:
    x = term(site, 0)
    return (x * (x * float(site.attribute("alpha", 1.702))).apply("sigmoid")).name


@operator("FastGelu", domain=DOMAIN)
def _fast_gelu(site: Site) -> Operand:
    return _biased(site).apply("gelu", approximate="tanh").name


@operator("BiasGelu", domain=DOMAIN)
def _bias_gelu(site: Site) -> Operand:
    return _biased(site).apply("gelu", approximate="none").name


def _biased(site: Site) -> Term:
    bias = optional(site, 1)
    return term(site, 0) if bias is None else term(site, 0) + bias


@operator("SkipLayerNormalization", domain=DOMAIN)
def _skip_layer_norm(site: Site) -> Results:
    """Input, skip, scale, shift, bias -> the normalised sum, and as fourth output the sum."""
    return _skip_norm(site, "layer_norm", optional(site, 4), optional(site, 3), 1e-12)


@operator("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def _skip_rms_norm(site: Site) -> Results:
    """Input, skip, scale, bias -> the normalised sum, and as fourth output the sum."""
    return _skip_norm(site, "rms_norm", optional(site, 3), None, 1e-12)


def _skip_norm(site: Site, op: str, bias: Term | None, shift: Term | None, epsilon: float) -> Results:
    total = term(site, 0) + term(site, 1)
    total = total if bias is None else total + bias
    affine = [term(site, 2), *([] if shift is None else [shift])]
    epsilon = float(site.attribute("epsilon", epsilon))
    normal = total.apply(op, *affine, epsilon=epsilon)
    # For training; fused graphs name these outputs, and nothing reads them.
    last = len(total.shape) - 1
    mean = total.reduce("mean", [last], keepdim=True)
    centred = total - mean if op == "layer_norm" else total
    deviation = ((centred * centred).reduce("mean", [last], keepdim=True) + epsilon).apply("rsqrt")
    return normal.name, mean.name, deviation.name, total.name


@operator("EmbedLayerNormalization", domain=DOMAIN)
def _embed_layer_norm(site: Site) -> Results:
    """Ids, segments, three tables, scale, shift, mask, positions -> the normalised sum of the rows looked up."""
    ids, segments, positions = term(site, 0), optional(site, 1), optional(site, 8)
    if site.has(7) or (len(site.node.outputs) > 1 and site.node.outputs[1] and site.attribute("mask_index_type", 0)):
        raise UnfoldableError("a mask is not supported")
    positions = counting(site, ids.shape[1]).reshape(1, ids.shape[1]) if positions is None else positions
    total = term(site, 2).rows(ids) + term(site, 3).rows(positions)
    if segments is not None and site.has(4):
        total = total + term(site, 4).rows(segments)
    epsilon = float(site.attribute("epsilon", 1e-12))
    normal = total.apply("layer_norm", term(site, 5), term(site, 6), epsilon=epsilon)
    return normal.name, normal.name, total.name


@operator("RotaryEmbedding", domain=DOMAIN)
def _rotary_embedding(site: Site) -> Operand:
    """Input [users, tokens, heads * width] or [users, heads, tokens, width], positions [users, tokens] or a first one
    [1], tables [positions, half the rotated width].
    """
    x, positions, cosine, sine = (term(site, index) for index in range(4))
    if site.attribute("is_packed_batching", 0) or site.attribute("scale", 1.0) != 1.0:
        raise UnfoldableError("packed batches and a scale are not supported")
    shape = x.shape
    if len(shape) == 3:
        rotated = int(site.attribute("rotary_embedding_dim", 0))
        width = fixed(shape[2]) // int(site.attribute("num_heads", 0)) if rotated else 2 * fixed(cosine.shape[1])
        x = split_heads(x, fixed(shape[2]) // width)
    users, tokens = x.shape[0], x.shape[2]
    if len(positions.shape) == 1:
        positions = counting(site, tokens) + positions.cast(DType.I64)
    interleaved = bool(site.attribute("interleaved", 0))
    result = rotate(x, cosine.rows(positions), sine.rows(positions), interleaved=interleaved)
    if len(shape) == 3:
        return result.transpose(0, 2, 1, 3).reshape(users, tokens, shape[2]).name
    return result.name


def split_heads(x: Term, heads: int) -> Term:
    """[users, tokens, heads * width] -> [users, heads, tokens, width]."""
    users, tokens, width = x.shape
    return x.reshape(users, tokens, heads, fixed(width) // heads).transpose(0, 2, 1, 3)


def rotate(x: Term, cosine: Term, sine: Term, *, interleaved: bool) -> Term:
    """Rotate pairs of the first elements of ``x`` [users, heads, tokens, width] by angles whose cosine and sine
    [(users,) tokens, half] are given: element i with i + half, or with its neighbour.
    """
    half = fixed(cosine.shape[-1])
    width = fixed(x.shape[-1])
    lead: tuple[Size, ...] = cosine.shape[:-2] or (1,)
    cosine, sine = (table.reshape(*lead, 1, *table.shape[-2:]) for table in (cosine, sine))
    rotated, rest = x.cut(3, 0, 2 * half), [x.cut(3, 2 * half, width)] if width > 2 * half else []
    if interleaved:
        first, second = rotated.cut(3, 0, 2 * half, 2), rotated.cut(3, 1, 2 * half, 2)
    else:
        first, second = rotated.cut(3, 0, half), rotated.cut(3, half, 2 * half)
    real, imaginary = first * cosine - second * sine, first * sine + second * cosine
    if not interleaved:
        return join([real, imaginary, *rest], 3)
    users, heads, tokens, _ = x.shape
    parts = [part.reshape(users, heads, tokens, half, 1) for part in (real, imaginary)]
    return join([join(parts, 4).reshape(users, heads, tokens, 2 * half), *rest], 3)
