"""Where the weights of a block lie on its tiles, and on those of its experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ir.graph import Graph, Parameter
from ir.layout import MatrixLayout, matrix_layouts, sliced_layouts
from ir.plan import Rectangle
from targets.cost.paths import Stretches, at_home, joined, on_layout
from targets.program.instructions import Program


@dataclass(frozen=True, slots=True)
class Laid:
    """Weights on one region: ``layouts`` of the matrices by name; vectors lie at their elements' homes."""

    region: Rectangle
    layouts: Mapping[str, MatrixLayout]

    def stretches(self, parameter: Parameter) -> Stretches:
        """Where the elements of a weight lie, in its own order."""
        layout = self.layouts.get(parameter.name)
        return on_layout(layout, self.region) if layout else at_home(parameter.elements, self.region)


@dataclass(frozen=True, slots=True)
class LaidOut:
    """The weights of one block: ``parameters`` by name, its own, and those of each of its ``experts``, by number;
    ``slices`` are one expert's parts of stacked ones.
    """

    parameters: Mapping[str, Parameter]
    own: Laid
    experts: Mapping[int, Laid]
    slices: Mapping[str, Parameter]

    def stretches(self, parameter: Parameter) -> Stretches:
        """Where the elements of a weight lie, in its own order; of a stacked one, expert after expert."""
        if parameter.name not in self.slices:
            return self.own.stretches(parameter)
        one = self.slices[parameter.name]
        return joined([self.experts[number].stretches(one) for number in sorted(self.experts)])


def lay_out(program: Program, graph: Graph) -> LaidOut:
    """The weights of ``program``'s block."""
    placed, region = program.placed, program.placed.region
    parameters = [graph.parameter[name] for name in program.block.parameters]
    own = [p for p in parameters if p.name not in program.stacked]
    slices = [replace(p, type=p.type.with_shape(p.shape[1:])) for p in parameters if p.name in program.stacked]
    if placed.sliced:
        shared = sliced_layouts(slices, len(placed.experts), region.rows, region.columns)
        by_expert = dict(enumerate(shared))
    else:
        by_expert = {e.index: matrix_layouts(slices, e.region.rows, e.region.columns) for e in placed.experts}
    experts = {e.index: Laid(e.region, _by_name(by_expert[e.index])) for e in placed.experts}
    on_block = Laid(region, _by_name(matrix_layouts(own, region.rows, region.columns)))
    return LaidOut({p.name: p for p in parameters}, on_block, experts, {p.name: p for p in slices})


def _by_name(layouts: tuple[MatrixLayout, ...]) -> dict[str, MatrixLayout]:
    return {layout.parameter.name: layout for layout in layouts}
