"""The plan's files: what each record holds, and the way between them and a :class:`~ir.plan.Plan`.

``manifest.json`` is small and stable under diff: sorted keys, no times. What there is much of, the experts' rectangles,
lies in ``tables.safetensors`` as columns of integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from safetensors.numpy import load, save

from ir.diagnostics import CheckError, Diagnostic
from ir.machine import Machine, absurdities
from ir.model import BlockKind, Granularity, Model
from ir.objective import Objective
from ir.plan import PlacedBlock, PlacedExpert, Plan, Rectangle, Score, SolverRecord, Transfer
from ir.rules import Rule
from ir.workload import Workload
from partitioner.version import VERSION

SCHEMA_VERSION = 2
PRODUCER = f"waferc {VERSION}"
_EXPERT_COLUMNS = ("block", "index", "wafer", "column", "row", "columns", "rows")


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was placed, and in blocks of which granularity. Bytes are as stored; the cache is in bytes for each token of
    each user.
    """

    name: str
    granularity: Granularity
    parameters: int
    weight_bytes: int
    copied_bytes: int
    layers: int
    moe_layers: int
    experts_per_layer: int
    cache_bytes_per_token: int
    left_out_parameters: int
    notes: tuple[str, ...]


class BlockEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One copy of a block: its wafer, its rectangle of tiles, its weights, and the bytes that it keeps."""

    name: str
    kind: BlockKind
    layer: int | None
    wafer: int
    region: Rectangle
    parameters: tuple[str, ...]
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int
    tile_bytes: int
    macs_per_token: int
    experts: int
    active_experts: int
    copy: int


class ScoreEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the placement reaches in one objective, with the gap written out."""

    objective: Objective
    value: int
    bound: int
    gap: float
    proof: str


class SolverEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the solver says; its scores in the order of the objectives."""

    status: str
    scores: tuple[ScoreEntry, ...]
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    deterministic_time_limit: Annotated[float, msgspec.Meta(gt=0)]
    interrupted: bool


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``manifest.json``. ``files`` gives the SHA-256 of every file beside it."""

    schema_version: int
    producer: str
    model: ModelEntry
    machine: Machine
    workload: Workload
    solver: SolverEntry
    blocks: tuple[BlockEntry, ...]
    transfers: tuple[Transfer, ...]
    rules: tuple[Rule, ...]
    files: dict[str, str]


def schema() -> dict[str, Any]:
    """The manifest's JSON Schema."""
    stated = msgspec.json.schema(Manifest)
    for part in stated["$defs"].values():
        if "properties" in part:
            part["additionalProperties"] = False
    return stated


def to_manifest(plan: Plan, model: Model, notes: tuple[str, ...], files: Mapping[str, str]) -> Manifest:
    """The manifest of ``plan``."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        producer=PRODUCER,
        model=model_entry(plan.model_name, model, notes),
        machine=plan.machine,
        workload=plan.workload,
        solver=_solver_entry(plan.solver),
        blocks=tuple(_block_entry(block) for block in plan.blocks),
        transfers=plan.transfers,
        rules=plan.rules,
        files=dict(files),
    )


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes: sorted keys, two spaces, a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """The inverse of :func:`encode`.

    Raises:
        CheckError: W0512, not a manifest of this version.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
        if msgspec.json.decode(data) != msgspec.json.decode(msgspec.json.encode(manifest)):
            raise msgspec.ValidationError("it has entries that manifests do not have")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckError(Diagnostic("W0512", f"the manifest cannot be read: {error}", where)) from None
    if manifest.schema_version != SCHEMA_VERSION:
        facts = {"schema_version": manifest.schema_version, "supported": SCHEMA_VERSION}
        raise CheckError(Diagnostic("W0512", "the manifest is of another version", where, facts))
    return manifest


