"""What each block of a wafer should have for a token to pass soonest: how many tiles, and how its experts lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ir.machine import Machine
from ir.profile import Profile
from ir.target import LayerRegions, Wafers, WaferSpeed
from ir.workload import Workload
from partitioner.problem import Copy, ExpertLayout, room
from targets.cost.wafer import Room, allocate


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
        self._known: dict[object, tuple[Wish, ...]] = {}

    def of(self, blocks: Sequence[Copy], mesh: tuple[int, int]) -> tuple[Wish, ...]:
        """For each of ``blocks`` of one wafer of ``mesh`` (columns, rows); equal wafers with the same layers are worked
        out once. How fast the wafer is does not matter: it slows all its blocks alike.
        """
        if not blocks:
            return ()
        machine = replace(self._wafers.machine, columns=mesh[0], rows=mesh[1])
        rooms = [self._room(copy, machine) for copy in blocks]
        key = tuple((self._profile.alike[room.block], room.tiles, room.expert_tiles) for room in rooms), mesh
        if key not in self._known:
            wafers = replace(self._wafers, machine=machine)
            stages = allocate(self._profile.blocks, rooms, wafers, self._workload.context, self._experts.value)
            self._known[key] = tuple(Wish(stage.tiles, not stage.expert_rows) for stage in stages)
        return self._known[key]

    def _room(self, copy: Copy, machine: Machine) -> Room:
        workload = self._workload.share(copy.number, copy.copies)
        return room(self._profile.blocks[copy.block], copy.block, workload, machine)


def wishes_for(
    profile: Profile, machine: Machine, speed: WaferSpeed | None, workload: Workload, experts: ExpertLayout
) -> Wishes | None:
    """Wishes, where the machine states its speed and blocks do not take turns on the whole mesh."""
    if speed is None or speed.layers is LayerRegions.WHOLE_MESH:
        return None
    return Wishes(profile, machine, speed, workload, experts)
