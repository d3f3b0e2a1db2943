"""The forecast of a model on devices: parallel degrees are chosen, all users of a replica decode in one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ir.diagnostics import Diagnostic, InfeasibleError
from ir.forecast import AtUsers, Forecast, Limit, numbers_of_users
from ir.profile import Profile
from ir.target import DeviceCluster, Target
from ir.workload import Workload
from partitioner.estimate import Question, price, ranged, require_context
from partitioner.validated import outside
from targets.batched import DEFAULT_CHUNK, BatchedService, serve_batched
from targets.cost.device_memory import Room, item_rooms
from targets.cost.devices import Seconds, outline
from targets.parallel import Placement, choose_parallel, fewest_nodes
from targets.speculation import draft_profile

_ANY_USERS = 1 << 40
_ACTIVATION_SHARE = 0.1
"""Of a device's memory, that the activations of a prompt's chunk may take."""
_ROOM_FOR_DRAFT = (1, 1.05, 1.25, 1.5, 2, 4)
"""Multiples of the fewest nodes for the model that are tried to find room for a draft beside it."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A model spread over devices; ``max_users`` have room for their caches."""

    placement: Placement
    max_users: int


def spread(profile: Profile, cluster: DeviceCluster, question: Question) -> Spread:
    """The layout with the fastest token for each user, on ``question.systems`` nodes or the fewest that hold it, its
    draft on the ranks of the last stage.

    Raises:
        InfeasibleError: W0701, it does not fit.
    """
    workload = _workload(profile, cluster, question)
    if question.systems is not None:
        return _spread_on(profile, replace(cluster, nodes=question.systems), question)
    fewest = fewest_nodes(profile, cluster, workload)
    if fewest is None:
        return _spread_on(profile, cluster, question)  # which says why
    for nodes in sorted({math.ceil(fewest * ratio) for ratio in (_ROOM_FOR_DRAFT if question.speculation else (1,))}):
        try:
            return _spread_on(profile, replace(cluster, nodes=nodes), question)
        except InfeasibleError as error:
            found = error
    raise found


def _spread_on(profile: Profile, cluster: DeviceCluster, question: Question) -> Spread:
    workload = _workload(profile, cluster, question)
    choice = choose_parallel(profile, cluster, workload)
    if question.speculation is None:
        placement = choice.fastest.placement
        return Spread(placement, _ANY_USERS if placement.most_users is None else placement.most_users)
    draft = draft_profile(profile, question.speculation)
    fitting = [
        (candidate.tokens_per_s_per_user, users, candidate.placement)
        for candidate in choice.candidates
        if (users := _users_beside(draft, candidate.placement, workload)) >= question.users
    ]
    if not fitting:
        facts = {"draft_bytes": draft.weight_bytes, "nodes": cluster.nodes}
        message = f"{profile.name} fits on {cluster.name}, but not with its draft"
        raise InfeasibleError(Diagnostic("W0701", message, cluster.name, facts, ("without a draft it fits",)))
    _, users, placement = max(fitting, key=lambda each: each[0])
    return Spread(placement, users)


def _users_beside(draft: Profile, placement: Placement, workload: Workload) -> int:
    """Users that fit when the last stage holds the draft too."""
    degrees = placement.degrees
    more = sum(item_rooms(outline(draft), degrees.tensor, degrees.expert, workload), Room())
    rooms = (*placement.rooms[:-1], placement.rooms[-1] + more)
    held = [users for room in rooms if (users := room.users(placement.cluster.device_bytes)) is not None]
    return min(held) * degrees.expert * degrees.replicas if held else _ANY_USERS


def _workload(profile: Profile, cluster: DeviceCluster, question: Question) -> Workload:
    return Workload(question.users, question.tokens, chunk_of(profile, cluster, question))


def chunk_of(profile: Profile, cluster: DeviceCluster, question: Question) -> int:
    """Tokens of a prompt in one pass: as asked for, or as engines do it; less where they would fill small memories."""
    if question.prefill_chunk is not None:
        return question.prefill_chunk
    chunk, room = DEFAULT_CHUNK, cluster.device_bytes * _ACTIVATION_SHARE
    while chunk > 1 and max(block.live_bytes(chunk) for block in profile.blocks) > room:
        chunk //= 2
    return chunk


