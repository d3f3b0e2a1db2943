"""Looking elements up by several indices at once."""

from __future__ import annotations

from ir.types import product
from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.lowering import Operand, Site
from partitioner.frontends.onnx_file.table import operator


@operator("GatherND")
def _gather_nd(site: Site) -> Operand:
    """Data [d0, d1, ..., rest], indices [..., k] -> [..., rest]: one look-up after the other, first axis first."""
    data, indices = site.shape(0), site.shape(1)
    depth = indices[-1]
    if site.attribute("batch_dims", 0) or not isinstance(depth, int) or not 0 < depth <= len(data):
        raise UnfoldableError("batch_dims, or a number of indices that is not known, is not supported")
    count = product(indices[:-1])
    flat = site.reshape(site.tensor(1), (count, depth), last=False)
    table = site.reshape(site.tensor(0), (data[0], product(data[1:])), last=False)
    rows = site.step("embedding", [table, site.reshape(_column(site, flat, 0), (count,), last=False)])
    for axis in range(1, depth):
        rest = product(data[axis + 1 :])
        rows = site.reshape(rows, (count, data[axis], rest), last=False)
        chosen = site.reshape(_column(site, flat, axis), (count, 1, 1), last=False)
        if rest != 1:
            chosen = site.step("expand", [chosen], shape=(count, 1, rest))
        rows = site.step("gather", [rows, chosen], dim=1)
    return site.emit("reshape", [rows], shape=(*indices[:-1], *data[depth:]))


def _column(site: Site, flat: str, index: int) -> str:
    return site.step("slice", [flat], dim=1, start=index, end=index + 1, step=1)
