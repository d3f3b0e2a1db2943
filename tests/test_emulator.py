"""The emulator computes what the reference does, from tile memories, along the plan's transfers, within its limits."""

from bisect import bisect_left
from dataclasses import replace

import numpy as np
import pytest
import torch

from ir.diagnostics import CheckError, UsageError
from ir.encoding import ENCODINGS
from ir.graph import Graph, Parameter
from ir.interpret import interpret
from ir.layout import fullest_tile_bytes, sliced_layouts
from ir.machine import Machine
from ir.model import Block, BlockKind, Cache, Model
from ir.plan import PlacedBlock, PlacedExpert, Plan, Rectangle, SolverRecord, Transfer
from ir.text import parse_graph
from ir.types import DType, TensorType
from ir.verify import verify
from ir.workload import Workload
from partitioner.passes.cache import find_caches
from targets.emulator import Arithmetic, Emulator, Order, Precision, Traffic, generate
from targets.emulator.ledger import weight_bytes

REGION = Rectangle(2, 1, 5, 7)
MACHINE = Machine("toy", "a small wafer", 40, 30, 8192, 0, 3)
ONE_USER = Workload(1, 64, 1)
TWO_USERS = Workload(2, 10, 1)
SOLVER = SolverRecord("feasible", (), 0, 0.0)


def graph_of(text: str) -> Graph:
    return verify(parse_graph(text))


def block_of(graph, name, nodes, kind=BlockKind.OTHER, caches=(), experts=0) -> Block:
    read = {name for index in nodes for name in graph.nodes[index].inputs}
    parameters = tuple(p.name for p in graph.parameters if p.name in read)
    size = sum(graph.parameter[p].stored_bytes for p in parameters)
    return Block(name, kind, None, tuple(nodes), parameters, size, experts, min(experts, 2), tuple(caches), 0, 0, 0)


def plan_of(model: Model, places, transfers=(), workload=ONE_USER, machine=MACHINE, experts=()) -> Plan:
    placed = tuple(
        PlacedBlock(
            block.name, block.kind, None, wafer, region, block.parameters, block.weight_bytes,
            block.cache_bytes(workload.users, workload.context), 0, 0, 0,
            tuple(PlacedExpert(i, wafer, r) for i, r in enumerate(experts)) if block.experts else (), 0,
        )
        for block, (wafer, region) in zip(model.blocks, places, strict=True)
    )  # fmt: skip
    sent = tuple(Transfer(value, source, start, end, 0) for value, source, start, end in transfers)
    return Plan(model.graph.name, machine, workload, placed, sent, SOLVER)


def random_weights(graph: Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {p.name: torch.randn(p.shape, generator=generator) * 0.3 for p in graph.parameters}


def one_block(graph: Graph, region: Rectangle = REGION, **others):
    model = Model(graph, (block_of(graph, "all", range(len(graph.nodes)), **others),), (), ())
    return model, plan_of(model, [(0, region)])


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# --- Products ---------------------------------------------------------------------------------------------------------

LINEAR = """graph "linear" {{
  input %x : f32[users, tokens, {inputs}]
  param %w : f32[{shape}] as {encoding}
  param %b : f32[{outputs}] as f32
  %y : f32[users, tokens, {outputs}] = linear(%x, %w, %b) {{transposed = {transposed}}} @ "y"
  return %y
}}"""


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("inputs", "outputs", "region"),
    [(37, 53, REGION), (3, 70, Rectangle(0, 0, 9, 11)), (64, 2, Rectangle(3, 3, 4, 1)), (12, 9, Rectangle(0, 0, 1, 1))],
)
def test_linear_equals_the_plain_product(inputs, outputs, region, transposed, tokens):
    shape = f"{inputs}, {outputs}" if transposed else f"{outputs}, {inputs}"
    text = LINEAR.format(
        inputs=inputs, outputs=outputs, shape=shape, transposed=str(transposed).lower(), encoding="f32"
    )
    graph = graph_of(text)
    emulator = Emulator(*one_block(graph, region), weights := random_weights(graph))
    x = torch.randn(1, tokens, inputs, generator=torch.Generator().manual_seed(1))
    expected = interpret(graph, {"x": x, **weights})["y"]
    close(emulator.step({"x": x})["y"], expected)
    assert emulator.counters.multiply_adds == tokens * inputs * outputs
    ways = links_of_a_product(emulator.memories["all"].own.layouts["w"], transposed, region)
    assert emulator.counters.ops["all", "y"].mesh == {
        name: Traffic(1, max(links), 4 * tokens * sum(links)) for name, links in ways.items() if max(links)
    }


def links_of_a_product(layout, transposed, region):
    """Links that each element crosses: from its home to its line of tiles and along it, across, and home again."""
    over_rows, over_columns = lines_and_homes(layout.inputs, region), lines_and_homes(layout.outputs, region)
    last_row, last_column = region.rows - 1, region.columns - 1
    if transposed:
        enter = [abs(line - column) + last_row for line, _, column in over_columns]
        leave = [abs(line - row) + last_column - column for line, row, column in over_rows]
        return {"enter": enter, "chain": [last_column] * len(leave), "leave": leave}
    enter = [abs(line - row) + last_column for line, row, _ in over_rows]
    leave = [abs(line - column) + last_row - row for line, row, column in over_columns]
    return {"enter": enter, "chain": [last_row] * len(leave), "leave": leave}


