"""Passes keep what a graph computes; caches are the smallest cut, and suffice; blocks cover the graph and add up."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ir.builder import GraphBuilder
from ir.encoding import plain
from ir.graph import Attribute, Graph
from ir.interpret import bind_attributes, interpret
from ir.liveness import token_dependent
from ir.model import BlockKind, Cache, Model
from ir.ops import OPS
from ir.types import Dim, DType, Size, TensorType, for_one_token
from ir.verify import verify
from partitioner.compile import build_model
from partitioner.frontends.huggingface import lower_config
from partitioner.frontends.lowered import Lowered
from partitioner.frontends.original import Original, open_original
from partitioner.passes.blocks import find_blocks
from partitioner.passes.localise import localise
from partitioner.passes.origins import layer_of
from partitioner.passes.simplify import simplify
from targets.emulator.weights import unpacked

USERS, TOKENS = Dim.symbol("users"), Dim.symbol("tokens")
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "model_type": "llama", "num_key_value_heads": 2},
    "deepseek": {
        **SMALL,
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "mistral": {**SMALL, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 7},
}


@functools.cache
def opened(name: str) -> Lowered:
    return lower_config(CONFIGS[name], name)


def lowered(name: str) -> Graph:
    return opened(name).graph


@functools.cache
def model_of(name: str) -> Model:
    return build_model(lowered(name))


@functools.cache
def original_of(name: str) -> Original:
    return open_original(opened(name).origin, lowered(name).parameters, seed=0)


def step_inputs(users: int, tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 96, (users, tokens), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "position_ids": torch.arange(tokens).expand(users, tokens)}


class Builder(GraphBuilder):
    """A graph of f32 values, node by node, that keeps their meaning for made-up inputs and weights."""

    def __init__(self) -> None:
        super().__init__("made")
        self.tensors: dict[str, torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(5)

    def given(self, name: str, *shape: Size) -> str:
        bound = [size if isinstance(size, int) else {"users": 2, "tokens": 3}[str(size)] for size in shape]
        self.tensors[name] = torch.randn(bound, generator=self._generator)
        return self.input(name, TensorType(DType.F32, shape))

    def weight(self, name: str, *shape: int) -> str:
        self.tensors[name] = torch.randn(shape, generator=self._generator)
        return self.parameter(name, TensorType(DType.F32, shape), plain(DType.F32))

    def put(self, op: str, *inputs: str, origin: str = "", **attributes: Attribute) -> str:
        return self.add(op, inputs, origin, **attributes)

    def part(self, x: str, start: int, end: int, dim: int = -1, origin: str = "") -> str:
        dim %= len(self.type(x).shape)
        return self.put("slice", x, origin=origin, dim=dim, start=start, end=end, step=1)

    def joined(self, *parts: str, dim: int, origin: str = "") -> str:
        return self.put("concat", *parts, origin=origin, dim=dim)


def outputs(graph: Graph, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    values = interpret(graph, tensors)
    return [values[name] for name in graph.outputs]


def simplified(builder: Builder, *results: str) -> Graph:
    """The simplified graph, which computes the same."""
    before = verify(builder.finish(results))
    after = verify(simplify(before))
    for ours, theirs in zip(outputs(after, builder.tensors), outputs(before, builder.tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert simplify(after) == after
    return after


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


# --- canonical form -------------------------------------------------------------------------------------------------

NEUTRAL: dict[str, dict[str, Attribute]] = {
    **{op: {"scalar": 1} for op in ("mul", "div", "pow")},
    **{op: {"scalar": 0.0} for op in ("add", "sub")},
    "slice": {"dim": 1, "start": 0, "end": 4, "step": 1},
    "transpose": {"permutation": (0, 1)},
    "reshape": {"shape": (TOKENS, 4)},
    "expand": {"shape": (TOKENS, 4)},
    "cast": {"dtype": DType.F32},
    "concat": {"dim": 1},
}


@pytest.mark.parametrize("op", NEUTRAL)
def test_what_changes_nothing_goes(op: str) -> None:
    b = Builder()
    x = b.put("neg", b.given("x", TOKENS, 4))
    graph = simplified(b, b.put("relu", b.put(op, b.put(op, x, **NEUTRAL[op]), **NEUTRAL[op])))
    assert ops(graph) == ["neg", "relu"]


KEPT: dict[str, tuple[str, dict[str, Attribute]]] = {
    "times two": ("mul", {"scalar": 2}),
    "plus one": ("add", {"scalar": 1}),
    "to the power of nothing": ("pow", {"scalar": 0}),
    "every second": ("slice", {"dim": 1, "start": 0, "end": 4, "step": 2}),
    "turned": ("transpose", {"permutation": (1, 0)}),
    "flat": ("reshape", {"shape": (4 * TOKENS,)}),
    "wider": ("expand", {"shape": (2, TOKENS, 4)}),
    "narrower": ("cast", {"dtype": DType.BF16}),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_changes_something_stays(what: str) -> None:
    op, attributes = KEPT[what]
    b = Builder()
    graph = simplified(b, b.put(op, b.given("x", TOKENS, 4), **attributes))
    assert ops(graph) == [op]


def test_a_neutral_number_that_changes_the_type_stays() -> None:
    b = Builder()
    ids = b.input("ids", TensorType(DType.I64, (TOKENS,)))
    b.tensors["ids"] = torch.tensor([1, 2, 3])
    assert ops(simplified(b, b.put("mul", ids, scalar=1.0), b.put("mul", ids, scalar=1))) == ["mul"]


def test_an_output_may_be_an_input() -> None:
    b = Builder()
    graph = simplified(b, b.put("reshape", b.given("x", TOKENS, 4), shape=(TOKENS, 4)))
    assert (graph.nodes, graph.outputs) == ((), ("x",))


def test_dead_nodes_go_but_both_results_of_a_node_that_is_read_stay() -> None:
    b = Builder()
    x = b.given("x", TOKENS, 4)
    b.put("exp", b.put("neg", x))
    best = b.put("topk", x, k=2, dim=1)
    graph = simplified(b, f"{best}.1")
    assert ops(graph) == ["topk"]
    assert len(graph.nodes[0].results) == 2


def test_parts_of_what_was_joined_are_read_where_they_were() -> None:
    b = Builder()
    x, y, z = (b.given(name, TOKENS, width) for name, width in (("x", 2), ("y", 3), ("z", 4)))
    whole = b.joined(x, y, z, dim=1)
    exact = b.put("neg", b.part(whole, 2, 5))
    inside = b.put("neg", b.part(whole, 6, 8))
    several = b.part(whole, 0, 5)
    across = b.part(whole, 1, 3)
    graph = simplified(b, exact, inside, several, across)
    found = [(node.op, node.inputs, node.attributes.get("start"), node.attributes.get("end")) for node in graph.nodes]
    assert found == [
        ("concat", ("x", "y", "z"), None, None),
        ("neg", ("y",), None, None),
        ("slice", ("z",), 1, 3),
        ("neg", (graph.nodes[2].result.name,), None, None),
        ("concat", ("x", "y"), None, None),
        ("slice", (whole,), 1, 3),
    ]


def test_parts_along_another_axis_with_a_step_or_of_unknown_size_stay() -> None:
    b = Builder()
    x, y = b.given("x", TOKENS, 4), b.given("y", TOKENS, 4)
    beside = b.joined(x, y, dim=1)
    every_second = b.put("slice", beside, dim=1, start=0, end=8, step=2)
    below = b.joined(b.put("transpose", x, permutation=(1, 0)), b.put("transpose", y, permutation=(1, 0)), dim=0)
    graph = simplified(b, every_second, b.part(below, 0, 8, dim=0))
    assert [op for op in ops(graph) if op == "slice"] == ["slice"]


def test_nothing_of_a_tensor_written_in_full_is_left() -> None:
    """Keys that are assembled by writing into the slices of an empty tensor, as DeepSeek's code does."""
    b = Builder()
    x, y = b.given("x", TOKENS, 2), b.given("y", TOKENS, 3)
    empty = b.put("full", shape=(TOKENS, 5), value=0, dtype=DType.F32)
    first = b.joined(x, b.part(empty, 2, 5), dim=1)
    second = b.joined(b.part(first, 0, 2), y, dim=1)
    graph = simplified(b, b.put("neg", second))
    assert [(node.op, node.inputs[:2]) for node in graph.nodes] == [("concat", ("x", "y")), ("neg", (second,))]


