"""Products: by a stored weight, between values, by the experts that a router chose, and attention."""

from __future__ import annotations

import math
from typing import Any

from ir.graph import Attributes
from ir.ops.definition import Axes, Kind, OpDef, Tensors, Types, attribute, require
from ir.types import Dim, Size, TensorType, broadcast_shapes, exact_quotient, product

CONTEXT = Dim.symbol("context")
"""Tokens of a user that attention sees, the new ones included."""


def _linear(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """X [..., in], weight [out, in] (or [in, out] when ``transposed``), bias [out] -> [..., out]."""
    x, weight, *bias = operands
    require(len(weight.shape) == 2 and len(x.shape) >= 1, f"{x} times {weight}")
    outputs, inputs = reversed(weight.shape) if attributes["transposed"] else weight.shape
    require(x.shape[-1] == inputs, f"{x} does not fit a weight {weight}")
    require(all(b.shape == (outputs,) for b in bias), "the bias must be as long as the outputs")
    return (x.with_shape((*x.shape[:-1], outputs)),)


def _reference_linear(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    x, weight, *bias = tensors
    return torch.nn.functional.linear(x, weight.T if attributes["transposed"] else weight, *bias)


def _linear_work(operands: Types, results: Types, _attributes: Attributes) -> Size:
    return results[0].elements * operands[0].shape[-1]


def _matmul(operands: Types, _attributes: Attributes) -> tuple[TensorType, ...]:
    a, b = operands
    require(len(a.shape) >= 2 and len(b.shape) >= 2 and a.shape[-1] == b.shape[-2], f"{a} and {b} do not multiply")
    stack = broadcast_shapes((a.shape[:-2], b.shape[:-2]))
    require(stack is not None, f"{a} and {b} do not broadcast")
    assert stack is not None
    return (a.with_shape((*stack, a.shape[-2], b.shape[-1])),)


def _matmul_work(operands: Types, results: Types, _attributes: Attributes) -> Size:
    return results[0].elements * operands[0].shape[-1]


def _grouped_linear(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """X [tokens, 1 or k, in], weight [experts, out, in] (or [experts, in, out] when ``transposed``), indices
    [tokens, k], bias [experts, out] -> [tokens, k, out]: each token times the weights of its k experts.
    """
    x, weight, indices, *bias = operands
    require(len(x.shape) == 3 and len(weight.shape) == 3 and len(indices.shape) == 2, "operands of wrong rank")
    outputs, inputs = (weight.shape[2], weight.shape[1]) if attributes["transposed"] else weight.shape[1:]
    require(x.shape[-1] == inputs, f"{x} does not fit experts {weight}")
    require(x.shape[0] == indices.shape[0] and x.shape[1] in (1, indices.shape[1]), "tokens and indices differ")
    require(all(b.shape == (weight.shape[0], outputs) for b in bias), "the bias must be [experts, outputs]")
    return (x.with_shape((*indices.shape, outputs)),)


def _grouped_linear_work(operands: Types, results: Types, _attributes: Attributes) -> Size:
    return results[0].elements * operands[0].shape[-1]


def _reference_grouped_linear(_torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    x, weight, indices, *bias = tensors
    x = x.expand(-1, indices.shape[1], -1)
    result = x.new_empty(*indices.shape, weight.shape[1 + bool(attributes["transposed"])])
    for expert in indices.unique().tolist():
        chosen = indices == expert
        matrix = weight[expert] if attributes["transposed"] else weight[expert].T
        result[chosen] = x[chosen] @ matrix + (bias[0][expert] if bias else 0)
    return result


def _attention(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    """Query [users, heads, tokens, d], key [users, kv heads, tokens, d], value [users, kv heads, tokens, dv],
    sinks [heads] -> [users, tokens, heads, dv].
    """
    query, key, value, *sinks = operands
    for name, kinds in (("scale", (int, float)), ("causal", (bool,)), ("window", (int,)), ("softcap", (int, float))):
        attribute(attributes, name, *kinds)
    chunk = attributes.get("chunk", 0)
    require(attributes["window"] >= 0, "the window must not be negative")
    require(type(chunk) is int and chunk >= 0, f"a chunk is a number of tokens, not {chunk!r}")
    require(not chunk or (attributes["causal"] and not attributes["window"]), "chunks are for causal attention alone")
    require(all(len(t.shape) == 4 for t in (query, key, value)), "query, key and value have four axes")
    users, heads, tokens, width = query.shape
    require(key.shape[-1] == width and key.shape[:-1] == value.shape[:-1], f"{key} and {value} do not belong together")
    require(exact_quotient(heads, key.shape[1]) is not None, f"{heads} heads do not share {key.shape[1]} evenly")
    require(all(s.shape == (heads,) for s in sinks), "one sink for each head")
    return (query.with_shape((users, tokens, heads, value.shape[-1])),)


def _attention_work(operands: Types, _results: Types, attributes: Attributes) -> Size:
    query, _key, value = operands[:3]
    most = attributes["window"] or attributes.get("chunk", 0)
    seen: Size = most if isinstance(most, int) and most else CONTEXT
    return product(query.shape[:3]) * seen * (query.shape[3] + value.shape[3])


def reference_attention(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    """Attention of the last ``query tokens`` of a history: key and value may hold more tokens than the query.

    ``scale``, ``causal``, ``window`` (0: none; token t sees the last ``window`` tokens, itself included), ``softcap``
    (0: none) and optional sinks, a logit per head that takes part in the softmax but has no value (gpt-oss). With a
    ``chunk`` a token sees only tokens whose place in the history, divided by that number, is the same whole (Llama 4);
    what is left of a history must begin with a chunk.
    """
    query, key, value, *sinks = tensors
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = (query @ key.transpose(2, 3)) * attributes["scale"]
    if attributes["softcap"]:
        scores = torch.tanh(scores / attributes["softcap"]) * attributes["softcap"]
    total, new = key.shape[2], query.shape[2]
    distance = torch.arange(total - new, total)[:, None] - torch.arange(total)[None, :]
    window = attributes["window"] or math.inf
    hidden = (distance >= window) | ((distance < 0) if attributes["causal"] else (distance <= -window))
    chunk = attributes.get("chunk", 0)
    if chunk:
        place = torch.arange(total) // chunk
        hidden = hidden | (place[total - new :, None] != place[None, :])
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks:
        column = sinks[0].reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column.to(scores.dtype)), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)[..., :total]
    return (weights @ value).transpose(1, 2)


def _determinant(operands: Types, _attributes: Attributes) -> tuple[TensorType, ...]:
    shape = operands[0].shape
    require(len(shape) >= 2 and shape[-1] == shape[-2], f"{operands[0]} holds no square matrices")
    return (operands[0].with_shape(shape[:-2]),)


def _unmoved(operands: Types) -> Axes:
    return tuple((None,) * len(operand.shape) for operand in operands)


def _follow_linear(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    rank = len(operands[0].shape)
    return ((*range(rank - 1), None), *_unmoved(operands[1:]))


def _follow_matmul(operands: Types, results: Types, _attributes: Attributes) -> Axes:
    rank = len(results[0].shape)
    left, right = (tuple(range(rank - len(operand.shape), rank - 2)) for operand in operands)
    return ((*left, rank - 2, None), (*right, None, rank - 1))


def _follow_determinant(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    return ((*range(len(operands[0].shape) - 2), None, None),)


def _follow_grouped_linear(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    _x, weight, _indices, *bias = operands
    return ((0, 1, None), *_unmoved((weight,)), (0, 1), *_unmoved(bias))


def _follow_attention(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    return ((0, 2, 1, None), (0, None, None, None), (0, None, None, 3), *_unmoved(operands[3:]))


MATRIX = (
    OpDef("linear", _linear, _reference_linear, (2, 3), _linear_work, Kind.MATRIX, _follow_linear),
    OpDef("matmul", _matmul, lambda torch, ts, _a: torch.matmul(*ts), (2, 2), _matmul_work, follow=_follow_matmul),
    OpDef(
        "determinant",
        _determinant,
        lambda torch, ts, _a: torch.linalg.det(*ts),
        (1, 1),
        follow=_follow_determinant,
    ),
    OpDef(
        "grouped_linear",
        _grouped_linear,
        _reference_grouped_linear,
        (3, 4),
        _grouped_linear_work,
        Kind.MATRIX,
        _follow_grouped_linear,
    ),
    OpDef("attention", _attention, reference_attention, (3, 4), _attention_work, Kind.STATE, _follow_attention),
)
