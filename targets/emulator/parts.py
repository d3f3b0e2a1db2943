"""Some rows of a stored weight: what is read where little is to be unpacked at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from targets.emulator.encodings import Blockwise, Fp8, Int4, Mxfp4
from targets.emulator.weights import Plain, Stored

_PART_ELEMENTS = 1 << 20
_BLOCK_ROWS = 128
"""Rows that share a scale, of the encoding in which the most do."""


def row_parts(stored: Stored) -> Iterator[Stored]:
    """A matrix [out, in] as parts of about a million elements, in order; whole where its rows lie apart."""
    outputs, inputs = stored.shape
    step = max(1, _PART_ELEMENTS // max(1, inputs) // _BLOCK_ROWS) * _BLOCK_ROWS
    if outputs <= step or not isinstance(stored, Plain | Int4 | Mxfp4 | Fp8 | Blockwise):
        yield stored
        return
    for start in range(0, outputs, step):
        yield rows_of(stored, range(start, min(outputs, start + step)))


def rows_of(stored: Stored, rows: range) -> Stored:
    """The ``rows`` of a weight [rows, ...], as they are stored where that is possible."""
    part, blocks = slice(rows.start, rows.stop), slice(rows.start // _BLOCK_ROWS, -(-rows.stop // _BLOCK_ROWS))
    match stored:
        case Plain(tensor):
            return Plain(tensor[part])
        case Int4(words, scales):
            return Int4(words[part], scales[part])
        case Mxfp4(packed, scales):
            return Mxfp4(packed[part], scales[part])
        case Blockwise(integers, scales, zeros):
            return replace(stored, integers=integers[part], scales=scales[part], zeros=None if zeros is None else zeros[part])
        case Fp8(values, scales) if rows.start % _BLOCK_ROWS == 0:
            return Fp8(values[part], scales[blocks])
    return Plain(stored.unpack(torch.float32, "cpu")[part])