def test_the_keys_of_deepseek_are_one_join() -> None:
    graph = model_of("deepseek").graph
    assert any(node.op == "full" and "self_attn" in node.origin for node in lowered("deepseek").nodes)
    for node in graph.nodes:
        assert node.op != "full" or "self_attn" not in node.origin
        if node.op == "attention":
            key = graph.nodes[graph.producer[node.inputs[1]]]
            assert key.op == "concat"
            assert [graph.types[name].shape[-1] for name in key.inputs] == [16, 8]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("op", ["linear", "matmul"])
def test_a_weight_is_turned_by_its_product(op: str, stored: bool) -> None:
    b = Builder()
    x = b.given("x", USERS, TOKENS, 4)
    turned = op == "linear" and stored
    turn = b.put("transpose", b.weight("w", *((4, 5) if not turned and op == "linear" else (5, 4))), permutation=(1, 0))
    options: dict[str, Attribute] = {"transposed": turned} if op == "linear" else {}
    graph = simplified(b, b.put(op, x, turn, **options))
    (product,) = graph.nodes
    assert (product.op, product.inputs) == ("linear", ("x", "w"))
    assert product.attributes == {"transposed": op == "linear" and not turned}


def test_values_and_stacks_of_weights_are_not_turned() -> None:
    b = Builder()
    x, y = b.given("x", TOKENS, 4), b.given("y", TOKENS, 4)
    values = b.put("matmul", x, b.put("transpose", y, permutation=(1, 0)))
    stack = b.put("matmul", x, b.put("transpose", b.weight("w", 2, 5, 4), permutation=(0, 2, 1)))
    assert ops(simplified(b, values, stack)) == ["transpose", "matmul", "transpose", "matmul"]


