"""Attention on tiles means what the operator means, in any order of sums, and takes what is told beforehand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_emulator import block_of, graph_of, plan_of, random_weights

from ir.graph import Graph
from ir.interpret import interpret
from ir.model import BlockKind, Cache, Model
from ir.plan import Rectangle
from ir.workload import Workload
from partitioner.passes.absorb import look_at
from targets.cost.attention_traffic import attention_ops
from targets.counters import OpCount, Traffic
from targets.emulator import Arithmetic, Emulator, Order
from targets.emulator.history import History
from targets.program.instructions import Instruction, Program
from targets.program.kinds import KernelKind

CONTEXT = 12
TOKENS = 10
STEPS = ([10], [1] * 10, [6, 1, 3])
REGIONS = (Rectangle(2, 1, 5, 7), Rectangle(0, 0, 2, 1), Rectangle(1, 1, 1, 1))
"""Of so many tiles that a token lies on several, that several lie on one, and of one tile."""

PLAIN = """graph "attention" {{
  input %q : f32[users, {heads}, tokens, 6]
  input %k : f32[users, {kv}, tokens, 6]
  input %v : f32[users, {kv}, tokens, 5]
  param %s : f32[{heads}] as f32
  %a : f32[users, tokens, {heads}, 5] = attention(%q, %k, %v{sinks}) {{causal = {causal}, chunk = {chunk}, scale = 0.4, softcap = {softcap}, window = {window}}} @ "a"
  return %a
}}"""  # noqa: E501
DEFAULTS = {
    "heads": 4, "kv": 2, "sinks": "", "causal": "true", "chunk": 0, "softcap": "0.0", "window": 0
}  # fmt: skip
VARIANTS = {
    "multi-head": {"kv": 4},
    "grouped": {},
    "one key": {"kv": 1},
    "window": {"window": 4},
    "chunk": {"chunk": 4},
    "sinks": {"sinks": ", %s"},
    "soft cap": {"softcap": "1.5", "sinks": ", %s", "window": 3},
}
BIDIRECTIONAL = {"all": {}, "window": {"window": 3}, "sinks": {"sinks": ", %s", "softcap": "1.5"}}

LATENT = """graph "latent" {{
  input %q : f32[users, 4, tokens, 10]
  input %c : f32[users, tokens, 7]
  input %r : f32[users, 1, tokens, 4]
  param %up : f32[{shape}] as f32
  %kv1 : f32[users, tokens, 44] = linear(%c, %up) {{transposed = {transposed}}} @ "kv"
  %kv2 : f32[users, tokens, 44] = {made} @ "kv"
  %kv3 : f32[users, tokens, 4, 11] = reshape(%kv2) {{shape = [users, tokens, 4, 11]}} @ "kv"
  %kv : f32[users, 4, tokens, 11] = transpose(%kv3) {{permutation = [0, 2, 1, 3]}} @ "kv"
  %n : f32[users, 4, tokens, 6] = slice(%kv) {{dim = 3, end = 6, start = 0, step = 1}} @ "k"
  %rs : f32[users, 4, tokens, 4] = expand(%r) {{shape = [users, 4, tokens, 4]}} @ "k"
  %k : f32[users, 4, tokens, 10] = concat(%n, %rs) {{dim = 3}} @ "k"
  %v : f32[users, 4, tokens, 5] = slice(%kv) {{dim = 3, end = 11, start = 6, step = 1}} @ "v"
  %a : f32[users, tokens, 4, 5] = attention(%q, %k, %v) {{causal = true, scale = 0.4, softcap = 0.0, window = {window}}} @ "a"
  return %a
}}"""  # noqa: E501
VIEW, COMPUTED = "reshape(%kv1) {shape = [users, tokens, 44]}", "mul(%kv1) {scalar = 1.0}"


def emulator_of(graph: Graph, region: Rectangle, order: Order, *, cached: bool = True) -> Emulator:
    """One block on ``region``; what it caches are the keys and values, or a latent that is an input."""
    (node,) = (index for index, node in enumerate(graph.nodes) if node.op == "attention")
    window, chunk = (int(graph.nodes[node].attributes.get(name, 0)) for name in ("window", "chunk"))
    names = ("c", "r") if "c" in graph.types else ("k", "v")
    size = sum(graph.token_bytes[name] for name in names)
    cache = Cache(node, names, tuple(range(node)), size, window or chunk, chunked=bool(chunk))
    block = block_of(graph, "all", range(node + 1), BlockKind.ATTENTION, (cache,) if cached else ())
    model = Model(graph, (block,), (), ())
    plan = plan_of(model, [(0, region)], workload=Workload(1, CONTEXT, 1))
    return Emulator(model, plan, random_weights(graph), replace(Arithmetic.of(graph), order=order))


def inputs_of(graph: Graph, tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = {"users": 1, "tokens": tokens}
    shapes = {v.name: [sizes.get(str(size), size) for size in v.type.shape] for v in graph.inputs}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def attention_of(emulator: Emulator) -> tuple[Program, Instruction]:
    ((program,),) = (stage.programs for stage in emulator.stages(0))
    return program, next(i for i in program.instructions if i.kind is KernelKind.ATTENTION)


def run(emulator: Emulator, inputs: dict[str, torch.Tensor], sizes: list[int]) -> torch.Tensor:
    """The results of all steps; what each took is what was told beforehand."""
    graph, results, seen = emulator.model.graph, [], 0
    program, instruction = attention_of(emulator)
    for size in sizes:
        part = {name: x.narrow(1 if name == "c" else 2, seen, size) for name, x in inputs.items()}
        results.append(emulator.step(part)["a"])
        for op, told in attention_ops(graph, program, instruction, size, seen, CONTEXT).items():
            assert emulator.counters.ops[op] == told
        seen += size
    return torch.cat(results, dim=1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_over_a_cache(variant, order):
    graph = graph_of(PLAIN.format(**{**DEFAULTS, **VARIANTS[variant]}))
    inputs = inputs_of(graph)
    expected = interpret(graph, {**inputs, **random_weights(graph)})["a"]
    for region in REGIONS:
        emulator = emulator_of(graph, region, order)
        for sizes in STEPS:
            emulator.reset()
            close(run(emulator, inputs, sizes), expected)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("variant", BIDIRECTIONAL)
def test_attention_that_remembers_nothing(variant, order):
    """An encoder's, and that among a fixed number of vectors, in several stacks."""
    text = PLAIN.format(**{**DEFAULTS, **BIDIRECTIONAL[variant], "causal": "false"})
    for graph in (graph_of(text), graph_of(text.replace("users", "3").replace("tokens", "7"))):
        inputs = inputs_of(graph)
        expected = interpret(graph, {**inputs, **random_weights(graph)})["a"]
        for region in REGIONS:
            close(run(emulator_of(graph, region, order, cached=False), inputs, [inputs["q"].shape[2]]), expected)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(("transposed", "window"), [(False, 0), (True, 0), (False, 4)])
