"""Products on tiles: the order in which their sums are taken."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.functional import linear

from ir.layout import Split
from targets.emulator.arithmetic import Order
from targets.emulator.sums import mesh_sums

Tensor = torch.Tensor


def product(
    x: Tensor, parts: Iterable[Tensor], inputs: Split, transposed: bool, order: Order, bias: Tensor | None = None
) -> Tensor:
    """X [..., in] times a weight [out, in] ([in, out] where ``transposed``) -> [..., out], summed in 32 bit.

    ``parts`` are rows of the weight, one part after the other; where it is ``transposed``, the whole of it. A ``bias``
    [out] is added where the results are at home.
    """
    if order is Order.MESH:
        shares = (part.T for part in parts) if transposed else parts
        y = mesh_sums(x.reshape(-1, x.shape[-1]), shares, inputs).to(x.dtype).reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    whole, *more = parts
    if not more:
        return linear(x, whole.T if transposed else whole, bias)
    y = torch.cat([linear(x, part) for part in (whole, *more)], dim=-1)
    return y if bias is None else y + bias