widths = st.integers(0, 3)
steps = st.tuples(
    st.sampled_from(["neutral", "slice", "concat", "turn", "flat", "linear", "neg"]), widths, widths, widths
)


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(steps, min_size=1, max_size=25), st.integers(0, 3))
def test_random_graphs_compute_the_same(plan: list[tuple[str, int, int, int]], more: int) -> None:
    b = Builder()
    weight = b.weight("w", 4, 4)
    values = [b.given(f"x{i}", TOKENS, 4) for i in range(2)]
    for kind, i, j, k in plan:
        x, y = values[-1 - i % len(values)], values[-1 - j % len(values)]
        values.append(_random_step(b, weight, kind, x, y, (j, k)))
    simplified(b, values[-1], values[-1 - more % len(values)])


def _random_step(b: Builder, weight: str, kind: str, x: str, y: str, numbers: tuple[int, int]) -> str:
    """Another value of shape [tokens, width]."""
    width = int(b.type(x).shape[1])  # type: ignore[arg-type]
    start, end = sorted((numbers[0] % width, 1 + numbers[1] % width))
    if kind == "neutral":
        op = list(NEUTRAL)[(numbers[0] * 4 + numbers[1]) % 5]
        return b.put(op, x, **NEUTRAL[op])
    if kind == "slice":
        return b.part(x, start, max(end, start + 1))
    if kind == "concat":
        return b.joined(x, y, x, dim=1) if width < 20 else b.joined(x, dim=1)
    if kind == "turn":
        return b.put("transpose", b.put("transpose", x, permutation=(1, 0)), permutation=(1, 0))
    if kind == "flat":
        return b.put("reshape", b.put("reshape", x, shape=(TOKENS * width,)), shape=(TOKENS, width))
    if kind == "linear" and width == 4:
        return b.put("linear", x, b.put("transpose", weight, permutation=(1, 0)), transposed=bool(numbers[0] % 2))
    return b.put("neg", x)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_models_compute_the_same(name: str) -> None:
    tensors = {**unpacked(original_of(name).weights, lowered(name).parameters), **step_inputs(2, 5)}
    before = outputs(lowered(name), tensors)
    for change in (simplify, localise, lambda graph: simplify(localise(graph))):
        torch.testing.assert_close(outputs(verify(change(lowered(name))), tensors), before, rtol=0, atol=0)
    once = simplify(localise(lowered(name)))
    assert simplify(once) == once


