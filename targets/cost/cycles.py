"""Cycles of one kernel on a region of tiles.

Weights stay where they are. A product [inputs, outputs] lies on the region as :mod:`ir.layout` says: inputs over its
rows of tiles, outputs over its columns. Each tile multiplies its share by vector instructions along the outputs, one
for each of its inputs, and the columns of tiles all-reduce the partial sums. The next product takes its inputs over the
columns and reduces along the rows, so no vector is ever transposed (WaferLLM, OSDI 2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from ir.profile import Attention, Kernel, Product, Reduction
from ir.target import WaferSpeed
from targets.cost.collectives import Fabric, all_reduce_cycles
from targets.cost.routing import touched_share

ACTIVATION_BYTES = 2
"""Activations and sums are 16 bit wide, as the makers state ("16-bit arithmetic") and published kernels do."""


@dataclass(frozen=True, slots=True)
class Cycles:
    """Cycles by cause.

    Attributes:
        arithmetic: multiply-adds at the width of the tile's vector unit, and starting its instructions.
        memory: what the ports of the tile's memory take beyond that.
        attention: arithmetic and memory of looking at the cache.
        unpacking: widening stored weights.
        communication: collectives on the mesh.
        launch: starting kernels.
    """

    arithmetic: float = 0.0
    memory: float = 0.0
    attention: float = 0.0
    unpacking: float = 0.0
    communication: float = 0.0
    launch: float = 0.0

    @property
    def total(self) -> float:
        """All of them, one after the other."""
        return self.arithmetic + self.memory + self.attention + self.unpacking + self.communication + self.launch

    def __add__(self, other: Cycles) -> Cycles:
        return Cycles(
            self.arithmetic + other.arithmetic,
            self.memory + other.memory,
            self.attention + other.attention,
            self.unpacking + other.unpacking,
            self.communication + other.communication,
            self.launch + other.launch,
        )

    def slowed(self, permille: int) -> Cycles:
        """What they take where all takes ``permille`` thousandths of the time."""
        if permille == 1000:
            return self
        return Cycles(**{cause: getattr(self, cause) * permille / 1000 for cause in CAUSES})

    def work(self, times: float) -> Cycles:
        """Arithmetic and memory ``times`` as often, all else once."""
        return replace(self, arithmetic=self.arithmetic * times, memory=self.memory * times)


CAUSES = tuple(field.name for field in fields(Cycles))
"""The causes, in order."""


@dataclass(frozen=True, slots=True)
class Region:
    """Tiles that work on one kernel. ``flipped``: inputs lie over the columns of tiles instead of the rows."""

    rows: int
    columns: int
    flipped: bool = False

    @property
    def over_inputs(self) -> int:
        """Tiles that a product's inputs are spread over, and its partial sums reduced along."""
        return self.columns if self.flipped else self.rows

    @property
    def over_outputs(self) -> int:
        """Tiles that a product's outputs are spread over."""
        return self.rows if self.flipped else self.columns

    def flip(self) -> Region:
        """The same tiles with the axes changed."""
        return Region(self.rows, self.columns, not self.flipped)


def fabric(speed: WaferSpeed) -> Fabric:
    """The mesh of a machine."""
    return Fabric(speed.hop_cycles, speed.ramp_cycles)


def wavelets(elements: float, speed: WaferSpeed) -> float:
    """Cycles in which a link passes ``elements`` activations."""
    return elements * ACTIVATION_BYTES / speed.link_bytes_per_cycle


def vector_cycles(length: float, speed: WaferSpeed) -> tuple[float, float]:
    """One multiply-add instruction over ``length`` elements in memory: (arithmetic, memory beyond that).

    For each element a weight and a sum are read, and the sum is written back.
    """
    port = ACTIVATION_BYTES * max(2 / speed.read_bytes_per_cycle, 1 / speed.write_bytes_per_cycle)
    arithmetic = length / speed.peak_macs_per_cycle
    return speed.issue_cycles + arithmetic, max(0.0, length * port - arithmetic)


def stationary_cycles(kernel: Kernel, region: Region, tokens: int, context: int, speed: WaferSpeed) -> Cycles:
    """``kernel`` for ``tokens`` tokens of one user that pass over its weights one after the other, the last of them
    with ``context`` tokens before it.
    """
    if isinstance(kernel, Reduction):
        passed = all_reduce_cycles(region.over_outputs, wavelets(kernel.results * tokens, speed), fabric(speed))
        return Cycles(communication=passed, launch=speed.launch_cycles)
    if isinstance(kernel, Attention):
        return _attention_cycles(kernel, region, tokens, context, speed)
    return _product_cycles(kernel, region, tokens, speed)


def _product_cycles(product: Product, region: Region, tokens: int, speed: WaferSpeed) -> Cycles:
    inputs: float = local_inputs(product, region.over_inputs)
    outputs = _share(product.outputs, region.over_outputs)
    passes = tokens * product.vectors
    if product.parts > 1:
        # Matrices side by side, as the heads': each has tiles of its own where there are enough.
        inputs = max(1.0, product.parts * product.inputs * product.outputs / (region.rows * region.columns * outputs))
    arithmetic, memory = (inputs * each for each in vector_cycles(outputs, speed))
    sent = wavelets(outputs * max(1, product.active), speed)
    # Tokens follow each other through the region: what takes longest for each sets their distance.
    passed = all_reduce_cycles(region.over_inputs, sent, fabric(speed))
    queued = (passes - 1) * max(0.0, sent - arithmetic - memory)
    return Cycles(
        arithmetic=arithmetic * passes,
        memory=memory * passes,
        unpacking=inputs * outputs * _unpacked(product, passes) * speed.unpack_cycles,
        communication=passed + queued,
        launch=speed.launch_cycles,
    )