def estimate_devices(profile: Profile, target: Target, question: Question) -> Forecast:
    """The forecast for ``profile`` on the devices of ``target``. ``question.experts`` is for wafers alone.

    Raises:
        UsageError: W0107, the context is longer than the model's.
        InfeasibleError: W0701, the model does not fit.
        UnsupportedModelError: W0702, the model takes no tokens.
    """
    cluster = devices(target)
    require_context(profile, question)
    found = spread(profile, cluster, question)
    service = serve_devices(profile, found, question)

    def answers(other: Target) -> Mapping[str, float]:
        changed = devices(other)
        if changed.device_bytes < cluster.device_bytes:  # which may take more nodes
            moved = spread(profile, changed, replace(question, systems=None))
        else:
            nodes = found.placement.cluster.nodes
            placement = replace(found.placement, cluster=replace(changed, nodes=nodes))
            moved = replace(found, placement=placement)
        return device_answers(serve_devices(profile, moved, question))

    ranges, sensitivities = ranged(target, answers)
    nodes = found.placement.nodes
    power_w = cluster.power_w * nodes
    return Forecast(
        model=profile.name,
        target=target.name,
        layout=_layout(found.placement),
        systems=nodes,
        users=question.users,
        context=question.tokens,
        input_tokens=question.input_tokens,
        output_tokens=question.output_tokens,
        prefill_chunk=chunk_of(profile, cluster, question),
        tokens_per_step=question.speculation.tokens_per_step if question.speculation else 1.0,
        max_users=found.max_users,
        users_at_full_speed=service.users_at_full_speed,
        by_users=tuple(_at_users(profile, found, question, users) for users in numbers_of_users(found.max_users)),
        step_s=_step_s(service, cluster),
        limits=_limits(profile, found.placement, service),
        sensitivities=sensitivities,
        power_w=power_w,
        joules_per_token=power_w / service.total_tokens_per_s,
        usd_per_million_tokens=price(target, nodes, service.total_tokens_per_s),
        notes=tuple(_notes(profile, target, question, found.placement)),
        **ranges,
    )


def devices(target: Target) -> DeviceCluster:
    """The cluster of a target that is known to be one of devices."""
    if not isinstance(target.cluster, DeviceCluster):
        raise TypeError("not a cluster of devices")
    return target.cluster


def serve_devices(profile: Profile, found: Spread, question: Question) -> BatchedService:
    """What users get."""
    return serve_batched(
        profile,
        found.placement,
        question.users,
        question.input_tokens,
        question.output_tokens,
        history=question.history,
        chunk=chunk_of(profile, found.placement.cluster, question),
        speculation=question.speculation,
    )


def _at_users(profile: Profile, found: Spread, question: Question, users: int) -> AtUsers:
    service = serve_devices(profile, found, replace(question, users=users))
    return AtUsers(users, service.tokens_per_s_per_user, service.total_tokens_per_s, service.request_s)


def device_answers(service: BatchedService) -> dict[str, float]:
    """The figures that have ranges."""
    return {
        "tokens_per_s_per_user": service.tokens_per_s_per_user,
        "total_tokens_per_s": service.total_tokens_per_s,
        "time_to_first_token_s": service.time_to_first_token_s,
        "request_s": service.request_s,
        "prefill_tokens_per_s": service.prefill_tokens_per_s,
    }


def _layout(placement: Placement) -> str:
    degrees, cluster = placement.degrees, placement.cluster
    parts = f"tensor parallel {degrees.tensor}, expert parallel {degrees.expert}, pipeline {degrees.pipeline}"
    copies = f", {degrees.replicas} replicas" if degrees.replicas > 1 else ""
    nodes = "1 node" if placement.nodes == 1 else f"{placement.nodes:,} nodes"
    used = degrees.devices * degrees.replicas
    return f"{parts}{copies} on {nodes} of {cluster.devices} ({used:,} devices in use)"


def _causes(seconds: Seconds) -> dict[str, float]:
    return {
        "arithmetic": seconds.compute,
        "memory": seconds.memory,
        "communication": seconds.communication,
        "launch": seconds.launch,
    }


def _step_s(service: BatchedService, cluster: DeviceCluster) -> dict[str, float]:
    """Seconds of a step by cause; ``waiting`` is for the microbatches of other users."""
    step = service.step
    causes = {**_causes(step.cost.seconds), "host": cluster.sampling_s}
    waiting = step.step_s - step.cost.latency_s - cluster.sampling_s
    causes |= {"waiting": waiting} if waiting > 1e-12 else {}
    return causes | ({"draft": service.draft_s} if service.draft_s else {})


def _limits(profile: Profile, placement: Placement, service: BatchedService) -> tuple[Limit, ...]:
    per_node = placement.cluster.devices
    found = []
    for number, (members, seconds) in enumerate(zip(placement.members, service.step.cost.stages, strict=True)):
        first, last = (profile.blocks[block].name for block in (members[0], members[-1]))
        causes = _causes(seconds)
        most = max(causes, key=lambda cause: causes[cause])
        node = number * placement.degrees.stage_devices // per_node
        found.append(
            Limit(
                stage=f"{first} to {last}",
                system=node,
                tiles=placement.degrees.stage_devices,
                seconds=seconds.total,
                limited_by=most,
                critical=True,
                causes_s=causes,
            )
        )
    return tuple(found)


def _notes(profile: Profile, target: Target, question: Question, placement: Placement) -> list[str]:
    asked = question.systems
    speculative = question.speculation is not None
    notes = [*outside(profile, target, question.tokens, question.users, is_speculative=speculative)]
    if asked is not None and placement.nodes < asked:
        notes.append(f"{placement.nodes:,} of {asked:,} systems are used: more would not make a token faster")
    return notes