def test_what_positions_decide_is_computed_in_each_layer() -> None:
    """No table of sines is sent: layers read token values and positions alone."""
    model = model_of("llama")
    by_name = {block.name: block for block in model.blocks}
    assert {edge.value for edge in model.edges}.isdisjoint({"position_ids"})
    assert {edge.bytes_per_token for edge in model.edges} == {64 * 4}
    first = [model.graph.nodes[i] for i in by_name["layers.0.attention"].nodes]
    assert {"sin", "cos"} <= {node.op for node in first}
    assert {layer_of(node.origin)[0] for node in first} == {"model.layers.0"}


def test_what_needs_a_weight_or_takes_no_more_than_its_inputs_stays_where_it_is() -> None:
    b = Builder()
    x, positions = b.given("x", TOKENS, 4), b.given("positions", TOKENS)
    table = b.weight("table", 4)
    wide = b.put("reshape", positions, shape=(TOKENS, 1))
    scaled = b.put("mul", wide, table)
    same = b.put("neg", positions)
    alone = b.put("expand", b.put("exp", wide), shape=(TOKENS, 4))
    total = x
    for name in (scaled, alone):
        total = b.put("add", total, name, origin="layers.0.mlp")
    total = b.put("mul", total, b.put("reshape", same, shape=(TOKENS, 1)), origin="layers.1.mlp")
    before = verify(b.finish((total,)))
    after = verify(simplify(localise(before)))
    torch.testing.assert_close(outputs(after, b.tensors), outputs(before, b.tensors), rtol=0, atol=0)
    origins = {(node.op, node.origin) for node in after.nodes}
    assert {("mul", ""), ("neg", ""), ("exp", "layers.0.mlp"), ("expand", "layers.0.mlp")} <= origins
    assert ("exp", "") not in origins


# --- caches ---------------------------------------------------------------------------------------------------------


def caches_of(model: Model) -> list[Cache]:
    return [cache for block in model.blocks for cache in block.caches]


def test_grouped_queries_remember_keys_and_values() -> None:
    for cache in caches_of(model_of("llama")):
        node = model_of("llama").graph.nodes[cache.node]
        assert set(cache.values) == set(node.inputs[1:3])
        assert (cache.bytes_per_token, cache.recompute, cache.window) == (2 * 2 * 16 * 4, (), 0)


def test_latent_attention_remembers_the_latent_and_the_shared_key() -> None:
    graph = model_of("deepseek").graph
    for cache in caches_of(model_of("deepseek")):
        assert sorted(graph.types[name].shape[-1] for name in cache.values) == [8, 32]
        assert cache.bytes_per_token == 4 * (8 + 32)
        assert [graph.nodes[i].op for i in cache.recompute].count("linear") == 1


def test_gpt3_remembers_48_kib_a_token_and_layer() -> None:
    shape = {"n_embd": 12288, "n_head": 96, "n_layer": 1, "n_positions": 2048, "vocab_size": 64}
    config = {"model_type": "gpt2", "dtype": "float16", "bos_token_id": 0, "eos_token_id": 0, **shape}
    model = build_model(lower_config(config, "gpt3").graph)
    assert [cache.bytes_per_token for cache in caches_of(model)] == [49_152]
    (attention,), (mlp,) = model.of_kind(BlockKind.ATTENTION), model.of_kind(BlockKind.DENSE_MLP)
    width = 12288
    assert attention.weight_bytes == 2 * (4 * width * width + 4 * width + 2 * width)
    assert mlp.weight_bytes == 2 * (8 * width * width + 5 * width + 2 * width)
    assert attention.macs_per_token == 4 * width * width
    assert attention.macs_per_cached_token == 2 * width


