"""Reading machine files: the bundled catalogue, or a file of the user's own in the same form."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from ir.diagnostics import Diagnostic, UsageError
from ir.machine import Machine, absurdities

_TABLES = {"mesh": ("columns", "rows"), "tile": ("sram_bytes", "reserve_bytes"), "cluster": ("systems",)}
_MOST_FILE_BYTES = 1 << 20


def catalog() -> tuple[str, ...]:
    """Names of the bundled machines."""
    files = resources.files("targets").joinpath("catalog").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_machine(target: str, systems: int | None = None, reserve_bytes: int | None = None) -> Machine:
    """The machine named ``target`` (a name of the catalogue, or a path to a TOML file), with the user's changes.

    Raises:
        UsageError: W0110 (no such target), W0111 (the file is damaged or a figure is missing or absurd).
    """
    machine = _parse(_read(target), target)
    machine = replace(
        machine,
        systems=machine.systems if systems is None else systems,
        reserve_bytes=machine.reserve_bytes if reserve_bytes is None else reserve_bytes,
    )
    faults = [Diagnostic("W0111", text, target) for text in absurdities(machine)]
    if faults:
        raise UsageError(*faults)
    return machine


def _read(target: str) -> str:
    if target in catalog():
        return resources.files("targets").joinpath("catalog", f"{target}.toml").read_text("utf-8")
    path = Path(target)
    if path.suffix != ".toml":
        known = f"targets are {', '.join(catalog())}, or the path of a .toml file"
        raise UsageError(Diagnostic("W0110", f"there is no target {target!r}", help=(known,)))
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise UsageError(Diagnostic("W0111", "the machine file is larger than a megabyte", str(path)))
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Diagnostic("W0110", f"the machine file cannot be read: {error}", str(path))) from None


def _parse(text: str, where: str) -> Machine:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(Diagnostic("W0111", f"the machine file is not TOML: {error}", where)) from None
    unknown = data.keys() - {"name", "description", *_TABLES}
    unknown |= {f"{table}.{key}" for table, keys in _TABLES.items() for key in _table(data, table).keys() - set(keys)}
    if unknown:
        raise UsageError(Diagnostic("W0111", f"unknown entries: {', '.join(sorted(unknown))}", where))
    figures = {key: _figure(_table(data, table), table, key, where) for table, keys in _TABLES.items() for key in keys}
    texts = [data.get(key) for key in ("name", "description")]
    if not all(isinstance(text, str) and text for text in texts):
        raise UsageError(Diagnostic("W0111", "name and description must be text", where))
    return Machine(
        name=str(texts[0]),
        description=str(texts[1]),
        columns=figures["columns"],
        rows=figures["rows"],
        tile_sram_bytes=figures["sram_bytes"],
        reserve_bytes=figures["reserve_bytes"],
        systems=figures["systems"],
    )


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = data.get(name, {})
    return table if isinstance(table, Mapping) else {}


def _figure(table: Mapping[str, Any], name: str, key: str, where: str) -> int:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(Diagnostic("W0111", f"{name}.{key} must be an integer, not {value!r}", where))
    return value
