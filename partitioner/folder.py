"""A plan's folder on disk: written whole or not at all, and read back with distrust.

manifest.json        the plan (schema: `waferc schema`), with the SHA-256 of the files beside it
tables.safetensors   the experts' rectangles
model.ir             the graph, as text; the checker derives everything from it again
model.json           where the model came from, for running it
diagnostics.jsonl    notes on what was left out or assumed
report.html          the placement as a page
test_plan.py         tests of the plan beside the original, if asked for; the manifest does not name it
run.json             what an unfinished run has generated so far; nor does it name this
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ir.diagnostics import CheckError, Diagnostic, UsageError
from ir.graph import Graph
from ir.model import Model
from ir.plan import Plan
from ir.text import parse_graph, print_graph
from partitioner.frontends.lowered import Lowered, Origin
from partitioner.manifest import Manifest, decode, encode, encode_tables, to_manifest, to_plan

MANIFEST = "manifest.json"
GRAPH, ORIGIN, NOTES = "model.ir", "model.json", "diagnostics.jsonl"
_TABLES, REPORT = "tables.safetensors", "report.html"
TESTS, STATE = "test_plan.py", "run.json"
_FILES = (_TABLES, GRAPH, ORIGIN, NOTES, REPORT)
_BESIDE = (TESTS, STATE, "__pycache__", ".pytest_cache")
"""What may lie there beside, and goes when the plan is replaced."""
_MOST_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class PlanFolder:
    """A plan read back, with what is needed to check and run it. ``faults`` are damaged or missing files."""

    manifest: Manifest
    plan: Plan
    graph: Graph
    origin: Origin
    faults: tuple[Diagnostic, ...]


def write_plan(
    output: Path, plan: Plan, model: Model, lowered: Lowered, report: str, tests: str | None = None
) -> Manifest:
    """Write the folder ``output``, with ``tests`` as a file of tests; an older plan there is replaced, anything else is
    left alone.

    Raises:
        UsageError: W0105, the folder cannot be written or holds something else.
    """
    contents = {**model_files(model, lowered), _TABLES: encode_tables(plan), REPORT: report.encode()}
    digests = {name: sha256_of(data) for name, data in contents.items()}
    manifest = to_manifest(plan, model, lowered.notes, digests)
    beside = {} if tests is None else {TESTS: tests.encode()}
    write_whole(output, {**contents, **beside, MANIFEST: encode(manifest)})
    return manifest


def model_files(model: Model, lowered: Lowered) -> dict[str, bytes]:
    """The files that tell the model of a plan: its graph, where it came from, and notes on it."""
    notes = [Diagnostic("W0001", note) for note in lowered.notes]
    origin = replace(lowered.origin, max_context=lowered.max_context)
    return {
        GRAPH: print_graph(model.graph).encode(),
        ORIGIN: msgspec.json.format(msgspec.json.encode(origin, order="sorted"), indent=2) + b"\n",
        NOTES: b"".join(msgspec.json.encode(note.to_dict(), order="sorted") + b"\n" for note in notes),
    }


def write_whole(output: Path, contents: dict[str, bytes]) -> None:
    """Write beside ``output`` and rename, so that no half-written folder is ever seen under its name.

    Raises:
        UsageError: W0105, it cannot be written or holds something else than a plan.
    """
    refuse_foreign(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as room:
            fresh = Path(room) / "new"
            fresh.mkdir()
            for name, data in contents.items():
                (fresh / name).write_bytes(data)
            _exchange(fresh, output, Path(room) / "old")
    except OSError as error:
        raise _unwritable(output, str(error.strerror)) from None


def _exchange(fresh: Path, output: Path, old: Path) -> None:
    """Put ``fresh`` in the place of ``output``; what stood there goes to ``old``, or back if that fails."""
    had_plan = output.exists()
    if had_plan:
        output.rename(old)
    try:
        fresh.rename(output)
    except OSError:
        if had_plan:
            old.rename(output)
        raise


def refuse_foreign(output: Path) -> None:
    """Refuse an output that is a file, or a folder that holds something other than a plan; called before work begins.

    Raises:
        UsageError: W0105.
    """
    try:
        entries = {entry.name for entry in output.iterdir()} if output.exists() else set()
        above = next(parent for parent in output.absolute().parents if parent.exists())
        if not above.is_dir():
            raise NotADirectoryError(0, f"{above} is not a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(0, f"{above} may not be written to")
    except OSError as error:
        raise _unwritable(output, str(error.strerror)) from None
    except ValueError as error:
        raise _unwritable(output, str(error)) from None
    foreign = sorted(entries - {MANIFEST, *_FILES, *_BESIDE})
    if foreign or (entries and MANIFEST not in entries):
        shown = ", ".join((foreign or sorted(entries))[:3])
        raise UsageError(
            Diagnostic("W0105", f"the output folder holds something else than a plan: {shown}", str(output))
        )


def _unwritable(output: Path, reason: str) -> UsageError:
    return UsageError(Diagnostic("W0105", f"the output folder cannot be written: {reason}", repr(str(output))))


def read_plan(folder: Path) -> PlanFolder:
    """Read a plan's folder. Only the files that a plan has are opened, and none is trusted.

    Raises:
        UsageError: W0106, there is no plan in ``folder``.
        CheckError: W0511 to W0513, a file is missing or damaged so that the plan cannot be understood.
    """
    require_manifest(folder)
    manifest = decode(read_file(folder / MANIFEST), MANIFEST)
    contents = {name: read_file(folder / name) for name in _FILES}
    faults = changed_files(manifest.files, contents)
    try:
        plan = to_plan(manifest, contents[_TABLES], _TABLES)
        graph = parse_graph(contents[GRAPH].decode())
        origin = msgspec.json.decode(contents[ORIGIN], type=Origin)
    except (CheckError, UsageError) as error:
        raise CheckError(*faults, *error.diagnostics) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckError(*faults, unreadable(str(folder), str(error))) from None
    return PlanFolder(manifest, plan, graph, origin, tuple(faults))


def changed_files(named: Mapping[str, str], contents: Mapping[str, bytes]) -> list[Diagnostic]:
    """Files whose bytes are not those that the manifest ``named`` by their SHA-256."""
    faults = [
        Diagnostic("W0511", "a file is not the one that the manifest names", name, {"sha256": sha256_of(data)})
        for name, data in contents.items()
        if named.get(name) != sha256_of(data)
    ]
    unknown = [name for name in named if name not in contents]
    faults += [Diagnostic("W0511", "the manifest names a file that plans do not have", name) for name in unknown]
    return faults


def require_manifest(folder: Path) -> None:
    """Refuse a folder that holds no plan.

    Raises:
        UsageError: W0106.
    """
    try:
        found = (folder / MANIFEST).is_file()
    except OSError:  # names that are too long
        found = False
    if not found:
        help_ = ("a plan's folder is what `waferc compile MODEL -o FOLDER` writes",)
        raise UsageError(Diagnostic("W0106", f"there is no plan in {str(folder)!r}", help=help_))


def read_file(path: Path) -> bytes:
    """The bytes of one file of a plan.

    Raises:
        CheckError: W0512, it is a link, too large, or cannot be read.
    """
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_FILE_BYTES:
            raise CheckError(Diagnostic("W0512", "a file of the plan is a link, or larger than a gigabyte", path.name))
        return path.read_bytes()
    except OSError as error:
        raise CheckError(unreadable(path.name, str(error.strerror))) from None


def unreadable(where: str, reason: str) -> Diagnostic:
    """What is wrong with a file that cannot be read."""
    return Diagnostic("W0512", f"a file of the plan cannot be read: {reason}", where)


def sha256_of(data: bytes) -> str:
    """The SHA-256 of ``data``, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