def test_windows_bound_what_is_remembered() -> None:
    caches = caches_of(model_of("mistral"))
    assert {cache.window for cache in caches} == {7}
    assert [caches[0].tokens(context) for context in (3, 7, 1000)] == [3, 7, 7]
    (block, *_) = model_of("mistral").of_kind(BlockKind.ATTENTION)
    assert block.cache_bytes(users=3, context=1000) == 3 * 7 * block.cache_bytes_per_token
    # A window is all that attention looks at, however long the context.
    assert block.macs_per_cached_token == 0
    unlimited = model_of("llama").of_kind(BlockKind.ATTENTION)[0]
    assert unlimited.cache_bytes(users=3, context=1000) == 3000 * unlimited.cache_bytes_per_token
    assert block.macs_per_token == unlimited.macs_per_token + 7 * unlimited.macs_per_cached_token


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_values_are_recomputed_from_what_is_remembered(name: str) -> None:
    """Nothing but remembered values, weights and constants takes part."""
    model = model_of(name)
    graph = model.graph
    direct = interpret(graph, {**unpacked(original_of(name).weights, lowered(name).parameters), **step_inputs(2, 5)})
    depends = token_dependent(graph)
    for cache in caches_of(model):
        known = {key: value for key, value in direct.items() if key not in depends or key in cache.values}
        for index in cache.recompute:
            node = graph.nodes[index]
            attributes = bind_attributes(node.attributes, {"users": 2, "tokens": 5})
            results = OPS[node.op].reference(torch, [known[operand] for operand in node.inputs], attributes)
            known.update(zip((value.name for value in node.results), _tuple(results), strict=True))
        for wanted in graph.nodes[cache.node].inputs[1:3]:
            torch.testing.assert_close(known[wanted], direct[wanted], rtol=0, atol=0)


def _tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("name", ["llama", "deepseek"])
def test_no_smaller_set_suffices(name: str) -> None:
    """Every set of up to three values behind the block's first products, tried one by one."""
    model = model_of(name)
    cache = caches_of(model)[0]
    behind = _behind_products(model, cache)
    sizes = {name: for_one_token(model.graph.types[name].bytes) for name in behind}
    smaller = [
        values
        for count in (1, 2, 3)
        for values in itertools.combinations(behind, count)
        if sum(map(sizes.__getitem__, values)) < cache.bytes_per_token
    ]
    assert smaller
    assert set(cache.values) <= set(behind)
    assert not any(_suffice(model, cache, set(values)) for values in smaller)
    assert _suffice(model, cache, set(cache.values))


def _block_of(model: Model, cache: Cache) -> set[int]:
    return next(set(block.nodes) for block in model.blocks if cache in block.caches)


def _behind_products(model: Model, cache: Cache) -> list[str]:
    """Values of the attention's block that a product with a weight stands before."""
    graph, inside = model.graph, sorted(_block_of(model, cache))
    found: dict[str, None] = {}
    for index in inside:
        node = graph.nodes[index]
        if index < cache.node and (node.op == "linear" or any(name in found for name in node.inputs)):
            found |= dict.fromkeys(value.name for value in node.results)
    return list(found)


def _suffice(model: Model, cache: Cache, values: set[str]) -> bool:
    """Whether keys and values depend on nothing else that depends on the token."""
    graph, inside, depends = model.graph, _block_of(model, cache), token_dependent(model.graph)
    pending = list(graph.nodes[cache.node].inputs[1:3])
    while pending:
        name = pending.pop()
        if name in values or name not in depends:
            continue
        if graph.producer.get(name, -1) not in inside:
            return False
        pending += graph.nodes[graph.producer[name]].inputs
    return True


