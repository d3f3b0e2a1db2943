"""The folder of a plan for devices: written whole or not at all, and read back with distrust.

manifest.json       degrees, what every rank holds, and the flags of serving engines; SHA-256 of the files beside it
model.ir            the graph, as text; the checker derives everything from it again
model.json          where the model came from
diagnostics.jsonl   notes on what was left out or assumed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from ir.device_plan import Degrees, DevicePlan
from ir.diagnostics import CheckError, Diagnostic, UsageError
from ir.graph import Graph
from ir.model import Model
from ir.text import parse_graph
from partitioner.folder import (
    GRAPH,
    MANIFEST,
    NOTES,
    ORIGIN,
    changed_files,
    model_files,
    read_file,
    require_manifest,
    sha256_of,
    unreadable,
    write_whole,
)
from partitioner.frontends.lowered import Lowered
from partitioner.manifest import PRODUCER, ModelEntry, model_entry

SCHEMA_VERSION = 1
_FILES = (GRAPH, ORIGIN, NOTES)


class DeviceManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``manifest.json`` of a plan for devices. ``engines`` has the degrees in the words of serving engines."""

    kind: Literal["devices"]
    schema_version: int
    producer: str
    model: ModelEntry
    plan: DevicePlan
    engines: dict[str, dict[str, int]]
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class DeviceFolder:
    """A plan read back. ``faults`` are damaged files."""

    manifest: DeviceManifest
    graph: Graph
    faults: tuple[Diagnostic, ...]

    @property
    def plan(self) -> DevicePlan:
        """The plan."""
        return self.manifest.plan


def engine_flags(degrees: Degrees) -> dict[str, dict[str, int]]:
    """The degrees as flags of vLLM (https://docs.vllm.ai, "Expert Parallel Deployment") and Megatron-Core.

    vLLM deals experts to all ranks of a stage whole, where a plan may slice them over the tensor ranks: its ranks hold
    as many bytes, but other ones.
    """
    vllm = {"--tensor-parallel-size": degrees.tensor, "--pipeline-parallel-size": degrees.pipeline}
    if degrees.expert > 1:
        vllm |= {"--data-parallel-size": degrees.expert, "--enable-expert-parallel": 1}
    megatron = {
        "--tensor-model-parallel-size": degrees.tensor,
        "--expert-model-parallel-size": degrees.expert,
        "--expert-tensor-parallel-size": degrees.tensor,
        "--pipeline-model-parallel-size": degrees.pipeline,
    }
    return {"vllm": vllm, "megatron": megatron}


def write_device_plan(output: Path, plan: DevicePlan, model: Model, lowered: Lowered) -> DeviceManifest:
    """Write the folder ``output``; an older plan there is replaced, anything else is left alone.

    Raises:
        UsageError: W0105, the folder cannot be written or holds something else.
    """
    contents = model_files(model, lowered)
    entry = model_entry(plan.model_name, model, lowered.notes)
    digests = {name: sha256_of(data) for name, data in contents.items()}
    flags = engine_flags(plan.degrees)
    manifest = DeviceManifest("devices", SCHEMA_VERSION, PRODUCER, entry, plan, flags, digests)
    encoded = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"
    write_whole(output, {**contents, MANIFEST: encoded})
    return manifest


def is_device_plan(folder: Path) -> bool:
    """Whether ``folder`` holds a plan for devices.

    Raises:
        UsageError: W0106, there is no plan.
        CheckError: W0512, its manifest is no JSON.
    """
    require_manifest(folder)
    try:
        head = msgspec.json.decode(read_file(folder / MANIFEST))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckError(unreadable(MANIFEST, str(error))) from None
    return isinstance(head, Mapping) and head.get("kind") == "devices"


def read_device_plan(folder: Path) -> DeviceFolder:
    """Read a plan's folder. Only the files that a plan has are opened, and none is trusted.

    Raises:
        UsageError: W0106, there is no plan in ``folder``.
        CheckError: W0512, a file is missing or damaged so that the plan cannot be understood.
    """
    require_manifest(folder)
    manifest = _decode(read_file(folder / MANIFEST))
    contents = {name: read_file(folder / name) for name in _FILES}
    faults = changed_files(manifest.files, contents)
    try:
        graph = parse_graph(contents[GRAPH].decode())
    except UsageError as error:
        raise CheckError(*faults, *error.diagnostics) from None
    except UnicodeDecodeError as error:
        raise CheckError(*faults, unreadable(GRAPH, str(error))) from None
    return DeviceFolder(manifest, graph, tuple(faults))


def device_schema() -> dict[str, Any]:
    """The JSON Schema of such a manifest."""
    return msgspec.json.schema(DeviceManifest)


def _decode(data: bytes) -> DeviceManifest:
    try:
        manifest = msgspec.json.decode(data, type=DeviceManifest)
        if msgspec.json.decode(data) != msgspec.json.decode(msgspec.json.encode(manifest)):
            raise msgspec.ValidationError("it has entries that manifests do not have")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckError(unreadable(MANIFEST, str(error))) from None
    if manifest.schema_version != SCHEMA_VERSION:
        facts = {"schema_version": manifest.schema_version, "supported": SCHEMA_VERSION}
        raise CheckError(Diagnostic("W0512", "the manifest is of another version", MANIFEST, facts))
    return manifest
