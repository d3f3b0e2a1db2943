"""Collectives along a line of tiles, in cycles.

The model is that of Luczynski et al., "Near-Optimal Wafer-Scale Reduce" (HPDC 2024): T = max(C, E / N + L) + (2 T_R +
1) D for contention C, energy E in hops over N links, distance L, and depth D; T_R is the way between a router and its
processor. One wavelet passes a link in a cycle. A line's all-reduce gathers at its middle from both sides and
broadcasts back, in two phases over groups of sqrt(P) tiles, as in WaferLLM (OSDI 2025, K-tree with K = 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fabric:
    """The mesh's cycles: from router to router, and between a router and its processor (T_R)."""

    hop_cycles: float
    ramp_cycles: float

    @property
    def stage_cycles(self) -> float:
        """To take a wavelet in, work on it, and send it on: 2 T_R + 1."""
        return 2 * self.ramp_cycles + 1


def star_reduce_cycles(tiles: int, wavelets: float, fabric: Fabric) -> float:
    """Every tile of a line sends all its ``wavelets`` to the root at the end."""
    if tiles < 2:
        return 0
    return max(wavelets * (tiles - 1), wavelets * tiles / 2 + (tiles - 1) * fabric.hop_cycles) + fabric.stage_cycles


def chain_reduce_cycles(tiles: int, wavelets: float, fabric: Fabric) -> float:
    """Every tile adds its own to what its neighbour sends: B + (2 T_R + 2)(P - 1)."""
    if tiles < 2:
        return 0
    return wavelets + (fabric.stage_cycles + fabric.hop_cycles) * (tiles - 1)


def tree_reduce_cycles(tiles: int, wavelets: float, fabric: Fabric) -> float:
    """A binary tree over the line."""
    if tiles < 2:
        return 0
    depth = math.ceil(math.log2(tiles))
    spread = wavelets * tiles * depth / (2 * (tiles - 1)) + (tiles - 1) * fabric.hop_cycles
    return max(wavelets * depth, spread) + fabric.stage_cycles * depth


def two_phase_reduce_cycles(tiles: int, wavelets: float, fabric: Fabric) -> float:
    """Chains within groups of about sqrt(P) tiles, then a chain of the groups' roots."""
    if tiles < 2:
        return 0
    group = max(1, round(math.sqrt(tiles)))
    depth = group - 1 + -(-tiles // group) - 1
    return 2 * wavelets + (tiles - 1) * fabric.hop_cycles + fabric.stage_cycles * depth


REDUCTIONS = {
    "star": star_reduce_cycles,
    "chain": chain_reduce_cycles,
    "tree": tree_reduce_cycles,
    "two_phase": two_phase_reduce_cycles,
}


def reduce_cycles(tiles: int, wavelets: float, fabric: Fabric) -> float:
    """The fastest of the reductions to the end of a line of ``tiles``."""
    return min(reduction(tiles, wavelets, fabric) for reduction in REDUCTIONS.values())


def broadcast_cycles(tiles: int, wavelets: float, fabric: Fabric) -> float:
    """From one end of a line to all of it: B + P + 2 T_R, routers copy on the way."""
    if tiles < 2:
        return 0
    return wavelets + (tiles - 1) * fabric.hop_cycles + 2 * fabric.ramp_cycles


def all_reduce_cycles(tiles: int, wavelets: float, fabric: Fabric) -> float:
    """The sum over a line, on every tile of it: both halves reduce to the middle, which broadcasts to both.

    By a chain or in two phases. A tree has less depth, but takes routes of its own for each level, which kernels that
    share 24 colours do not have; a star is a chain of length one.
    """
    half = -(-tiles // 2)
    gather = min(chain_reduce_cycles(half, wavelets, fabric), two_phase_reduce_cycles(half, wavelets, fabric))
    return gather + broadcast_cycles(half, wavelets, fabric)


def all_reduce_2d_cycles(rows: int, columns: int, wavelets: float, fabric: Fabric) -> float:
    """The sum over a rectangle, on every tile of it: along the rows, then along the columns."""
    return all_reduce_cycles(columns, wavelets, fabric) + all_reduce_cycles(rows, wavelets, fabric)
