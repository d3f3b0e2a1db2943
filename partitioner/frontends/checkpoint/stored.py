"""A model's parameters with the encodings in which a checkpoint folder stores them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ir.graph import Parameter
from partitioner.frontends.checkpoint.folder import Checkpoint, open_checkpoint
from partitioner.frontends.checkpoint.match import Match, match_checkpoint
from partitioner.frontends.checkpoint.names import grouped

_MOST_SHOWN = 3

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def as_stored(
    folder: str, model: Any, parameters: tuple[Parameter, ...]
) -> tuple[tuple[Parameter, ...], tuple[str, ...]]:
    """``parameters`` as the folder's files hold them, and what is worth knowing of that.

    What is stored decides on the bytes. Where ``quantization_config`` or the stated type says otherwise, that is told
    in a note and no error: publishers leave single modules unquantized without saying so, and files are the fact.

    Returns:
        The parameters as they are, without notes, where there is no folder or it holds no weights.

    Raises:
        UsageError: what :func:`open_checkpoint` raises.
        UnsupportedModelError: what :func:`match_checkpoint` raises.
    """
    checkpoint = open_checkpoint(Path(folder)) if folder else None
    if checkpoint is None:
        return parameters, ()
    match = match_checkpoint(model, checkpoint)
    stored = tuple(replace(p, encoding=match.encodings.get(p.name, p.encoding)) for p in parameters)
    return stored, tuple(_notes(checkpoint, match, parameters, stored))


def most_stored_dtype(folder: str) -> str | None:
    """The floating-point type in which the folder's files hold most bytes, as configurations name it; ``None`` where
    there is no folder, or none of its tensors is of such a type.

    Raises:
        UsageError: what :func:`open_checkpoint` raises.
    """
    checkpoint = open_checkpoint(Path(folder)) if folder else None
    held: Counter[str] = Counter()
    for tensor in checkpoint.tensors if checkpoint else ():
        if tensor.dtype in _FLOATS:
            held[_FLOATS[tensor.dtype]] += tensor.bytes
    return held.most_common(1)[0][0] if held else None


def _notes(
    checkpoint: Checkpoint, match: Match, said: tuple[Parameter, ...], stored: tuple[Parameter, ...]
) -> Iterator[str]:
    yield (
        f"encodings as stored: {len(checkpoint.tensors):,} tensors, {checkpoint.bytes:,} bytes"
        f" in {len(checkpoint.files):,} files"
    )
    differ: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for before, after in zip(said, stored, strict=True):
        if before.encoding != after.encoding:
            differ[before.encoding.name, after.encoding.name].append(after.name)
    for (before_name, after_name), names in differ.items():
        yield f"stored as {after_name}, though the configuration says {before_name}: {_shown(names)}"
    if match.ignored:
        ignored = sum(part.bytes for weight in match.ignored for part in weight.parts)
        names = [weight.name for weight in match.ignored]
        yield f"ignored, as the library's class says ({ignored:,} bytes): {_shown(names)}"
    if match.twice:
        yield f"stored, though tied to another weight: {_shown(list(match.twice))}"


def _shown(names: list[str]) -> str:
    patterns = [name for name, _ in grouped(names)]
    more = f" and {len(patterns) - _MOST_SHOWN} more" if len(patterns) > _MOST_SHOWN else ""
    return f"{', '.join(patterns[:_MOST_SHOWN])}{more}"
