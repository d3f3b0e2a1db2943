"""What attention takes on the tiles of its block, told beforehand: multiply-adds and the traffic of its collectives.

The kernel is that of :mod:`targets.emulator.attention`, which counts while it runs. New values go to their tiles
(``store``), queries pass all tiles (``queries``), scores of tokens that lie on several tiles go along those and come
back (``scores``), maxima and sums meet (``all_reduce``), and weighted values are summed to the first tile and go home
(``values``). Where attention looks at what is cached through a product, the product's weight is applied to queries and
results by head where it lies (``enter``, ``chain``, ``leave``). Where keys and values are computed again, what is
cached goes home for it, and keys and values come back to the token's tile (``recall``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ir.graph import Graph, Node
from ir.layout import Ints, MatrixLayout, matrix_layouts
from ir.plan import Rectangle
from ir.types import evaluate, for_one_token, one_token_shape, symbols_of
from targets.counters import OpCount, Traffic
from targets.program.caches import Sight, Spread, remembered_tokens
from targets.program.homes import homes
from targets.program.instructions import CachedAttention, Instruction, Program, is_transposed
from targets.program.kinds import SUM_BYTES
from targets.program.look import Look, Piece


def count_attention(
    graph: Graph, program: Program, instruction: Instruction, tokens: int, seen: int, context: int
) -> OpCount:
    """What one user's step of ``tokens`` tokens after ``seen`` others takes in an attention node of ``program``.

    ``context`` is the plan's: tokens that its caches have room for. Where the node's ``cache.recompute`` is not empty,
    those instructions run too, for :func:`targets.program.caches.remembered_tokens` tokens, and count as any other;
    they are not in here.
    """
    node, region = instruction.node, program.placed.region.at_origin
    counts = _Counts(region)
    cached = instruction.cache
    if cached is None:
        _in_step(counts, graph, node, tokens)
    elif cached.look is None:
        _recomputed(counts, graph, node, cached, (tokens, seen, context))
    else:
        _over_cache(counts, graph, program, node, cached, (tokens, seen, context))
    if len(node.inputs) > 3:
        counts.to_all("broadcast", for_one_token(graph.types[node.inputs[3]].elements) * _bytes(graph, node.inputs[3]))
    return OpCount(counts.work, counts.mesh)


@dataclass(slots=True)
class _Counts:
    """What is counted so far, on a region whose corner is the mesh's."""

    region: Rectangle
    work: int = 0
    mesh: dict[str, Traffic] = field(default_factory=dict)

    @property
    def across(self) -> int:
        """Hops from the first tile to the last."""
        return self.region.rows + self.region.columns - 2

    def add(self, collective: str, hops: int, link_bytes: int) -> None:
        """One run of a collective; one that crosses no link is none."""
        if hops:
            self.mesh[collective] = self.mesh.get(collective, Traffic()) + Traffic(1, hops, link_bytes)

    def to_all(self, collective: str, payload_bytes: int) -> None:
        """All tiles get the same."""
        if payload_bytes:
            self.add(collective, self.across, payload_bytes * (self.region.tiles - 1))

    def softmax(self, rows: int) -> None:
        """A maximum and a sum of each row meet, and go to all tiles."""
        self.add("all_reduce", 2 * self.across, 2 * (self.region.tiles - 1) * rows * 2 * SUM_BYTES)

    def results(self, elements: int, tokens: int, element_bytes: int) -> None:
        """Weighted values, ``elements`` of each token, are summed to the first tile and go home."""
        row, column = homes(elements, self.region)
        links = row + column
        sums = (self.region.tiles - 1) * elements * max(SUM_BYTES, element_bytes)
        longest, home_bytes = int(links.max()), int(links.sum()) * element_bytes
        self.add("values", self.across + longest, tokens * (sums + home_bytes))


def _bytes(graph: Graph, name: str) -> int:
    return graph.types[name].dtype.held_bits // 8


def _elements(graph: Graph, name: str) -> int:
    return for_one_token(graph.types[name].elements)


# --- attention over a cache -------------------------------------------------------------------------------------------


