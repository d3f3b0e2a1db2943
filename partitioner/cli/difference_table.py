"""What changed between two plans, for people: moves folded into runs of layers, and figures side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table

from partitioner.cli.forecast_report import plural, report_console, table
from partitioner.difference import Change, Difference, Move, WaferChange

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_MOST_ROWS = 40


def print_difference(found: Difference, layer_blocks: Mapping[int, int]) -> None:
    """Print it. ``layer_blocks`` is how many blocks each layer has: those that move whole are told by number."""
    console = report_console()
    parts = (*_around(found), _summary(found), *_moves(found, layer_blocks), *_wafers(found))
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part)


def _around(found: Difference) -> Iterator[Table]:
    told = [change for change in found.changes if not change.name.endswith(".proof")]
    if told:
        made = table("figure", "before", "after", left=(0, 1, 2))
        for change in told:
            made.add_row(change.name, _plain(change.before), _plain(change.after))
        yield made


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if value is True:
        return "yes"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _summary(found: Difference) -> str:
    """What moves, and what stays, in a few lines."""
    if found.is_empty:
        return "the plans say the same"
    shown, scale = unit(max(found.moved_bytes, found.kept_bytes))
    moved = f"{plural(len(found.moves), 'block')} moved, {found.moved_bytes / scale:,.3f} {shown} of weights"
    stayed = len(found.resized) + len(found.reshaped) + found.kept
    lines = [f"{moved if found.moves else 'nothing moved'}; {stayed:,} stayed, {found.kept_bytes / scale:,.3f} {shown}"]
    if found.reshaped:
        lines[0] += f", {len(found.reshaped):,} of them on other tiles"
    lines += [
        f"{word}: {_names(names)}"
        for word, names in (
            ("of another size", found.resized),
            ("added", [block.title for block in found.added]),
            ("removed", [block.title for block in found.removed]),
        )
        if names
    ]
    if found.transfers_added or found.transfers_removed:
        changed = f"{len(found.transfers_added):,} new, {len(found.transfers_removed):,} gone"
        sent = f"{found.traffic_before:,} to {found.traffic_after:,} B for each token"
        lines.append(f"transfers: {changed}; {sent}")
    return "\n".join(lines)


def _names(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def unit(size: int) -> tuple[str, float]:
    """The unit in which ``size`` bytes and smaller sizes are shown, and its bytes."""
    return next((each for each in _UNITS if size >= each[1]), _UNITS[-1])


def _moves(found: Difference, layer_blocks: Mapping[int, int]) -> Iterator[Table]:
    if not found.moves:
        return
    shown, scale = unit(found.moved_bytes)
    made = table("moved", "from wafer", "to wafer", f"weights {shown}")
    rows = list(folded(found.moves, layer_blocks))
    for name, run in rows[:_MOST_ROWS]:
        size = sum(move.weight_bytes for move in run)
        made.add_row(name, str(run[0].source), str(run[0].target), f"{size / scale:,.3f}")
    if len(rows) > _MOST_ROWS:
        rest = sum(move.weight_bytes for _, run in rows[_MOST_ROWS:] for move in run)
        made.add_row(f"{len(rows) - _MOST_ROWS} rows more", "", "", f"{rest / scale:,.3f}")
    yield made


def folded(moves: Sequence[Move], layer_blocks: Mapping[int, int]) -> Iterator[tuple[str, list[Move]]]:
    """Moves from one wafer to another that follow each other, with a name: ``layers 12-14``."""
    for _, same_way in groupby(moves, key=lambda move: (move.source, move.target)):
        run = list(same_way)
        yield ", ".join(_parts(run, layer_blocks)), run


def _parts(run: Sequence[Move], layer_blocks: Mapping[int, int]) -> Iterator[str]:
    """Blocks outside of layers and parts of layers by name, and whole layers as ranges of numbers."""
    whole: list[int] = []
    for layer, members in groupby(run, key=lambda move: move.layer):
        own = [move.block for move in members]
        if layer is not None and len(own) == layer_blocks[layer]:
            whole.append(layer)
            continue
        yield from _range(whole)
        whole = []
        yield own[0] if len(own) == 1 else f"{own[0]} to {own[-1]}" if len(own) > 2 else ", ".join(own)
    yield from _range(whole)


def _range(layers: Sequence[int]) -> Iterator[str]:
    """Numbers that follow each other as ``layers 12-14``."""
    for _, pairs in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in pairs]
        yield f"layer {run[0]}" if len(run) == 1 else f"layers {run[0]}-{run[-1]}"


def _wafers(found: Difference) -> Iterator[Table]:
    if not found.wafers:
        return
    sizes = [size for change in found.wafers for size in (change.bytes_before, change.bytes_after) if size]
    shown, scale = unit(max(sizes))
    made = table("wafer", f"before {shown}", f"after {shown}", "", left=(0, 3))
    rows = [[*own] for _, own in groupby(enumerate(found.wafers), key=lambda pair: _alike(*pair))]
    for row in rows[:_MOST_ROWS]:
        change, last = row[0][1], row[-1][1]
        figures = (
            "-" if size is None else f"{size / scale:,.3f}" for size in (change.bytes_before, change.bytes_after)
        )
        word = "new" if change.bytes_before is None else "dropped" if change.bytes_after is None else ""
        made.add_row(f"{change.wafer}-{last.wafer}" if len(row) > 1 else str(change.wafer), *figures, word)
    if len(rows) > _MOST_ROWS:
        made.add_row(f"{len(rows) - _MOST_ROWS} rows more", "", "", "")
    yield made


def _alike(index: int, change: WaferChange) -> object:
    """The same for wafers that follow each other and hold as much as each other, before and after."""
    return change.wafer - index, change.bytes_before, change.bytes_after


def difference_record(found: Difference) -> dict[str, Any]:
    """What ``--json`` prints of it."""
    return {
        "same": found.is_empty,
        "changes": [_change(change) for change in found.changes],
        "moved": [
            {"block": move.block, "weight_bytes": move.weight_bytes, "from": move.source, "to": move.target}
            for move in found.moves
        ],
        "moved_bytes": found.moved_bytes,
        "added": [block.title for block in found.added],
        "removed": [block.title for block in found.removed],
        "resized": list(found.resized),
        "reshaped": list(found.reshaped),
        "kept": found.kept,
        "kept_bytes": found.kept_bytes,
        "wafers": [
            {"wafer": change.wafer, "bytes_before": change.bytes_before, "bytes_after": change.bytes_after}
            for change in found.wafers
        ],
        "wafers_added": list(found.wafers_added),
        "wafers_dropped": list(found.wafers_dropped),
        "transfers_added": len(found.transfers_added),
        "transfers_removed": len(found.transfers_removed),
        "traffic_bytes_per_token_before": found.traffic_before,
        "traffic_bytes_per_token_after": found.traffic_after,
    }


def _change(change: Change) -> dict[str, Any]:
    return {"figure": change.name, "before": change.before, "after": change.after}
