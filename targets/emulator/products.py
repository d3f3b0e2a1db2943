"""Products and look-ups on tiles: the operators that read a weight where it lies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.functional import linear

from ir.layout import MatrixLayout, Split
from ir.plan import Rectangle
from targets.emulator.arithmetic import Order
from targets.emulator.mesh import Mesh
from targets.emulator.sums import mesh_sums
from targets.emulator.ways import Vectors, enter_way, leave_way

Tensor = torch.Tensor
SUM_BYTES = 4
"""Of a partial sum on the mesh: products are summed in 32 bit."""


def product(x: Tensor, parts: Iterable[Tensor], inputs: Split, transposed: bool, order: Order) -> Tensor:
    """X [tokens, in] times a weight [out, in] ([in, out] where ``transposed``) -> [tokens, out], summed in 32 bit.

    ``parts`` are rows of the weight, one part after the other; where it is ``transposed``, the whole of it.
    """
    if order is Order.MESH:
        return mesh_sums(x, (part.T for part in parts) if transposed else parts, inputs).to(x.dtype)
    found = [x @ part if transposed else linear(x, part) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


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