def _over_cache(
    counts: _Counts, graph: Graph, program: Program, node: Node, cached: CachedAttention, step: tuple[int, int, int]
) -> None:
    tokens, seen, context = step
    look, region = cached.look, counts.region
    assert look is not None
    heads = for_one_token(graph.types[node.inputs[0]].shape[1])
    width = sum(_elements(graph, name) for name in cached.cache.values)
    spread = Spread(cached.cache.tokens(context), width, region)
    _stored(counts, graph, cached, spread, tokens, seen)
    by_head = _ByHead(graph, program, node, cached)
    by_head.before(counts, look, tokens)
    element_bytes = _bytes(graph, node.inputs[0])
    looked = sum(piece.seen for piece in look.keys), sum(piece.seen for piece in look.values)
    counts.to_all("queries", tokens * heads * looked[0] * element_bytes)
    sight = Sight.of(node)
    hops, links = _straddled(spread, sight, tokens, seen)
    counts.add("scores", 2 * hops, 2 * links * heads * SUM_BYTES)
    counts.softmax(tokens * heads)
    counts.results(heads * looked[1], tokens, _bytes(graph, node.result.name))
    counts.work += _pairs(sight, tokens, seen, seen + tokens) * heads * sum(looked)
    by_head.after(counts, look, tokens)


def _stored(
    counts: _Counts, graph: Graph, cached: CachedAttention, spread: Spread, tokens: int, seen: int, name: str = "store"
) -> None:
    """What is cached of the ``tokens`` tokens after ``seen`` goes from its homes to its tiles."""
    hops = link_bytes = 0
    places = np.arange(seen, seen + tokens)[:, None] % spread.capacity
    start = 0
    for value in cached.cache.values:
        elements = _elements(graph, value)
        longest, links = _moved(spread, places, homes(elements, spread.region), start)
        hops, link_bytes = max(hops, longest), link_bytes + links * _bytes(graph, value)
        start += elements
    counts.add(name, hops, link_bytes)


