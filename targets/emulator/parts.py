"""Some rows of a stored weight: what is read where little is to be unpacked at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch

from targets.emulator.encodings import Blockwise, Fp8, Int4, Mxfp4
from targets.emulator.seeded import Made
from targets.emulator.weights import Plain, Stored

_PART_ELEMENTS = 1 << 20
_BLOCK_ROWS = 128
"""Rows that share a scale, of the encoding in which the most do."""


T = TypeVar("T")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each worked out by another thread while the one before it is used."""
    first = next(items, None)
    second = next(items, None)
    if first is not None:
        yield first
    if second is None:
        return
    with ThreadPoolExecutor(1) as other:
        while second is not None:
            following = other.submit(next, items, None)
            yield second
            second = following.result()


def row_parts(stored: Stored) -> Iterator[Stored]:
    """A matrix [out, in] as parts of about a million elements, in order; whole where its rows lie apart."""
    outputs, inputs = stored.shape
    step = max(1, _PART_ELEMENTS // max(1, inputs) // _BLOCK_ROWS) * _BLOCK_ROWS
    if outputs <= step or not isinstance(stored, Plain | Int4 | Mxfp4 | Fp8 | Blockwise | Made):
        yield stored
        return
    for start in range(0, outputs, step):
        yield rows_of(stored, range(start, min(outputs, start + step)))


def rows_of(stored: Stored, rows: range) -> Stored:
    """The ``rows`` of a weight [rows, ...], as they are stored where that is possible."""
    part, blocks = slice(rows.start, rows.stop), slice(rows.start // _BLOCK_ROWS, -(-rows.stop // _BLOCK_ROWS))
    match stored:
        case Made():
            return stored.rows(rows)
        case Plain(tensor):
            return Plain(tensor[part])
        case Int4(words, scales):
            return Int4(words[part], scales[part])
        case Mxfp4(packed, scales):
            return Mxfp4(packed[part], scales[part])
        case Blockwise(integers, scales, zeros):
            return replace(
                stored, integers=integers[part], scales=scales[part], zeros=None if zeros is None else zeros[part]
            )
        case Fp8(values, scales) if rows.start % _BLOCK_ROWS == 0:
            return Fp8(values[part], scales[blocks])
    return Plain(stored.unpack(torch.float32, "cpu")[part])