def lines_and_homes(split, region):
    """For each element the line of tiles that the layout gives it, and the row and column of its home."""
    lines = [line for line, size in enumerate(np.diff(split.bounds())) for _ in range(size)]
    return [(line, *divmod(e * region.tiles // split.length, region.columns)) for e, line in enumerate(lines)]


def test_packed_groups_stay_on_one_tile():
    text = LINEAR.format(inputs=96, outputs=10, shape="10, 96", transposed="false", encoding="int4_g32")
    graph = graph_of(text)
    emulator = Emulator(*one_block(graph), weights := random_weights(graph))
    x = torch.randn(1, 2, 96)
    close(emulator.step({"x": x})["y"], interpret(graph, {"x": x, **weights})["y"])
    matrix = emulator.memories["all"].own.layouts["w"]
    assert sorted(np.diff(matrix.inputs.bounds()).tolist()) == [0, 0, 0, 0, 32, 32, 32]


@pytest.mark.parametrize("order", Order)
def test_every_share_is_in_use(order):
    """Corrupting any one tile changes its own outputs: nothing is read from elsewhere."""
    text = LINEAR.format(inputs=37, outputs=53, shape="53, 37", transposed="false", encoding="f32")
    graph = graph_of(text)
    emulator = Emulator(*one_block(graph), random_weights(graph), Arithmetic(order=order))
    x = torch.ones(1, 1, 37)
    before = emulator.step({"x": x})["y"]
    memory = emulator.memories["all"].own
    inputs, outputs = (split.bounds() for split in (memory.layouts["w"].inputs, memory.layouts["w"].outputs))
    for row in range(REGION.rows):
        for column in range(REGION.columns):
            (top, bottom), (left, right) = outputs[column : column + 2], inputs[row : row + 2]
            share = memory.values("w")[top:bottom, left:right]  # a view of what the host holds
            share += 1.0
            changed = (emulator.step({"x": x})["y"] - before).abs() > 1e-3
            assert changed[0, 0].nonzero().flatten().tolist() == list(range(top, bottom))
            share -= 1.0


def test_weights_through_casts_and_transpositions_stay_on_their_tiles():
    graph = graph_of("""graph "router" {
      input %x : bf16[users, tokens, 24]
      param %w : bf16[24, 10] as bf16
      param %scale : bf16[24] as bf16
      %n : bf16[users, tokens, 24] = rms_norm(%x, %scale) {epsilon = 1e-05} @ "n"
      %x32 : f32[users, tokens, 24] = cast(%n) {dtype = f32} @ "x"
      %wt : bf16[10, 24] = transpose(%w) {permutation = [1, 0]} @ "w"
      %w32 : f32[10, 24] = cast(%wt) {dtype = f32} @ "w"
      %y : f32[users, tokens, 10] = linear(%x32, %w32) {transposed = false} @ "y"
      return %y
    }""")
    weights = {name: value.bfloat16() for name, value in random_weights(graph).items()}
    emulator = Emulator(*one_block(graph), weights)
    x = torch.randn(1, 3, 24).bfloat16()
    wide = {name: value.float() for name, value in {"x": x, **weights}.items()}
    close(emulator.step({"x": x})["y"], interpret(graph, wide)["y"])
    assert not emulator.counters.by_reference
    assert "collect" not in emulator.counters.mesh  # the product's weight never left its tiles


def test_a_weight_that_is_no_plain_matrix_is_collected():
    graph = graph_of("""graph "stack" {
      input %x : f32[users, 6]
      param %w : f32[3, 5, 6] as f32
      %flat : f32[15, 6] = reshape(%w) {shape = [15, 6]} @ "w"
      %y : f32[users, 15] = linear(%x, %flat) {transposed = false} @ "y"
      return %y
    }""")
    emulator = Emulator(*one_block(graph), weights := random_weights(graph))
    x = torch.randn(2, 6)
    close(emulator.step({"x": x})["y"], interpret(graph, {"x": x, **weights})["y"])


def test_embedding_comes_from_the_tiles():
    graph = graph_of("""graph "embedding" {
      input %ids : i64[users, tokens]
      param %table : f32[101, 23] as f32
      %y : f32[users, tokens, 23] = embedding(%table, %ids) @ "y"
      return %y
    }""")
    emulator = Emulator(*one_block(graph), weights := random_weights(graph))
    ids = torch.tensor([[0, 100, 7, 7, 50, 20, 21]])
    assert torch.equal(emulator.step({"ids": ids})["y"], weights["table"][ids])
    with pytest.raises(CheckError, match="W0604"):
        emulator.step({"ids": torch.tensor([[101]])})


# --- Experts ----------------------------------------------------------------------------------------------------------

EXPERTS = """graph "experts" {{
  input %x : f32[tokens, 1, 12]
  input %chosen : i64[tokens, 2]
  param %up : f32[4, {up}] as f32
  param %bias : f32[4, 18] as f32
  %y : f32[tokens, 2, 18] = grouped_linear(%x, %up, %chosen, %bias) {{transposed = {transposed}}} @ "y"
  return %y
}}"""


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_run_on_their_own_regions(transposed):
    up = "12, 18" if transposed else "18, 12"
    graph = graph_of(EXPERTS.format(up=up, transposed=str(transposed).lower()))
    model, _ = one_block(graph, kind=BlockKind.EXPERTS, experts=4)
    regions = [Rectangle(0, 0, 5, 3), Rectangle(5, 0, 4, 7), Rectangle(0, 3, 1, 9), Rectangle(9, 0, 6, 6)]
    plan = plan_of(model, [(0, Rectangle(0, 0, 15, 12))], experts=regions)
    emulator = Emulator(model, plan, weights := random_weights(graph))
    inputs = {"x": torch.randn(5, 1, 12), "chosen": torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])}
    result = emulator.step(inputs)["y"]
    close(result, interpret(graph, {**inputs, **weights})["y"])
    assert emulator.counters.multiply_adds == 10 * 12 * 18
    assert emulator.counters.routing["y"].tolist() == [[2, 2], [2, 1], [1, 2], [0, 0]]
    experts = emulator.memories["all"].experts
    lengths = {e: (r.columns if transposed else r.rows) - 1 for e, r in enumerate(regions)}
    chained = [(tokens, lengths[e]) for e, tokens in {0: 4, 1: 3, 2: 3}.items() if lengths[e]]
    # Each chosen expert's runs once at each of two places of the choice.
    hops, moved = 2 * sum(length for _, length in chained), sum(4 * 18 * tokens * length for tokens, length in chained)
    assert emulator.counters.mesh["chain"] == Traffic(2 * len(chained), hops, moved)
    assert [(layout.inputs.parts, layout.outputs.parts) for layout in (experts[e].layouts["up"] for e in range(4))] == [
        (region.rows, region.columns) for region in regions
    ]
    experts[3].values("up")[:] = torch.nan  # chosen by no token
    assert torch.equal(emulator.step(inputs)["y"], result)
    experts[2].values("up")[:] = torch.nan
    assert torch.equal(emulator.step(inputs)["y"].isnan().all(-1), inputs["chosen"] == 2)


def test_the_way_to_an_expert_and_back_is_counted_element_by_element():
    graph = graph_of(EXPERTS.format(up="18, 12", transposed="false"))
    model, _ = one_block(graph, kind=BlockKind.EXPERTS, experts=4)
    home, region = Rectangle(0, 0, 15, 12), Rectangle(4, 7, 5, 3)
    emulator = Emulator(model, plan_of(model, [(0, home)], experts=[region] * 4), random_weights(graph))
    emulator.step({"x": torch.randn(1, 1, 12), "chosen": torch.tensor([[2, 2]])})
    layout = emulator.memories["all"].experts[2].layouts["up"]
    lines_in, lines_out = (
        [line for line, size in enumerate(np.diff(split.bounds())) for _ in range(size)]
        for split in (layout.inputs, layout.outputs)
    )
    enter, leave = [], []
    for element, line in enumerate(lines_in):
        row, column = divmod(element * home.tiles // 12, home.columns)
        to_the_line = abs(region.row + line - row) + max(0, region.column - column, column - 8)
        enter.append(to_the_line + region.columns - 1)
    for place in range(2):
        for element, line in enumerate(lines_out):
            row, column = divmod((18 * place + element) * home.tiles // 36, home.columns)
            leave.append(abs(region.row + 2 - row) + abs(region.column + line - column))
    assert emulator.counters.mesh["enter"] == Traffic(2, 2 * max(enter), 2 * 4 * sum(enter))
    assert emulator.counters.mesh["leave"] == Traffic(2, max(leave[:18]) + max(leave[18:]), 4 * sum(leave))


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_that_share_a_region_compute_the_same(transposed):
    up = "12, 18" if transposed else "18, 12"
    graph = graph_of(EXPERTS.format(up=up, transposed=str(transposed).lower()))
    model, _ = one_block(graph, kind=BlockKind.EXPERTS, experts=4)
    plan = plan_of(model, [(0, REGION)], experts=[REGION] * 4)
    plan = replace(plan, blocks=(replace(plan.blocks[0], activation_bytes=50),))
    assert plan.blocks[0].sliced
    emulator = Emulator(model, plan, weights := random_weights(graph))
    inputs = {"x": torch.randn(5, 1, 12), "chosen": torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])}
    result = emulator.step(inputs)["y"]
    close(result, interpret(graph, {**inputs, **weights})["y"])
    assert emulator.counters.multiply_adds == 10 * 12 * 18
    experts = emulator.memories["all"].experts
    assert {tiles.region for tiles in experts.values()} == {REGION}
    assert len({tiles.layouts["up"] for tiles in experts.values()}) > 1  # larger shares move on from one to the next
    start, end = experts[2].layouts["up"].inputs.bounds()[3:5]
    values = experts[2].values("up")
    (values[start:end] if transposed else values[:, start:end])[:] = torch.nan  # a row of tiles of one expert
    assert torch.equal(emulator.step(inputs)["y"].isnan().any(-1), inputs["chosen"] == 2)
    held = emulator.ledgers[0].bytes
    assert held[0].sum() == model.blocks[0].weight_bytes
    assert held[2].sum() == 50
    slices = [replace(p, type=p.type.with_shape(p.shape[1:])) for p in graph.parameters]
    bound = fullest_tile_bytes(slices, 50, REGION.rows, REGION.columns, 4)
    assert bound - 8 <= held.sum(axis=0).max() <= bound  # vectors may have their larger shares elsewhere


@pytest.mark.parametrize("encoding", ["f32", "int4_g32", "fp8_b128", "uint4_row_f16"])
def test_what_sliced_experts_claim_is_what_their_tiles_hold(encoding):
    shapes = {"a": (64, 256), "b": (256, 64)}
    one, other = (Parameter(name, TensorType(DType.F32, shape), ENCODINGS[encoding]) for name, shape in shapes.items())
    for rows, columns in ((1, 1), (7, 5), (13, 60)):
        claimed = weight_bytes([one, other], rows, columns, 10)
        assert claimed.max() == fullest_tile_bytes([one, other], 0, rows, columns, 10)
        bits = np.zeros((rows, columns), np.int64)
        for layouts in sliced_layouts([one, other], 10, rows, columns):
            for layout in layouts:
                bits += sum(np.outer(*pair) for pair in layout.bit_factors())
        assert np.array_equal(claimed, -(-bits // 8))
    assert weight_bytes([one, other], 1, 1, 10)[0, 0] == 10 * (one.stored_bytes + other.stored_bytes)


def test_an_expert_without_a_place_is_refused():
    graph = graph_of(EXPERTS.format(up="18, 12", transposed="false"))
    model, _ = one_block(graph, kind=BlockKind.EXPERTS, experts=4)
    plan = plan_of(model, [(0, REGION)], experts=[REGION] * 3)
    with pytest.raises(CheckError, match="W0607"):
        Emulator(model, plan, random_weights(graph))


def test_experts_beside_a_router_in_one_block():
    """A block of another kind may hold experts too, and a weight that only looks like a stack of them."""
    graph = graph_of("""graph "mixture" {
      input %x : f32[users, tokens, 12]
      param %gate : f32[4, 12] as f32
      param %up : f32[4, 18, 12] as f32
      %flat : f32[users*tokens, 12] = reshape(%x) {shape = [users*tokens, 12]} @ "x"
      %scores : f32[users*tokens, 4] = linear(%flat, %gate) {transposed = false} @ "gate"
      %best : f32[users*tokens, 2], %chosen : i64[users*tokens, 2] = topk(%scores) {dim = 1, k = 2} @ "gate"
      %x3 : f32[users*tokens, 1, 12] = reshape(%flat) {shape = [users*tokens, 1, 12]} @ "x"
      %y : f32[users*tokens, 2, 18] = grouped_linear(%x3, %up, %chosen) {transposed = false} @ "y"
      return %y, %best
    }""")
    model, _ = one_block(graph, kind=BlockKind.OTHER, experts=4)
    regions = [Rectangle(8 * e, 9, 2 + e, 3) for e in range(4)]
    x = torch.randn(2, 5, 12)
    weights = random_weights(graph)
    expected = interpret(graph, {"x": x, **weights})
    for experts in ((), regions):
        emulator = Emulator(model, plan_of(model, [(0, REGION)], experts=experts), weights)
        outputs = emulator.step({"x": x})
        close(outputs["y"], expected["y"])
        close(outputs["best"], expected["best"])
        memory = emulator.memories["all"]
        assert "gate" in memory.own.layouts
        assert [list(tiles.layouts) for tiles in memory.experts.values()] == [["up"]] * len(experts)


# --- Elements that meet -----------------------------------------------------------------------------------------------

MEETING = """graph "meeting" {
  input %x : f32[users, tokens, 6, 11]
  param %scale : f32[11] as f32
  param %shift : f32[11] as f32
  %rms : f32[users, tokens, 6, 11] = rms_norm(%x, %scale) {epsilon = 1e-05} @ "a"
  %norm : f32[users, tokens, 6, 11] = layer_norm(%x, %scale, %shift) {epsilon = 1e-05} @ "a"
  %soft : f32[users, tokens, 6, 11] = softmax(%x) {dim = 3} @ "a"
  %log : f32[users, tokens, 6, 11] = log_softmax(%x) {dim = 3} @ "a"
  %all : f32[users, tokens] = sum(%x) {dims = [2, 3], keepdim = false} @ "a"
  %mean : f32[users, tokens, 6, 1] = mean(%x) {dims = [3], keepdim = true} @ "a"
  %prod : f32[users, tokens, 6] = prod(%x) {dims = [3], keepdim = false} @ "a"
  %most : f32[users, tokens, 6] = amax(%x) {dims = [3], keepdim = false} @ "a"
  %least : f32[users, tokens] = amin(%x) {dims = [2, 3], keepdim = false} @ "a"
  %place : i64[users, tokens, 6] = argmax(%x) {dims = [3], keepdim = false} @ "a"
  %best : f32[users, tokens, 6, 4], %chosen : i64[users, tokens, 6, 4] = topk(%x) {dim = 3, k = 4} @ "a"
  %worst : f32[users, tokens, 6, 3], %last : i64[users, tokens, 6, 3] = topk(%x) {dim = 3, k = 3, largest = false} @ "a"
  %picked : f32[users, tokens, 6, 4] = gather(%rms, %chosen) {dim = 3} @ "a"
  %heads : f32[users, tokens, 11] = sum(%x) {dims = [2], keepdim = false} @ "a"
  %top : f32[users, tokens, 1, 11] = amax(%x) {dims = [2], keepdim = true} @ "a"
  return %rms, %norm, %soft, %log, %all, %mean, %prod, %most, %least, %place, %best, %chosen, %worst, %last, %picked, %heads, %top
}"""  # noqa: E501


@pytest.mark.parametrize("region", [REGION, Rectangle(1, 0, 1, 9), Rectangle(0, 0, 20, 17)])
def test_the_order_of_the_mesh_changes_only_the_rounding(region):
    graph = graph_of(MEETING)
    model, plan = one_block(graph, region)
    x = torch.randn(1, 3, 6, 11, generator=torch.Generator().manual_seed(3))
    x[0, 1, 2] = 0.5  # equals are chosen by their lowest index
    x[0, 2, 3] = -torch.inf
    x[0, 2, 3, 4] = 1.0
    weights = random_weights(graph)
    expected = interpret(graph, {"x": x, **weights})
    for order in Order:
        found = Emulator(model, plan, weights, Arithmetic(order=order)).step({"x": x})
        for name in graph.outputs:
            assert found[name].dtype == expected[name].dtype
            torch.testing.assert_close(found[name], expected[name], rtol=2e-6, atol=1e-6, equal_nan=True)


def test_sums_are_taken_on_each_tile_then_along_its_row_then_down_the_first_column():
    """Bit for bit what tiles would do that know only their own elements and what their neighbours send."""
    region = Rectangle(3, 2, 4, 5)
    graph = graph_of("""graph "sum" {
      input %x : f32[users, tokens, 37]
      %y : f32[users, tokens] = sum(%x) {dims = [2], keepdim = false} @ "a"
      return %y
    }""")
    emulator = Emulator(*one_block(graph, region), {}, Arithmetic(order=Order.MESH))
    x = torch.randn(1, 2, 37) * torch.logspace(0, 6, 37)
    for token in range(2):
        sums = np.zeros((5, 4), np.float32)  # two elements at most on each tile, so one sum each
        for element, value in enumerate(x[0, token].numpy()):
            sums[divmod(element * 20 // 37, 4)] += value
        rows = np.zeros(5, np.float32)
        for row in range(5):
            total = sums[row, 3]
            for column in (2, 1, 0):
                total = total + sums[row, column]
            rows[row] = total
        total = rows[0]
        for row in range(1, 5):
            total = total + rows[row]
        assert emulator.step({"x": x})["y"][0, token] == float(total)
    assert emulator.counters.ops["all", "y"].mesh == {"all_reduce": Traffic(1, 2 * 7, 2 * 19 * 4 * 2)}


def test_native_products_and_norms_sum_in_32_bit_on_the_mesh():
    text = LINEAR.format(inputs=300, outputs=53, shape="53, 300", transposed="false", encoding="bf16")
    graph = graph_of(text.replace("f32", "bf16"))
    weights = {name: value.bfloat16() for name, value in random_weights(graph).items()}
    x = torch.randn(1, 3, 300).bfloat16()
    emulator = Emulator(*one_block(graph), weights, Arithmetic.of(graph, Precision.NATIVE))
    found = emulator.step({"x": x})["y"]
    exact = interpret(graph, {name: value.double() for name, value in {"x": x, **weights}.items()})["y"]
    assert found.dtype is torch.bfloat16
    close(found.double(), exact, 1 / 128)


# --- What moves -------------------------------------------------------------------------------------------------------

MOVING = """graph "moving" {
  input %x : f32[users, tokens, 5, 6]
  param %table : f32[7, 6] as f32
  param %row : f32[6] as f32
  %t : f32[users, 5, tokens, 6] = transpose(%x) {permutation = [0, 2, 1, 3]} @ "t"
  %f : f32[users, tokens, 6, 5] = transpose(%x) {permutation = [0, 1, 3, 2]} @ "f"
  %p : f32[users, tokens, 5, 8] = pad(%x) {after = [0, 0, 0, 0], before = [0, 0, 0, 2], mode = "constant", value = 0.0} @ "p"
  %s : f32[users, tokens, 5, 6] = add(%x, %row) @ "s"
  %d : f32[7, 6] = add(%table, %row) @ "d"
  %h : f32[users, tokens, 6] = sum(%x) {dims = [2], keepdim = false} @ "h"
  %c : f32[users, tokens, 6] = cumsum(%h) {dim = 2} @ "c"
  return %t, %f, %p, %s, %d, %c
}"""  # noqa: E501


def test_what_moves_is_counted_element_by_element():
    graph = graph_of(MOVING)
    emulator = Emulator(*one_block(graph), weights := random_weights(graph))
    x = torch.randn(1, 3, 5, 6)
    found = emulator.step({"x": x})
    for name, value in interpret(graph, {"x": x, **weights}).items():
        if name in graph.outputs:
            close(found[name], value)
    rows, columns, tiles = REGION.rows, REGION.columns, REGION.tiles

    def home(element, elements):
        return divmod(element * tiles // elements, columns)

    def traffic(ways, times):
        links = [abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in ways]
        return Traffic(1, max(links), 4 * times * sum(links))

    ops = {op: count.mesh for (_, op), count in emulator.counters.ops.items()}
    assert "t" not in ops  # of each token the elements keep their order
    flipped = [(home(a * 6 + b, 30), home(b * 5 + a, 30)) for a in range(5) for b in range(6)]
    assert ops["f"] == {"move": traffic(flipped, 3)}
    padded = [(home(a * 6 + b, 30), home(a * 8 + b + 2, 40)) for a in range(5) for b in range(6)]
    assert ops["p"] == {"move": traffic(padded, 3)}
    to_all = Traffic(1, rows + columns - 2, 4 * 6 * (tiles - 1))
    assert ops["s"] == {"broadcast": to_all}
    layout = emulator.memories["all"].own.layouts["table"]
    over = [[line for line, size in enumerate(np.diff(s.bounds())) for _ in range(size)]
            for s in (layout.inputs, layout.outputs)]  # fmt: skip
    collected = [((over[0][b], over[1][a]), home(a * 6 + b, 42)) for a in range(7) for b in range(6)]
    assert ops["d"] == {"collect": traffic(collected, 1), "broadcast": to_all}
    added = [(home(a * 6 + b, 30), home(b, 6)) for a in range(5) for b in range(6)]
    assert ops["h"] == {"combine": traffic(added, 3)}
    gathered = traffic([(home(b, 6), (0, 0)) for b in range(6)], 3)
    assert ops["c"] == {"gather": gathered, "scatter": gathered}
    assert emulator.counters.by_reference == {"cumsum": 1}


# --- Attention and its cache ------------------------------------------------------------------------------------------

GQA = """graph "gqa" {{
  input %input_ids : i64[users, tokens]
  param %table : f32[50, 16] as f32
  param %wq : f32[24, 16] as f32
  param %wk : f32[12, 16] as f32
  param %wv : f32[12, 16] as f32
  param %wo : f32[50, 24] as f32
  %h : f32[users, tokens, 16] = embedding(%table, %input_ids) @ "h"
  %q1 : f32[users, tokens, 24] = linear(%h, %wq) {{transposed = false}} @ "q"
  %k1 : f32[users, tokens, 12] = linear(%h, %wk) {{transposed = false}} @ "k"
  %v1 : f32[users, tokens, 12] = linear(%h, %wv) {{transposed = false}} @ "v"
  %q2 : f32[users, tokens, 4, 6] = reshape(%q1) {{shape = [users, tokens, 4, 6]}} @ "q"
  %k2 : f32[users, tokens, 2, 6] = reshape(%k1) {{shape = [users, tokens, 2, 6]}} @ "k"
  %v2 : f32[users, tokens, 2, 6] = reshape(%v1) {{shape = [users, tokens, 2, 6]}} @ "v"
  %q : f32[users, 4, tokens, 6] = transpose(%q2) {{permutation = [0, 2, 1, 3]}} @ "q"
  %k : f32[users, 2, tokens, 6] = transpose(%k2) {{permutation = [0, 2, 1, 3]}} @ "k"
  %v : f32[users, 2, tokens, 6] = transpose(%v2) {{permutation = [0, 2, 1, 3]}} @ "v"
  %a : f32[users, tokens, 4, 6] = attention(%q, %k, %v) {{causal = true, scale = 0.4, softcap = 0.0, window = {window}}} @ "a"
  %o : f32[users, tokens, 24] = reshape(%a) {{shape = [users, tokens, 24]}} @ "o"
  %logits : f32[users, tokens, 50] = linear(%o, %wo) {{transposed = false}} @ "head"
  return %logits
}}"""  # noqa: E501
IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7], [1, 41, 42, 13, 5, 6, 2, 37, 30, 9]])


def gqa(values, recompute, window=0, workload=TWO_USERS, graph_text=GQA):
    graph = graph_of(graph_text.format(window=window))
    end = len(graph.nodes) - 1
    caches = (Cache(next(i for i, n in enumerate(graph.nodes) if n.op == "attention"), values, recompute, 96, window),)
    blocks = (
        block_of(graph, "embed", [0], BlockKind.EMBEDDING),
        block_of(graph, "attention", range(1, end), BlockKind.ATTENTION, caches),
        block_of(graph, "head", [end], BlockKind.HEAD),
    )
    model = Model(graph, blocks, (), ())
    places = [(0, Rectangle(0, 0, 3, 3)), (1, REGION), (0, Rectangle(9, 9, 4, 5))]
    transfers = [("h", "embed", 0, 1), ("o", "attention", 1, 0)]
    return model, plan_of(model, places, transfers, workload)


CUTS = {"heads": (("k", "v"), ()), "flat": (("k1", "v1"), (5, 6, 8, 9)), "hidden": (("h",), (2, 3, 5, 6, 8, 9))}


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("sizes", [[10], [1] * 10, [6, 1, 3]])
def test_decode_equals_the_whole_sequence(cut, window, sizes):
    model, plan = gqa(*CUTS[cut], window)
    emulator = Emulator(model, plan, weights := random_weights(model.graph))
    expected = interpret(model.graph, {"input_ids": IDS, **weights})["logits"]
    steps = [emulator.step({"input_ids": ids})["logits"] for ids in IDS.split(sizes, dim=1)]
    close(torch.cat(steps, dim=1), expected)
    (cache,) = model.blocks[1].caches
    remembered = emulator._histories[0][cache.node].visible(cache)
    assert remembered.tokens == (window - 1 if window else 10)  # the next token sees itself too


@pytest.mark.parametrize("sizes", [[10], [1] * 10, [6, 1, 3], [3, 5, 2]])
def test_decode_in_chunks_equals_the_whole_sequence_and_forgets_chunks_that_are_full(sizes):
    chunked = GQA.replace("causal = true,", "causal = true, chunk = 4,")
    model, plan = gqa(*CUTS["heads"], graph_text=chunked)
    (cache,) = find_caches(model.graph, [0] * len(model.graph.nodes)).values()
    assert (cache.window, cache.chunked, cache.tokens(100), cache.tokens(3)) == (4, True, 4, 3)
    cache = replace(cache, values=("k", "v"), recompute=())
    blocks = (model.blocks[0], replace(model.blocks[1], caches=(cache,)), model.blocks[2])
    emulator = Emulator(replace(model, blocks=blocks), plan, weights := random_weights(model.graph))
    expected = interpret(model.graph, {"input_ids": IDS, **weights})["logits"]
    steps = [emulator.step({"input_ids": ids})["logits"] for ids in IDS.split(sizes, dim=1)]
    close(torch.cat(steps, dim=1), expected)
    assert emulator._histories[0][cache.node].visible(cache).tokens == 10 % 4


def test_the_cache_matters():
    model, plan = gqa(*CUTS["heads"])
    emulator = Emulator(model, plan, random_weights(model.graph))
    emulator.step({"input_ids": IDS[:, :5]})
    with_history = emulator.step({"input_ids": IDS[:, 5:6]})["logits"]
    emulator.reset()
    assert (emulator.step({"input_ids": IDS[:, 5:6]})["logits"] - with_history).abs().max() > 1e-3


LATENT = """graph "latent" {{
  input %input_ids : i64[users, tokens]
  param %table : f32[50, 16] as f32
  param %down : f32[7, 16] as f32
  param %up : f32[48, 7] as f32
  param %wq : f32[24, 16] as f32
  param %wo : f32[50, 24] as f32
  %h : f32[users, tokens, 16] = embedding(%table, %input_ids) @ "h"
  %q1 : f32[users, tokens, 24] = linear(%h, %wq) {{transposed = false}} @ "q"
  %q2 : f32[users, tokens, 4, 6] = reshape(%q1) {{shape = [users, tokens, 4, 6]}} @ "q"
  %q : f32[users, 4, tokens, 6] = transpose(%q2) {{permutation = [0, 2, 1, 3]}} @ "q"
  %flat : f32[users*tokens, 16] = reshape(%h) {{shape = [users*tokens, 16]}} @ "latent"
  %latent : f32[users*tokens, 7] = linear(%flat, %down) {{transposed = false}} @ "latent"
  %ones : f32[users*tokens, 1] = full() {{dtype = f32, shape = [users*tokens, 1], value = 0.5}} @ "half"
  %scaled : f32[users*tokens, 7] = mul(%latent, %ones) @ "scaled"
  %kv1 : f32[users*tokens, 48] = linear(%scaled, %up) {{transposed = false}} @ "kv"
  %kv2 : f32[users, tokens, 4, 12] = reshape(%kv1) {{shape = [users, tokens, 4, 12]}} @ "kv"
  %kv : f32[users, 4, tokens, 12] = transpose(%kv2) {{permutation = [0, 2, 1, 3]}} @ "kv"
  %k : f32[users, 4, tokens, 6] = slice(%kv) {{dim = 3, end = 6, start = 0, step = 1}} @ "k"
  %v : f32[users, 4, tokens, 6] = slice(%kv) {{dim = 3, end = 12, start = 6, step = 1}} @ "v"
  %a : f32[users, tokens, 4, 6] = attention(%q, %k, %v) {{causal = true, scale = 0.4, softcap = 0.0, window = {window}}} @ "a"
  %o : f32[users, tokens, 24] = reshape(%a) {{shape = [users, tokens, 24]}} @ "o"
  %logits : f32[users, tokens, 50] = linear(%o, %wo) {{transposed = false}} @ "head"
  return %logits
}}"""  # noqa: E501
AFTER_LATENT = (7, 8, 9, 10, 11, 12)


@pytest.mark.parametrize("sizes", [[10], [1] * 10, [6, 1, 3]])
def test_a_latent_is_enough_to_remember(sizes):
    model, plan = gqa(("latent",), AFTER_LATENT, graph_text=LATENT)
    emulator = Emulator(model, plan, weights := random_weights(model.graph))
    expected = interpret(model.graph, {"input_ids": IDS, **weights})["logits"]
    steps = [emulator.step({"input_ids": ids})["logits"] for ids in IDS.split(sizes, dim=1)]
    close(torch.cat(steps, dim=1), expected)
    for user in range(2):
        (remembered,) = emulator._histories[user][13].values.values()
        assert remembered.shape == (10, 7)  # seven values of each token: nothing else is remembered


def test_a_cache_that_does_not_suffice_is_refused():
    model, plan = gqa(("k1",), (5, 6, 8, 9))
    with pytest.raises(CheckError, match=r"W0608.*v1"):
        Emulator(model, plan, random_weights(model.graph))


# --- Wafers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"value": "input_ids"}, {"source": "?"}, {"source_wafer": 2}, {"target_wafer": 2}])
@pytest.mark.parametrize("which", [0, 1])
def test_values_reach_other_wafers_only_by_transfers(which, wrong):
    model, plan = gqa(*CUTS["heads"])
    transfers = list(plan.transfers)
    transfers[which] = replace(transfers[which], **wrong)
    emulator = Emulator(model, replace(plan, transfers=tuple(transfers)), random_weights(model.graph))
    with pytest.raises(CheckError, match=rf"W0603.*{plan.transfers[which].value} is read"):
        emulator.step({"input_ids": IDS})


def test_transfers_are_counted():
    model, plan = gqa(*CUTS["heads"])
    emulator = Emulator(model, plan, random_weights(model.graph))
    emulator.step({"input_ids": IDS[:, :3]})
    assert emulator.counters.transfer_bytes == 4 * 2 * 3 * (16 + 24)
    assert emulator.counters.multiply_adds == 2 * 3 * (16 * (24 + 12 + 12) + 24 * 50) + 2 * 4 * (1 + 2 + 3) * 12
    emulator.step({"input_ids": IDS[:, 3:4]})
    assert emulator.counters.multiply_adds == 2 * (16 * (24 + 12 + 12) + 24 * 50) + 2 * 4 * 4 * 12


def test_attention_in_a_window_counts_what_it_sees():
    model, plan = gqa(*CUTS["heads"], window=4)
    emulator = Emulator(model, plan, random_weights(model.graph))
    counted = []
    for ids in IDS.split(1, dim=1):
        emulator.step({"input_ids": ids})
        counted.append(emulator.counters.multiply_adds - 2 * (16 * (24 + 12 + 12) + 24 * 50))
    assert counted == [2 * 4 * seen * 12 for seen in (1, 2, 3, 4, 4, 4, 4, 4, 4, 4)]


def test_the_way_between_regions_of_a_wafer_is_counted():
    model, plan = gqa(*CUTS["heads"])
    together = replace(plan, blocks=tuple(replace(block, wafer=0) for block in plan.blocks), transfers=())
    emulator = Emulator(model, together, random_weights(model.graph))
    emulator.step({"input_ids": IDS[:, :1]})
    for reader, value, source, target in (("attention", "h", 0, 1), ("head", "o", 1, 2)):
        elements = {"h": 16, "o": 24}[value]
        places = (plan.blocks[source].region, plan.blocks[target].region)
        links = []
        for element in range(elements):
            tiles = [divmod(element * region.tiles // elements, region.columns) for region in places]
            rows, columns = ([r.row + t[0] for r, t in zip(places, tiles, strict=True)], [
                r.column + t[1] for r, t in zip(places, tiles, strict=True)])  # fmt: skip
            links.append(abs(rows[0] - rows[1]) + abs(columns[0] - columns[1]))
        counted = emulator.counters.ops[reader, value].mesh["relay"]
        assert counted == Traffic(2, 2 * max(links), 2 * 4 * sum(links))  # two users


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_a_full_tile_is_refused():
    text = LINEAR.format(inputs=37, outputs=53, shape="53, 37", transposed="false", encoding="f32")
    graph = graph_of(text)
    model, plan = one_block(graph)
    needed = int(Emulator(model, plan, random_weights(graph)).ledgers[0].bytes.sum(axis=0).max())
    assert needed == 4 * (6 * 11 + 2)
    fits = replace(plan, machine=replace(MACHINE, tile_sram_bytes=needed + 100, reserve_bytes=100))
    Emulator(model, fits, random_weights(graph))
    tight = replace(plan, machine=replace(MACHINE, tile_sram_bytes=needed + 99, reserve_bytes=100))
    with pytest.raises(CheckError, match=r"W0601.*tile \(row 1, column 2\).*\n.*all on wafer 0\n.*weight bytes: 272"):
        Emulator(model, tight, random_weights(graph))


def test_a_step_is_refused_if_one_byte_is_lacking_for_its_values():
    text = LINEAR.format(inputs=37, outputs=53, shape="53, 37", transposed="false", encoding="f32")
    graph = graph_of(text)
    model, plan = one_block(graph)
    weights, x = random_weights(graph), torch.randn(1, 7, 37)
    held = Emulator(model, plan, weights).ledgers[0].held(REGION)[0].ravel()
    alive = [7 * 4 * (37 + 53) // REGION.tiles + (tile < 7 * 4 * (37 + 53) % REGION.tiles) for tile in range(35)]
    needed = int((held + np.array(alive)).max())
    fits = replace(plan, machine=replace(MACHINE, tile_sram_bytes=needed))
    Emulator(model, fits, weights).step({"x": x})
    tight = Emulator(model, replace(plan, machine=replace(MACHINE, tile_sram_bytes=needed - 1)), weights)
    with pytest.raises(
        CheckError, match=rf"W0601.*{needed} bytes of {needed - 1}\n.*linear y of all on wafer 0\n"
    ) as raised:
        tight.step({"x": x})
    facts = raised.value.diagnostics[0].facts
    assert facts["limit"] == needed - 1
    assert facts["weight_bytes"] + facts["cache_bytes"] + facts["activation_bytes"] == needed
    tight.step({"x": x[:, :6]})


def test_the_room_for_values_shrinks_as_caches_fill():
    model, plan = gqa(*CUTS["heads"], workload=Workload(1, 12, 1))
    regions = (Rectangle(0, 0, 12, 12), REGION, Rectangle(20, 0, 15, 15))
    blocks = tuple(replace(block, region=region) for block, region in zip(plan.blocks, regions, strict=True))
    plan = replace(plan, blocks=blocks)  # attention has the fullest tiles
    weights, ids = random_weights(model.graph), IDS[:1, :5]

    def with_tiles_of(size: int) -> Emulator:
        return Emulator(model, replace(plan, machine=replace(MACHINE, tile_sram_bytes=size)), weights)

    def runs(size: int) -> int:
        try:
            with_tiles_of(size).step({"input_ids": ids})
        except CheckError:
            return 0
        return 1

    emulator = with_tiles_of(bisect_left(range(8192), 1, key=runs))  # the smallest tiles that will do
    emulator.step({"input_ids": ids})
    with pytest.raises(CheckError, match=r"W0601.*\n.*attention on wafer 1"):
        emulator.step({"input_ids": ids})
    assert emulator.tokens() == 5
    emulator.step({"input_ids": ids[:, :1]})


def test_overlapping_regions_share_their_tiles_memory():
    model, plan = gqa(*CUTS["heads"])
    first, second, third = plan.blocks
    together = Rectangle(0, 0, 1, 1)
    moved = (replace(first, region=together), second, replace(third, region=together))
    roomy = replace(MACHINE, tile_sram_bytes=65536)
    ledger = Emulator(model, replace(plan, blocks=moved, machine=roomy), random_weights(model.graph)).ledgers[0]
    assert ledger.bytes[:, 0, 0].sum() == model.blocks[0].weight_bytes + model.blocks[2].weight_bytes


def test_a_region_outside_the_wafer_is_refused():
    text = LINEAR.format(inputs=37, outputs=53, shape="53, 37", transposed="false", encoding="f32")
    with pytest.raises(CheckError, match="W0607"):
        Emulator(*one_block(graph := graph_of(text), Rectangle(36, 0, 5, 5)), random_weights(graph))


@pytest.mark.parametrize("encoding", ["f32", "bf16", "int4_g32", "fp8_b128", "mxfp4"])
def test_the_ledger_agrees_with_the_layouts_bound(encoding):
    text = LINEAR.format(inputs=320, outputs=53, shape="53, 320", transposed="false", encoding=encoding)
    matrix, vector = graph_of(text).parameters
    second = Parameter("v", matrix.type, matrix.encoding)
    for rows, columns in ((1, 1), (7, 5), (13, 60)):
        amounts = weight_bytes([matrix, second], rows, columns)
        assert amounts.max() == fullest_tile_bytes([matrix, second], 0, rows, columns)
        with_vector = weight_bytes([matrix, second, vector], rows, columns)
        assert amounts.max() <= with_vector.max() <= fullest_tile_bytes([matrix, second, vector], 0, rows, columns)
    exact = weight_bytes([matrix, vector], 1, 1)
    assert exact[0, 0] == matrix.stored_bytes + vector.stored_bytes
    stack = Parameter("stack", matrix.type.with_shape((3, 53, 320)), matrix.encoding)
    assert weight_bytes([stack], 1, 1)[0, 0] == stack.stored_bytes
    odd = Parameter("odd", matrix.type.with_shape((1, 1)), ENCODINGS["int4_g32"])
    assert weight_bytes([odd], 1, 1)[0, 0] == odd.stored_bytes == 3


def test_caches_and_activations_are_claimed_up_front():
    model, plan = gqa(*CUTS["heads"])
    placed = tuple(replace(block, activation_bytes=100) for block in plan.blocks)
    ledger = Emulator(model, replace(plan, blocks=placed), random_weights(model.graph)).ledgers[1]
    weights, caches, activations = ledger.bytes.sum(axis=(1, 2))
    assert (weights, caches, activations) == (model.blocks[1].weight_bytes, 2 * 10 * 96, 100)
    inside = np.s_[REGION.row : REGION.row + REGION.rows, REGION.column : REGION.column + REGION.columns]
    assert ledger.bytes.sum() == ledger.bytes[:, *inside].sum()
    spread = ledger.bytes[1:, *inside].sum(axis=0)
    assert spread.max() - spread.min() <= 1


def test_experts_share_out_the_activations():
    graph = graph_of(EXPERTS.format(up="18, 12", transposed="false"))
    model, _ = one_block(graph, kind=BlockKind.EXPERTS, experts=4)
    regions = [Rectangle(3 * e, 2, 3, 2) for e in range(4)]
    plan = plan_of(model, [(0, Rectangle(0, 0, 14, 12))], experts=regions)
    plan = replace(plan, blocks=(replace(plan.blocks[0], activation_bytes=50),))
    held = Emulator(model, plan, random_weights(graph)).ledgers[0].bytes
    assert held[0].sum() == model.blocks[0].weight_bytes
    assert [int(held[2, 2:4, 3 * e : 3 * e + 3].sum()) for e in range(4)] == [13] * 4
    assert held.sum() == held[:, 2:4, :12].sum()  # nothing lies outside the experts' regions


def test_a_missing_weight_is_named():
    model, plan = gqa(*CUTS["heads"])
    weights = random_weights(model.graph)
    del weights["wv"]
    weights["wk"] = weights["wk"].T
    with pytest.raises(UsageError, match=r"(?s)W0606.*wk.*W0606.*wv"):
        Emulator(model, plan, weights)


# --- Limits of the plan -----------------------------------------------------------------------------------------------


def test_tokens_beyond_the_planned_context_are_refused():
    model, plan = gqa(*CUTS["heads"])
    emulator = Emulator(model, plan, random_weights(model.graph))
    emulator.step({"input_ids": IDS[:, :9]})
    with pytest.raises(CheckError, match="W0602"):
        emulator.step({"input_ids": IDS[:, :2]})
    assert emulator.tokens() == 9
    emulator.step({"input_ids": IDS[:, 9:]})
    with pytest.raises(CheckError, match="W0602"):
        Emulator(model, replace(plan, workload=Workload(1, 10, 1)), random_weights(model.graph)).step(
            {"input_ids": IDS[:, :1]}
        )


def test_a_failed_step_leaves_the_caches_as_they_were():
    model, plan = gqa(*CUTS["heads"])
    emulator = Emulator(model, plan, random_weights(model.graph))
    emulator.step({"input_ids": IDS[:, :4]})
    head = emulator.memories.pop("head")  # the step now breaks after its attention
    with pytest.raises(KeyError):
        emulator.step({"input_ids": IDS[:, 7:8]})
    emulator.memories["head"] = head
    again = emulator.step({"input_ids": IDS[:, 4:5]})["logits"]
    fresh = Emulator(model, plan, random_weights(model.graph)).step({"input_ids": IDS[:, :5]})["logits"]
    close(again[:, -1], fresh[:, -1])


@pytest.mark.parametrize(
    ("prompt", "tokens", "code"),
    [([], 2, "W0604"), ([3, 50], 2, "W0604"), ([3, -1], 2, "W0604"), ([1] * 8, 3, "W0605")],
)
def test_a_wrong_prompt_is_refused_before_anything_runs(prompt, tokens, code):
    model, plan = gqa(*CUTS["heads"])
    emulator = Emulator(model, plan, random_weights(model.graph))
    with pytest.raises(UsageError, match=code):
        generate(emulator, prompt, tokens)
    assert emulator.tokens() == 0


def test_generation_is_greedy_and_remembers():
    model, plan = gqa(*CUTS["heads"])
    weights = random_weights(model.graph)
    emulator = Emulator(model, plan, weights)
    generate(emulator, [7, 8], 2)  # forgotten by the next call
    generated = generate(emulator, [3, 14, 15], 6)
    ids = [3, 14, 15]
    for token, logits in zip(generated.tokens, generated.logits, strict=True):
        expected = interpret(model.graph, {"input_ids": torch.tensor([ids]), **weights})["logits"][0, -1]
        close(logits, expected)
        assert token == int(expected.argmax())
        ids.append(token)
    assert len(set(generated.tokens)) > 1
    assert len(generated.counters) == 6
    assert generated.counters[0].transfer_bytes == 3 * generated.counters[1].transfer_bytes


@pytest.mark.parametrize("inputs", [{}, {"input_ids": IDS[0]}, {"input": IDS}])
def test_wrong_inputs_are_refused(inputs):
    model, plan = gqa(*CUTS["heads"])
    emulator = Emulator(model, plan, random_weights(model.graph))
    with pytest.raises(UsageError, match=r"W0609.*input_ids: i64\[users, tokens\]"):
        emulator.step(inputs)


# --- Static graphs ----------------------------------------------------------------------------------------------------


def test_a_static_graph_runs_once():
    graph = graph_of(
        """graph "static" {
      input %x : f32[4, 30]
      param %w1 : f32[30, 20] as f32
      param %w2 : f32[7, 20] as f32
      %h : f32[4, 20] = linear(%x, %w1) {transposed = true} @ "h"
      %r : f32[4, 20] = relu(%h) @ "r"
      %y : f32[4, 7] = linear(%r, %w2) {transposed = false} @ "y"
      %m : f32[4, 4] = matmul(%y, %t) @ "m"
      return %y, %m
    }""".replace("      %m :", '      %t : f32[7, 4] = transpose(%y) {permutation = [1, 0]} @ "t"\n      %m :')
    )
    blocks = (block_of(graph, "first", [0, 1]), block_of(graph, "second", [2, 3, 4]))
    model = Model(graph, blocks, (), ())
    plan = plan_of(model, [(0, REGION), (2, REGION)], [("r", "first", 0, 2)])
    emulator = Emulator(model, plan, weights := random_weights(graph))
    x = torch.randn(4, 30)
    expected = interpret(graph, {"x": x, **weights})
    outputs = emulator.step({"x": x})
    assert list(outputs) == ["y", "m"]
    close(outputs["y"], expected["y"])
    close(outputs["m"], expected["m"])
    assert emulator.counters.multiply_adds == 4 * (30 * 20 + 20 * 7) + 4 * 4 * 7
