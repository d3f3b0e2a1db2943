"""Plans for clusters of devices: parallel degrees, and what every rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from ir.model import BlockKind
from ir.workload import Workload


@dataclass(frozen=True, slots=True)
class Degrees:
    """How a model is spread.

    Attributes:
        tensor: ranks that share every matrix of a block.
        expert: groups of ``tensor`` ranks among which a layer's experts are dealt; each group has attention, dense and
            shared blocks of its own, for its part of the users (data-parallel attention).
        pipeline: stages of consecutive blocks.
        replicas: copies of all that, each for its part of the users.
    """

    tensor: int
    expert: int
    pipeline: int
    replicas: int = 1

    @property
    def stage_devices(self) -> int:
        """Devices of one pipeline stage."""
        return self.tensor * self.expert

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.stage_devices * self.pipeline

    def nodes(self, devices_in_node: int) -> int:
        """Nodes of one replica: a stage never lies across nodes that it could share with another."""
        if self.stage_devices >= devices_in_node:
            return self.pipeline * -(-self.stage_devices // devices_in_node)
        return -(-self.pipeline // (devices_in_node // self.stage_devices))


@dataclass(frozen=True, slots=True)
class Holding:
    """What a rank holds of equal blocks, in layers ``first`` to ``last`` (``None``: outside of layers).

    ``blocks`` is their number; bytes are of all of them together. ``copied_bytes`` of ``weight_bytes`` are held whole
    by every rank of the group, and of the rest this is shard ``shard`` of ``shards``. Of routed experts it holds
    ``experts`` from ``first_expert`` on.
    """

    kind: BlockKind
    first: int | None
    last: int | None
    blocks: int
    shard: int
    shards: int
    first_expert: int
    experts: int
    weight_bytes: int
    copied_bytes: int
    cache_bytes: int

    @property
    def rule(self) -> str:
        """It in words: ``experts 0-47 of layers 3-20, shard 0 of 8``."""
        what = str(self.kind).replace("_", " ")
        if self.experts:
            what = f"experts {self.first_expert}-{self.first_expert + self.experts - 1}"
        if self.first is not None:
            layers = f"layer {self.first}" if self.first == self.last else f"layers {self.first}-{self.last}"
            what += f" of {layers}"
        if self.shards > 1 and self.copied_bytes < self.weight_bytes:
            what += f", shard {self.shard} of {self.shards}"
        return what


@dataclass(frozen=True, slots=True)
class Rank:
    """One device of a replica: its node, its place in the pipeline, and what it holds."""

    rank: int
    node: int
    stage: int
    expert_group: int
    tensor_rank: int
    holdings: tuple[Holding, ...]
    activation_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights."""
        return sum(holding.weight_bytes for holding in self.holdings)

    @property
    def cache_bytes(self) -> int:
        """Bytes of caches, of the users that this rank serves."""
        return sum(holding.cache_bytes for holding in self.holdings)

    @property
    def bytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Where the weights of a model lie on a cluster of devices; every replica holds the same.

    ``stages`` gives the blocks (indices) of each pipeline stage. ``step_s`` is the forecast of one decode step of all
    users at ``workload.context``.
    """

    model_name: str
    target: str
    devices_in_node: int
    nodes: int
    device_bytes: int
    workload: Workload
    degrees: Degrees
    stages: tuple[tuple[int, ...], ...]
    ranks: tuple[Rank, ...]
    step_s: float
