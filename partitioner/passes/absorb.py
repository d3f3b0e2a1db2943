"""What one attention costs, as a good kernel computes it from what is cached.

Where the cache holds a latent from which keys and values are recomputed by a product (DeepSeek-V2, section 2.1.2), no
kernel repeats that product for every remembered token: q . (W c) = (W' q) . c, so the part of W that makes keys is
applied to the query before, and the part that makes values to the result after. Attention then looks at the latents
themselves, which all heads share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ir.graph import Graph, Node
from ir.model import Cache
from ir.profile import Attention, Product
from ir.types import for_one_token, symbols_of
from partitioner.passes.kernels import product_of
from targets.program.look import Piece, look_at_cache

_HEADS, _TOKENS, _WIDTH = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Look:
    """An attention node as kernels: products ``before`` it, on the query, and ``after`` it, on its result, in the place
    of the nodes ``absorbed`` (indices), which are not computed.
    """

    attention: Attention
    before: tuple[Product, ...] = ()
    after: tuple[Product, ...] = ()
    absorbed: frozenset[int] = frozenset()


def look_at(graph: Graph, node: Node, cache: Cache | None, computed: frozenset[str]) -> Look:
    """The kernels of the attention ``node``.

    Where query heads share a key, each of them needs the shared matrix applied, so its products are more work than the
    block's count, which makes the key once. Where keys and values come from the cache in another way than by views,
    by joining, and by products for each head, they are taken as recomputed for each new token alone, by products that
    count as any other: what a kernel that keeps them would do.
    """
    written = _as_written(graph, node, cache)
    look = look_at_cache(graph, node, cache) if cache else None
    if look is None:
        return Look(written)
    products = {index: product_of(graph, graph.nodes[index], computed) for index in look.products}
    attention = replace(
        written,
        cached_heads=look.heads,
        key_width=_cached_width(look.keys),
        value_width=_cached_width(look.values),
    )
    return Look(
        attention,
        before=_by_head(look.keys, products, written, transposed=True),
        after=_by_head(look.values, products, written, transposed=False),
        absorbed=frozenset(cache.recompute) if cache and products else frozenset(),
    )


def _as_written(graph: Graph, node: Node, cache: Cache | None) -> Attention:
    """Attention over keys and values as the node reads them."""
    query, key, value = (graph.types[name] for name in node.inputs[:3])
    seen = for_one_token(key.shape[_TOKENS])
    fixed = 0 if symbols_of(key.shape[_TOKENS]) else seen
    kept = sum(graph.token_bytes[name] for name in dict.fromkeys(node.inputs[1:3])) // seen
    window, chunk = int(node.attributes["window"]), int(node.attributes.get("chunk", 0))
    return Attention(
        heads=for_one_token(query.shape[_HEADS]),
        cached_heads=for_one_token(key.shape[_HEADS]),
        key_width=for_one_token(key.shape[_WIDTH]),
        value_width=for_one_token(value.shape[_WIDTH]),
        bytes_per_token=cache.bytes_per_token if cache else kept,
        window=window or chunk or fixed,
        chunked=bool(chunk),
        queries=for_one_token(query.shape[0] * query.shape[_TOKENS]),
    )


def _cached_width(pieces: tuple[Piece, ...]) -> int:
    """Elements of the cached values that stand for a key or a value, a latent of several products once."""
    latents = {piece.source: piece.seen for piece in pieces if piece.product is not None}
    return sum(latents.values()) + sum(piece.width for piece in pieces if piece.product is None)


def _by_head(
    pieces: tuple[Piece, ...], products: dict[int, Product], written: Attention, *, transposed: bool
) -> tuple[Product, ...]:
    """Each head's rows of the recomputing weights, as matrices of their own; heads that share a key share its matrix.
    Scales lie along the inputs of what is stored, so nothing holds the inputs together where it is ``transposed``.
    """
    found = []
    for piece in pieces:
        if piece.product is not None:
            whole = products[piece.product]
            inputs, outputs = (piece.width, whole.inputs) if transposed else (whole.inputs, piece.width)
            found.append(
                Product(
                    inputs=inputs,
                    outputs=outputs,
                    weight_bits=whole.weight_bits,
                    group=1 if transposed else whole.group,
                    parts=written.cached_heads,
                    vectors=whole.vectors * written.heads // written.cached_heads,
                )
            )
    return tuple(found)
