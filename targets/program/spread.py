"""Where what attention remembers lies: the elements of tokens in order, evenly over all tiles of the block's region.

A cache has room for ``capacity`` tokens of ``width`` elements each. Token ``p`` takes the place ``p mod capacity``, so
that of a window the newest token overwrites the one that has just left it. Element ``a`` of it lies on tile
``((p mod capacity) width + a) tiles // (capacity width)``, counted row by row: a tile holds whole tokens where it has
room for them, and the elements of a long one lie on neighbouring tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from ir.graph import Node
from ir.layout import Ints
from ir.model import Cache
from ir.plan import Rectangle

SUM_BYTES = 4
"""Of a partial sum, a maximum or a sum of a softmax on the mesh: they are held in 32 bit."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The elements of ``capacity`` tokens, ``width`` each, over the tiles of a region."""

    capacity: int
    width: int
    region: Rectangle

    def tile(self, place: Ints, element: Ints) -> Ints:
        """The tile, counted row by row, of elements of the tokens at ``place`` (both of one shape, or broadcast)."""
        return (place * self.width + element) * self.region.tiles // (self.capacity * self.width)

    def path(self, place: Ints) -> Ints:
        """Links that a partial score of the tokens at ``place`` crosses, from the first of their tiles to the last.

        It passes all tiles in between, row by row; from the end of a row it goes to the start of the next one.
        """
        first, last = self.tile(place, 0 * place), self.tile(place, 0 * place + self.width - 1)
        return self._along(last) - self._along(first)

    def _along(self, tile: Ints) -> Ints:
        columns = self.region.columns
        return tile // columns * (2 * columns - 1) + tile % columns


@dataclass(frozen=True, slots=True)
class Sight:
    """Whom queries see of a history, by positions; ``most``: the tokens of a window or, where ``chunked``, of a chunk
    (0: no limit).
    """

    causal: bool
    most: int
    chunked: bool

    @staticmethod
    def of(node: Node) -> Sight:
        """That of an attention node."""
        window, chunk = int(node.attributes["window"]), int(node.attributes.get("chunk", 0))
        return Sight(bool(node.attributes["causal"]), window or chunk, bool(chunk))

    def span(self, position: Ints, end: int) -> tuple[Ints, Ints]:
        """The first position that queries at ``position`` see, and the one behind the last, of ``end`` positions."""
        first, last = 0 * position, 0 * position + end
        if self.causal:
            last = position + 1
        if self.chunked:
            first = position // self.most * self.most
        elif self.most:
            first = (position - self.most + 1).clip(0)
            last = last if self.causal else (position + self.most).clip(max=end)
        return first, last


def remembered_tokens(cache: Cache, tokens: int, seen: int) -> int:
    """Tokens that the queries of a step of ``tokens`` can see after ``seen`` others, their own included."""
    if not cache.window:
        return seen + tokens
    return tokens + (seen % cache.window if cache.chunked else min(seen, cache.window - 1))
