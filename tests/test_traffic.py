"""What a step takes is said beforehand, to the last byte: all that the emulator counts, operator by operator."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_emulator import (
    MACHINE,
    REGION,
    TWO_USERS,
    block_of,
    gqa,
    graph_of,
    one_block,
    plan_of,
    random_weights,
)  # fmt: skip
from test_onnx_standard import language_model
from test_work import lowered_family

from ir.graph import Graph
from ir.layout import Split
from ir.model import BlockKind, Edge, Model
from ir.ops import OPS, torch_dtype
from ir.ops import evaluate as evaluate_op
from ir.plan import Plan, Rectangle
from ir.types import DType, TensorType, evaluate
from partitioner.api import Request, compile_lowered
from partitioner.frontends.onnx_file import load_onnx
from partitioner.passes.profile import profile_of
from targets.cost import paths
from targets.cost.moves import NOTHING, sources
from targets.cost.routing import even_routing
from targets.cost.traffic import Predictor, Step, predict
from targets.counters import Counters
from targets.emulator import Emulator, ways

ROOT = Path(__file__).parent.parent
REGIONS = [REGION, Rectangle(0, 0, 9, 11), Rectangle(3, 3, 4, 1), Rectangle(0, 0, 1, 1), Rectangle(30, 20, 10, 10)]
"""Uneven ones, a row, a single tile, and one with more tiles than most values have elements."""
BIG = replace(MACHINE, tile_sram_bytes=1 << 20)


def made_up(graph: Graph, bindings: dict[str, int], largest: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for value in graph.inputs:
        shape = [evaluate(size, bindings) for size in value.type.shape]
        if value.type.dtype.is_float:
            inputs[value.name] = torch.randn(shape, generator=generator).to(torch_dtype(torch, value.type.dtype))
        else:
            inputs[value.name] = torch.randint(0, largest, shape, generator=generator)
    return inputs


def counted(emulator: Emulator, inputs: dict[str, torch.Tensor], user: int = 0) -> Counters:
    """What one user's step took."""
    flight = emulator.begin(inputs, user)
    while not emulator.is_done(flight):
        emulator.advance(flight)
    emulator.finish(flight)
    return flight.meter.counters()


def same(predicted: Counters, counted: Counters) -> None:
    assert predicted.ops == counted.ops
    assert predicted.links == counted.links
    assert predicted.by_reference == counted.by_reference
    assert predicted.routing.keys() == counted.routing.keys()
    assert all(np.array_equal(predicted.routing[name], counted.routing[name]) for name in counted.routing)


def run(model: Model, plan: Plan, steps: list[int], users: int = 1, largest: int = 4) -> Counters:
    """Steps of so many tokens for each of ``users``, each held against its prediction; what the last one took."""
    emulator = Emulator(model, plan, random_weights(model.graph))
    predictor = Predictor.of(model, plan)
    last = Counters()
    for user in range(users):
        remembered = 0
        for number, tokens in enumerate(steps):
            step = Step(tokens, remembered, user)
            last = counted(emulator, made_up(model.graph, step.bindings, largest, number), user)
            same(predictor.step(step, last.routing), last)
            remembered += tokens
    return last


def on(text: str, region: Rectangle, **others) -> tuple[Model, Plan]:
    model, plan = one_block(graph_of(text), region, **others)
    return model, replace(plan, machine=BIG)


# --- The mesh, element by element -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_paths_are_those_of_single_elements(seed):
    random = np.random.default_rng(seed)

    def region() -> Rectangle:
        return Rectangle(*random.integers(0, 12, 2).tolist(), *random.integers(1, 9, 2).tolist())

    def split(parts: int) -> Split:
        return Split(int(random.integers(1, 90)), parts, int(random.choice([1, 1, 4, 32])), int(random.integers(parts)))

    home, other, elements = region(), region(), int(random.integers(0, 200))
    of = int(random.integers(1, 5))
    first, count = sorted(random.integers(0, of, 2).tolist())
    theirs, ours = ways.Vectors(range(first, count + 1), of), paths.Vectors(count + 1 - first, first, of)
    for by_columns in (False, True):
        lines = split(other.columns if by_columns else other.rows)
        pairs = [
            (paths.enter(lines, ours, home, other, by_columns), ways.enter_way(lines, theirs, home, other, by_columns)),
            (paths.leave(lines, ours, other, home, by_columns), ways.leave_way(lines, theirs, other, home, by_columns)),
            (paths.relay(elements, home, other), ways.relay_way(elements, home, other)),
            (paths.spread(elements, home, other), ways.spread_way(elements, home, other)),
        ]
        assert [(p.hops, p.links) for p, _ in pairs] == [(w.hops, w.links) for _, w in pairs]