def attending(causal: bool = True, tokens: Size = TOKENS) -> Model:
    b = Builder()
    x = b.given("x", USERS, tokens, 4)
    heads = []
    for name in ("q", "k", "v"):
        product = b.put("linear", x, b.weight(name, 4, 4), origin="layers.0.attn", transposed=False)
        split = b.put("reshape", product, origin="layers.0.attn", shape=(USERS, tokens, 2, 2))
        heads.append(b.put("transpose", split, origin="layers.0.attn", permutation=(0, 2, 1, 3)))
    options: dict[str, Attribute] = {"scale": 1.0, "causal": causal, "window": 0, "softcap": 0.0}
    return find_blocks(verify(b.finish((b.put("attention", *heads, origin="layers.0.attn", **options),))))


def test_attention_in_all_directions_or_over_a_fixed_number_remembers_nothing() -> None:
    assert [cache.bytes_per_token for cache in caches_of(attending())] == [2 * 4 * 4]
    assert caches_of(attending(causal=False)) == []
    assert caches_of(attending(tokens=3)) == []


# --- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_cover_the_graph_in_order(name: str) -> None:
    model = model_of(name)
    covered = [index for block in model.blocks for index in block.nodes]
    assert sorted(covered) == list(range(len(model.graph.nodes)))
    assert all(list(block.nodes) == sorted(block.nodes) for block in model.blocks)
    assert all(edge.source < edge.target for edge in model.edges)
    assert len({block.name for block in model.blocks}) == len(model.blocks)
    home = {index: number for number, block in enumerate(model.blocks) for index in block.nodes}
    crossing = {
        (home[model.graph.producer[operand]], home[index], operand)
        for index, node in enumerate(model.graph.nodes)
        for operand in node.inputs
        if operand in model.graph.producer and home[model.graph.producer[operand]] != home[index]
    }
    assert {(edge.source, edge.target, edge.value) for edge in model.edges} == crossing
    for edge in model.edges:
        assert edge.bytes_per_token == for_one_token(model.graph.types[edge.value].bytes)


def test_the_parts_of_a_mixture_stay_together() -> None:
    model = model_of("deepseek")
    names = [[model.blocks[number].name for number in group] for group in model.together]
    parts = ("router", "shared_expert", "experts")
    assert [set(group) for group in names] == [{f"layers.{layer}.{part}" for part in parts} for layer in (1, 2)]
    assert [block.layer for block in model.of_kind(BlockKind.EXPERTS)] == [1, 2]
    for block in model.blocks:
        wanted = (8, 2) if block.kind is BlockKind.EXPERTS else (0, 0)
        assert (block.experts, block.active_experts) == wanted


def test_work_and_bytes_against_hand_counts() -> None:
    blocks = {block.name: block for block in model_of("deepseek").blocks}
    attention, latent, shared = blocks["layers.1.attention"], 32 + 8, 3 * 64 * 32
    weights = 64 * 48 + 48 * 4 * 24 + 64 * latent + 32 * 4 * 32 + 4 * 16 * 64
    assert attention.weight_bytes == 4 * (weights + 48 + 32 + 64)
    assert attention.macs_per_token == weights
    assert attention.macs_per_cached_token == 4 * (24 + 16)
    assert blocks["layers.0.dense_mlp"].macs_per_token == 3 * 64 * 96
    assert blocks["layers.1.shared_expert"].macs_per_token == shared
    assert blocks["layers.1.experts"].macs_per_token == 2 * shared
    assert blocks["layers.1.experts"].weight_bytes == 4 * 8 * shared
    assert blocks["layers.1.router"].macs_per_token == 8 * 64
    assert blocks["head"].macs_per_token == 96 * 64
    assert sum(block.macs_per_cached_token for block in blocks.values()) == 3 * 160


