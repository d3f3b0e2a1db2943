"""Blocks on regions of wafers: what a pass of tokens costs on each, and how many tiles each should have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ir.profile import BlockProfile, Product
from ir.target import LayerRegions, Wafers, WaferSpeed
from targets.cost.collectives import all_reduce_2d_cycles
from targets.cost.cycles import (
    ACTIVATION_BYTES,
    Cycles,
    Region,
    fabric,
    shifted_cycles,
    stationary_cycles,
    wavelets,
)
from targets.cost.routing import busiest_load

_ROUNDS = 40
"""Of the search for a price of tiles."""
_GROWTH = 1.12
"""Ratio between the sizes of regions that are tried."""
_FILLED = 0.97
"""Share of a wafer's tiles that regions larger than they need may take: rectangles leave gaps."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A block (index into the profile's) on ``rows`` x ``columns`` tiles of wafer ``system``.

    Routed experts lie each on ``expert_rows`` x ``expert_columns`` tiles of the region; 0 where all share it.
    The wafer takes ``slowness_permille`` thousandths of the ordinary time. Where a block has ``copies``, this is one of
    them, which every so-manieth user meets.
    """

    block: int
    system: int
    rows: int
    columns: int
    expert_rows: int = 0
    expert_columns: int = 0
    slowness_permille: int = 1000
    copies: int = 1

    @property
    def tiles(self) -> int:
        """Tiles of the region."""
        return self.rows * self.columns


def block_cycles(
    block: BlockProfile, stage: Stage, tokens: int, context: int, speed: WaferSpeed, *, is_prompt: bool = False
) -> Cycles:
    """Cycles of ``block`` on its region for ``tokens`` tokens of one user, the last with ``context`` before it."""
    if stage.expert_rows:
        return _apart_cycles(block, stage, tokens, speed)
    region = Region(stage.rows, stage.columns)
    # A prompt on the whole mesh moves both operands of its products; a few tokens pass over weights that stay.
    whole_prompt = speed.layers is LayerRegions.WHOLE_MESH and is_prompt and tokens > 1
    total = _elementwise(block, stage.tiles if whole_prompt else stage.columns, tokens, speed)
    for kernel in block.kernels:
        if whole_prompt:
            total += shifted_cycles(kernel, region, tokens, context, speed)
            continue
        total += stationary_cycles(kernel, region, tokens, context, speed)
        if isinstance(kernel, Product):
            region = region.flip()
    return total


def _elementwise(block: BlockProfile, over: int, tokens: int, speed: WaferSpeed) -> Cycles:
    """Operators on single elements, which write each result once."""
    written = block.elementwise * tokens / over * ACTIVATION_BYTES / speed.write_bytes_per_cycle
    return Cycles(arithmetic=written)


def _apart_cycles(block: BlockProfile, stage: Stage, tokens: int, speed: WaferSpeed) -> Cycles:
    """Experts with tiles of their own: vectors go out to the chosen ones and their results are summed on the region."""
    own = Region(stage.expert_rows, stage.expert_columns)
    total = _elementwise(block, stage.expert_columns, 1, speed)
    outputs = 0
    for kernel in block.kernels:
        alone = replace(kernel, experts=0, active=0) if isinstance(kernel, Product) else kernel
        total += stationary_cycles(alone, own, 1, 0, speed)
        if isinstance(kernel, Product):
            own, outputs = own.flip(), kernel.outputs
    total = total.work(busiest_load(block.experts, block.active_experts, tokens))
    sent = wavelets(math.ceil(outputs / stage.columns), speed) * tokens
    across = all_reduce_2d_cycles(stage.rows, stage.columns, sent, fabric(speed))
    return total + Cycles(communication=across, launch=speed.launch_cycles)


# --- how many tiles ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Room:
    """One block's claim on a wafer's tiles: at least ``tiles``; its experts at least ``expert_tiles`` each."""

    block: int
    tiles: int
    expert_tiles: int = 0


def allocate(
    blocks: Sequence[BlockProfile],
    rooms: Sequence[Room],
    wafers: Wafers,
    context: int,
    experts: str = "auto",
) -> tuple[Stage, ...]:
    """Regions on one wafer (number 0) for the blocks that ``rooms`` name, so that one token passes them soonest.

    Tiles have one price for all blocks; each takes as many as save it more time than they cost, and the price is found
    by bisection (Lagrange; Everett 1963). ``experts``: ``apart``, ``sliced``, or ``auto`` for the faster.
    Where layers take turns on the whole mesh, every region is the mesh.
    """
    machine, speed = wafers.machine, wafers.speed
    if speed is None or speed.layers is LayerRegions.WHOLE_MESH:
        return tuple(Stage(room.block, 0, machine.rows, machine.columns) for room in rooms)
    options = [
        region_options(blocks[room.block], room, machine.rows, machine.columns, context, speed, experts)
        for room in rooms
    ]
    most = max(int(machine.tiles * _FILLED), sum(own[0][0] for own in options))
    alike = Counter(map(id, options))  # repeated layers share one list of options
    distinct = {id(own): own for own in options}

    def tiles(chosen: Mapping[int, RegionOption]) -> int:
        return sum(count * chosen[key][0] for key, count in alike.items())

    low, high = 0.0, max(seconds for own in distinct.values() for _, seconds, _ in own)
    chosen = _choose(distinct, low)
    if tiles(chosen) > most:
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            low, high = (middle, high) if tiles(_choose(distinct, middle)) > most else (low, middle)
        chosen = _choose(distinct, high)
    return tuple(replace(chosen[id(own)][2], block=room.block) for room, own in zip(rooms, options, strict=True))


RegionOption = tuple[int, float, Stage]
"""Tiles, cycles of one token, and the region."""


def _choose(options: Mapping[int, tuple[RegionOption, ...]], price: float) -> dict[int, RegionOption]:
    return {
        key: min(own, key=lambda option: (option[1] + price * option[0], option[0])) for key, own in options.items()
    }


def region_options(
    block: BlockProfile, room: Room, rows: int, columns: int, context: int, speed: WaferSpeed, experts: str
) -> tuple[RegionOption, ...]:
    """Regions that a block could have, from the least that it needs to the whole wafer."""
    kernels = replace(block, name="", layer=None)  # layers with the same kernels share their options
    return _sized_options(kernels, replace(room, block=0), rows, columns, context, speed, experts)


@lru_cache(maxsize=4096)
def _sized_options(
    block: BlockProfile, room: Room, rows: int, columns: int, context: int, speed: WaferSpeed, experts: str
) -> tuple[RegionOption, ...]:
    found: list[RegionOption] = []
    tiles = float(room.tiles)
    while tiles <= rows * columns:
        shapes = _shapes(block, room, int(tiles), rows, columns, experts)
        found += [(stage.tiles, block_cycles(block, stage, 1, context, speed).total, stage) for stage in shapes]
        if not block.kernels:
            break
        tiles = max(tiles * _GROWTH, tiles + 1)
    return tuple(sorted(found, key=lambda option: option[0])) or ((room.tiles, 0.0, Stage(0, 0, rows, columns)),)


def _shapes(block: BlockProfile, room: Room, tiles: int, rows: int, columns: int, experts: str) -> list[Stage]:
    shapes = []
    if experts != "apart" or not block.experts:
        shapes.append(Stage(0, 0, *square(tiles, rows, columns)))
    if experts != "sliced" and block.experts:
        each = max(room.expert_tiles, tiles // block.experts)
        own = square(each, rows, columns)
        across = max(1, min(columns // own[1], math.ceil(math.sqrt(block.experts * own[0] * own[1]) / own[1])))
        down = math.ceil(block.experts / across)
        if down * own[0] <= rows:
            shapes.append(Stage(0, 0, down * own[0], across * own[1], *own))
    return shapes


def square(tiles: int, rows: int, columns: int) -> tuple[int, int]:
    """The squarest region (rows, columns) of at least ``tiles`` tiles on a mesh."""
    height = min(rows, max(1, math.isqrt(tiles)))
    width = min(columns, math.ceil(tiles / height))
    return max(height, math.ceil(tiles / width)), width
