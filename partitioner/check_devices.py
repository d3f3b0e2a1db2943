"""The checker of plans for devices: every claim is derived again from the model, by counting bytes alone.

It knows nothing of why a layout was chosen: every weight must be somewhere, once in each group of ranks that needs it,
and nothing may be fuller than it can be.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from ir.device_plan import DevicePlan, Holding, Rank
from ir.diagnostics import Diagnostic
from ir.model import Block, BlockKind, Model

_MOST = 1 << 40
_MOST_RANKS = 1 << 20


def check_devices(plan: DevicePlan, model: Model) -> tuple[Diagnostic, ...]:
    """Everything that is wrong with ``plan`` as a placement of ``model``; nothing if it is sound."""
    absurd = [*_absurd(plan)]
    if absurd:
        return tuple(Diagnostic("W0514", text, plan.target) for text in absurd)
    faults = [*_wrong_stages(plan, model)]
    if faults:
        return tuple(faults)
    faults += _wrong_ranks(plan)
    if faults:
        return tuple(faults)
    for stage, members in enumerate(plan.stages):
        ranks = [rank for rank in plan.ranks if rank.stage == stage]
        faults += _wrong_contents(plan, stage, [model.blocks[index] for index in members], ranks)
    faults += _overfull(plan, model)
    return tuple(faults)


def _absurd(plan: DevicePlan) -> Iterator[str]:
    sizes = {
        "users": plan.workload.users,
        "context": plan.workload.context,
        "chunk": plan.workload.chunk,
        "devices_in_node": plan.devices_in_node,
        "nodes": plan.nodes,
        "device_bytes": plan.device_bytes,
        "tensor": plan.degrees.tensor,
        "expert": plan.degrees.expert,
        "pipeline": plan.degrees.pipeline,
        "replicas": plan.degrees.replicas,
    }
    for name, value in sizes.items():
        if not 1 <= value <= _MOST:
            yield f"{name} must be from 1 to {_MOST:,}, not {value:,}"
    if plan.degrees.devices > _MOST_RANKS:
        yield f"a replica of {plan.degrees.devices:,} devices"
    if not 0 < plan.step_s < float("inf"):
        yield f"a step of {plan.step_s:g} s"


# --- blocks and stages ----------------------------------------------------------------------------------------------


def _wrong_stages(plan: DevicePlan, model: Model) -> Iterator[Diagnostic]:
    if len(plan.stages) != plan.degrees.pipeline:
        facts = {"stages": len(plan.stages), "pipeline": plan.degrees.pipeline}
        yield Diagnostic("W0510", "the number of stages is not the pipeline degree", "manifest.json", facts)
    count = Counter(index for members in plan.stages for index in members)
    for index, block in enumerate(model.blocks):
        if count[index] != 1:
            word = "not placed" if not count[index] else "placed more than once"
            yield Diagnostic("W0501", f"a block of the model is {word}", block.name)
    for index in count:
        if not 0 <= index < len(model.blocks):
            yield Diagnostic("W0501", f"block {index} is not in the model", "manifest.json")
            return
    stage_of = {index: stage for stage, members in enumerate(plan.stages) for index in members}
    for group in model.together:
        if len({stage_of.get(index) for index in group}) > 1:
            yield Diagnostic("W0507", "experts and their router are on different stages", model.blocks[group[0]].name)
    for edge in model.edges:
        if stage_of.get(edge.source, 0) > stage_of.get(edge.target, len(plan.stages)):
            yield Diagnostic("W0508", f"the value {edge.value} flows back", model.blocks[edge.target].name)


def _wrong_ranks(plan: DevicePlan) -> Iterator[Diagnostic]:
    degrees = plan.degrees
    if [rank.rank for rank in plan.ranks] != [*range(degrees.devices)]:
        facts = {"ranks": len(plan.ranks), "devices": degrees.devices}
        yield Diagnostic("W0503", "the ranks are not those of the degrees", "manifest.json", facts)
        return
    for rank in plan.ranks:
        stage, place = divmod(rank.rank, degrees.stage_devices)
        if (rank.stage, rank.expert_group, rank.tensor_rank) != (stage, *divmod(place, degrees.tensor)):
            yield Diagnostic("W0503", "a rank has another place than its number says", f"rank {rank.rank}")
        if not 0 <= rank.node < plan.nodes:
            yield Diagnostic("W0503", f"node {rank.node} does not exist", f"rank {rank.rank}", {"nodes": plan.nodes})
    for node, devices in Counter(rank.node for rank in plan.ranks).items():
        if devices > plan.devices_in_node:
            facts = {"ranks": devices, "devices": plan.devices_in_node}
            yield Diagnostic("W0503", "a node has more ranks than devices", f"node {node}", facts)
    if len(plan.ranks) * degrees.replicas > plan.nodes * plan.devices_in_node:
        facts = {"devices": len(plan.ranks) * degrees.replicas, "available": plan.nodes * plan.devices_in_node}
        yield Diagnostic("W0503", "the replicas take more devices than there are", "manifest.json", facts)


# --- every byte, once in each group ---------------------------------------------------------------------------------


def _wrong_contents(
    plan: DevicePlan, stage: int, blocks: Sequence[Block], ranks: Sequence[Rank]
) -> Iterator[Diagnostic]:
    by_kind: defaultdict[BlockKind, list[Block]] = defaultdict(list)
    for block in blocks:
        by_kind[block.kind].append(block)
    for rank in ranks:
        for holding in rank.holdings:
            if holding.kind not in by_kind:
                yield Diagnostic("W0502", f"stage {stage} has no blocks of kind {holding.kind}", f"rank {rank.rank}")
            if (holding.shard, holding.shards) != (rank.tensor_rank, plan.degrees.tensor):
                yield Diagnostic("W0502", "a rank holds another shard than its own", f"rank {rank.rank}")
    for kind, wanted in by_kind.items():
        held = [_pieces(rank, kind) for rank in ranks]
        if any([piece.first for piece in own] != [block.layer for block in wanted] for own in held):
            yield Diagnostic("W0501", "a rank holds other layers than its stage", f"stage {stage}, {kind}")
            continue
        for number, block in enumerate(wanted):
            groups: list[list[Holding]] = [[] for _ in range(plan.degrees.expert)]
            for rank, own in zip(ranks, held, strict=True):
                groups[rank.expert_group].append(own[number])
            yield from _wrong_block(plan, block, groups)


def _pieces(rank: Rank, kind: BlockKind) -> list[Holding]:
    """What a rank holds of each block of one kind, in order; nothing where it does not say so of every block."""
    pieces: list[Holding] = []
    for holding in rank.holdings:
        if holding.kind is not kind:
            continue
        first, last, blocks = holding.first, holding.last, holding.blocks
        sizes = [getattr(holding, name) for name in _SIZES]
        layers = [first] if first is None or last is None else [*range(first, min(last, first + _MOST_RANKS) + 1)]
        if len(layers) != blocks or any(size % blocks or size < 0 for size in sizes):
            return []
        each = dict(zip(_SIZES, (size // blocks for size in sizes), strict=True))
        pieces += [replace(holding, first=layer, last=layer, blocks=1, **each) for layer in layers]
    return pieces


_SIZES = ("weight_bytes", "copied_bytes", "cache_bytes")


def _wrong_block(plan: DevicePlan, block: Block, groups: Sequence[Sequence[Holding]]) -> Iterator[Diagnostic]:
    """One block on its stage: every group has all of it, or of experts all groups together."""
    users = -(-plan.workload.users // (plan.degrees.replicas * plan.degrees.expert))
    needed = users * block.cache_bytes(1, plan.workload.context)
    sizes = [_group_bytes(shards) for shards in groups]
    for group, shards in enumerate(groups):
        kept = min(piece.cache_bytes for piece in shards) * len(shards)
        if kept < needed:
            facts: dict[str, int] = {"bytes": kept, "needed": needed, "group": group}
            yield Diagnostic("W0510", "there is too little room for caches", block.name, facts)
        if not block.experts and sizes[group] != block.weight_bytes:
            facts = {"bytes": sizes[group], "needed": block.weight_bytes, "group": group}
            yield Diagnostic("W0502", "weights are missing, or too many", block.name, facts)
    if block.experts:
        yield from _wrong_experts(block, groups)
        if sum(sizes) != block.weight_bytes:
            facts = {"bytes": sum(sizes), "needed": block.weight_bytes}
            yield Diagnostic("W0502", "weights of experts are missing, or too many", block.name, facts)


def _group_bytes(shards: Sequence[Holding]) -> int:
    """Bytes of weights in a group, those that all its ranks hold counted once; -1 where ranks disagree on these."""
    copied = {piece.copied_bytes for piece in shards}
    if len(copied) != 1 or any(piece.copied_bytes > piece.weight_bytes for piece in shards):
        return -1
    return sum(piece.weight_bytes - piece.copied_bytes for piece in shards) + copied.pop()


def _wrong_experts(block: Block, groups: Sequence[Sequence[Holding]]) -> Iterator[Diagnostic]:
    """Every expert belongs to one group, and to all ranks of it."""
    found = [{(piece.first_expert, piece.experts) for piece in shards} for shards in groups]
    ranges = sorted(next(iter(each)) for each in found)
    ends = [(0, 0), *ranges, (block.experts, 0)]
    if any(len(each) != 1 for each in found):
        yield Diagnostic("W0506", "ranks of a group hold different experts", block.name)
    elif any(first + count != after for (first, count), (after, _) in pairwise(ends)):
        yield Diagnostic("W0506", "experts are missing, or held by two groups", block.name, {"experts": block.experts})


def _overfull(plan: DevicePlan, model: Model) -> Iterator[Diagnostic]:
    for rank in plan.ranks:
        live = max(model.blocks[index].live_bytes(plan.workload.chunk) for index in plan.stages[rank.stage])
        if rank.activation_bytes < live:
            facts = {"bytes": rank.activation_bytes, "needed": live}
            yield Diagnostic("W0510", "there is too little room for activations", f"rank {rank.rank}", facts)
        if rank.bytes > plan.device_bytes:
            facts = {"bytes": rank.bytes, "device_bytes": plan.device_bytes}
            yield Diagnostic("W0505", "a device holds more than its memory", f"rank {rank.rank}", facts)