def encode_tables(plan: Plan) -> bytes:
    """``tables.safetensors``: a row for each expert, in columns of 32-bit integers; ``block`` is an index."""
    rows = [
        (number, e.index, e.wafer, e.region.column, e.region.row, e.region.columns, e.region.rows)
        for number, block in enumerate(plan.blocks)
        for e in block.experts
    ]
    table = np.array(rows, dtype=np.int32).reshape(-1, len(_EXPERT_COLUMNS))
    columns = {f"experts.{name}": np.ascontiguousarray(table[:, i]) for i, name in enumerate(_EXPERT_COLUMNS)}
    return bytes(save(columns))


def to_plan(manifest: Manifest, tables: bytes, where: str) -> Plan:
    """The plan that a manifest and its tables describe.

    Raises:
        CheckError: W0513, the tables are damaged or speak of blocks that do not exist; W0514, the machine is absurd.
    """
    absurd = absurdities(manifest.machine)
    if absurd:
        raise CheckError(*(Diagnostic("W0514", text, manifest.machine.name) for text in absurd))
    experts: list[list[PlacedExpert]] = [[] for _ in manifest.blocks]
    for number, index, wafer, *region in _expert_rows(tables, where):
        if not 0 <= number < len(experts):
            raise CheckError(Diagnostic("W0513", f"an expert belongs to block {number}, which does not exist", where))
        experts[number].append(PlacedExpert(index, wafer, Rectangle(*region)))
    blocks = tuple(_placed(entry, tuple(own)) for entry, own in zip(manifest.blocks, experts, strict=True))
    solver = _solver(manifest.solver)
    return Plan(
        manifest.model.name, manifest.machine, manifest.workload, blocks, manifest.transfers, solver, manifest.rules
    )


def _expert_rows(tables: bytes, where: str) -> list[list[int]]:
    try:
        columns = load(tables)
        stacked = np.stack([columns[f"experts.{name}"] for name in _EXPERT_COLUMNS], axis=1)
        if stacked.dtype != np.int32 or stacked.ndim != 2:
            raise ValueError("columns must hold 32-bit integers")
    except Exception as error:
        # safetensors raises an error type of its own, and numpy several.
        raise CheckError(Diagnostic("W0513", f"the tables cannot be read: {error}", where)) from None
    return [[int(figure) for figure in row] for row in stacked]


def model_entry(name: str, model: Model, notes: tuple[str, ...]) -> ModelEntry:
    """What the manifest says of ``model``."""
    groups = model.of_kind(BlockKind.EXPERTS)
    return ModelEntry(
        name=name,
        granularity=model.granularity,
        parameters=model.parameters,
        weight_bytes=model.weight_bytes,
        copied_bytes=model.copied_bytes,
        layers=model.layers,
        moe_layers=len(groups),
        experts_per_layer=max((block.experts for block in groups), default=0),
        cache_bytes_per_token=sum(block.cache_bytes_per_token for block in model.blocks),
        left_out_parameters=sum(parameter.elements for parameter in model.unplaced),
        notes=notes,
    )


def _solver_entry(solver: SolverRecord) -> SolverEntry:
    scores = tuple(ScoreEntry(**_fields(score), gap=score.gap) for score in solver.scores)
    return SolverEntry(**{**_fields(solver), "scores": scores})


def _solver(entry: SolverEntry) -> SolverRecord:
    scores = tuple(Score(score.objective, score.value, score.bound, score.proof) for score in entry.scores)
    return SolverRecord(**{**_fields(entry), "scores": scores})


def _block_entry(block: PlacedBlock) -> BlockEntry:
    return BlockEntry(**{**_fields(block), "experts": len(block.experts)})


def _placed(entry: BlockEntry, experts: tuple[PlacedExpert, ...]) -> PlacedBlock:
    return PlacedBlock(**{**_fields(entry), "experts": experts})


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a struct or dataclass, one level deep."""
    names = getattr(record, "__struct_fields__", None) or record.__dataclass_fields__
    return {name: getattr(record, name) for name in names}
