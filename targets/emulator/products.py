"""Products on tiles: the order in which their sums are taken."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn.functional import linear

from ir.layout import Split
from targets.emulator.arithmetic import Order

Tensor = torch.Tensor
_AT_ONCE = 1 << 22
"""Elements of weights, or of partial sums, that the host holds in 32 bit at once."""


def product(
    x: Tensor, weight: Tensor, inputs: Split, transposed: bool, order: Order, bias: Tensor | None = None
) -> Tensor:
    """X [..., in] times a weight [out, in] ([in, out] where ``transposed``) -> [..., out], plus ``bias`` [out].

    In the order of the mesh, each line of tiles multiplies its share of the inputs, and adds it to what arrives, in
    32 bit. The bias is added where the results are at home.
    """
    if order is Order.HOST:
        return linear(x, weight.T if transposed else weight, bias)
    total = _chained(x.reshape(-1, x.shape[-1]), weight if transposed else weight.T, inputs)
    y = total.to(x.dtype).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _chained(x: Tensor, weight: Tensor, inputs: Split) -> Tensor:
    """X [tokens, in] times ``weight`` [in, out], line after line of tiles -> [tokens, out] in 32 bit."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(len(x), weight.shape[1], dtype=wide, device=x.device)
    x = x.to(wide)
    for start, lines, share in _runs(inputs):
        at_once = max(1, _AT_ONCE // (weight.shape[1] * max(share, len(x))))
        for first in range(0, lines, at_once):
            count = min(at_once, lines - first)
            begin = start + first * share
            end = begin + count * share
            mine = x[:, begin:end].reshape(len(x), count, share).transpose(0, 1)
            for partial in torch.bmm(mine, weight[begin:end].to(wide).reshape(count, share, -1)):
                total += partial
    return total


def _runs(inputs: Split) -> list[tuple[int, int, int]]:
    """Neighbouring lines whose shares are equal: where their inputs begin, how many lines, and elements of each."""
    runs: list[tuple[int, int, int]] = []
    for start, end in pairwise(inputs.bounds().tolist()):
        if end == start:
            continue
        if runs and runs[-1][2] == end - start:
            first, lines, share = runs[-1]
            runs[-1] = (first, lines + 1, share)
        else:
            runs.append((start, 1, end - start))
    return runs
