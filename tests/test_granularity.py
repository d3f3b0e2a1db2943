"""Layers, halves or single operators: one model at every granularity, and the fewest machines that each needs."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from test_onnx_standard import language_model
from test_passes import CONFIGS, SMALL, TOKENS, USERS, Builder

from ir.diagnostics import InfeasibleError, UsageError
from ir.graph import Graph
from ir.machine import Machine
from ir.model import Block, BlockKind, Granularity, Model
from ir.objective import DEFAULT_OBJECTIVES, Objective
from ir.verify import verify
from ir.workload import Workload
from partitioner.api import CompiledModel, Request, compile_lowered
from partitioner.case import Case
from partitioner.check import check
from partitioner.compile import build_model, compile_model
from partitioner.floorplan.wafers import FloorPlanner
from partitioner.folder import read_plan
from partitioner.frontends.huggingface import lower_config
from partitioner.frontends.load import load
from partitioner.frontends.lowered import Lowered
from partitioner.frontends.onnx_file import load_onnx
from partitioner.frontends.original import open_original
from partitioner.passes.blocks import find_blocks
from partitioner.passes.profile import profile_of
from partitioner.problem import Copy, measure
from partitioner.solver.chain import best_runs
from partitioner.solver.filling import smallest_bottleneck
from partitioner.solver.problem import Problem
from partitioner.solver.score import score
from targets.emulator import Emulator

LAYERS, HALVES, OPS = Granularity.LAYERS, Granularity.HALVES, Granularity.OPS
ALL = (LAYERS, HALVES, OPS)
GPT2 = {**SMALL, "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
ONE_TOKEN = Workload(users=1, context=1, chunk=1)

# --- Llama 3.1 405B on machines of 44 GB ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_405b(once) -> dict[Granularity, Model]:
    halves = once("llama-405b", lambda: build_model(load("llama-3.1-405b").graph))
    return {HALVES: halves} | {each: find_blocks(halves.graph, each) for each in (LAYERS, OPS)}


def on_44_gb(model: Model, systems: int) -> Problem:
    return measure(model, Machine("44 GB", "all of it for a plan", 1000, 1000, 44_000, 0, systems), ONE_TOKEN)


@pytest.mark.parametrize(
    ("granularity", "systems", "fullest_gb"), [(LAYERS, 21, 42.46), (HALVES, 20, 43.49), (OPS, 19, 43.49)]
)
def test_the_fewest_machines_for_llama_405b(
    llama_405b: dict[Granularity, Model], granularity: Granularity, systems: int, fullest_gb: float
) -> None:
    """For chains the parametric search is exact: what it does not find does not exist."""
    model = llama_405b[granularity]
    assert round(model.weight_bytes / 1e9, 1) == 811.7
    problem = on_44_gb(model, systems)
    assert problem.is_chain
    assert smallest_bottleneck(on_44_gb(model, systems - 1)) is None
    found = smallest_bottleneck(problem)
    assert found is not None
    assert round(found[0] / 1e9, 2) == fullest_gb
    if granularity is OPS:
        loads = [sum(i.bytes for i, w in zip(problem.items, found[1], strict=True) if w == k) for k in range(systems)]
        fullest = loads.index(max(loads))
        blocks = [b for i, w in zip(problem.items, found[1], strict=True) if w == fullest for b in i.blocks]
        machine = Machine("44 GB", "", 1000, 1000, 44_000, 0, systems)
        assert FloorPlanner(model, machine, ONE_TOKEN).fits([Copy(block) for block in blocks]), (
            "and rectangles of tiles hold it"
        )


def test_a_layer_of_llama_405b_in_operators(llama_405b: dict[Granularity, Model]) -> None:
    model = llama_405b[OPS]
    layer = [block for block in model.blocks if block.layer == 7]
    names = "attention.q_proj attention.k_proj attention.v_proj attention.core attention.o_proj"
    names += " dense_mlp.gate_proj dense_mlp.up_proj dense_mlp.down_proj"
    assert [block.name for block in layer] == [f"layers.7.{name}" for name in names.split()]
    assert [block.cache_bytes_per_token for block in layer] == [0, 0, 0, 4096, 0, 0, 0, 0]
    assert max(block.weight_bytes for block in layer) == 2 * 16384 * 53248 + 2 * 16384  # a product, and a norm
    # What goes from product to product is as wide as it has to be: no rotated copy, no vector of a norm in float32.
    within = [e for e in model.edges if model.blocks[e.source].layer == model.blocks[e.target].layer == 7]
    assert {edge.bytes_per_token for edge in within} == {2 * 16384, 2 * 1024, 2 * 53248}


# --- every granularity is the same model ------------------------------------------------------------------------------


@functools.cache
def lowered(name: str) -> Lowered:
    return lower_config(GPT2 if name == "gpt2" else CONFIGS[name], name)


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    path: Path = tmp_path_factory.mktemp("lm") / "model.onnx"
    onnx.save(language_model("causal"), path)
    return load_onnx(path)


@pytest.fixture(params=["small-kimi", "llama", "gpt2", "onnx"])
def small(request: pytest.FixtureRequest, lowered_small_kimi: Lowered) -> Lowered:
    if request.param == "onnx":
        return request.getfixturevalue("onnx_model")
    return lowered_small_kimi if request.param == "small-kimi" else lowered(request.param)


def placed(given: Lowered, granularity: Granularity) -> CompiledModel:
    request = Request(target="mini", systems=4, context=32, prefill_chunk=8, granularity=granularity)
    return compile_lowered(given, request)


def test_tokens_are_the_originals_at_every_granularity(small: Lowered) -> None:
    """The emulator, step by step through its caches, against the model's own forward over the whole text."""
    graph = build_model(small.graph).graph
    ids, places = (value.name for value in graph.inputs)
    tokens = torch.randint(1, 32, (1, 7), generator=torch.Generator().manual_seed(3))
    whole = {ids: tokens, places: torch.arange(7).expand(1, 7)}
    original = open_original(small.origin, graph.parameters, seed=0)
    (expected,) = original.forward(whole)
    for granularity in ALL:
        found = placed(small, granularity)
        assert found.model.granularity is granularity
        assert check(found.plan, found.model) == ()
        emulator = Emulator(found.model, found.plan, original.weights)
        steps = [
            emulator.step({name: tensor[:, start:end] for name, tensor in whole.items()})
            for start, end in itertools.pairwise((0, 5, 7))
        ]
        logits = torch.cat([next(iter(step.values())) for step in steps], dim=1)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_totals_are_those_of_the_model_at_every_granularity(small: Lowered) -> None:
    halves = build_model(small.graph)
    for granularity in ALL:
        model = find_blocks(halves.graph, granularity)
        assert find_blocks(halves.graph, granularity) == model, "the same whenever it is cut"
        assert sorted(i for block in model.blocks for i in block.nodes) == list(range(len(halves.graph.nodes)))
        for name in ("weight_bytes", "copied_bytes", "layers", "parameters"):
            assert getattr(model, name) == getattr(halves, name)
        for name in ("macs_per_token", "macs_per_cached_token", "cache_bytes_per_token"):
            assert total(model, name) == total(halves, name)
        holders = [name for block in model.blocks for name in block.parameters]
        once_each = {name for name in holders if holders.count(name) == 1}
        tied = {name for block in halves.blocks for name in block.parameters} - once_each
        assert all(len([b for b in halves.blocks if name in b.parameters]) > 1 for name in tied)
        assert all(edge.source < edge.target for edge in model.edges), "blocks are in topological order"
        assert len({block.name for block in model.blocks}) == len(model.blocks)
        assert profile_macs(model) == profile_macs(halves)


