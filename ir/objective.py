"""What a placement can be made best for."""

from __future__ import annotations

from enum import StrEnum


class Objective(StrEnum):
    """One of them, or several in order: the next decides among placements that are equally good by those before it.

    All are as small as can be, but ``room``, which is as large. Times are modelled.

    ``machines``: wafers in use. ``latency``: one token of one user through all blocks, in femtoseconds.
    ``bottleneck``: what is held longest for each token, a block's tiles, a wafer whose blocks take turns, or a link, in
    femtoseconds; its inverse is the throughput. ``traffic``: bytes between wafers for each token, times the links'
    cost. ``balance``: bytes on the fullest wafer. ``room``: users whose caches fit beside the weights.
    ``moves``: bytes of weights that lie on another wafer than before.
    """

    MACHINES = "machines"
    LATENCY = "latency"
    BOTTLENECK = "bottleneck"
    TRAFFIC = "traffic"
    BALANCE = "balance"
    ROOM = "room"
    MOVES = "moves"

    @property
    def unit(self) -> str:
        """Unit of its values."""
        return {"machines": "wafers", "latency": "fs", "bottleneck": "fs", "room": "users"}.get(self.value, "bytes")

    @property
    def is_maximum(self) -> bool:
        """Whether more is better."""
        return self is Objective.ROOM


DEFAULT_OBJECTIVES = (Objective.BALANCE, Objective.TRAFFIC)
"""Where the user names none."""
