"""What runs of items cost, many at once: bytes that they are sent, and their time with a wafer's tiles shared out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ir.objective import Objective
from partitioner.solver.problem import Wafer
from partitioner.solver.runs import Array, Chain, Curves

SUMS = (Objective.TRAFFIC, Objective.LATENCY, Objective.MOVES)
"""Objectives that add up over runs."""


_MOST = 1 << 60


@dataclass(frozen=True, slots=True)
class Prices:
    """What runs take in femtoseconds, and the price of a tile, in femtoseconds, at which they take no more tiles."""

    time_fs: Array
    prices: Array


def costs(chain: Chain, objective: Objective, kind: Wafer, starts: Array, ends: Array) -> Array:
    """What the runs [start, end) add to ``objective`` on wafers of ``kind``; runs sorted by their start."""
    if objective is Objective.TRAFFIC:
        return _received(chain, starts, ends)
    if objective is Objective.LATENCY:
        return shared_out(chain, kind, starts, ends).time_fs + np.where(starts > 0, chain.way_fs[starts], 0)
    return np.zeros_like(starts)  # labels of wafers do not matter to runs


def is_countable(chain: Chain, objective: Objective) -> bool:
    """Whether the largest sum that could be asked for is one of 60 bits."""
    problem = chain.problem
    if objective is Objective.TRAFFIC:
        return sum(flow.bytes_per_token * len(flow.targets) for flow in problem.flows) < _MOST
    curves = [item.latency.slowed(kind.slowness_permille) for kind in chain.wafers.kinds for item in problem.items]
    saved = sum(tiles * saved for curve in curves for tiles, saved in curve.drops)
    links = problem.hand_over_fs + max((flow.link_fs for flow in problem.flows), default=0)
    return sum(curve.time_fs for curve in curves) + saved + chain.count * links < _MOST


def _received(chain: Chain, starts: Array, ends: Array) -> Array:
    """Bytes per token: a value that is read in the run, made before it, and for the first reader in it alone."""
    made: list[list[tuple[int, int]]] = [[] for _ in range(chain.count)]
    for flow in chain.problem.flows:
        earlier = flow.source
        for target in sorted(flow.targets):
            made[earlier].append((target, flow.bytes_per_token))
            earlier = target
    arrives = np.zeros(chain.count, np.int64)  # [item]: bytes that it is the first to read of a run from ``start``
    received = np.zeros_like(starts)
    first = np.searchsorted(starts, np.arange(chain.count + 1))
    for start in range(chain.count):
        if start:
            arrives[start - 1] = 0
            for target, size in made[start - 1]:
                arrives[target] += size
        runs = slice(first[start], first[start + 1])
        if runs.start < runs.stop:
            length = ends[runs] - start
            received[runs] = np.cumsum(arrives[start : start + length.max()])[length - 1]
    return received


def shared_out(chain: Chain, kind: Wafer, starts: Array, ends: Array) -> Prices:
    """The least time of each run [start, end): spare tiles go where each saves most, which is exact as savings fall."""
    curves = chain.latencies(kind)
    before = np.append(0, np.cumsum(chain.tiles))
    whole = np.append(0, np.cumsum(curves.time_fs))
    saved, prices = _Savings.of(curves).most(starts, ends, kind.tiles - (before[ends] - before[starts]))
    return Prices(whole[ends] - whole[starts] - saved, prices)


@dataclass(frozen=True)
class _Savings:
    """Pieces of all items' curves, as a wavelet matrix: what the best pieces of any run save on so many tiles.

    Levels go through the bits of the pieces' rank by what a tile saves, the highest first; each moves the pieces
    without the bit to the front and keeps sums. So the best pieces of all runs are found at once, in as many steps as
    the rank has bits. (Claude, Navarro and Ordonez, "The wavelet matrix: an efficient wavelet tree for large
    alphabets", 2015; sums for weighted ranges as in range selection.)

    ``zeros`` [level][piece]: pieces before it without the bit. ``tiles``, ``worth``: sums after each level's move.
    """

    pieces: int
    values: Array
    zeros: tuple[Array, ...]
    tiles: tuple[Array, ...]
    worth: tuple[Array, ...]

    @classmethod
    def of(cls, curves: Curves) -> _Savings:
        tiles, saved = curves.tiles.ravel(), curves.saved.ravel()
        values, ranks = np.unique(np.append(saved, 0), return_inverse=True)
        ranks = ranks[:-1]
        zeros, sums, worths = [], [], []
        for bit in reversed(range(max(1, int(len(values) - 1).bit_length()))):
            lacks = (ranks >> bit) & 1 == 0
            order = np.argsort(~lacks, kind="stable")
            zeros.append(np.append(0, np.cumsum(lacks)))
            ranks, tiles, saved = ranks[order], tiles[order], saved[order]
            sums.append(np.append(0, np.cumsum(tiles)))
            worths.append(np.append(0, np.cumsum(tiles * saved)))
        return cls(curves.tiles.shape[1], values, tuple(zeros), tuple(sums), tuple(worths))

    def most(self, starts: Array, ends: Array, spare: Array) -> tuple[Array, Array]:
        """What each run saves with ``spare`` tiles, and the price of the last of them; 0 where tiles are left."""
        low, high = starts * self.pieces, ends * self.pieces
        saved, rank = np.zeros_like(spare), np.zeros_like(spare)
        for zeros, tiles, worth in zip(self.zeros, self.tiles, self.worth, strict=True):
            low_lack, high_lack = zeros[low], zeros[high]
            low_have, high_have = zeros[-1] + low - low_lack, zeros[-1] + high - high_lack
            wanted = tiles[high_have] - tiles[low_have]
            all_taken = wanted <= spare
            spare = spare - np.where(all_taken, wanted, 0)
            saved += np.where(all_taken, worth[high_have] - worth[low_have], 0)
            low, high = np.where(all_taken, low_lack, low_have), np.where(all_taken, high_lack, high_have)
            rank = 2 * rank + ~all_taken
        wanted = self.tiles[-1][high] - self.tiles[-1][low]
        price = self.values[rank]
        return saved + np.minimum(wanted, spare) * price, np.where(wanted <= spare, 0, price)
