"""From a model to integers: what must be placed, how large it is, and what flows between its parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ir.machine import Machine
from ir.model import Block, Model
from ir.profile import BlockProfile
from ir.workload import Workload
from partitioner.solver.problem import Curve, Flow, Item, Problem, equal_wafers
from targets.cost.wafer import Room


class ExpertLayout(StrEnum):
    """How the routed experts of a layer share its tiles.

    ``apart``: each has a rectangle of its own. ``sliced``: each lies on all tiles of the layer's rectangle, so that all
    of them work on every token. ``auto``: whichever serves a token sooner, of those that fit.
    """

    AUTO = "auto"
    APART = "apart"
    SLICED = "sliced"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that one block keeps on its wafer."""

    weight_bytes: int
    cache_bytes: int
    activation_bytes: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class Times:
    """One token of one user on the blocks of an item, by tiles: the sum of their times, and the slowest of them."""

    latency: Curve
    slowest: Curve


class Speeds(Protocol):
    """What is known of a machine's speed, as placement sees it."""

    @property
    def take_turns(self) -> bool:
        """Whether blocks of a wafer work one after the other, each on the whole mesh."""

    @property
    def hand_over_fs(self) -> int:
        """From one wafer to the next, its bytes left out."""

    def link_fs(self, size: int) -> int:
        """How long ``size`` bytes hold a link."""

    def times(self, group: Sequence[int]) -> Times:
        """Times of the blocks ``group`` (indices) on one wafer."""


def footprint(block: Block | BlockProfile, workload: Workload) -> Footprint:
    """What ``block`` keeps in memory under ``workload``."""
    return Footprint(
        weight_bytes=block.weight_bytes,
        cache_bytes=block.cache_bytes(workload.users, workload.context),
        activation_bytes=block.live_bytes(workload.chunk),
    )


def least_tiles(block: Block, workload: Workload, machine: Machine, experts: ExpertLayout = ExpertLayout.AUTO) -> int:
    """Tiles without which the block cannot hold its bytes, however they are spread; experts apart have their own."""
    total = footprint(block, workload).bytes
    if block.experts and experts is ExpertLayout.APART:
        return block.experts * -(-total // (block.experts * machine.tile_bytes))
    return max(1, -(-total // machine.tile_bytes))


def room(block: BlockProfile, index: int, workload: Workload, machine: Machine) -> Room:
    """What block number ``index`` claims of a wafer's tiles at least, and each of its experts if they lie apart."""
    total = footprint(block, workload).bytes
    each = -(-total // (block.experts * machine.tile_bytes)) if block.experts else 0
    return Room(index, max(1, -(-total // machine.tile_bytes)), each)


def measure(
    model: Model,
    machine: Machine,
    workload: Workload,
    experts: ExpertLayout = ExpertLayout.AUTO,
    speeds: Speeds | None = None,
) -> Problem:
    """The placement problem of ``model`` on ``machine`` under ``workload``; without ``speeds`` nothing takes time."""
    groups = shared_groups(model)
    item_of = {block: number for number, group in enumerate(groups) for block in group}
    numbers: dict[object, int] = {}
    items = []
    for group in groups:
        blocks = [model.blocks[block] for block in group]
        times = speeds.times(group) if speeds else Times(Curve(), Curve())
        items.append(
            Item(
                blocks=group,
                bytes=sum(footprint(block, workload).bytes for block in blocks),
                tiles=sum(least_tiles(block, workload, machine, experts) for block in blocks),
                alike=numbers.setdefault(_needs(model, group, workload), len(numbers)),
                state_bytes=sum(block.cache_bytes(1, workload.context) for block in blocks),
                weight_bytes=sum(block.weight_bytes for block in blocks),
                latency=times.latency,
                slowest=times.slowest,
            )
        )
    # More wafers than items cannot help, and would only make the problem larger.
    wafers = equal_wafers(min(machine.systems, len(items)), machine.tiles, machine.wafer_bytes)
    return Problem(
        items=tuple(items),
        flows=_flows(model, item_of, speeds),
        wafers=wafers,
        take_turns=speeds is not None and speeds.take_turns,
        hand_over_fs=speeds.hand_over_fs if speeds else 0,
        users=workload.users,
    )


def _needs(model: Model, group: tuple[int, ...], workload: Workload) -> object:
    """All that decides which shapes of tiles the blocks of ``group`` can take."""
    blocks = [model.blocks[index] for index in group]
    weight = model.graph.parameter
    return tuple(
        (
            block.experts,
            footprint(block, workload),
            tuple((weight[name].type, weight[name].encoding) for name in block.parameters),
        )
        for block in blocks
    )


def shared_groups(model: Model) -> list[tuple[int, ...]]:
    """Blocks that stay together, in an order in which values only flow forward.

    Blocks on a path between two that stay together stay with them: the pipeline never returns to a wafer.
    """
    import networkx as nx  # here, as a forecast of a known model needs none of it

    leader = {block: group[0] for group in model.together for block in group}
    quotient: nx.DiGraph[int] = nx.DiGraph()
    quotient.add_nodes_from(leader.get(block, block) for block in range(len(model.blocks)))
    pairs = ((leader.get(edge.source, edge.source), leader.get(edge.target, edge.target)) for edge in model.edges)
    quotient.add_edges_from((source, target) for source, target in pairs if source != target)
    condensed = nx.condensation(quotient)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for block in range(len(model.blocks)):
        members[condensed.graph["mapping"][leader.get(block, block)]].append(block)
    order = nx.lexicographical_topological_sort(condensed, key=lambda component: members[component][0])
    return [tuple(members[component]) for component in order]


def _flows(model: Model, item_of: dict[int, int], speeds: Speeds | None) -> tuple[Flow, ...]:
    targets: defaultdict[tuple[int, str], set[int]] = defaultdict(set)
    sizes: dict[str, int] = {}
    for edge in model.edges:
        source, target = item_of[edge.source], item_of[edge.target]
        sizes[edge.value] = edge.bytes_per_token
        if source != target:
            targets[source, edge.value].add(target)
    return tuple(
        Flow(source, tuple(sorted(to)), sizes[value], speeds.link_fs(sizes[value]) if speeds else 0)
        for (source, value), to in targets.items()
    )