def test_crossings_say_how_many_elements_cross_each_boundary():
    start, end, counts = np.array([0, 4, 2, 1]), np.array([3, 1, 2, 2]), np.array([5, 7, 100, 1])
    assert paths.crossings(start, end, counts).tolist() == [5, 5 + 7 + 1, 5 + 7, 7, 0]


MOVES = [
    ("reshape", [(6, 4)], {"shape": (2, 3, 4)}),
    ("transpose", [(2, 3, 4)], {"permutation": (2, 0, 1)}),
    ("expand", [(3, 1)], {"shape": (2, 3, 4)}),
    ("slice", [(5, 9)], {"dim": 1, "start": 2, "end": 9, "step": 3}),
    ("flip", [(3, 4)], {"dim": 0}),
    ("concat", [(2, 3), (2, 1), (2, 2)], {"dim": 1}),
    ("pad", [(4, 5)], {"before": (1, -2), "after": (0, 3), "mode": "constant", "value": NOTHING}),
    ("pad", [(4, 5)], {"before": (1, 2), "after": (3, 4), "mode": "reflect", "value": 0}),
    ("pad", [(4, 5)], {"before": (1, 6), "after": (3, 4), "mode": "replicate", "value": 0}),
    ("pad", [(4, 5)], {"before": (1, 5), "after": (4, 4), "mode": "circular", "value": 0}),
]


@pytest.mark.parametrize(("op", "shapes", "attributes"), MOVES, ids=[f"{i} {op}" for i, (op, *_) in enumerate(MOVES)])
def test_moves_are_the_operators_own_meaning(op, shapes, attributes):
    numbers, first = [], 0
    for shape in shapes:
        numbers.append(np.arange(first, first + np.prod(shape)).reshape(shape))
        first += numbers[-1].size
    definition = OPS[op]
    operands = [TensorType(DType.I64, shape) for shape in shapes]
    results = definition.infer(operands, attributes)
    (theirs,) = evaluate_op(definition, torch, [torch.from_numpy(n) for n in numbers], attributes, results)
    ours = sources(op, numbers, attributes)
    assert ours.shape == results[0].shape
    assert np.array_equal(ours, theirs.numpy())


# --- Each kind of kernel ----------------------------------------------------------------------------------------------

