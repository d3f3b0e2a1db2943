"""Products and look-ups on tiles: the operators that read a weight where it lies."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn.functional import linear

from ir.layout import MatrixLayout, Split
from ir.plan import Rectangle
from targets.emulator.arithmetic import Order
from targets.emulator.mesh import Mesh
from targets.emulator.ways import Vectors, enter_way, leave_way

Tensor = torch.Tensor
SUM_BYTES = 4
"""Of a partial sum on the mesh: products are summed in 32 bit."""


def product(x: Tensor, weight: Tensor, inputs: Split, transposed: bool, order: Order) -> Tensor:
    """X [tokens, in] times a weight [out, in] ([in, out] where ``transposed``) -> [tokens, out], summed in 32 bit.

    In the order of the mesh, each line of tiles multiplies its share of the inputs, and adds it to what arrives.
    """
    if order is Order.HOST:
        return x @ weight if transposed else linear(x, weight)
    lines = weight if transposed else weight.T
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.new_zeros(len(x), lines.shape[1], dtype=wide)
    for start, end in pairwise(inputs.bounds().tolist()):
        if end > start:
            total.addmm_(x[:, start:end].to(wide), lines[start:end].to(wide))
    return total.to(x.dtype)


def count_product(
    mesh: Mesh, layout: MatrixLayout, transposed: bool, x: Vectors, y: Vectors, home: Rectangle,
    tokens: int, element_bytes: int,
) -> None:  # fmt: skip
    """What a product moves: inputs from their homes in ``home`` onto their lines, partial sums across, results home.

    ``x`` and ``y`` are the vectors of each of ``tokens`` tokens that it takes and yields.
    """
    inputs, outputs = (layout.outputs, layout.inputs) if transposed else (layout.inputs, layout.outputs)
    region, vectors = mesh.region, tokens * len(y.which)
    mesh.meter.multiply_adds(vectors * inputs.length * outputs.length)
    mesh.move("enter", enter_way(inputs, x, home, region, transposed), element_bytes, tokens)
    length = region.columns if transposed else region.rows
    mesh.chain(length, vectors * outputs.length * max(SUM_BYTES, element_bytes))
    mesh.move("leave", leave_way(outputs, y, region, home, transposed), element_bytes, tokens)
