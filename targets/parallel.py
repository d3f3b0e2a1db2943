"""Choosing how a model is spread over a cluster of devices: every layout that fits, by what it yields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ir.device_plan import Degrees
from ir.diagnostics import Diagnostic, InfeasibleError
from ir.profile import Profile
from ir.target import DeviceCluster
from ir.workload import Workload
from targets.cost.device_memory import Room, balance, fewest_stages, item_rooms, nodes_needed
from targets.cost.devices import Batch, DevicePass, Outline, Stage, device_pass, make_stages, outline


@dataclass(frozen=True, slots=True)
class Placement:
    """A model spread over a cluster.

    Attributes:
        degrees: of parallelism.
        members: blocks (indices) of each pipeline stage; ``stages`` the same as the cost of a pass needs them.
        rooms: bytes of each stage on its fullest rank.
        most_users: that fit at the context asked for; ``None``: any number.
    """

    cluster: DeviceCluster
    degrees: Degrees
    members: tuple[tuple[int, ...], ...]
    stages: tuple[Stage, ...]
    rooms: tuple[Room, ...]
    most_users: int | None

    @property
    def nodes(self) -> int:
        """Nodes in use."""
        return nodes_needed(self.degrees, self.cluster.devices)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of decoding for all users of a replica: microbatches of ``batch`` users follow each other through the
    stages, and the first one waits for its own tokens before it goes in again.
    """

    batch: int
    microbatches: int
    cost: DevicePass
    step_s: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout and what it yields when every user decodes."""

    placement: Placement
    step: Step
    tokens_per_s_per_user: float
    total_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The layout with the fastest token for each user, the one with the most tokens in all, and every one looked at."""

    fastest: Candidate
    most: Candidate
    candidates: tuple[Candidate, ...]


def choose_parallel(profile: Profile, cluster: DeviceCluster, workload: Workload) -> Choice:
    """The best layouts of ``profile`` for ``workload.users`` users who all decode at ``workload.context``.

    Ties go to the layout with fewer devices.

    Raises:
        InfeasibleError: W0701, the model with its users fits in no layout; with the nodes that it would take.
    """
    found = tuple(candidates(profile, cluster, workload))
    if not found:
        raise InfeasibleError(_too_little(profile, cluster, workload))

    def devices(candidate: Candidate) -> int:
        degrees = candidate.placement.degrees
        return degrees.devices * degrees.replicas

    return Choice(
        max(found, key=lambda c: (c.tokens_per_s_per_user, -devices(c))),
        max(found, key=lambda c: (c.total_tokens_per_s, -devices(c))),
        found,
    )


