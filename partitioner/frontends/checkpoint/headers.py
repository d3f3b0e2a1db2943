"""The header of a safetensors file: names, element types, shapes and byte ranges, without a look at the values.

The format is eight bytes of length, that many bytes of JSON, and the values, which must follow each other without a
gap (https://github.com/huggingface/safetensors). The library maps a file before it reads its header; here only the
header is read, and nothing that stands in it is believed before it is compared with the file's length.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ir.diagnostics import Diagnostic, Fact, UsageError

DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of one element, by the format's names."""

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
"""The library's own limit."""
_MOST_AXES = 16
_MOST_NAME = 1_000


class StoredTensor(msgspec.Struct, frozen=True, gc=False):
    """A tensor in a file: ``begin`` and ``end`` are offsets from the file's start, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Bytes of its values."""
        return self.end - self.begin


class _Facts(msgspec.Struct):
    """What a header may say of its file."""

    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Entry(msgspec.Struct, gc=False):
    """What a header says of one tensor; offsets count from the end of the header."""

    dtype: str = ""
    shape: tuple[_Size, ...] | None = None
    data_offsets: tuple[_Size, _Size] | None = None


class _MalformedError(ValueError):
    """The header breaks a rule of the format."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, unless it is a pipe or a device, on which a program could wait for ever.

    Raises:
        UsageError: W0221, it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise malformed(f"the file cannot be opened: {reason}", path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise malformed("this is no regular file", path)
    return os.fdopen(descriptor, "rb")


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        UsageError: W0221, the header breaks the format; W0222, the byte ranges do not fit the types, each other or the
            file's length.
    """
    with open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size
        prefix = file.read(_LENGTH_BYTES)
        header_bytes = int.from_bytes(prefix, "little")
        facts = {"file_bytes": length, "header_bytes": header_bytes}
        if len(prefix) < _LENGTH_BYTES or header_bytes > length - _LENGTH_BYTES:
            raise malformed("the file is shorter than its header says", path, facts)
        if header_bytes > _MOST_HEADER_BYTES:
            raise malformed("the header is larger than 100 MB", path, facts)
        text = file.read(header_bytes)
    if len(text) < header_bytes:
        raise malformed("the file is shorter than its header says", path, facts)
    data = _LENGTH_BYTES + header_bytes
    try:
        tensors = tuple(_tensors(_entries(text), path, data))
    except _MalformedError as error:
        raise malformed(str(error), path) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise malformed(f"the header is not that of a safetensors file: {str(error)[:200]}", path) from None
    return _contiguous(tensors, path, data, length)


def _entries(text: bytes) -> dict[str, _Entry]:
    """The header's entries, each name once.

    The decoder takes the last of equal names; there are none if each entry's fields stand in the text as often as
    there are entries. If not (a name may be spelt with escapes), the slower parser of the standard library tells.
    """
    text.decode("utf-8")  # the decoder does not look into what it skips
    msgspec.json.decode(text, type=_Facts)
    try:
        entries = msgspec.json.decode(text, type=dict[str, _Entry])
    except msgspec.ValidationError:  # perhaps for a word under __metadata__, which may be any
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries = {name: msgspec.json.decode(raw[name], type=_Entry) for name in raw.keys() - {"__metadata__"}}
        entries |= {name: _Entry() for name in raw.keys() & {"__metadata__"}}
    count = len(entries) - ("__metadata__" in entries)
    if any(text.count(b'"%s"' % field.encode()) != count for field in _Entry.__struct_fields__):
        json.loads(text, object_pairs_hook=_require_distinct)
    entries.pop("__metadata__", None)
    return entries


def _require_distinct(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _MalformedError(f"{name[:200]!r} stands there twice")
        seen.add(name)


def _tensors(entries: Mapping[str, _Entry], path: Path, data: int) -> Iterator[StoredTensor]:
    for name, entry in entries.items():
        if not 0 < len(name) <= _MOST_NAME or not name.isprintable():
            raise _MalformedError(f"{name[:80]!r} is no name of a tensor")
        bits, shape = DTYPE_BITS.get(entry.dtype), entry.shape
        if bits is None:
            raise _MalformedError(f"{name!r} is of the unknown dtype {entry.dtype[:40]!r}")
        if shape is None or entry.data_offsets is None or len(shape) > _MOST_AXES:
            raise _MalformedError(f"{name!r} has no shape of at most {_MOST_AXES} axes, or no data_offsets")
        begin, end = entry.data_offsets
        bits *= math.prod(shape)
        if bits != 8 * (end - begin):
            needed = -(-bits // 8)
            raise _MalformedError(f"{name!r} takes {needed:,} bytes by type and shape, but {end - begin:,} in the file")
        yield StoredTensor(name, entry.dtype, shape, path, data + begin, data + end)


def _contiguous(tensors: tuple[StoredTensor, ...], path: Path, data: int, length: int) -> tuple[StoredTensor, ...]:
    """The tensors in the order of their bytes, which fill the file from the header to its end, each byte once."""
    ordered = tuple(sorted(tensors, key=attrgetter("begin", "end")))
    end = data
    for tensor in ordered:
        if tensor.end > length:
            facts = {"needed_bytes": tensor.end, "file_bytes": length}
            raise _ranges(f"{tensor.name!r} lies beyond the end of the file", path, facts)
        if tensor.begin != end:
            what = "overlaps the tensor before it" if tensor.begin < end else "follows a gap"
            raise _ranges(f"{tensor.name!r} {what}", path, {"begins_at": tensor.begin, "the_one_before_ends_at": end})
        end = tensor.end
    if end != length:
        raise _ranges("bytes follow the last tensor", path, {"tensors_end_at": end, "file_bytes": length})
    return ordered


def malformed(message: str, path: Path, facts: Mapping[str, Fact] | None = None) -> UsageError:
    """W0221: a file of the checkpoint is not what its name says."""
    help_ = ("download the file again, or write it again with safetensors",)
    return UsageError(Diagnostic("W0221", message, str(path), facts or {}, help_))


def _ranges(message: str, path: Path, facts: Mapping[str, Fact]) -> UsageError:
    help_ = ("download the file again, or write it again with safetensors",)
    return UsageError(Diagnostic("W0222", message, str(path), facts, help_))