@pytest.mark.parametrize("name", ["llama", "deepseek"])
def test_work_against_torchs_own_count(name: str) -> None:
    model, users, tokens = model_of(name), 2, 48
    with FlopCounterMode(display=False) as counter:
        original_of(name).forward(step_inputs(users, tokens))
    fixed = sum(block.macs_per_token for block in model.blocks)
    # The original computes attention between all pairs of tokens, and masks half of it.
    seen = tokens * sum(block.macs_per_cached_token for block in model.blocks)
    ours = 2 * users * tokens * (fixed + seen)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)
    attention = 2 * users * tokens * seen
    assert 0.05 < attention / ours < 0.5


def layered(build: Any) -> Model:
    b = Builder()
    return find_blocks(verify(b.finish(build(b))))


def test_the_peak_of_what_is_alive() -> None:
    """x and its product with 8 columns (16 + 32 bytes), then the joined 48 beside both: 96; what follows is less."""

    def build(b: Builder) -> Sequence[str]:
        x = b.given("x", TOKENS, 4)
        wide = b.put("linear", x, b.weight("w", 8, 4), origin="layers.0.mlp", transposed=False)
        seen = b.put("reshape", wide, origin="layers.0.mlp", shape=(TOKENS, 2, 4))
        back = b.put("reshape", seen, origin="layers.0.mlp", shape=(TOKENS, 8))
        whole = b.joined(x, back, dim=1, origin="layers.0.mlp")
        constant = b.put("full", origin="layers.0.mlp", shape=(1, 1000), value=1, dtype=DType.F32)
        total = b.put("sum", constant, origin="layers.0.mlp", dims=(0, 1), keepdim=False)
        return [b.put("mul", b.put("neg", b.part(whole, 0, 2), origin="layers.0.mlp"), total, origin="layers.0.mlp")]

    (block,) = layered(build).blocks
    assert block.live_bytes_per_token == 16 + 32 + 48


def test_a_value_that_others_read_later_is_alive_to_the_end() -> None:
    def build(b: Builder) -> Sequence[str]:
        x = b.given("x", TOKENS, 4)
        first = b.put("linear", x, b.weight("w0", 4, 4), origin="layers.0.mlp", transposed=False)
        small = b.put("linear", first, b.weight("w1", 1, 4), origin="layers.0.mlp", transposed=False)
        return [
            b.put(
                "linear",
                b.put("add", first, small, origin="layers.1.mlp"),
                b.weight("w2", 4, 4),
                origin="layers.1.mlp",
                transposed=False,
            )
        ]

    before, after = layered(build).blocks
    assert (before.name, after.name) == ("layers.0.dense_mlp", "layers.1.dense_mlp")
    # x and the first product; the first and the second; the first, kept for the block after it.
    assert before.live_bytes_per_token == 32
    assert after.live_bytes_per_token == 16 + 4 + 16


def test_blocks_that_need_each_other_become_one() -> None:
    def build(b: Builder) -> Sequence[str]:
        x = b.given("x", TOKENS, 4)
        one = b.put("linear", x, b.weight("a", 4, 4), origin="layers.0.first", transposed=False)
        two = b.put("linear", one, b.weight("b", 4, 4), origin="layers.0.second", transposed=False)
        return [b.put("linear", two, b.weight("c", 4, 4), origin="layers.0.first", transposed=False)]

    model = layered(build)
    assert [(block.name, len(block.nodes)) for block in model.blocks] == [("layers.0.dense_mlp", 3)]
    assert model.edges == ()


@pytest.mark.parametrize(
    ("origin", "parts"),
    {
        "model.layers.17.mlp.gate": ("model.layers.17", "mlp.gate"),
        "/model/layers.17/mlp/gate": ("model.layers.17", "mlp.gate"),
        "model.layers.17": ("model.layers.17", ""),
        "transformer.h.3.attn": ("transformer.h.3", "attn"),
        "blocks.0.experts.5.w1": ("blocks.0", "experts.5.w1"),
        "model.norm": ("", "model.norm"),
        "lm_head": ("", "lm_head"),
        "": ("", ""),
    }.items(),
)
def test_layers_are_read_off_module_paths(origin: str, parts: tuple[str, str]) -> None:
    assert layer_of(origin) == parts