def candidates(profile: Profile, cluster: DeviceCluster, workload: Workload) -> Iterator[Candidate]:
    """Every layout that fits, with what it yields."""
    for placement in placements(profile, cluster, workload):
        users = -(-workload.users // placement.degrees.replicas)
        step = decode_step(placement, users, workload.context)
        yield Candidate(placement, step, 1 / step.step_s, workload.users / step.step_s)


def decode_step(placement: Placement, users: int, context: int, tokens: int = 1) -> Step:
    """One step of ``users`` users of a replica, ``tokens`` tokens of each."""
    cluster, degrees = placement.cluster, placement.degrees
    microbatches = min(len(placement.stages), users)
    batch = -(-users // microbatches)
    cost = device_pass(placement.stages, cluster, degrees, Batch(batch, tokens, context))
    step_s = max(cost.latency_s + cluster.sampling_s, microbatches * max(cost.busy_s))
    return Step(batch, microbatches, cost, step_s)


def placements(profile: Profile, cluster: DeviceCluster, workload: Workload) -> Iterator[Placement]:
    """Every layout of ``profile`` on ``cluster`` that holds the workload's users."""
    plan = outline(profile)
    for tensor, expert in _stage_shapes(profile, cluster):
        rooms = item_rooms(plan, tensor, expert, workload)
        for pipeline in _pipelines(rooms, Degrees(tensor, expert, 1), cluster, workload.users):
            placement = _place(plan, cluster, workload, Degrees(tensor, expert, pipeline), rooms)
            if placement:
                yield placement


def place_with(profile: Profile, cluster: DeviceCluster, workload: Workload, degrees: Degrees) -> Placement | None:
    """``profile`` laid out with the ``degrees`` asked for, in as many replicas as there are devices and users for;
    ``None`` if it does not fit. The number of stages may turn out smaller.
    """
    plan = outline(profile)
    return _place(plan, cluster, workload, degrees, item_rooms(plan, degrees.tensor, degrees.expert, workload))


def _place(
    plan: Outline, cluster: DeviceCluster, workload: Workload, degrees: Degrees, items: Sequence[Room]
) -> Placement | None:
    replicas = max(1, min(_replicas(degrees, cluster), workload.users))
    group_users = -(-workload.users // (replicas * degrees.expert))
    bounds = balance(items, group_users, degrees.pipeline)
    degrees = replace(degrees, pipeline=len(bounds), replicas=replicas)
    stage_rooms = tuple(sum(items[first : last + 1], Room()) for first, last in bounds)
    limits = [room.users(cluster.device_bytes) for room in stage_rooms]
    group_most = min((limit for limit in limits if limit is not None), default=None)
    too_many = group_most is not None and group_users > group_most
    if too_many or nodes_needed(degrees, cluster.devices) > cluster.nodes:
        return None
    members = tuple(
        tuple(block for item in plan.profile.items[first : last + 1] for block in item) for first, last in bounds
    )
    most_users = None if group_most is None else group_most * degrees.expert * replicas
    return Placement(cluster, degrees, members, make_stages(plan, members), stage_rooms, most_users)


def most_users(profile: Profile, cluster: DeviceCluster, workload: Workload) -> int | None:
    """The most users of ``workload.context`` tokens that the cluster holds in any layout (0: not one; ``None``: any
    number).
    """
    most = 0
    plan, one = outline(profile), replace(workload, users=1)
    for tensor, expert in _stage_shapes(profile, cluster):
        rooms = item_rooms(plan, tensor, expert, one)
        for pipeline in _pipelines(rooms, Degrees(tensor, expert, 1), cluster, 1):
            bounds = balance(rooms, 1, pipeline)
            degrees = Degrees(tensor, expert, len(bounds))
            held = [sum(rooms[first : last + 1], Room()).users(cluster.device_bytes) for first, last in bounds]
            if None in held:
                return None
            group = min(users for users in held if users is not None)
            most = max(most, group * expert * max(1, _replicas(degrees, cluster)))
    return most


def fewest_nodes(profile: Profile, cluster: DeviceCluster, workload: Workload) -> int | None:
    """The fewest such nodes that hold the workload's users in one replica; ``None``: no number does."""
    needed, plan = [], outline(profile)
    for tensor, expert in _stage_shapes(profile, replace(cluster, nodes=_MOST_NODES)):
        rooms = item_rooms(plan, tensor, expert, workload)
        stages = fewest_stages(rooms, -(-workload.users // expert), cluster.device_bytes)
        if stages is not None:
            needed.append(Degrees(tensor, expert, stages).nodes(cluster.devices))
    return min(needed, default=None)


_MOST_NODES = 4096
"""Where the search for what would fit ends."""


def _stage_shapes(profile: Profile, cluster: DeviceCluster) -> Iterator[tuple[int, int]]:
    """Degrees (tensor, expert) of a stage: any that a node takes whole, and whole nodes beyond."""
    experts = max((block.experts for block in profile.blocks), default=0)
    sizes = _sizes(cluster)
    for tensor in sizes:
        for expert in sizes if experts else (1,):
            in_stage = tensor * expert
            fits = in_stage <= cluster.devices or in_stage % cluster.devices == 0
            if fits and expert <= max(1, experts) and in_stage <= cluster.all_devices:
                yield tensor, expert


def _sizes(cluster: DeviceCluster) -> list[int]:
    """Powers of two and divisors of a node, and powers of two of nodes."""
    inside = {n for n in range(1, cluster.devices + 1) if cluster.devices % n == 0 or n & (n - 1) == 0}
    across, nodes = set(), 2
    while nodes <= cluster.nodes:
        across.add(nodes * cluster.devices)
        nodes *= 2
    return sorted(inside | across)


def _pipelines(rooms: Sequence[Room], stage: Degrees, cluster: DeviceCluster, users: int) -> list[int]:
    """Numbers of stages: the fewest that fit, in one replica or in as many as there can be, and doublings of these, as
    far as there are devices and items.
    """
    replicas = max(1, min(_replicas(stage, cluster), users))
    found: set[int] = set()
    for sharing in (replicas, 1):
        stages = fewest_stages(rooms, -(-users // (sharing * stage.expert)), cluster.device_bytes)
        while stages is not None and stages <= len(rooms) and stages not in found:
            if nodes_needed(replace(stage, pipeline=stages), cluster.devices) > cluster.nodes:
                break
            found.add(stages)
            stages *= 2
    return sorted(found)


def _replicas(degrees: Degrees, cluster: DeviceCluster) -> int:
    if degrees.devices <= cluster.devices and degrees.nodes(cluster.devices) == 1:
        return cluster.nodes * (cluster.devices // degrees.devices)
    return cluster.nodes // degrees.nodes(cluster.devices)


def _too_little(profile: Profile, cluster: DeviceCluster, workload: Workload) -> Diagnostic:
    needed = profile.weight_bytes + profile.cache_bytes(workload.users, workload.context)
    facts: dict[str, int] = {
        "weight_bytes": profile.weight_bytes,
        "cache_bytes": needed - profile.weight_bytes,
        "bytes_available": cluster.device_bytes * cluster.all_devices,
        "device_bytes": cluster.device_bytes,
        "devices": cluster.all_devices,
        "nodes": cluster.nodes,
    }
    nodes = fewest_nodes(profile, cluster, workload)
    help_: tuple[str, ...]
    if nodes is None:
        help_ = ("no number of nodes holds one block with its users on a stage: fewer users, or less context",)
    else:
        facts["nodes_needed"] = nodes
        help_ = (f"{nodes:,} nodes of {cluster.devices} devices would hold it",)
    users = most_users(profile, cluster, workload)
    if users:
        help_ = (*help_, f"so would these with {users:,} users")
    message = f"{profile.name} does not fit on {cluster.name}"
    return Diagnostic("W0701", message, cluster.name, facts, help_)
