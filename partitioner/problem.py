"""From a model to integers: what must be placed, how large it is, and what flows between its parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import pairwise
from math import gcd
from typing import NamedTuple, Protocol

from ir.machine import Machine
from ir.model import Block, Granularity, Model
from ir.profile import BlockProfile
from ir.rules import Rule
from ir.workload import Workload
from partitioner.rules import resolve
from partitioner.solver.problem import Curve, Flow, Item, Problem, Wafer, equal_wafers
from targets.cost.wafer import Room


class Copy(NamedTuple):
    """Copy ``number`` of ``copies`` of a block (index into the model's); most have but one."""

    block: int
    number: int = 0
    copies: int = 1


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
    rules: Sequence[Rule] = (),
) -> Problem:
    """The placement problem of ``model`` on ``machine`` under ``workload``; without ``speeds`` nothing takes time.

    Raises:
        UsageError: W0117 or W0118, ``rules`` name what does not exist, or ask what no placement can change.
    """
    groups = shared_groups(model)
    asked = resolve(rules, model, groups, machine)
    item_of = {block: places for group, places in zip(groups, asked.places, strict=True) for block in group}
    needs = partial(_item, model, machine, workload, experts)
    items: list[Item] = []
    numbers: dict[object, int] = {}
    for group, copies in zip(groups, asked.copies, strict=True):
        times = speeds.times(group) if speeds else Times(Curve(), Curve())
        for copy in range(copies):
            alike = numbers.setdefault(_needs(model, group, workload.share(copy, copies)), len(numbers))
            items.append(replace(needs(group, copy, copies, times), alike=alike))
    can_be_told_apart = any(rule.wafers for rule in rules)
    return Problem(
        items=tuple(items),
        flows=(*_flows(model, item_of, speeds), *_in_order(model, item_of)),
        wafers=wafers_of(machine, machine.systems if can_be_told_apart else len(items)),
        restrictions=asked.on_items(),
        take_turns=speeds is not None and speeds.take_turns,
        hand_over_fs=speeds.hand_over_fs if speeds else 0,
        link_costs=tuple((link.one, link.other, link.cost) for link in machine.odd_links),
        users=workload.users,
    )


def _item(
    model: Model,
    machine: Machine,
    workload: Workload,
    experts: ExpertLayout,
    group: tuple[int, ...],
    copy: int,
    copies: int,
    times: Times,
) -> Item:
    """Copy number ``copy`` of ``copies`` of the blocks ``group``, which share a wafer."""
    blocks, served = [model.blocks[block] for block in group], workload.share(copy, copies)
    return Item(
        blocks=group,
        bytes=sum(footprint(block, served).bytes for block in blocks),
        tiles=sum(least_tiles(block, served, machine, experts) for block in blocks),
        state_bytes=sum(-(-block.cache_bytes(1, workload.context) // copies) for block in blocks),
        weight_bytes=sum(block.weight_bytes for block in blocks),
        latency=times.latency.shared(copies),
        slowest=times.slowest.shared(copies),
        copy=copy,
    )


def wafers_of(machine: Machine, most: int) -> tuple[Wafer, ...]:
    """Where items can lie: all wafers by number, those out of service without a tile; of equal ones the ``most`` that
    can be of use.
    """
    if machine.is_even:
        return equal_wafers(min(machine.systems, most), machine.tiles, machine.wafer_bytes)
    odd = {wafer.wafer: wafer for wafer in machine.odd_wafers}
    usual = Wafer(machine.tiles, machine.wafer_bytes)
    return tuple(
        Wafer(odd[index].tiles, machine.bytes_of(index), odd[index].slowness_permille) if index in odd else usual
        for index in range(machine.systems)
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


def _in_order(model: Model, item_of: Mapping[int, tuple[int, ...]]) -> Iterator[Flow]:
    """Flows of no bytes from each operator of an attention or MLP to its next: they keep the order for which they were
    cut, so that the items of a chain are one too. Else keys and values, side by side, could change places for nothing.
    """
    if model.granularity is Granularity.OPS:
        fed = {(edge.source, edge.target) for edge in model.edges}
        for (here, one), (following, other) in pairwise(enumerate(model.blocks)):
            is_one_half = one.layer is not None and (one.layer, one.kind) == (other.layer, other.kind)
            if is_one_half and item_of[here] < item_of[following] and (here, following) not in fed:
                yield from (Flow(source, item_of[following], 0) for source in item_of[here])


def _flows(model: Model, item_of: Mapping[int, tuple[int, ...]], speeds: Speeds | None) -> tuple[Flow, ...]:
    """Values between items, from each copy to those that serve some of its users (:func:`ir.plan.pairs`)."""
    targets: defaultdict[tuple[int, str], set[int]] = defaultdict(set)
    sizes: dict[str, int] = {}
    for edge in model.edges:
        sources, readers = item_of[edge.source], item_of[edge.target]
        sizes[edge.value] = edge.bytes_per_token
        common = gcd(len(sources), len(readers))
        for copy, source in enumerate(sources if sources != readers else ()):
            targets[source, edge.value].update(readers[copy % common :: common])
    return tuple(
        Flow(source, tuple(sorted(to)), sizes[value], speeds.link_fs(sizes[value]) if speeds else 0)
        for (source, value), to in targets.items()
    )