KERNELS = {
    "product": """
      input %x : f32[users, tokens, 37]
      param %w : f32[53, 37] as f32
      param %b : f32[53] as f32
      %y : f32[users, tokens, 53] = linear(%x, %w, %b) {transposed = false} @ "y"
      return %y""",
    "product of packed groups, transposed": """
      input %x : bf16[users, tokens, 96]
      param %w : bf16[96, 10] as bf16
      param %packed : f32[70, 96] as int4_g32
      %y : bf16[users, tokens, 10] = linear(%x, %w) {transposed = true} @ "y"
      %x32 : f32[users, tokens, 96] = cast(%x) {dtype = f32} @ "x"
      %z : f32[users, tokens, 70] = linear(%x32, %packed) {transposed = false} @ "z"
      return %y, %z""",
    "product of several vectors for each token, with a bias": """
      input %x : f32[users, tokens, 3, 8]
      param %w : f32[7, 8] as f32
      param %b : f32[7] as f32
      %y : f32[users, tokens, 3, 7] = linear(%x, %w, %b) {transposed = false} @ "y"
      return %y""",
    "product of what all tiles have": """
      input %ids : i64[users, tokens, 8]
      param %w : f32[9, 8] as f32
      %x : f32[users, tokens, 8] = cast(%ids) {dtype = f32} @ "x"
      %y : f32[users, tokens, 9] = linear(%x, %w) {transposed = false} @ "y"
      return %y""",
    "lookup": """
      input %ids : i64[users, tokens]
      input %more : i64[users, tokens, 3]
      param %table : f32[101, 23] as f32
      %y : f32[users, tokens, 23] = embedding(%table, %ids) @ "y"
      %z : f32[users, tokens, 3, 23] = embedding(%table, %more) @ "z"
      return %y, %z""",
    "elements": """
      input %x : f32[users, tokens, 6, 5]
      input %ids : i64[users, tokens, 1, 5]
      param %row : f32[5] as f32
      param %whole : f32[6, 5] as f32
      param %column : f32[6, 1] as f32
      %a : f32[users, tokens, 6, 5] = mul(%x, %row) @ "a"
      %b : f32[users, tokens, 6, 5] = add(%a, %whole) @ "b"
      %c : f32[users, tokens, 6, 5] = add(%b, %column) @ "c"
      %d : f32[users, tokens, 6, 5] = add(%c, %ids) @ "d"
      %g : f32[users, tokens, 1, 5] = slice(%d) {dim = 2, end = 1, start = 0, step = 1} @ "g"
      %h : f32[users, tokens, 6, 5] = mul(%d, %g) @ "h"
      %i : f32[users, tokens, 6, 5] = gelu(%h) {approximate = "none"} @ "i"
      return %i""",
    "moves": """
      input %x : f32[users, tokens, 4, 6]
      input %ids : i64[users, tokens, 4, 2]
      param %w : f32[4, 6] as f32
      %t : f32[users, 4, tokens, 6] = transpose(%x) {permutation = [0, 2, 1, 3]} @ "t"
      %u : f32[users, tokens, 6, 4] = transpose(%x) {permutation = [0, 1, 3, 2]} @ "u"
      %r : f32[users*tokens, 24] = reshape(%u) {shape = [users*tokens, 24]} @ "r"
      %s : f32[users*tokens, 9] = slice(%r) {dim = 1, end = 23, start = 5, step = 2} @ "s"
      %f : f32[users*tokens, 9] = flip(%s) {dim = 1} @ "f"
      %c0 : f32[users, tokens, 4, 2] = cast(%ids) {dtype = f32} @ "c"
      %c : f32[users, tokens, 4, 14] = concat(%x, %c0, %x) {dim = 3} @ "c"
      %p : f32[users, tokens, 6, 13] = pad(%c) {after = [0, 0, 1, -3], before = [0, 0, 1, 2], mode = "constant", value = 0.0} @ "p"
      %q : f32[users, tokens, 8, 14] = pad(%c) {after = [0, 0, 2, 0], before = [0, 0, 2, 0], mode = "reflect", value = 0.0} @ "q"
      %v : f32[6, 4] = transpose(%w) {permutation = [1, 0]} @ "v"
      %v3 : f32[1, 6, 4] = reshape(%v) {shape = [1, 6, 4]} @ "v"
      %e : f32[3, 6, 4] = expand(%v3) {shape = [3, 6, 4]} @ "e"
      return %t, %f, %p, %q, %e""",  # noqa: E501
    "reductions": """
      input %x : f32[users, tokens, 3, 8]
      param %scale : f32[8] as f32
      param %shift : f32[8] as f32
      param %matrix : f32[5, 7] as f32
      %a : f32[users, tokens, 3, 8] = rms_norm(%x, %scale) {epsilon = 1e-05} @ "a"
      %b : f32[users, tokens, 3, 8] = layer_norm(%a, %scale, %shift) {epsilon = 1e-05} @ "b"
      %c : f32[users, tokens, 3, 8] = softmax(%b) {dim = 3} @ "c"
      %d : f32[users, tokens, 3, 2], %i : i64[users, tokens, 3, 2] = topk(%c) {dim = 3, k = 2} @ "d"
      %g : f32[users, tokens, 3, 2] = gather(%b, %i) {dim = 3} @ "g"
      %m : f32[users, tokens] = mean(%b) {dims = [2, 3], keepdim = false} @ "m"
      %n : i64[users, tokens, 3] = argmax(%b) {dims = [3], keepdim = false} @ "n"
      %o : f32[users, tokens, 3, 1] = amax(%b) {dims = [3], keepdim = true} @ "o"
      %flat : f32[users, tokens, 24] = reshape(%b) {shape = [users, tokens, 24]} @ "q"
      %l : f32[users, tokens, 24] = log_softmax(%flat) {dim = 2} @ "l"
      %r : f32[5] = sum(%matrix) {dims = [1], keepdim = false} @ "r"
      return %d, %g, %m, %n, %o, %l, %r""",
    "a norm of one row": """
      input %x : f32[users, tokens, 24]
      param %scale : f32[24] as f32
      %y : f32[users, tokens, 24] = rms_norm(%x, %scale) {epsilon = 1e-05} @ "y"
      return %y""",
    "combined": """
      input %x : f32[users, tokens, 3, 8]
      param %w : f32[6, 5] as f32
      %a : f32[users, tokens, 8] = sum(%x) {dims = [2], keepdim = false} @ "a"
      %b : f32[users, tokens, 1, 8] = mean(%x) {dims = [2], keepdim = true} @ "b"
      %c : f32[1, 5] = amax(%w) {dims = [0], keepdim = true} @ "c"
      return %a, %b, %c""",
    "by reference": """
      input %x : f32[users, tokens, 6]
      param %w : f32[3, 5, 6] as f32
      param %v : f32[6] as f32
      %flat : f32[15, 6] = reshape(%w) {shape = [15, 6]} @ "w"
      %y : f32[users, tokens, 15] = linear(%x, %flat) {transposed = false} @ "y"
      %z : f32[users, tokens, 15] = cumsum(%y) {dim = 2} @ "z"
      %x2 : f32[users*tokens, 6] = reshape(%x) {shape = [users*tokens, 6]} @ "x"
      %v2 : f32[6, 1] = reshape(%v) {shape = [6, 1]} @ "v"
      %m : f32[users*tokens, 1] = matmul(%x2, %v2) @ "m"
      return %z, %m""",
    "static": """
      input %x : f32[4, 30]
      param %w1 : f32[30, 20] as f32
      param %w2 : f32[7, 20] as f32
      param %b2 : f32[7] as f32
      %h : f32[4, 20] = linear(%x, %w1) {transposed = true} @ "h"
      %r : f32[4, 20] = relu(%h) @ "r"
      %y : f32[4, 7] = linear(%r, %w2, %b2) {transposed = false} @ "y"
      %t : f32[7, 4] = transpose(%y) {permutation = [1, 0]} @ "t"
      %m : f32[4, 4] = matmul(%y, %t) @ "m"
      %s : f32[4] = sum(%m) {dims = [0], keepdim = false} @ "s"
      return %s""",
}