def total(model: Model, name: str) -> int:
    return sum(getattr(block, name) for block in model.blocks)


def profile_macs(model: Model) -> int:
    return sum(block.macs(context=3) for block in profile_of(model, None).blocks)


def test_what_stays_together(lowered_small_kimi: Lowered) -> None:
    layers, halves, ops = (find_blocks(build_model(lowered_small_kimi.graph).graph, each) for each in ALL)
    assert [{layers.blocks[i].layer for i in group} for group in layers.together] == [{0}, {1}, {2}, {3}]
    assert len(layers.together[1]) == len([b for b in layers.blocks if b.layer == 1])
    mixture = {BlockKind.ROUTER, BlockKind.SHARED_EXPERT, BlockKind.EXPERTS}
    for model in (halves, ops):
        assert [{model.blocks[i].kind for i in group} for group in model.together] == [mixture] * 3
    whole = [[b for b in model.blocks if b.kind in mixture] for model in (halves, ops)]
    assert [b.parameters for b in whole[0]] == [b.parameters for b in whole[1]], "mixtures are not split"


def test_latents_are_turned_into_keys_where_attention_is(lowered_small_kimi: Lowered) -> None:
    """The product that recomputes keys and values from what is cached stays with attention (DeepSeek-V2, 2.1)."""
    halves = build_model(lowered_small_kimi.graph)
    ops = find_blocks(halves.graph, OPS)
    caches = [[cache for block in model.blocks for cache in block.caches] for model in (halves, ops)]
    assert caches[0] == caches[1]
    cores = [block for block in ops.blocks if block.caches]
    assert all(any("kv_b_proj" in name for name in core.parameters) for core in cores)
    for core in cores:
        assert {index for cache in core.caches for index in cache.recompute} <= set(core.nodes)


