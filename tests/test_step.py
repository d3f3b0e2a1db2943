"""The step property, fixed sizes, and the figures of a model."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ir.diagnostics import UnsupportedModelError, UsageError
from ir.graph import Graph
from ir.interpret import interpret
from ir.ops import OPS
from ir.text import parse_graph, print_graph
from partitioner.compile import build_model
from partitioner.figures import figures
from partitioner.frontends.module import lower_module
from partitioner.passes.fix import fix_sizes
from partitioner.passes.simplify import simplify
from partitioner.passes.step import find_breaches, require_step, takes_tokens


def graph_of(forward, x: torch.Tensor) -> Graph:
    """What ``forward(linear, x)`` computes of x [users, tokens, 8]."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return forward(self.linear, x)

    axes = {0: torch.export.Dim("users"), 1: torch.export.Dim("tokens")}
    return simplify(lower_module(Model(), (x,), dynamic_shapes=(axes,)).lowered.graph)


X = torch.randn(2, 3, 8)

HOLDS = {
    "norm": lambda f, x: nn.functional.rms_norm(f(x), (8,)),
    "softmax over features": lambda f, x: f(x).softmax(-1),
    "tokens in one row and back": lambda f, x: f(x.reshape(-1, 8)).view(x.shape[0], x.shape[1], 8),
    "heads": lambda f, x: f(x).view(x.shape[0], x.shape[1], 2, 4).transpose(1, 2).sum(-1).transpose(1, 2),
    "features taken apart": lambda f, x: torch.cat((f(x)[..., 4:], f(x)[..., :4]), -1),
    "top of features": lambda f, x: f(x).topk(2, -1).values,
    "attention": lambda f, x: nn.functional.scaled_dot_product_attention(
        f(x)[:, None], f(x)[:, None], x[:, None], is_causal=True
    ),
    "zeros of as many tokens": lambda f, x: f(x) + torch.zeros(x.shape[0], x.shape[1], 1),
}

BREAKS = {
    "mean over tokens": (lambda f, x: f(x).mean(1), "mean"),
    "running sum": (lambda f, x: torch.cumsum(f(x), 1), "cumsum"),
    "softmax over tokens": (lambda f, x: f(x).softmax(1), "softmax"),
    "scores of pairs": (lambda f, x: f(x) @ x.transpose(1, 2), "matmul"),
    "attention by hand": (lambda f, x: (f(x) @ x.transpose(1, 2)).softmax(-1) @ x, "softmax"),
    "counting within the step": (lambda f, x: f(x) + torch.arange(x.shape[1])[:, None], "arange"),
    "users and tokens confused": (
        lambda f, x: f(x).transpose(0, 1).reshape(-1, 8).view(x.shape[0], x.shape[1], 8),
        "reshape",
    ),
    "users paired with tokens": (
        lambda f, x: f(x).reshape(-1, 8) + x.transpose(0, 1).reshape(-1, 8),
        "add",
    ),
    "mean over users": (lambda f, x: f(x) - f(x).mean(0, keepdim=True), "mean"),
    "tokens joined": (lambda f, x: torch.cat((f(x), x), 1), "concat"),
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_step_of_tokens_apart_is_accepted_and_computes_each_token_alone(name):
    """The promise itself: another token's input changes nothing, save through attention to earlier ones."""
    graph = graph_of(HOLDS[name], X)
    assert takes_tokens(graph)
    assert require_step(graph) is graph
    weights = {p.name: torch.randn(p.shape) for p in graph.parameters}
    changed = X.clone()
    changed[:, 2] += 1.0
    before, after = (interpret(graph, {graph.inputs[0].name: x, **weights})[graph.outputs[0]] for x in (X, changed))
    axis = 2 if name == "attention" else 1
    if name == "attention":
        before, after = before.transpose(1, 2), after.transpose(1, 2)
        axis = 1
    torch.testing.assert_close(before.narrow(axis, 0, 2), after.narrow(axis, 0, 2))
    assert not torch.equal(before, after)


@pytest.mark.parametrize("name", BREAKS)
def test_where_tokens_meet_is_named_and_at_fixed_sizes_they_may(name):
    forward, op = BREAKS[name]
    graph = graph_of(forward, X)
    assert find_breaches(graph)[0].node.op == op
    with pytest.raises(UnsupportedModelError) as raised:
        build_model(graph)
    assert {fault.code for fault in raised.value.diagnostics} == {"W0308"}
    assert "--fix" in raised.value.diagnostics[0].help[0]
    fixed = fix_sizes(graph, {"users": 2, "tokens": 3})
    assert build_model(fixed).blocks
    weights = {p.name: torch.randn(p.shape) for p in graph.parameters}
    given = {graph.inputs[0].name: X, **weights}
    torch.testing.assert_close(interpret(fixed, given)[fixed.outputs[0]], interpret(graph, given)[graph.outputs[0]])


def test_a_fixed_graph_reads_back_as_text():
    fixed = fix_sizes(graph_of(HOLDS["heads"], X), {"tokens": 5})
    assert "tokens" not in print_graph(fixed)
    assert print_graph(parse_graph(print_graph(fixed))) == print_graph(fixed)


def test_a_size_that_the_model_has_not_is_told():
    with pytest.raises(UsageError) as raised:
        fix_sizes(graph_of(HOLDS["norm"], X), {"batch": 2})
    assert raised.value.diagnostics[0].code == "W0109"
    assert "users" in str(raised.value.diagnostics[0])


def test_every_operator_says_how_axes_follow():
    """The default, that everything meets, is sound but would refuse models for no reason."""
    undeclared = {name for name, op in OPS.items() if op.follow is type(op).__dataclass_fields__["follow"].default}
    assert undeclared <= {"constant", "full", "arange", "reshape"}


def test_figures_of_a_small_kimi(lowered_small_kimi):
    found = figures(build_model(lowered_small_kimi.graph))
    assert found.layers == len(found.kv_bytes_per_token_per_layer) == 4
    assert set(found.kv_bytes_per_token_per_layer) == {192}
    assert (found.moe_layers, found.experts_per_layer, found.active_experts) == (3, 16, 4)


def test_inspect_prints_what_scripts_need(waferc, quick_load):
    done = waferc("inspect", "small-kimi", "--json")
    assert done.code == 0
    keys = "parameters weight_bytes kv_bytes_per_token_per_layer layers moe_layers experts_per_layer macs_per_token"
    assert {*keys.split(), "blocks", "unplaced", "lower_s", "peak_rss_bytes"} <= json.loads(done.out).keys()
    assert done.record["blocks"] == 16


def test_inspect_shows_a_table(waferc, quick_load):
    done = waferc("inspect", "small-kimi")
    assert done.code == 0
    assert "3 of them with 16 experts, 4 active" in done.out
    assert "1.699 M parameters" in done.out


@pytest.mark.parametrize("text", ["tokens", "tokens=", "tokens=two", "tokens=1=2", "=3"])
def test_sizes_to_fix_that_make_no_sense_are_refused(waferc, quick_load, text):
    done = waferc("inspect", "small-kimi", "--json", "--fix", text)
    assert done.code == 2
    assert done.codes in (["W0104"], ["W0109"])


@pytest.mark.parametrize("size", ["0", "-1", str(1 << 50)])
def test_sizes_to_fix_have_limits(waferc, quick_load, size):
    done = waferc("inspect", "small-kimi", "--json", "--fix", f"tokens={size}")
    assert (done.code, done.codes) == (2, ["W0103"])
