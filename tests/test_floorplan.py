"""Floor plans: rectangles on the mesh, apart from each other, and no tile over its memory, counted tile by tile."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir.encoding import ENCODINGS
from ir.graph import Parameter
from ir.layout import fullest_tile_bytes, sliced_layouts
from ir.plan import Rectangle
from ir.target import LayerRegions
from ir.types import DType, TensorType
from partitioner.case import Case
from partitioner.check import check
from partitioner.compile import compile_model
from partitioner.floorplan import wafers as layouts
from partitioner.floorplan.shapes import Demand, Shapes
from partitioner.floorplan.strips import arrange
from partitioner.floorplan.wafers import FloorPlanner, TooTight
from partitioner.floorplan.wishes import wishes_for
from partitioner.passes.profile import profile_of
from partitioner.placing import fewest_misfits
from partitioner.problem import Copy, ExpertLayout, footprint
from partitioner.solver.problem import Item, Problem, equal_wafers
from targets.cost.pipeline import pipeline_cost
from targets.cost.wafer import Stage
from targets.machines import load_wafers


def weight(*shape: int, encoding: str = "f32") -> Parameter:
    return Parameter(f"w{shape}", TensorType(DType.F32, shape), ENCODINGS[encoding])


# --- the ledger: what lies on each tile, element by element ---------------------------------------------------------


def shares(length: int, parts: int, unit: int, first: int) -> tuple[list[range], int]:
    """The elements of each part, dealt out unit by unit, and where the parts with one unit more end."""
    units = math.ceil(length / unit)
    counts = [units // parts] * parts
    for extra in range(units % parts):
        counts[(first + extra) % parts] += 1
    starts = [sum(counts[:part]) * unit for part in range(parts)]
    ranges = [range(min(s, length), min(s + n * unit, length)) for s, n in zip(starts, counts, strict=True)]
    return ranges, (first + units % parts) % parts


def ledger(parameters, spread_bytes: int, rows: int, columns: int) -> np.ndarray:
    """Bytes [rows, columns] on each tile."""
    tiles = rows * columns
    bits = np.zeros((rows, columns), dtype=np.int64)
    even = math.ceil(spread_bytes / tiles)
    first_row = first_column = 0
    for parameter in parameters:
        encoding = parameter.encoding
        if len(parameter.shape) < 2:
            even += math.ceil(parameter.elements / tiles) * encoding.bits // 8
            continue
        *stack, outputs, inputs = parameter.shape
        if stack and inputs < stack[0] and not encoding.scale_bytes:  # a kernel [out, in, positions]
            outputs, inputs, stack = stack[0], outputs * inputs, []
        over_rows, first_row = shares(inputs, rows, encoding.align_in, first_row)
        over_columns, first_column = shares(outputs, columns, 1, first_column)
        assert sum(map(len, over_rows)) == inputs
        assert sum(map(len, over_columns)) == outputs
        for row, own_inputs in enumerate(over_rows):
            for column, own_outputs in enumerate(over_columns):
                elements = len(own_inputs) * len(own_outputs) * encoding.bits
                groups_in = {index // encoding.group_in for index in own_inputs}
                groups_out = {index // encoding.group_out for index in own_outputs}
                scales = len(groups_in) * len(groups_out) * encoding.scale_bytes * 8
                bits[row, column] += math.prod(stack) * (elements + scales)
    return even + -(-bits // 8)


def sliced_ledger(parameters, experts: int, spread_bytes: int, rows: int, columns: int) -> np.ndarray:
    """Bytes [rows, columns] on each tile, where every expert's ``parameters`` lie on all tiles, dealt out by hand."""
    tiles = rows * columns
    bits = np.zeros((rows, columns), dtype=np.int64)
    even = math.ceil(spread_bytes / tiles)
    first_row = first_column = 0
    for parameter in parameters:
        encoding = parameter.encoding
        if len(parameter.shape) < 2:
            even += experts * (math.ceil(parameter.elements / tiles) * encoding.bits // 8)
            continue
        *stack, outputs, inputs = parameter.shape
        if stack and inputs < stack[0] and not encoding.scale_bytes:  # a kernel [out, in, positions]
            outputs, inputs, stack = stack[0], outputs * inputs, []
        unit = encoding.group_in if encoding.scale_bytes and encoding.group_in < inputs else encoding.align_in
        for expert in range(experts):
            over_rows, first_row = shares(inputs, rows, unit, first_row)
            over_columns, next_column = shares(outputs, columns, 1, first_column)
            if (expert + 1) % math.ceil(experts / 8) == 0 or expert + 1 == experts:
                first_column = next_column
            for row, own_inputs in enumerate(over_rows):
                for column, own_outputs in enumerate(over_columns):
                    whole = math.ceil(len(own_inputs) / unit) * unit
                    groups_in = {index // encoding.group_in for index in own_inputs}
                    groups_out = {index // encoding.group_out for index in own_outputs}
                    scales = len(groups_in) * len(groups_out) * encoding.scale_bytes * 8
                    bits[row, column] += math.prod(stack) * (whole * len(own_outputs) * encoding.bits + scales)
    return even + -(-bits // 8)


encodings = st.sampled_from(["f32", "bf16", "int4_g32", "mxfp4", "fp8_b128"])
weights = st.builds(
    lambda shape, name: weight(*shape, encoding=name), st.lists(st.integers(1, 40), min_size=1, max_size=3), encodings
)
held_weights, spreads = st.lists(weights, max_size=3).map(tuple), st.integers(0, 500)
demands = st.builds(Demand, held_weights, spreads, st.integers(0, 5))
sliced = st.builds(Demand, held_weights, spreads, st.integers(1, 20), sliced=st.just(value=True))
meshes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(demands, meshes)
def test_the_fullest_tile_is_that_of_the_ledger(demand, mesh):
    rows, columns = mesh
    tiles = ledger(demand.parameters, demand.spread_bytes, rows, columns)
    assert fullest_tile_bytes(demand.parameters, demand.spread_bytes, rows, columns) == tiles.max()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(demands, st.integers(1, 20), meshes)
def test_the_fullest_tile_of_sliced_experts_is_that_of_the_ledger(demand, experts, mesh):
    rows, columns = mesh
    tiles = sliced_ledger(demand.parameters, experts, demand.spread_bytes, rows, columns)
    assert fullest_tile_bytes(demand.parameters, demand.spread_bytes, rows, columns, experts) == tiles.max()
    layouts = sliced_layouts(demand.parameters, experts, rows, columns)
    assert len(layouts) == experts
    for number, parameter in enumerate(p for p in demand.parameters if len(p.shape) >= 2):
        own = [layout[number] for layout in layouts]
        assert {layout.parameter for layout in own} == {parameter}
        held = np.sum([np.ceil(np.diff(layout.inputs.bounds()) / layout.inputs.unit) for layout in own], axis=0)
        assert held.max() - held.min() <= 1  # rows hold as many units, to within one


# --- arranging one wafer --------------------------------------------------------------------------------------------


def occupied(width: int, height: int, rectangles) -> np.ndarray:
    """How many rectangles claim each tile; all must lie on the mesh."""
    claims = np.zeros((height, width), dtype=int)
    for r in rectangles:
        assert min(r.column, r.row) >= 0
        assert min(r.columns, r.rows) >= 1
        assert r.column + r.columns <= width
        assert r.row + r.rows <= height
        claims[r.row : r.row + r.rows, r.column : r.column + r.columns] += 1
    return claims


def held(demand: Demand, shape) -> int:
    """Bytes on the fullest tile of ``shape``, counted tile by tile."""
    if demand.sliced:
        return sliced_ledger(demand.parameters, demand.experts, demand.spread_bytes, shape.rows, shape.columns).max()
    return ledger(demand.parameters, demand.spread_bytes, shape.rows, shape.columns).max()


def cells(region: Rectangle, shape, count: int) -> list[Rectangle]:
    corners = [
        (region.column + a * shape.columns, region.row + d * shape.rows)
        for d in range(shape.down)
        for a in range(shape.across)
    ]
    return [Rectangle(*corner, shape.columns, shape.rows) for corner in corners[: max(1, count)]]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.lists(demands | sliced, min_size=1, max_size=4),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(16, 900),
    st.none() | st.lists(st.integers(0, 300), min_size=4, max_size=4),
)
def test_regions_are_on_the_mesh_apart_and_large_enough(wanted, width, height, tile_bytes, targets):
    shapes = [Shapes(demand, tile_bytes, width, height) for demand in wanted]
    least = arrange(shapes, width, height)
    placed = arrange(shapes, width, height, targets and targets[: len(wanted)])
    assert (placed is None) == (least is None)  # what is wished for takes nothing away
    if placed is None:
        return
    assert len(placed) == len(wanted)
    assert occupied(width, height, [region for region, _ in placed]).max() <= 1
    for demand, (region, shape) in zip(wanted, placed, strict=True):
        own = cells(region, shape, demand.regions)
        assert len(own) == demand.regions
        assert all(region.contains(cell) for cell in own)
        assert occupied(width, height, own).max() <= 1
        assert demand.regions > 1 or own == [region] or demand.experts
        assert held(demand, shape) <= tile_bytes


@settings(max_examples=100, deadline=None, derandomize=True)
@given(demands, st.integers(1, 8), st.integers(1, 8), st.integers(16, 400))
def test_one_block_is_refused_only_where_no_rectangle_holds_it(demand, width, height, tile_bytes):
    def holds(columns: int, rows: int) -> bool:
        room = (width // columns) * (height // rows) >= max(1, demand.experts)
        return room and ledger(demand.parameters, demand.spread_bytes, rows, columns).max() <= tile_bytes

    possible = any(holds(columns, rows) for columns in range(1, width + 1) for rows in range(1, height + 1))
    assert (arrange([Shapes(demand, tile_bytes, width, height)], width, height) is not None) == possible


def test_blocks_that_need_more_than_the_mesh_are_refused():
    demand = Demand((), 100 * 10)
    shapes = [Shapes(demand, 100, 5, 4)] * 2
    assert arrange(shapes, 5, 4) is not None
    assert arrange([*shapes, Shapes(Demand((), 1), 100, 5, 4)], 5, 4) is None


def test_a_wafer_of_three_large_layers_is_filled_to_97_percent():
    """Three layers of 384 experts, as large as those that a trillion parameters need, and caches beside them."""
    cs3 = load_wafers("cs3").machine
    matrices = tuple(weight(*shape, encoding="int4_g32") for shape in ((2048, 7168), (2048, 7168), (7168, 2048)))
    shared = tuple(weight(*p.shape, encoding="bf16") for p in matrices)
    attention = (
        weight(1536, 7168, encoding="bf16"),
        weight(24576, 1536, encoding="bf16"),
        weight(7168, 8192, encoding="bf16"),
    )
    layer = [
        Demand(attention, 600 << 20),
        Demand((weight(384, 7168, encoding="bf16"),), 4 << 20),
        Demand(shared, 4 << 20),
        Demand(matrices, 75_000, 384),
    ]
    wanted = layer * 3
    held = sum((sum(p.stored_bytes for p in d.parameters) + d.spread_bytes) * max(1, d.experts) for d in wanted)
    filler = Demand((), math.ceil(0.97 * cs3.wafer_bytes) - held)
    assert filler.spread_bytes > 0
    wanted.append(filler)
    shapes = {demand: Shapes(demand, cs3.tile_bytes, cs3.columns, cs3.rows) for demand in wanted}
    placed = arrange([shapes[demand] for demand in wanted], cs3.columns, cs3.rows)
    assert placed is not None
    assert occupied(cs3.columns, cs3.rows, [region for region, _ in placed]).max() == 1
    for demand, (_, shape) in zip(wanted, placed, strict=True):
        assert fullest_tile_bytes(demand.parameters, demand.spread_bytes, shape.rows, shape.columns) <= cs3.tile_bytes


def test_spare_tiles_are_given_to_those_who_should_have_them():
    matrix = Demand((weight(40, 60),), 0)
    shapes = [Shapes(matrix, 1200, 30, 20)] * 3
    least = [region.tiles for region, _ in arrange(shapes, 30, 20)]
    assert least == [8, 8, 8]
    roomy = [region.tiles for region, _ in arrange(shapes, 30, 20, [100, 0, 200])]
    assert 100 <= roomy[0] <= 120
    assert roomy[1] == 8
    assert 200 <= roomy[2] <= 230
    # Not all have room for 400 tiles: they share what there is alike, and most of the mesh is used.
    tight = [region.tiles for region, _ in arrange(shapes, 30, 20, [400, 400, 400])]
    assert sum(tight) > 0.75 * 600
    assert max(tight) - min(tight) <= 30


def test_sliced_experts_fill_no_more_tiles_than_their_bytes_need():
    """384 experts of packed 4-bit weights, whose 64 or 224 groups of inputs cannot be parted."""
    cs3 = load_wafers("cs3").machine
    matrices = tuple(weight(*shape, encoding="int4_g32") for shape in ((2048, 7168), (2048, 7168), (7168, 2048)))
    shapes = Shapes(Demand(matrices, 8 << 20, 384, sliced=True), cs3.tile_bytes, cs3.columns, cs3.rows)
    stored = 384 * sum(p.stored_bytes for p in matrices) + (8 << 20)
    assert shapes.least_tiles * cs3.tile_bytes < 1.005 * stored
    for width in range(300, 751, 50):
        shape = shapes.limited(math.inf).at(width)
        assert shape.columns * shape.rows * cs3.tile_bytes < 1.02 * stored


# --- whole models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[*ExpertLayout])
def placed_small_kimi(request, compiled_small_kimi):
    """``small-kimi`` with its experts laid out in each way."""
    plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
    return request.param, compile_model(Case(model, plan.machine, plan.workload, request.param))


def test_a_model_is_laid_out_within_every_tile(placed_small_kimi):
    way, compiled = placed_small_kimi
    plan, model = compiled.plan, compiled.model
    machine = plan.machine
    for wafer in plan.wafers_used:
        regions = [block.region for block in plan.on_wafer(wafer)]
        assert occupied(machine.columns, machine.rows, regions).max() == 1
    for block, source in zip(plan.blocks, model.blocks, strict=True):
        weights = [model.graph.parameter[name] for name in source.parameters]
        spread = block.cache_bytes + block.activation_bytes
        if not source.experts:
            tiles = ledger(weights, spread, block.region.rows, block.region.columns)
            assert tiles.max() == block.tile_bytes <= machine.tile_bytes
            continue
        assert block.sliced == (way is not ExpertLayout.APART)
        assert [expert.index for expert in block.experts] == list(range(source.experts))
        own = [weight(*p.shape[1:], encoding=p.encoding.name) for p in weights]
        if block.sliced:
            tiles = sliced_ledger(own, source.experts, spread, block.region.rows, block.region.columns)
            assert tiles.max() == block.tile_bytes <= machine.tile_bytes
            continue
        assert occupied(machine.columns, machine.rows, [e.region for e in block.experts]).max() == 1
        for region in {expert.region for expert in block.experts}:
            assert block.region.contains(region)
            tiles = ledger(own, math.ceil(spread / source.experts), region.rows, region.columns)
            assert tiles.max() == block.tile_bytes <= machine.tile_bytes


def latency_s(compiled) -> float:
    """What the cost model says of one token through a plan."""
    plan = compiled.plan
    stages = []
    for index, block in enumerate(plan.blocks):
        own = Rectangle(0, 0, 0, 0) if block.sliced or not block.experts else block.experts[0].region
        stages.append(Stage(index, block.wafer, block.region.rows, block.region.columns, own.rows, own.columns))
    profile = profile_of(compiled.model, None)
    return pipeline_cost(profile, stages, 1, plan.workload.context, load_wafers("mini").speed).latency_s


def test_spare_tiles_make_a_token_faster(placed_small_kimi):
    way, least = placed_small_kimi
    wafers, plan = load_wafers("mini"), least.plan
    assert wafers.machine == plan.machine
    grown = compile_model(Case(least.model, plan.machine, plan.workload, way, speed=wafers.speed))
    assert check(grown.plan, least.model) == ()
    assert [b.wafer for b in grown.plan.blocks] == [b.wafer for b in plan.blocks]
    before, after = (sum(b.region.tiles for b in own.plan.blocks) for own in (least, grown))
    assert after > 1.5 * before
    assert latency_s(grown) < latency_s(least)
    assert all(b.sliced == (way is not ExpertLayout.APART) for b in grown.plan.blocks if b.experts)


def test_sliced_experts_serve_a_token_sooner(compiled_small_kimi):
    plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
    speed = load_wafers("mini").speed
    ways = {
        way: latency_s(compile_model(Case(model, plan.machine, plan.workload, way, speed=speed)))
        for way in ExpertLayout
    }
    assert ways[ExpertLayout.AUTO] == min(ways.values())


def test_layers_that_take_turns_on_the_mesh_get_no_more_than_they_need(placed_small_kimi):
    way, least = placed_small_kimi
    turns = replace(load_wafers("mini").speed, layers=LayerRegions.WHOLE_MESH)
    plan = compile_model(Case(least.model, least.plan.machine, least.plan.workload, way, speed=turns)).plan
    assert plan.blocks == least.plan.blocks


def test_a_wafer_that_stays_empty_wishes_for_nothing(compiled_small_kimi):
    plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
    profile = profile_of(model, None)
    wishes = wishes_for(profile, plan.machine, load_wafers("mini").speed, plan.workload, ExpertLayout.AUTO)
    planner = FloorPlanner(model, plan.machine, plan.workload, wishes=wishes)
    (embedding,) = planner.lay_out([[], [Copy(0)], []])
    assert embedding.wafer == 1
    assert embedding.region.tiles >= wishes.of([Copy(0)], planner.mesh(1))[0].tiles > 0


def test_equal_wafers_are_laid_out_once_and_alike(compiled_small_kimi, monkeypatch):
    calls = []
    monkeypatch.setattr(layouts, "arrange", lambda *given: calls.append(1) or arrange(*given))
    plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
    planner = FloorPlanner(model, plan.machine, plan.workload)
    layer = [[Copy(i) for i, b in enumerate(model.blocks) if b.layer == n] for n in (1, 2, 3)]
    placed = planner.lay_out(layer)
    assert len(calls) == 1
    by_layer = [[b.region for b in placed if b.layer == n] for n in (1, 2, 3)]
    assert by_layer[0] == by_layer[1] == by_layer[2]


def test_what_cannot_be_laid_out_is_named(compiled_small_kimi):
    plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
    planner = FloorPlanner(model, plan.machine, plan.workload)
    everything = tuple(map(Copy, range(len(model.blocks))))
    assert planner.lay_out([[], everything]) == TooTight(1, everything)
    assert not planner.fits(everything)
    assert planner.fits([])
    assert all(planner.fits([copy]) for copy in everything)


def test_regions_hold_no_less_than_the_bytes_they_are_for(compiled_small_kimi):
    plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
    for placed, block in zip(plan.blocks, model.blocks, strict=True):
        assert placed.bytes == footprint(block, plan.workload).bytes
        assert placed.bytes <= placed.region.tiles * plan.machine.tile_bytes


# --- what does not fit on one wafer ---------------------------------------------------------------------------------


class Balance:
    """A floor planner in miniature: blocks of given sizes fit where their sum is at most the room."""

    def __init__(self, sizes: list[int], room: int) -> None:
        self.sizes, self.room = sizes, room

    def mesh(self, _wafer: int) -> tuple[int, int]:
        return 99, 1

    def fits(self, blocks, _mesh=None) -> bool:
        return sum(self.sizes[copy.block] for copy in blocks) <= self.room


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_the_misfits_named_are_none_too_many(sizes, data):
    planner = Balance(sizes, data.draw(st.integers(0, sum(sizes) - 1)))
    problem = Problem(tuple(Item((n,), 1, 1, n) for n in range(len(sizes))), (), equal_wafers(2, 99))
    kept = set(map(Copy, fewest_misfits(problem, planner, range(len(sizes)), 0)))
    assert not planner.fits(kept)
    assert all(planner.fits(kept - {item}) for item in kept)


@pytest.mark.parametrize("refused", [1, 2])
def test_what_was_refused_is_placed_apart_and_the_bound_stays(compiled_small_kimi, monkeypatch, refused):
    """A floor planner that fails proves nothing: the plan is sound, but no longer called optimal if it is worse."""
    plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
    first = [
        [model.blocks.index(b) for b in model.blocks if b.name in {p.name for p in plan.on_wafer(w)}] for w in range(4)
    ]
    too_tight = {frozenset(blocks) for blocks in first[:refused]}
    arrange_ = FloorPlanner._arrange
    monkeypatch.setattr(
        FloorPlanner,
        "_arrange",
        lambda self, blocks, *how: (
            None if any(s <= {copy.block for copy in blocks} for s in too_tight) else arrange_(self, blocks, *how)
        ),
    )
    second = compile_model(Case(model, plan.machine, plan.workload)).plan
    wafers = [
        {model.blocks.index(b) for b in model.blocks if b.name in {p.name for p in second.on_wafer(w)}}
        for w in range(4)
    ]
    assert not any(s <= on for s in too_tight for on in wafers)
    (balance, _), (before, _) = second.solver.scores, plan.solver.scores
    assert balance.bound == before.bound
    assert bool(balance.proof) == (balance.value == before.value)
    assert check(second, model) == ()
    assert second.blocks != plan.blocks
