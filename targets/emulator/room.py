"""What a block may take of its tiles' memory while it runs, beside the weights that lie there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ir.graph import Graph
from ir.layout import Ints
from ir.liveness import live_bytes
from ir.plan import Rectangle
from targets.emulator.ledger import WaferLedger, evenly, require_fits
from targets.program.instructions import Program

_HELP = "let fewer tokens pass at once, or plan for more: --prefill-chunk"


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of one block's tiles, once all blocks are laid out.

    Attributes:
        regions: over which its caches and activations are spread, each with the same share of them.
        cache_bytes: what the plan keeps for its caches.
        names: what runs: the block's reading of others' values, then its operators by their first results.
        live: bytes of the values then alive, for one token.
        tokens: with so many at once it fits, even with full caches.
    """

    program: Program
    ledger: WaferLedger
    regions: tuple[Rectangle, ...]
    cache_bytes: int
    names: tuple[str, ...]
    live: tuple[int, ...]
    tokens: int = 0

    @staticmethod
    def of(program: Program, graph: Graph, depends: frozenset[str], ledger: WaferLedger, cache_bytes: int) -> Room:
        """The room of ``program``'s block, when ``ledger`` holds the claims of all blocks; ``depends`` are the graph's
        values that depend on its inputs.
        """
        placed = program.placed
        own = tuple(expert.region for expert in placed.experts)
        regions = own if own and not placed.sliced else (placed.region,)
        nodes = program.block.nodes
        names = ("what is read", *(f"{graph.nodes[i].op} {graph.nodes[i].result.name}" for i in nodes))
        room = Room(program, ledger, regions, cache_bytes, names, live_bytes(graph, nodes, depends))
        share = -(-cache_bytes // len(regions))
        free = min(int(room.free(region).min()) * region.tiles - share for region in regions) * len(regions)
        return replace(room, tokens=free // max(1, *room.live))

    def free(self, region: Rectangle) -> Ints:
        """Bytes on each tile [rows, columns] of a region beside weights and what is kept for other blocks' caches."""
        held = self.ledger.held(region)
        mine = evenly(-(-self.cache_bytes // len(self.regions)), region)
        found: Ints = self.ledger.machine.tile_bytes - held[0] - (held[1] - mine)
        return found

    def require(self, tokens: int, filled: int) -> None:
        """Check that the block can work on ``tokens`` tokens at once while its caches hold ``filled`` bytes.

        Raises:
            CheckError: W0601, a tile would hold more than it can.
        """
        if not self.program.block.takes_tokens:
            tokens = 1
        if tokens <= self.tokens:
            return
        for name, live in zip(self.names, self.live, strict=True):
            for region in self.regions:
                self._require(name, region, -(-live * tokens // len(self.regions)), -(-filled // len(self.regions)))

    def _require(self, name: str, region: Rectangle, activations: int, caches: int) -> None:
        both, cached = evenly(activations + caches, region), evenly(caches, region)
        limit = self.ledger.machine.tile_bytes
        parts = np.stack((self.ledger.held(region)[0], cached, both - cached))
        total = limit - self.free(region) + both
        require_fits(region, total, parts, limit, f"{name} of {self.program.where}", _HELP)
