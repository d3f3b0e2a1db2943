"""The header of a safetensors file: names, element types, shapes and byte ranges, without a look at the values.

The format is eight bytes of length, that many bytes of JSON, and the values, which must follow each other without a
gap (https://github.com/huggingface/safetensors). The library maps a file before it reads its header; here only the
header is read, and nothing that stands in it is believed before it is compared with the file's length.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

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


class StoredTensor(NamedTuple):
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


class _Entry(NamedTuple):
    """What a header says of one tensor; offsets count from the end of the header."""

    dtype: Any
    shape: Any
    offsets: Any


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
        tensors = tuple(_tensors(parse_json(text), path, data))
    except _MalformedError as error:
        raise malformed(str(error), path) from None
    except (ValueError, RecursionError) as error:
        raise malformed(f"the header is not JSON: {str(error)[:200]}", path) from None
    return _contiguous(tensors, path, data, length)


def parse_json(text: bytes) -> Any:
    """Parse JSON strictly: UTF-8, every name once, no ``NaN`` or ``Infinity``.

    Raises:
        ValueError: the text is not of this kind.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)


def _object(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _MalformedError(f"{twice[:200]!r} stands there twice")
    if found.keys() == {"dtype", "shape", "data_offsets"}:
        return _Entry(found["dtype"], found["shape"], found["data_offsets"])
    return found


def _refuse_constant(name: str) -> Any:
    raise _MalformedError(f"{name} is no JSON")


def _tensors(header: Any, path: Path, data: int) -> Iterator[StoredTensor]:
    if not isinstance(header, dict):
        raise _MalformedError("the header is no JSON object of tensors")
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
                raise _MalformedError("__metadata__ does not map names to texts")
            continue
        if not 0 < len(name) <= _MOST_NAME or not name.isprintable():
            raise _MalformedError(f"{name[:80]!r} is no name of a tensor")
        if not isinstance(entry, _Entry):
            raise _MalformedError(f"{name!r} has other fields than dtype, shape and data_offsets")
        begin, end = _checked(name, entry)
        yield StoredTensor(name, entry.dtype, tuple(entry.shape), path, data + begin, data + end)


def _checked(name: str, entry: _Entry) -> tuple[int, int]:
    """The offsets of an entry whose fields agree with each other."""
    bits = DTYPE_BITS.get(entry.dtype) if isinstance(entry.dtype, str) else None
    if bits is None:
        raise _MalformedError(f"{name!r} is of the unknown dtype {str(entry.dtype)[:40]!r}")
    if not _are_sizes(entry.shape) or len(entry.shape) > _MOST_AXES:
        raise _MalformedError(f"{name!r} has no shape of at most {_MOST_AXES} sizes, but {str(entry.shape)[:80]}")
    if not _are_sizes(entry.offsets) or len(entry.offsets) != 2:
        raise _MalformedError(f"{name!r} has no data_offsets of two numbers, but {str(entry.offsets)[:80]}")
    begin, end = entry.offsets
    for size in entry.shape:
        bits *= size
    if bits != 8 * (end - begin):
        raise _MalformedError(
            f"{name!r} takes {-(-bits // 8):,} bytes by type and shape, but {end - begin:,} in the file"
        )
    return begin, end


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _contiguous(tensors: tuple[StoredTensor, ...], path: Path, data: int, length: int) -> tuple[StoredTensor, ...]:
    """The tensors in the order of their bytes, which fill the file from the header to its end, each byte once."""
    ordered = tuple(sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)))
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
