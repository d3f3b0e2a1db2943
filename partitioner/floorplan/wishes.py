"""What each block of a wafer should have for a token to pass soonest: how many tiles, and how its experts lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ir.machine import Machine
from ir.profile import Profile
from ir.target import LayerRegions, Wafers, WaferSpeed
from ir.workload import Workload
from partitioner.problem import ExpertLayout, room
from targets.cost.wafer import allocate


@dataclass(frozen=True, slots=True)
class Wish:
    """Tiles that a block should have, and whether its experts should share them."""

    tiles: int
    sliced: bool


class Wishes:
    """The cost model's wishes for one model on wafers whose blocks have tiles of their own."""

    def __init__(
        self, profile: Profile, machine: Machine, speed: WaferSpeed, workload: Workload, experts: ExpertLayout
    ) -> None:
        self._profile = profile
        self._wafers = Wafers(machine, speed)
        self._workload = workload
        self._experts = experts
        self._known: dict[tuple[int, ...], tuple[Wish, ...]] = {}

    def of(self, blocks: Sequence[int]) -> tuple[Wish, ...]:
        """For each of ``blocks`` (indices) of one wafer; wafers with the same layers are worked out once."""
        if not blocks:
            return ()
        key = tuple(self._profile.alike[block] for block in blocks)
        if key not in self._known:
            rooms = [room(self._profile.blocks[b], b, self._workload, self._wafers.machine) for b in blocks]
            context = self._workload.context
            stages = allocate(self._profile.blocks, rooms, self._wafers, context, self._experts.value)
            self._known[key] = tuple(Wish(stage.tiles, not stage.expert_rows) for stage in stages)
        return self._known[key]


def wishes_for(
    profile: Profile, machine: Machine, speed: WaferSpeed | None, workload: Workload, experts: ExpertLayout
) -> Wishes | None:
    """Wishes, where the machine states its speed and blocks do not take turns on the whole mesh."""
    if speed is None or speed.layers is LayerRegions.WHOLE_MESH:
        return None
    return Wishes(profile, machine, speed, workload, experts)
