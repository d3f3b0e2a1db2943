"""What one attention costs, as a good kernel computes it from what is cached.

Where the cache holds a latent from which keys and values are recomputed by a product (DeepSeek-V2, section 2.1.2), no
kernel repeats that product for every remembered token: q . (W c) = (W' q) . c, so the part of W that makes keys is
applied to the query before, and the part that makes values to the result after. Attention then looks at the latents
themselves, which all heads share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ir.graph import Graph, Node
from ir.model import Cache
from ir.ops import OPS, Kind
from ir.profile import Attention, Product
from ir.types import for_one_token, symbols_of
from partitioner.passes.kernels import product_of

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


@dataclass(frozen=True, slots=True)
class _Piece:
    """``width`` elements of each head's key or value: those of the cached value ``source`` as they are, or the results
    of ``product``, the node of that index, on it.
    """

    width: int
    source: str
    product: int | None


def look_at(graph: Graph, node: Node, cache: Cache | None, computed: frozenset[str]) -> Look:
    """The kernels of the attention ``node``.

    Where query heads share a key, each of them needs the shared matrix applied, so its products are more work than the
    block's count, which makes the key once. Where keys and values come from the cache in another way than by views,
    by joining, and by products for each head, they are taken as recomputed for each new token alone, by products that
    count as any other: what a kernel that keeps them would do.
    """
    key, value = (list(_pieces(graph, cache, name)) if cache else [] for name in node.inputs[1:3])
    if cache is None or None in key or None in value:
        return Look(_as_written(graph, node, cache))
    keys = [piece for piece in key if piece]
    values = [piece for piece in value if piece]
    return _from_cache(graph, node, cache, (keys, values), computed) or Look(_as_written(graph, node, cache))


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


def _pieces(graph: Graph, cache: Cache, name: str) -> Iterator[_Piece | None]:
    """What the key or value ``name`` [users, heads, tokens, width] is joined from; ``None`` for what is neither cached
    nor a product of what is.
    """
    width = for_one_token(graph.types[name].shape[_WIDTH])
    while name not in cache.values:
        node = _recomputed(graph, cache, name)
        if node is None:
            yield None
            return
        joins = node.op == "concat" and node.attributes["dim"] == len(node.result.type.shape) - 1
        if joins and len(node.result.type.shape) == 4 and node.result.type.shape[-1] == width:
            for part in node.inputs:
                yield from _pieces(graph, cache, part)
            return
        if node.op in ("linear", "matmul"):
            source = _behind_views(graph, cache, node.inputs[0])
            yield None if source is None else _Piece(width, source, graph.producer[name])
            return
        if not _is_view(node):
            yield None
            return
        name = node.inputs[0]
    yield _Piece(width, name, None)


def _recomputed(graph: Graph, cache: Cache, name: str) -> Node | None:
    index = graph.producer.get(name)
    return graph.nodes[index] if index in cache.recompute and index is not None else None


def _is_view(node: Node) -> bool:
    return OPS[node.op].kind is Kind.VIEW or node.op == "cast"


def _behind_views(graph: Graph, cache: Cache, name: str) -> str | None:
    """The cached value that ``name`` is a view of."""
    while name not in cache.values:
        node = _recomputed(graph, cache, name)
        if node is None or not _is_view(node):
            return None
        name = node.inputs[0]
    return name


def _from_cache(
    graph: Graph, node: Node, cache: Cache, pieces: tuple[list[_Piece], list[_Piece]], computed: frozenset[str]
) -> Look | None:
    """Attention over what is cached; ``None`` where heads cannot share it in this way."""
    written = _as_written(graph, node, cache)
    made_by = {piece.product for part in pieces for piece in part if piece.product is not None}
    products = {index: product_of(graph, graph.nodes[index], computed) for index in made_by}
    heads = {_heads(graph, piece, products) for part in pieces for piece in part}
    taken: Counter[int] = Counter()
    for piece in (piece for part in pieces for piece in part if piece.product is not None):
        assert piece.product is not None
        taken[piece.product] += piece.width * written.cached_heads
    if len(heads) != 1 or (products and heads != {1}) or any(taken[i] != p.outputs for i, p in products.items()):
        return None
    key_width, value_width = (_cached_width(part, products) for part in pieces)
    return Look(
        attention=Attention(
            heads=written.heads,
            cached_heads=heads.pop(),
            key_width=key_width,
            value_width=value_width,
            bytes_per_token=cache.bytes_per_token,
            window=written.window,
            chunked=written.chunked,
            queries=written.queries,
        ),
        before=_by_head(pieces[0], products, written, transposed=True),
        after=_by_head(pieces[1], products, written, transposed=False),
        absorbed=frozenset(cache.recompute) if products else frozenset(),
    )


def _heads(graph: Graph, piece: _Piece, products: dict[int, Product]) -> int:
    """How many vectors of what attention looks at the cached value holds for each token."""
    width = piece.width if piece.product is None else products[piece.product].inputs
    return for_one_token(graph.types[piece.source].elements) // width


def _cached_width(part: list[_Piece], products: dict[int, Product]) -> int:
    """Elements of the cached values that stand for a key or a value, a latent of several products once."""
    latents = {piece.source: products[piece.product].inputs for piece in part if piece.product is not None}
    return sum(latents.values()) + sum(piece.width for piece in part if piece.product is None)


def _by_head(
    part: list[_Piece], products: dict[int, Product], written: Attention, *, transposed: bool
) -> tuple[Product, ...]:
    """Each head's rows of the recomputing weights, as matrices of their own; heads that share a key share its matrix.
    Scales lie along the inputs of what is stored, so nothing holds the inputs together where it is ``transposed``.
    """
    found = []
    for piece in part:
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