# --- where cheap operators go -----------------------------------------------------------------------------------------


def shrinking() -> Graph:
    """A wide product whose result is summed in pairs, then a product of the sums; both weights in one layer."""
    b = Builder()
    x, up, down = b.given("x", USERS, TOKENS, 8), b.weight("up", 64, 8), b.weight("down", 8, 4)
    wide = b.put("linear", x, up, origin="layers.0.mlp.up", transposed=False)
    grouped = b.put("reshape", wide, origin="layers.0.mlp", shape=(USERS, TOKENS, 4, 16))
    sums = b.put("sum", grouped, origin="layers.0.mlp", dims=(3,), keepdim=False)
    return verify(b.finish((b.put("linear", sums, down, origin="layers.0.mlp.down", transposed=False),)))


def test_what_shrinks_stays_with_the_product_that_feeds_it() -> None:
    model = find_blocks(shrinking(), OPS)
    assert [[model.graph.nodes[i].op for i in block.nodes] for block in model.blocks] == [
        ["linear", "reshape", "sum"],
        ["linear"],
    ]
    assert [edge.bytes_per_token for edge in model.edges] == [4 * 4]


def test_no_other_place_of_the_cheap_operators_sends_less() -> None:
    """Every division of an attention that keeps its order, tried: values between products and behind each place."""
    model = find_blocks(build_model(lowered("gpt2").graph).graph, OPS)
    pieces = [block for block in model.blocks if block.layer == 0 and block.kind is BlockKind.DENSE_MLP]
    nodes = sorted(index for piece in pieces for index in piece.nodes)
    products = [index for index in nodes if model.graph.nodes[index].op == "linear"]
    free = [index for index in nodes if index not in products]
    assert len(pieces) == 2
    best = min(
        sent(model.graph, nodes, {*before, products[0]})
        for count in range(len(free) + 1)
        for before in itertools.combinations(free, count)
        if keeps_order(model.graph, {*before, products[0]}, set(nodes))
    )
    assert sent(model.graph, nodes, set(pieces[0].nodes)) == best


def keeps_order(graph: Graph, before: set[int], nodes: set[int]) -> bool:
    makers = {graph.producer[name] for i in before for name in graph.nodes[i].inputs if name in graph.producer}
    return makers & nodes <= before


def sent(graph: Graph, nodes: list[int], before: set[int]) -> int:
    """Bytes for a token that nodes of the block outside of ``before`` read of what is made in it or ahead of it."""
    behind = set(nodes) - before
    read = {name for i in behind for name in graph.nodes[i].inputs if name in graph.producer}
    leaving = {
        value.name
        for i in before
        for value in graph.nodes[i].results
        if any(reader not in nodes for reader in graph.consumers.get(value.name, ()))
    }
    return sum(graph.token_bytes[name] for name in (read | leaving) if graph.producer[name] not in behind)


# --- what is chosen, recorded and refused -----------------------------------------------------------------------------


def wafers(tile_bytes: int, systems: int) -> Machine:
    return Machine("tiny", "a small wafer", 24, 24, tile_bytes, 0, systems)


WORKLOAD = Workload(users=1, context=16, chunk=1)


def largest(model: Model) -> Block:
    return max(model.blocks, key=lambda block: block.weight_bytes)


