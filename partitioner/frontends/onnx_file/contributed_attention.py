"""Attention as onnxruntime contributes it (domain ``com.microsoft``), as the graph's own operator where nothing but
order decides who sees whom.

Inputs for earlier tokens are joined with the new ones; :mod:`partitioner.passes.step` takes them out again. All of
them are taken as filled: the lengths that ``seqlens_k`` gives are those of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ir.types import DType, Size
from partitioner.frontends.onnx_file.constants import Known, UnfoldableError
from partitioner.frontends.onnx_file.contributed import DOMAIN, rotate, split_heads
from partitioner.frontends.onnx_file.lowering import Results, Site
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, counting, fixed, full, optional, term


@dataclass(frozen=True, slots=True)
class _How:
    """Options of attention; ``bias`` is added to the scores, ``sinks`` [heads] take part in the softmax."""

    scale: float
    causal: bool
    window: int = 0
    softcap: float = 0.0
    bias: Term | None = None
    sinks: Term | None = None


@operator("GroupQueryAttention", domain=DOMAIN)
def _group_query_attention(site: Site) -> Results:
    if site.has(12) or site.has(13) or site.has(10) or site.attribute("sliding_window_cache", 0):
        raise UnfoldableError("quantised or windowed caches and a bias of the scores are not supported")
    query, key, value = _projected(site)
    past_key, past_value = optional(site, 3), optional(site, 4)
    past: Size = 0 if past_key is None else past_key.shape[2]
    if site.has(14):
        epsilon = float(site.attribute("qk_norm_epsilon", 1e-6))
        query, key = (x.apply("rms_norm", term(site, 14 + i), epsilon=epsilon) for i, x in enumerate((query, key)))
    if site.attribute("do_rotary", 0):
        positions = _positions(site, query.shape[2], past)
        interleaved = bool(site.attribute("rotary_interleaved", 0))
        tables = [term(site, index).rows(positions) for index in (7, 8)]
        query, key = (rotate(x, *tables, interleaved=interleaved) for x in (query, key))
    if past_key is not None and past_value is not None and past != 0:
        key, value = past_key.apply("concat", key, dim=2), past_value.apply("concat", value, dim=2)
    window = int(site.attribute("local_window_size", -1))
    sinks = optional(site, 11)
    if sinks is None and site.attribute("smooth_softmax", 0):
        sinks = full(site, query.dtype, (query.shape[1],), 0.0)
    how = _How(
        _scale(site, query),
        bool(site.attribute("causal", 1)),
        max(0, window),
        float(site.attribute("softcap", 0.0)),
        sinks=sinks,
    )
    site.lowering.notes.append(f"{site.node.name}: every token that seqlens_k counts is taken as real")
    return _attend(query, key, value, how).name, key.name, value.name


def _projected(site: Site) -> tuple[Term, Term, Term]:
    """Query, key and value [users, heads, tokens, width], apart or packed in the first input."""
    heads, kv_heads = int(site.attribute("num_heads", 0)), int(site.attribute("kv_num_heads", 0))
    query = term(site, 0)
    if site.has(1):
        return split_heads(query, heads), split_heads(term(site, 1), kv_heads), split_heads(term(site, 2), kv_heads)
    width = fixed(query.shape[2]) // (heads + 2 * kv_heads)
    ends = [0, heads * width, (heads + kv_heads) * width, (heads + 2 * kv_heads) * width]
    parts = [query.cut(2, start, end) for start, end in pairwise(ends)]
    return split_heads(parts[0], heads), split_heads(parts[1], kv_heads), split_heads(parts[2], kv_heads)


def _positions(site: Site, tokens: Size, past: Size) -> Term:
    given = optional(site, 9)
    if given is not None:
        return given
    counted = counting(site, tokens)
    if past == 0:
        return counted
    return counted + Term(site, site.constant(Known.of(DType.I64, past)))


def _scale(site: Site, query: Term) -> float:
    return float(site.attribute("scale", 0.0)) or float(fixed(query.shape[3]) ** -0.5)


@operator("MultiHeadAttention", domain=DOMAIN)
def _multi_head_attention(site: Site) -> Results:
    """Query, key, value, a bias of all three, a mask of keys, a bias of the scores, and the cache."""
    heads = int(site.attribute("num_heads", 0))
    query, key, value = (_headed(site, part, heads) for part in _parts(site, heads))
    past_key, past_value = optional(site, 6), optional(site, 7)
    if past_key is not None and past_value is not None and past_key.shape[2] != 0:
        key, value = past_key.apply("concat", key, dim=2), past_value.apply("concat", value, dim=2)
    bias = _score_bias(site, optional(site, 4), optional(site, 5))
    how = _How(_scale(site, query), bool(site.attribute("unidirectional", 0)), bias=bias)
    return _attend(query, key, value, how).name, key.name, value.name


def _parts(site: Site, heads: int) -> list[Term]:
    """Query, key and value, with their share of the bias."""
    query, key, value, bias = term(site, 0), optional(site, 1), optional(site, 2), optional(site, 3)
    if len(query.shape) == 5:
        users, tokens, _, three, width = query.shape
        if three != 3:
            raise UnfoldableError("five axes are those of packed queries, keys and values")
        parts = [query.cut(3, i, i + 1).reshape(users, tokens, heads * fixed(width)) for i in range(3)]
    elif key is not None and value is None and len(key.shape) == 5:
        users, tokens, _, _, width = key.shape
        parts = [query, *(key.cut(3, i, i + 1).reshape(users, tokens, heads * fixed(width)) for i in range(2))]
    elif key is None or value is None:
        raise UnfoldableError("keys and values are missing")
    else:
        parts = [query, key, value]
    if bias is None:
        return parts
    widths = [fixed(part.shape[-1]) * (heads if len(part.shape) == 4 else 1) for part in parts]
    biased, start = [], 0
    for part, width in zip(parts, widths, strict=True):
        if len(part.shape) != 3:
            raise UnfoldableError("a bias of keys with heads of their own is not supported")
        biased.append(part + bias.cut(0, start, start + width))
        start += width
    return biased


def _headed(_site: Site, x: Term, heads: int) -> Term:
    return split_heads(x, heads) if len(x.shape) == 3 else x


def _score_bias(site: Site, mask: Term | None, bias: Term | None) -> Term | None:
    """What is added to the scores for a mask [users, keys] of ones and zeros, and a bias."""
    if mask is None:
        return bias
    if len(mask.shape) not in (2, 3):
        raise UnfoldableError("a mask that gives lengths is not supported")
    hidden = float(site.attribute("mask_filter_value", -10000.0))
    shape = (mask.shape[0], 1, *((1,) if len(mask.shape) == 2 else ()), *mask.shape[1:])
    filled = ((mask.cast(DType.F32) * -1.0 + 1.0) * hidden).reshape(*shape)
    return filled if bias is None else bias + filled


@operator("Attention", domain=DOMAIN)
def _attention(site: Site) -> Results:
    """Input [users, tokens, in], weights [in, 3 * width], bias, a mask; as BERT and GPT-2 are optimised to."""
    if site.has(4) or site.has(6) or site.attribute("do_rotary", 0):
        raise UnfoldableError("earlier tokens packed in one input, and rotary positions, are not supported")
    heads = int(site.attribute("num_heads", 0))
    weight = site.weight(1)
    operands = [site.tensor(0), *([site.parameter(weight)] if weight is not None else [])]
    if weight is None:
        raise UnfoldableError("weights that are computed are not supported")
    joined = Term(site, site.step("linear", [*operands, *([site.tensor(2)] if site.has(2) else [])], transposed=True))
    width = fixed(joined.shape[-1])
    widths = list(site.attribute("qkv_hidden_sizes") or [width // 3] * 3)
    ends = [0, widths[0], widths[0] + widths[1], width]
    parts = [split_heads(joined.cut(2, a, b), heads) for a, b in pairwise(ends)]
    bias = _score_bias(site, optional(site, 3), optional(site, 5))
    how = _How(_scale(site, parts[0]), bool(site.attribute("unidirectional", 0)), bias=bias)
    return _attend(parts[0], parts[1], parts[2], how).name


def _attend(query: Term, key: Term, value: Term, how: _How) -> Term:
    """[users, tokens, heads * width]; spelled out where something is added to the scores, to be recognised later."""
    users, heads, tokens, _ = query.shape
    if how.bias is None:
        sinks = [how.sinks] if how.sinks is not None else []
        attributes = {"scale": how.scale, "causal": how.causal, "window": how.window, "softcap": how.softcap}
        result = query.apply("attention", key, value, *sinks, **attributes)
    else:
        if how.causal:
            raise UnfoldableError("a bias of the scores beside causal order is not supported")
        scores = (query @ key.transpose(0, 1, 3, 2)) * how.scale + how.bias
        result = (scores.apply("softmax", dim=3) @ value).transpose(0, 2, 1, 3)
    return result.reshape(users, tokens, fixed(heads) * fixed(value.shape[3]))
