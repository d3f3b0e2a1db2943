"""From a choice of parallel degrees to a plan: which bytes of which blocks every rank holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ir.device_plan import DevicePlan, Holding, Rank
from ir.profile import BlockProfile, Profile
from ir.target import DeviceCluster
from ir.workload import Workload
from targets.cost.device_memory import block_room
from targets.cost.device_split import copied_bytes, split_units
from targets.parallel import Candidate


def make_device_plan(profile: Profile, cluster: DeviceCluster, workload: Workload, chosen: Candidate) -> DevicePlan:
    """The plan that puts ``profile`` on ``cluster`` as ``chosen``."""
    placement, degrees = chosen.placement, chosen.placement.degrees
    ranks = []
    for stage, members in enumerate(placement.members):
        blocks = [profile.blocks[index] for index in members]
        for place in range(degrees.stage_devices):
            group, shard = divmod(place, degrees.tensor)
            holdings = _holdings(blocks, degrees.tensor, degrees.expert, group, shard, workload, degrees.replicas)
            activations = placement.rooms[stage].activation_bytes(
                group_users(workload, degrees.replicas, degrees.expert)
            )
            number, node = _number(stage, place, degrees.stage_devices, cluster.devices)
            ranks.append(Rank(number, node, stage, group, shard, tuple(holdings), activations))
    return DevicePlan(
        model_name=profile.name,
        target=cluster.name,
        devices_in_node=cluster.devices,
        nodes=placement.nodes,
        device_bytes=cluster.device_bytes,
        workload=workload,
        degrees=degrees,
        stages=placement.members,
        ranks=tuple(ranks),
        step_s=chosen.step.step_s,
    )


def group_users(workload: Workload, replicas: int, expert: int) -> int:
    """Users whose caches one group of ranks holds."""
    return -(-workload.users // (replicas * expert))


def _number(stage: int, place: int, stage_devices: int, devices_in_node: int) -> tuple[int, int]:
    """A rank's number in its replica, and its node; no stage lies on two nodes that could lie on one."""
    if stage_devices >= devices_in_node:
        nodes_of_stage = -(-stage_devices // devices_in_node)
        return stage * stage_devices + place, stage * nodes_of_stage + place // devices_in_node
    return stage * stage_devices + place, stage // (devices_in_node // stage_devices)


def _holdings(
    blocks: Sequence[BlockProfile],
    tensor: int,
    expert: int,
    group: int,
    shard: int,
    workload: Workload,
    replicas: int,
) -> Iterator[Holding]:
    """What one rank holds of a stage; equal blocks of layers that follow each other are told together."""
    users = group_users(workload, replicas, expert)
    open_: dict[object, Holding] = {}
    for block in blocks:
        own = _holding(block, tensor, expert, group, shard, users, workload)
        before = open_.get(block.kind)
        if before and _continues(before, own):
            open_[block.kind] = replace(
                before,
                last=own.last,
                blocks=before.blocks + 1,
                weight_bytes=before.weight_bytes + own.weight_bytes,
                copied_bytes=before.copied_bytes + own.copied_bytes,
                cache_bytes=before.cache_bytes + own.cache_bytes,
            )
            continue
        if before:
            yield before
        open_[block.kind] = own
    yield from open_.values()


def _continues(before: Holding, own: Holding) -> bool:
    """Whether ``own`` is one more of the same, in the next layer."""
    if before.last is None or own.first is None or own.first != before.last + 1:
        return False
    alike = (before.first_expert, before.experts) == (own.first_expert, own.experts)
    sizes = ("weight_bytes", "copied_bytes", "cache_bytes")
    return alike and all(getattr(before, name) == getattr(own, name) * before.blocks for name in sizes)


def _holding(
    block: BlockProfile, tensor: int, expert: int, group: int, shard: int, users: int, workload: Workload
) -> Holding:
    first_expert, after_expert = _cut(block.experts, expert, group)
    share = (first_expert, after_expert, block.experts) if block.experts else (0, 1, 1)
    copied = _part(copied_bytes(block, tensor), *share)
    split = _part(block.weight_bytes, *share) - copied
    units = split_units(block) or tensor
    split = _part(split, *_cut(units, tensor, shard), units)
    cache_bytes = users * block_room(block, tensor, expert, workload.context, workload.chunk).cache_bytes
    experts = after_expert - first_expert
    return Holding(
        block.kind,
        block.layer,
        block.layer,
        1,
        shard,
        tensor,
        first_expert,
        experts,
        copied + split,
        copied,
        cache_bytes,
    )


def _cut(units: int, parts: int, index: int) -> tuple[int, int]:
    """The units of part ``index``: from the first to before the second, as even as they come, the larger ones first."""
    size = math.ceil(units / parts) if units else 0
    larger = units - (size - 1) * parts if units else 0
    first = index * size - max(0, index - larger)
    return first, first + (size if index < larger else max(0, size - 1))


def _part(total: int, first: int, after: int, units: int) -> int:
    """Bytes of the units from ``first`` to before ``after``; those of all parts add up to ``total``."""
    return total * after // units - total * first // units
