"""ONNX's Attention: the graph's own operator where each token sees all of the history, or a window of it up to itself;
else, with a mask that only the running model knows, the products and the softmax that ONNX defines it by.
"""

from __future__ import annotations

from ir.types import Shape, Size, exact_quotient
from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.functions import call
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Results
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, fixed, optional, term

_MASK, _PAST_KEY, _PAST_VALUE, _LENGTHS = 3, 4, 5, 6


@operator("Attention")
def _attention(site: Site) -> Results:
    window = _window(site)
    if window is None or site.has(_MASK) or site.has(_LENGTHS) or any(site.node.outputs[3:]):
        return call(site)
    query, key, value = (_with_heads(site, index) for index in range(3))
    past_key, past_value = optional(site, _PAST_KEY), optional(site, _PAST_VALUE)
    if past_key is not None and past_value is not None:
        key, value = past_key.apply("concat", key, dim=2), past_value.apply("concat", value, dim=2)
    present = key.name, value.name
    if site.attribute("is_causal", 0) and _tokens(site, 0) != _tokens(site, 1):
        key, value = (x.cut(2, 0, fixed(query.shape[2])) for x in (key, value))
    scale = site.attribute("scale") or fixed(query.shape[-1]) ** -0.5
    result = query.apply(
        "attention",
        key,
        value,
        scale=float(scale),
        causal=bool(site.attribute("is_causal", 0)),
        window=window,
        softcap=float(site.attribute("softcap", 0.0)),
    )
    if len(site.shape(0)) == 4:
        return (result.transpose(0, 2, 1, 3).name, *present)
    users, tokens, heads, width = result.shape
    return (result.reshape(users, tokens, heads * width).name, *present)


def _window(site: Site) -> int | None:
    """Tokens that one sees, 0 for all; ``None`` where the graph's operator does not look at the same ones."""
    left, right = (int(site.attribute(f"{side}_window_size", -1)) for side in ("left", "right"))
    is_causal = bool(site.attribute("is_causal", 0))
    if not is_causal and left < 0 and right < 0:
        return 0
    if not is_causal and left != right:
        return None
    # The graph's operator counts from the end of the history, so the new keys must be those of the queries. Without a
    # past, ONNX counts both from their beginnings, and nobody sees keys that come after the queries.
    new, keys = _tokens(site, 0), _tokens(site, 1)
    has_more = is_causal and not site.has(_PAST_KEY) and isinstance(new, int) and isinstance(keys, int) and new <= keys
    return max(0, left + 1) if new == keys or has_more else None


def _tokens(site: Site, index: int) -> Size:
    shape = site.shape(index)
    return shape[2] if len(shape) == 4 else shape[1]


def _with_heads(site: Site, index: int) -> Term:
    """An input as [users, heads, tokens, width]."""
    x = term(site, index)
    if len(x.shape) == 4:
        return x
    heads = int(site.attribute("q_num_heads" if index == 0 else "kv_num_heads", 0))
    split = _split(x.shape, heads)
    return x.reshape(*split).transpose(0, 2, 1, 3)


def _split(shape: Shape, heads: int) -> Shape:
    width = exact_quotient(shape[-1], heads) if heads > 0 and len(shape) == 3 else None
    if width is None:
        raise UnfoldableError(f"a tensor of shape {shape} has no {heads} heads")
    return (*shape[:-1], heads, width)