def test_a_latent_is_looked_at_itself(transposed, window, order):
    """The product that would make keys and values moves to query and result, or is computed again where it cannot."""
    shape = "7, 44" if transposed else "44, 7"
    for made in (VIEW, COMPUTED):
        graph = graph_of(LATENT.format(shape=shape, transposed=str(transposed).lower(), made=made, window=window))
        inputs = inputs_of(graph)
        expected = interpret(graph, {**inputs, **random_weights(graph)})["a"]
        for region in REGIONS[:2]:
            emulator = emulator_of(graph, region, order)
            cached = attention_of(emulator)[1].cache
            assert cached is not None
            assert bool(cached.look) == (made == VIEW)
            for sizes in STEPS:
                emulator.reset()
                close(run(emulator, inputs, sizes), expected)
            # Absorbed, nothing of the product runs for a token that is remembered; else it runs for each.
            again = [op for (_, op) in emulator.counters.ops if op in ("kv1", "kv2")]
            assert bool(again) == (made == COMPUTED)
        if made == VIEW:
            look = look_at(graph, graph.nodes[-1], emulator.model.blocks[0].caches[0], frozenset())
            seen = sum(min(t + 1, window or TOKENS) for t in range(TOKENS))
            emulator.reset()
            emulator.step(inputs)
            macs = sum(product.macs for product in (*look.before, *look.after))
            assert emulator.counters.multiply_adds == TOKENS * macs + seen * look.attention.macs_per_cached_token