@pytest.mark.parametrize("region", REGIONS, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel_moves_what_was_said(name, region):
    model, plan = on(f'graph "made" {{{KERNELS[name]}\n}}', region)
    last = run(model, plan, [1, 3])
    assert bool(last.mesh) == (region.tiles > 1) or "all tiles have" in name


EXPERTS = """graph "experts" {{
  input %x : f32[tokens, {given}, 12]
  input %chosen : i64[tokens, 3]
  param %up : f32[4, {up}] as f32
  param %bias : f32[4, 18] as f32
  %y : f32[tokens, 3, 18] = grouped_linear(%x, %up, %chosen, %bias) {{transposed = {transposed}}} @ "y"
  return %y
}}"""
APART = [Rectangle(0, 0, 5, 3), Rectangle(5, 0, 4, 7), Rectangle(0, 3, 1, 9), Rectangle(9, 0, 6, 6)]
EXPERT_PLACES = {"apart": (Rectangle(0, 0, 15, 12), APART), "sliced": (REGION, [REGION] * 4)}


@pytest.mark.parametrize("given", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("where", EXPERT_PLACES)
def test_experts_move_what_was_said(where, transposed, given):
    up = "12, 18" if transposed else "18, 12"
    graph = graph_of(EXPERTS.format(given=given, up=up, transposed=str(transposed).lower()))
    region, regions = EXPERT_PLACES[where]
    model, _ = one_block(graph, kind=BlockKind.EXPERTS, experts=4)
    last = run(model, plan_of(model, [(0, region)], experts=regions, machine=BIG), [5, 1])
    assert last.multiply_adds == 3 * 12 * 18
    assert last.routing["y"].sum() == 3


OFF_TILES = """graph "off" {
  input %x : f32[tokens, 1, 12]
  input %chosen : i64[tokens, 3]
  param %up : f32[4, 18, 12] as f32
  param %bias : f32[4, 18] as f32
  param %other : f32[4, 18, 12] as f32
  %w : f32[4, 18, 12] = mul(%up, %up) @ "w"
  %y : f32[tokens, 3, 18] = grouped_linear(%x, %w, %chosen, %bias) {transposed = false} @ "y"
  %z : f32[tokens, 3, 18] = grouped_linear(%x, %other, %chosen) {transposed = false} @ "z"
  %g : f32[4, 18] = gelu(%bias) {approximate = "none"} @ "g"
  return %y, %z, %g
}"""


@pytest.mark.parametrize("where", EXPERT_PLACES)
def test_experts_weights_that_are_not_read_on_their_tiles_come_from_there(where):
    region, regions = EXPERT_PLACES[where]
    model, _ = one_block(graph_of(OFF_TILES), kind=BlockKind.EXPERTS, experts=4)
    last = run(model, plan_of(model, [(0, region)], experts=regions, machine=BIG), [2])
    assert last.by_reference == {"grouped_linear": 1}
    assert {name: set(last.ops["all", name].mesh) for name in "ywg"} == {
        "y": {"gather", "scatter"}, "w": {"collect"}, "g": {"collect"},
    }  # fmt: skip


MIXTURE = """graph "mixture" {
  input %x : f32[users, tokens, 12]
  param %gate : f32[4, 12] as f32
  param %up : f32[4, 18, 12] as f32
  %flat : f32[users*tokens, 12] = reshape(%x) {shape = [users*tokens, 12]} @ "x"
  %scores : f32[users*tokens, 4] = linear(%flat, %gate) {transposed = false} @ "gate"
  %best : f32[users*tokens, 2], %chosen : i64[users*tokens, 2] = topk(%scores) {dim = 1, k = 2} @ "gate"
  %x3 : f32[users*tokens, 1, 12] = reshape(%flat) {shape = [users*tokens, 1, 12]} @ "x"
  %y : f32[users*tokens, 2, 18] = grouped_linear(%x3, %up, %chosen) {transposed = false} @ "y"
  %b3 : f32[users*tokens, 2, 1] = reshape(%best) {shape = [users*tokens, 2, 1]} @ "y"
  %z : f32[users*tokens, 2, 18] = mul(%y, %b3) @ "z"
  %s : f32[users*tokens, 18] = sum(%z) {dims = [1], keepdim = false} @ "s"
  return %s
}"""


@pytest.mark.parametrize("wafers", [(0, 0), (0, 2)])
def test_blocks_read_of_each_other_on_a_wafer_and_of_other_wafers(wafers):
    """What lies apart is relayed or comes home over the edge; choices, which all tiles have, are spread."""
    graph = graph_of(MIXTURE)
    blocks = (
        block_of(graph, "router", [0, 1, 2], BlockKind.ROUTER),
        block_of(graph, "experts", [3, 4, 5, 6, 7], BlockKind.EXPERTS, experts=4),
    )
    model = Model(graph, blocks, (), ())
    first, second = wafers
    sent = [(name, "router", first, second) for name in ("flat", "chosen", "best")] if first != second else []
    places = [(first, Rectangle(20, 3, 3, 4)), (second, EXPERT_PLACES["apart"][0])]
    plan = plan_of(model, places, sent, experts=APART, machine=BIG)
    experts = tuple(replace(expert, wafer=second) for expert in plan.blocks[1].experts)
    plan = replace(plan, blocks=(plan.blocks[0], replace(plan.blocks[1], experts=experts)))
    last = run(model, plan, [1, 3])
    assert last.transfer_bytes == (0 if first == second else 3 * (12 * 4 + 2 * 8 + 2 * 4))
    assert last.ops["experts", "chosen"].mesh.keys() == ({"relay"} if first == second else {"broadcast"})


def test_each_user_meets_the_copies_whose_turn_it_is():
    model, plan = gqa(("k", "v"), ())
    edges = (Edge(0, 1, "h", 64), Edge(1, 2, "o", 96))
    embed, attention, head = plan.blocks
    other = replace(head, copy=1, wafer=2, region=Rectangle(1, 1, 7, 3))
    transfers = (*plan.transfers, replace(plan.transfers[1], target_wafer=2))
    copied = replace(plan, blocks=(embed, attention, head, other), transfers=transfers, machine=BIG)
    model = replace(model, edges=edges)
    run(model, copied, [2, 1], users=2, largest=50)
    first, second = (predict(model, copied, Step(1, 0, user)) for user in (0, 1))
    assert ("head", "logits") in first.ops
    assert ("head #1", "logits") in second.ops
    assert (set(first.links), set(second.links)) == ({(0, 1), (1, 0)}, {(0, 1), (1, 2)})


def test_ways_are_those_from_the_copies_that_a_user_meets():
    """One router is on the experts' wafer, the other elsewhere: for the one user a relay, for the other a transfer."""
    graph = graph_of(MIXTURE)
    blocks = (
        block_of(graph, "router", [0, 1, 2], BlockKind.ROUTER),
        block_of(graph, "experts", [3, 4, 5, 6, 7], BlockKind.EXPERTS, experts=4),
    )
    model = Model(graph, blocks, tuple(Edge(0, 1, name, 0) for name in ("flat", "chosen", "best")), ())
    sent = [(name, "router", 2, 0) for name in ("flat", "chosen", "best")]
    places = [(0, Rectangle(20, 3, 3, 4)), (0, EXPERT_PLACES["apart"][0])]
    plan = plan_of(model, places, sent, TWO_USERS, BIG, APART)
    router, experts = plan.blocks
    plan = replace(plan, blocks=(router, replace(router, copy=1, wafer=2), experts))
    run(model, plan, [1], users=2)
    first, second = (predict(model, plan, Step(1, 0, user)).mesh for user in (0, 1))
    assert first["relay"].calls == 3
    assert "relay" not in second


# --- Whole models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(compiled_small_kimi, tmp_path_factory):
    """Small models over several wafers: latent attention, grouped queries, sinks and biases, and a file of ONNX."""
    path = tmp_path_factory.mktemp("lm") / "model.onnx"
    onnx.save(language_model("causal"), path)
    request = Request(target="mini", systems=4, context=64, users=2)
    small = {name: compile_lowered(lowered_family(name), request) for name in ("qwen3", "gpt_oss")}
    return {**small, "onnx": compile_lowered(load_onnx(path), request), "kimi": compiled_small_kimi}


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "onnx", "kimi"])
def test_a_whole_model_takes_what_was_said(compiled, name):
    model, plan = compiled[name].model, compiled[name].plan
    last = run(model, plan, [5, 1, 2, 1], largest=30)
    assert last.transfer_bytes or len(plan.wafers_used) == 1


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "kimi"])
def test_multiply_adds_are_those_that_forecasts_count(compiled, name):
    """A forecast counts windows in full, so the step is one after which they are full."""
    model, plan = compiled[name].model, compiled[name].plan
    context = 40
    predicted = predict(model, plan, Step(1, context - 1))
    by_block: dict[str, int] = {}
    for (title, _), op in predicted.ops.items():
        by_block[title] = by_block.get(title, 0) + op.multiply_adds
    profile = profile_of(model, None)
    assert {block.name: block.macs(context) for block in profile.blocks} == by_block


def test_routing_that_nobody_tells_is_even():
    routes = even_routing(experts=5, places=2, tokens=7)
    assert routes.sum(axis=0).tolist() == [7, 7]
    assert sorted(routes.sum(axis=1).tolist()) == [2, 3, 3, 3, 3]
    graph = graph_of(EXPERTS.format(given=1, up="18, 12", transposed="false"))
    model, _ = one_block(graph, kind=BlockKind.EXPERTS, experts=4)
    region, regions = EXPERT_PLACES["apart"]
    plan = plan_of(model, [(0, region)], experts=regions, machine=BIG)
    step = Step(5)
    assumed = predict(model, plan, step)
    assert assumed.routing["y"].tolist() == even_routing(4, 3, 5).tolist()
    same(assumed, predict(model, plan, step, assumed.routing))


def test_predictions_need_no_torch(plan_folder):
    program = (
        "import sys\nfrom pathlib import Path\nfrom partitioner.cli.check import require_sound\n"
        "from partitioner.folder import read_plan\nfrom targets.cost.traffic import Step, predict\n"
        f"stored = read_plan(Path({str(plan_folder)!r}))\n"
        "counters = predict(require_sound(stored), stored.plan, Step(1, 3))\n"
        "print(counters.multiply_adds > 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