def test_auto_takes_halves_where_they_fit_and_operators_where_not() -> None:
    model = build_model(lowered("llama").graph)
    roomy = compile_model(Case(model, wafers(256, 8), WORKLOAD))
    assert roomy.model is model
    asked = compile_model(Case(model, wafers(256, 8), WORKLOAD), HALVES)
    assert asked.plan == roomy.plan, "and the plan is what it was"
    # An MLP of 74 kB is larger than a wafer of 60 kB.
    machine = wafers(104, 12)
    assert largest(model).weight_bytes > machine.wafer_bytes
    split = compile_model(Case(model, machine, WORKLOAD))
    assert split.model.granularity is OPS
    assert check(split.plan, split.model) == ()


def test_a_finer_granularity_is_named_where_it_would_fit() -> None:
    model = build_model(lowered("llama").graph)
    with pytest.raises(InfeasibleError) as refused:
        compile_model(Case(model, wafers(104, 12), WORKLOAD), HALVES)
    (fault,) = refused.value.diagnostics
    assert (fault.code, fault.message) == ("W0412", "layers.0.dense_mlp does not fit on any wafer")
    assert fault.help[0] == "--granularity ops would fit"
    with pytest.raises(InfeasibleError) as refused:
        compile_model(Case(model, wafers(188, 10), WORKLOAD), LAYERS)
    assert refused.value.diagnostics[0].code == "W0412"
    assert refused.value.diagnostics[0].help[0] == "--granularity halves would fit"


def test_an_operator_larger_than_a_wafer_is_refused_by_name() -> None:
    model = build_model(lowered("llama").graph)
    for granularity in (OPS, Granularity.AUTO):
        with pytest.raises(InfeasibleError) as refused:
            compile_model(Case(model, wafers(36, 40), WORKLOAD), granularity)
        (fault,) = refused.value.diagnostics
        assert (fault.code, fault.message.split()[0].rpartition(".")[2]) == ("W0412", "up_proj")
        assert not any("--granularity" in text for text in fault.help)


def test_the_plan_tells_its_granularity(waferc, tmp_path: Path, quick_load: None) -> None:
    folder = tmp_path / "plan"
    made = waferc("compile", "small-kimi", "--target", "mini", "--granularity", "ops", "-o", folder, "--json")
    assert (made.code, made.record["granularity"]) == (0, "ops")
    assert read_plan(folder).manifest.model.granularity is OPS
    assert waferc("check", folder).code == 0
    assert waferc("view", folder).code == 0
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"granularity": "ops"', '"granularity": "halves"'))
    damaged = waferc("check", folder, "--json")
    assert damaged.code == 6
    assert {"W0501"} <= set(damaged.codes), "other blocks than the plan has"


def test_the_choice_is_told(compiled_small_kimi: CompiledModel, tmp_path: Path) -> None:
    given = lowered("llama")
    machine = tmp_path / "tiny.toml"
    text = "[mesh]\ncolumns = 24\nrows = 24\n[tile]\nsram_bytes = 104\nreserve_bytes = 0\n[cluster]\nsystems = 12\n"
    machine.write_text(f'extends = "mini"\nname = "tiny"\n{text}')
    found = compile_lowered(given, Request(target=str(machine), context=16, prefill_chunk=1))
    assert found.model.granularity is OPS
    assert any("--granularity ops" in note for note in found.lowered.notes)
    assert compiled_small_kimi.model.granularity is HALVES
    assert not any("--granularity" in note for note in compiled_small_kimi.lowered.notes)


def test_there_is_no_other_granularity() -> None:
    with pytest.raises(UsageError) as refused:
        Request(granularity="blocks")
    assert refused.value.diagnostics[0].code == "W0104"


def test_operators_in_order_cost_no_traffic_beyond_their_values() -> None:
    model = find_blocks(build_model(lowered("llama").graph).graph, OPS)
    problem = measure(model, wafers(256, 8), WORKLOAD)
    free = replace(problem, flows=tuple(flow for flow in problem.flows if flow.bytes_per_token))
    assert problem.is_chain
    assert not free.is_chain, "keys and values stand side by side"
    found = smallest_bottleneck(problem)
    assert found is not None
    least = best_runs(problem, DEFAULT_OBJECTIVES)
    assert least is not None
    assert least.values == (found[0], score(free, least.assignment, Objective.TRAFFIC))