def _moved(spread: Spread, places: Ints, source: tuple[Ints, Ints], start: int) -> tuple[int, int]:
    """Hops of the longest path, and all links, of elements from ``start`` on of the tokens at ``places`` [tokens, 1],
    between their tiles and ``source`` ([elements] or [tokens, elements]).
    """
    longest = links = 0
    for first in range(0, len(places), 256):
        part = places[first : first + 256]
        row, column = (side[first : first + 256] if side.ndim == 2 else side for side in source)
        tile = spread.tile(part, start + np.arange(row.shape[-1]))
        away = np.abs(tile // spread.region.columns - row) + np.abs(tile % spread.region.columns - column)
        longest, links = max(longest, int(away.max())), links + int(away.sum())
    return longest, links


def _straddled(spread: Spread, sight: Sight, tokens: int, seen: int, stacks: int = 1) -> tuple[int, int]:
    """Links between the tiles of a token that is seen, at most, and over all pairs of a query and a token that it sees.

    Counted by the borders of tiles: one inside of a token's elements is crossed whenever the token is scored.
    """
    elements, tiles = spread.capacity * spread.width, spread.region.tiles
    border = -(-np.arange(1, tiles) * elements // tiles)
    inside = border % spread.width != 0
    crossed = np.where(np.arange(1, tiles) % spread.region.columns == 0, spread.region.columns, 1)[inside]
    place = border[inside] // spread.width
    end = seen + tokens
    longest, links = 0, 0
    for stack in range(stacks):
        queries = np.arange(seen, end)
        first, last = sight.span(queries, end)
        turn = np.arange(
            int(first.min()) // spread.capacity, -(-int(last.max()) // spread.capacity) if stacks == 1 else 1
        )
        position = (place - stack * end)[:, None] + turn * spread.capacity
        times = np.searchsorted(first, position, "right") - np.searchsorted(last, position, "right")
        times = np.where((position >= int(first.min())) & (position < int(last.max())), times, 0)
        links += int((times * crossed[:, None]).sum())
        _, token = np.unique(position[times > 0], return_inverse=True)
        paths = np.bincount(token, np.broadcast_to(crossed[:, None], times.shape)[times > 0])
        longest = max(longest, int(paths.max(initial=0)))
    return longest, links


def _pairs(sight: Sight, queries: int, first: int, keys: int) -> int:
    """Pairs of a query, from position ``first`` on, and a token that it sees."""
    start, end = sight.span(np.arange(first, first + queries), keys)
    return int((end - start).sum())


# --- attention in one step, and over what is computed again -----------------------------------------------------------


def _in_step(counts: _Counts, graph: Graph, node: Node, tokens: int) -> None:
    """Keys and values of the step itself lie as a cache would."""
    bindings = {"tokens": tokens, "users": 1}
    shapes = [
        [evaluate(size, {**dict.fromkeys(symbols_of(size), tokens), **bindings}) for size in graph.types[name].shape]
        for name in node.inputs[:3]
    ]
    (stacks, heads, queries, key_width), (_, key_heads, keys, _), value_width = *shapes[:2], shapes[2][3]
    width = key_heads * (key_width + value_width)
    spread, sight = Spread(stacks * keys, width, counts.region), Sight.of(node)
    places, start = np.arange(stacks * keys)[:, None], 0
    hops = link_bytes = 0
    for name, shape in zip(node.inputs[1:3], shapes[1:], strict=True):
        own = _elements(graph, name)
        one = one_token_shape(graph.types[name].shape)
        number = np.broadcast_to(np.arange(own).reshape(one), shape).transpose(0, 2, 1, 3).reshape(stacks * keys, -1)
        row, column = homes(own, counts.region)
        longest, links = _moved(spread, places, (row[number], column[number]), start)
        hops, link_bytes = max(hops, longest), link_bytes + links * _bytes(graph, name)
        start += number.shape[1]
    counts.add("store", hops, link_bytes)
    counts.to_all("queries", stacks * queries * heads * key_width * _bytes(graph, node.inputs[0]))
    longest, links = _straddled(spread, sight, queries, keys - queries, stacks)
    counts.add("scores", 2 * longest, 2 * links * heads * SUM_BYTES)
    counts.softmax(stacks * queries * heads)
    result = _elements(graph, node.result.name)
    counts.results(result, stacks * queries * heads * value_width // result, _bytes(graph, node.result.name))
    pairs = stacks * _pairs(sight, queries, keys - queries, keys)
    counts.work += pairs * heads * (key_width + value_width)


def _recomputed(counts: _Counts, graph: Graph, node: Node, cached: CachedAttention, step: tuple[int, int, int]) -> None:
    """Each remembered token's keys and values are computed again, and come to the tile of its first element."""
    tokens, seen, context = step
    width = sum(_elements(graph, name) for name in cached.cache.values)
    spread = Spread(cached.cache.tokens(context), width, counts.region)
    _stored(counts, graph, cached, spread, tokens, seen)
    kept = remembered_tokens(cached.cache, tokens, seen)
    there = _Counts(counts.region)
    _stored(there, graph, cached, spread, kept, seen + tokens - kept)
    hops, link_bytes = (there.mesh["store"].hops, there.mesh["store"].bytes) if there.mesh else (0, 0)
    places = np.arange(seen + tokens - kept, seen + tokens) % spread.capacity
    tile = spread.tile(places, 0 * places)[:, None]
    back = 0
    for name in node.inputs[1:3]:
        row, column = homes(_elements(graph, name), counts.region)
        away = np.abs(tile // counts.region.columns - row) + np.abs(tile % counts.region.columns - column)
        back, link_bytes = max(back, int(away.max())), link_bytes + int(away.sum()) * _bytes(graph, name)
    counts.add("recall", hops + back, link_bytes)
    query, value = graph.types[node.inputs[0]].shape, graph.types[node.inputs[2]].shape
    heads, key_width, value_width = one_token_shape((query[1], query[3], value[3]))
    counts.to_all("queries", tokens * heads * key_width * _bytes(graph, node.inputs[0]))
    counts.softmax(tokens * heads)
    counts.results(heads * value_width, tokens, _bytes(graph, node.result.name))
    counts.work += _pairs(Sight.of(node), tokens, seen, seen + tokens) * heads * (key_width + value_width)


# --- products that are applied to queries and results -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ByHead:
    """The products of a look, by head, on the tiles where their weights lie."""

    graph: Graph
    program: Program
    node: Node
    cached: CachedAttention

    def before(self, counts: _Counts, look: Look, tokens: int) -> None:
        """The rows that make keys, applied to queries."""
        self._count(counts, look.keys, tokens, self.node.inputs[0], forward=False)

    def after(self, counts: _Counts, look: Look, tokens: int) -> None:
        """The rows that make values, applied to results."""
        self._count(counts, look.values, tokens, self.node.result.name, forward=True)

    def _count(self, counts: _Counts, pieces: tuple[Piece, ...], tokens: int, name: str, forward: bool) -> None:
        element_bytes = _bytes(self.graph, name)
        heads = for_one_token(self.graph.types[self.node.inputs[0]].shape[1])
        whole, seen = sum(piece.width for piece in pieces), sum(piece.seen for piece in pieces)
        start = begin = 0
        for piece in pieces:
            if piece.product is not None:
                product = self.cached.products[piece.product]
                layout = self._layout(product)
                flipped = is_transposed(product)
                across, down = (layout.inputs, layout.outputs) if flipped else (layout.outputs, layout.inputs)
                rows = np.repeat(piece.rows.numbers, heads // len(piece.rows.numbers), axis=0)
                lines = tuple(tuple(line) for line in _line(across.bounds(), rows).tolist())
                others = tuple(_line(down.bounds(), np.arange(piece.seen)).tolist())
                small = _Small(lines, others, start, whole, begin, seen, flipped)
                sizes = {"enter": element_bytes, "chain": max(SUM_BYTES, element_bytes), "leave": element_bytes}
                for (collective, size), way in zip(sizes.items(), _by_head(small, counts.region, forward), strict=True):
                    counts.add(collective, way[0], way[1] * size * tokens)
                counts.work += tokens * heads * piece.width * piece.seen
            start, begin = start + piece.width, begin + piece.seen

    def _layout(self, product: Instruction) -> MatrixLayout:
        region, block = self.program.placed.region, self.program.block
        own = [self.graph.parameter[n] for n in block.parameters if n not in self.program.stacked]
        name = product.weights[1].parameter
        return next(x for x in matrix_layouts(own, region.rows, region.columns) if x.parameter.name == name)


@dataclass(frozen=True, slots=True)
class _Small:
    """A product by head: the line of tiles of each of its rows [heads, width] and of each of its inputs, and where both
    begin among the elements of a head of the one vector and of the other.
    """

    lines: tuple[tuple[int, ...], ...]
    others: tuple[int, ...]
    start: int
    whole: int
    begin: int
    seen: int
    flipped: bool


def _line(bounds: Ints, element: Ints) -> Ints:
    return np.searchsorted(bounds, element, "right") - 1


@lru_cache(maxsize=256)
def _by_head(product: _Small, region: Rectangle, forward: bool) -> tuple[tuple[int, int], ...]:
    """Longest path and links of ``enter``, ``chain`` and ``leave`` for one token.

    Rows of a weight lie along columns of tiles, its inputs along rows (``flipped``: the reverse).
    """
    tall = region.columns if product.flipped else region.rows
    heads = len(product.lines)
    enter, chain, leave = [0, 0], [0, 0], [0, 0]

    def take(total: list[int], links: int) -> None:
        total[0], total[1] = max(total[0], links), total[1] + links

    def home(elements: int, element: int) -> tuple[int, int]:
        tile = element * region.tiles // elements
        row, column = divmod(tile, region.columns)
        return (column, row) if product.flipped else (row, column)

    for head, lines in enumerate(product.lines):
        low, high = min(lines), max(lines)
        for place, line in enumerate(lines):
            row, column = home(heads * product.whole, head * product.whole + product.start + place)
            if forward:
                take(leave, tall - 1 - row + abs(line - column))
                take(chain, tall - 1)
            else:
                take(enter, abs(line - column) + tall - 1)
        for place, line in enumerate(product.others):
            row, column = home(heads * product.seen, head * product.seen + product.begin + place)
            if forward:
                take(enter, abs(line - row) + max(0, low - column, column - high) + high - low)
            else:
                take(leave, abs(line - row) + abs(high - column))
                take(chain, high - low)
    return (enter[0], enter[1]), (chain[0], chain[1]), (leave[0], leave[1])