def test_what_attention_moves_counted_by_hand():
    """One head of two elements on a row of three tiles, for three tokens of four elements: tile 0 holds elements 0 to
    3, which are all of the first token, tile 1 all of the second. The key's and value's own elements have their homes
    on tiles 0 and 1.
    """
    text = PLAIN.replace("6]", "2]").replace("5]", "2]")
    graph = graph_of(text.format(**{**DEFAULTS, "heads": 1, "kv": 1}))
    (cache,) = (Cache(0, ("k", "v"), (), 16),)
    model = Model(graph, (block_of(graph, "all", [0], BlockKind.ATTENTION, (cache,)),), (), ())
    emulator = Emulator(
        model, plan_of(model, [(0, Rectangle(4, 4, 3, 1))], workload=Workload(1, 3, 1)), {"s": torch.zeros(1)}
    )
    inputs = {name: x[:, :, :1] for name, x in inputs_of(graph).items()}
    emulator.step(inputs)
    emulator.step(inputs)
    second = {
        "store": Traffic(1, 1, 2 * 4),  # to tile 1: an element of the key and one of the value, over one link each
        "queries": Traffic(1, 2, 2 * 2 * 4),
        "all_reduce": Traffic(1, 4, 2 * 2 * 2 * 4),  # a maximum and a sum
        "values": Traffic(1, 2 + 1, 2 * 2 * 4 + 4),  # summed to tile 0, and one element to tile 1
    }
    assert emulator.counters.ops["all", "a"] == OpCount(2 * (2 + 2), second)


def test_scores_of_a_token_on_several_tiles_go_along_them():
    """Two tokens of four elements on three tiles: the first one's last element, and the second one's last two, lie on
    another tile than the rest.
    """
    text = PLAIN.replace("6]", "2]").replace("5]", "2]")
    graph = graph_of(text.format(**{**DEFAULTS, "heads": 1, "kv": 1}))
    (cache,) = (Cache(0, ("k", "v"), (), 16),)
    model = Model(graph, (block_of(graph, "all", [0], BlockKind.ATTENTION, (cache,)),), (), ())
    for region in (Rectangle(4, 4, 3, 1), Rectangle(4, 4, 1, 3)):
        plan = plan_of(model, [(0, region)], workload=Workload(1, 2, 1))
        emulator = Emulator(model, plan, {"s": torch.zeros(1)})
        inputs = {name: x[:, :, :1] for name, x in inputs_of(graph).items()}
        for scored in (1, 2):
            emulator.step(inputs)
            assert emulator.counters.mesh["scores"] == Traffic(1, 2, scored * 2 * 4)  # one link, there and back


def test_steps_do_not_copy_what_is_remembered():
    history, places = History(), []
    for token in range(2000):
        history = history.append({"k": torch.full((1, 3), float(token))}, 1)
        places.append(history.values["k"].data_ptr())
    assert sum(one != other for one, other in pairwise(places)) < 8
    assert torch.equal(history.values["k"][:, 0], torch.arange(2000.0))


def test_histories_do_not_change():
    """What goes on from one history leaves it, and what else goes on from it, as they are."""
    row = torch.ones(1, 2)
    history = History().append({"k": row}, 1).append({"k": 2 * row}, 1)
    one = history.append({"k": 3 * row}, 1)
    other = history.append({"k": 4 * row}, 1)
    again = one.without(2).append({"k": 5 * row}, 1)
    found = [h.values["k"][:, 0].tolist() for h in (history, one, other, again)]
    assert found == [[1, 2], [1, 2, 3], [1, 2, 4], [1, 5]]
    place = one.values["k"].data_ptr()
    del other, again, history
    shorter = one.without(1)
    del one
    assert shorter.append({"k": 6 * row}, 1).values["k"].data_ptr() == place  # nobody else holds what it overwrites


def test_forgetting_and_failed_steps_leave_the_rest():
    graph = graph_of(PLAIN.format(**{**DEFAULTS, "window": 4}))
    inputs = inputs_of(graph)
    expected = interpret(graph, {**inputs, **random_weights(graph)})["a"]
    emulator = emulator_of(graph, REGIONS[0], Order.HOST)
    run(emulator, inputs, [6])
    emulator.step({name: 0 * x[:, :, :3] for name, x in inputs.items()})  # a draft, of which nothing is kept
    emulator.forget(0, 3)
    flight = emulator.begin({name: 0 * x[:, :, :2] for name, x in inputs.items()})
    emulator.advance(flight)  # and a step that does not end
    rest = {name: x[:, :, 6:] for name, x in inputs.items()}
    close(emulator.step(rest)["a"], expected[:, 6:])
    assert emulator.tokens(0) == 10