def _unpacked(product: Product, tokens: int) -> float:
    """How often the weights that one token meets are widened for ``tokens``: once for each expert that they touch."""
    if not 0 < product.weight_bits <= 8:
        return 0.0
    if not product.experts:
        return 1.0
    return product.experts * touched_share(product.experts, product.active, tokens) / product.active


def local_inputs(product: Product, over: int) -> float:
    """Inputs on the fullest of ``over`` tiles, summed over the experts that serve a token.

    Groups that share a scale stay whole, and experts start where the last one ended (:mod:`ir.layout`).
    """
    groups = math.ceil(product.inputs / product.group)
    return math.ceil(groups * max(1, product.active) / over) * product.group


def _attention_cycles(kernel: Attention, region: Region, tokens: int, context: int, speed: WaferSpeed) -> Cycles:
    """Scores, their maximum and sum, and the weighted sum: four kernels, each with an all-reduce."""
    seen = max(1, kernel.tokens(context))
    keys = kernel.heads * kernel.key_width / region.over_inputs
    remembered = seen / region.over_outputs
    values = kernel.heads * kernel.value_width / region.over_inputs
    scores, weighted = _vectors(keys, remembered, speed), _vectors(remembered, values, speed)
    mesh = fabric(speed)
    heads = kernel.heads / region.over_inputs
    passed = (
        all_reduce_cycles(region.over_inputs, wavelets(math.ceil(remembered), speed), mesh)
        + 2 * all_reduce_cycles(region.over_outputs, wavelets(math.ceil(heads), speed), mesh)
        + all_reduce_cycles(region.over_outputs, wavelets(math.ceil(values), speed), mesh)
    )
    return Cycles(
        attention=(scores + weighted) * tokens * kernel.queries,
        communication=passed,
        launch=4 * speed.launch_cycles,
    )


def _vectors(count: float, length: float, speed: WaferSpeed) -> float:
    """``count`` vector instructions over ``length`` elements each; of less than one, what the fullest tile has."""
    return math.ceil(count) * sum(vector_cycles(math.ceil(length), speed))


def _share(elements: int, over: int) -> int:
    return math.ceil(elements / over)


def shifted_cycles(kernel: Kernel, region: Region, tokens: int, context: int, speed: WaferSpeed) -> Cycles:
    """``kernel`` for all ``tokens`` of a prompt at once: tokens lie over the rows, and both operands of a product move
    around the mesh by cyclic shifts, one step for each row (MeshGEMM of WaferLLM, OSDI 2025).
    """
    if isinstance(kernel, Reduction):
        rows = wavelets(_share(tokens, region.rows) * kernel.results, speed)
        passed = all_reduce_cycles(region.columns, rows, fabric(speed))
        return Cycles(communication=passed, launch=speed.launch_cycles)
    if isinstance(kernel, Attention):
        seen = max(1, min(kernel.tokens(context), context))
        width = kernel.heads * kernel.key_width, kernel.heads * kernel.value_width
        looking = tokens * kernel.queries
        looks = _gemm(looking, width[0], seen, region, speed) + _gemm(looking, seen, width[1], region, speed)
        softmax = all_reduce_cycles(region.columns, wavelets(_share(tokens, region.rows), speed), fabric(speed))
        return Cycles(
            attention=looks.arithmetic + looks.memory,
            communication=looks.communication + 2 * softmax,
            launch=looks.launch + 2 * speed.launch_cycles,
        )
    done = _gemm(tokens * kernel.vectors, product_inputs(kernel), kernel.outputs, region, speed)
    met = kernel.inputs * kernel.outputs * kernel.parts * max(1, kernel.active) * _unpacked(kernel, tokens)
    return done + Cycles(unpacking=met / (region.rows * region.columns) * speed.unpack_cycles)


def product_inputs(product: Product) -> int:
    """Inputs of a product for one token, those of all heads or active experts together."""
    return product.inputs * product.parts * max(1, product.active)


def _gemm(tokens: int, inputs: int, outputs: int, region: Region, speed: WaferSpeed) -> Cycles:
    """[tokens, inputs] x [inputs, outputs] by cyclic shifts: bytes move while a tile computes."""
    steps = max(region.rows, region.columns)
    m, k, n = _share(tokens, region.rows), _share(inputs, steps), _share(outputs, region.columns)
    # Vectors lie along the tokens of a tile: one instruction for each of its weights.
    arithmetic, memory = (k * n * each for each in vector_cycles(m, speed))
    exposed = wavelets(m * k + k * n, speed) - arithmetic - memory
    return Cycles(
        arithmetic=arithmetic * steps,
        memory=memory * steps,
        communication=steps * (max(0.0, exposed) + speed.shift_cycles),
        launch=speed.launch_cycles,
    )
