"""Products on tiles: their sums are taken by the host's routine at once, or as on the mesh, where each line of tiles
adds what it multiplied to the sums that reach it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import linear

from ir.layout import Ints, Split
from targets.emulator.arithmetic import Order

Tensor = torch.Tensor
_PART_ELEMENTS = 1 << 18
"""Of a weight that are widened to 32 bit at once."""
_SUM_ELEMENTS = 1 << 22
"""Sums of lines that are held at once, before they are added up line after line."""
_COLUMNS = 16
"""Sums that one product of the host yields for each output, so that it is fast: several lines' where tokens are few."""


def product(
    x: Tensor, parts: Iterable[Tensor], inputs: Split, transposed: bool, order: Order, bias: Tensor | None = None
) -> Tensor:
    """X [..., in] times a weight [out, in] ([in, out] where ``transposed``) -> [..., out], summed in 32 bit.

    ``parts`` are rows of the weight, one part after the other; where it is ``transposed``, the whole of it. A ``bias``
    [out] is added where the results are at home.
    """
    if order is Order.MESH:
        shares = (part.T for part in parts) if transposed else parts
        y = _mesh_sums(x.reshape(-1, x.shape[-1]), shares, inputs).to(x.dtype).reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    whole, *more = parts
    if not more:
        return linear(x, whole.T if transposed else whole, bias)
    y = torch.cat([linear(x, part) for part in (whole, *more)], dim=-1)
    return y if bias is None else y + bias


@dataclass(frozen=True, slots=True)
class _Group:
    """Inputs of neighbouring lines of tiles with shares of one size, from input ``begin`` on.

    ``inputs`` [blocks, lines * share, lines * tokens] hold the inputs of each block's lines on its diagonal: a product
    with them sums each line's share by itself.
    """

    begin: int
    lines: int
    inputs: Tensor

    def sums(self, weight: Tensor) -> Tensor:
        """By a weight [out, in] in 32 bit -> [all lines, tokens, out]."""
        blocks, length, columns = self.inputs.shape
        own = weight[:, self.begin : self.begin + blocks * length].reshape(len(weight), blocks, length)
        found = torch.bmm(own.transpose(0, 1), self.inputs)
        apart = found.view(blocks, len(weight), self.lines, columns // self.lines)
        return apart.permute(0, 2, 3, 1).flatten(0, 1)


def _mesh_sums(x: Tensor, parts: Iterable[Tensor], inputs: Split) -> Tensor:
    """X [tokens, in] times a weight [out, in], given as parts of its rows -> [tokens, out] in 32 bit (or wider).

    A line's own share is summed as the host likes; from line to line the order is that of the mesh.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    groups = list(_groups(x.to(wide), inputs))
    held: list[Tensor] = []
    done: list[Tensor] = []
    for part in _small(parts, inputs.length):
        part = part.to(wide)
        found = [group.sums(part) for group in groups]
        held.append(torch.cat(found) if found else x.new_zeros(1, len(x), len(part), dtype=wide))
        if sum(sums.numel() for sums in held) >= _SUM_ELEMENTS:
            done.append(_added_up(held))
            held = []
    return torch.cat([*done, _added_up(held)] if held else done, dim=-1)


def _small(parts: Iterable[Tensor], inputs: int) -> Iterator[Tensor]:
    step = max(1, _PART_ELEMENTS // max(1, inputs))
    for part in parts:
        yield from torch.split(part, step)


def _added_up(sums: list[Tensor]) -> Tensor:
    """Sums [lines, tokens, out] of parts of the outputs, added line after line -> [tokens, out]."""
    each = torch.cat(sums, dim=-1)
    total = each[0].clone()
    for line in each[1:]:
        total += line
    return total


def _groups(x: Tensor, inputs: Split) -> Iterator[_Group]:
    most = -(-_COLUMNS // max(1, len(x)))
    for begin, count, share in _runs(inputs):
        whole = count // most * most
        for first, lines in ((0, whole), (whole, count - whole)):
            if lines:
                yield _group(x, begin + first * share, lines, min(most, lines), share)


def _group(x: Tensor, begin: int, count: int, lines: int, share: int) -> _Group:
    """``count`` lines, in blocks of ``lines``."""
    own = x[:, begin : begin + count * share].reshape(len(x), count // lines, lines, share)
    diagonal = x.new_zeros(count // lines, lines, share, lines, len(x))
    each = torch.arange(lines, device=x.device)
    diagonal[:, each, :, each] = own.permute(2, 1, 3, 0)
    return _Group(begin, lines, diagonal.flatten(3).flatten(1, 2))


@lru_cache(maxsize=4096)
def _runs(inputs: Split) -> tuple[tuple[int, int, int], ...]:
    """Neighbouring lines with shares of the same size: the first one's first input, how many lines, and the share."""
    return tuple(_found(inputs.bounds()))


def _found(bounds: Ints) -> Iterator[tuple[int, int, int]]:
    shares = np.diff(bounds)
    filled = np.flatnonzero(shares)
    edges = np.flatnonzero(np.diff(shares[filled], prepend=-1, append=-1))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        line = int(filled[begin])
        yield int(bounds[line]), end - begin, int(shares[line])
