"""Experts that a model writes out become groups: the same results, each expert's weights, and the chosen ones' work."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ir.interpret import interpret
from ir.model import BlockKind
from ir.verify import verify
from partitioner.compile import build_model
from partitioner.frontends.exported import Names, lower_exported
from partitioner.frontends.lowered import stacked
from partitioner.passes.experts import Grouped, group_experts
from partitioner.passes.simplify import simplify

WIDTH, INNER, EXPERTS, ACTIVE = 16, 24, 4, 2


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """A router over experts; what ``form`` says is how they are applied."""

    def __init__(self, form: str, active: int = ACTIVE) -> None:
        super().__init__()
        self.form, self.active = form, active
        self.router = nn.Linear(WIDTH, EXPERTS)
        if form in LOOPS:
            self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        else:
            self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * INNER) / 8)
            self.down = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) / 8)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.router(x).softmax(-1).topk(self.active, -1)
        return weights / weights.sum(-1, keepdim=True), chosen

    def forward(self, x: Tensor) -> Tensor:
        return FORMS[self.form](self, x)


def scattered(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.route(x)
    table = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)
    out = torch.zeros_like(x)
    for number, expert in enumerate(m.experts):
        out = out + expert(x) * table[..., number : number + 1]
    return out


def one_hot(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.route(x)
    table = (F.one_hot(chosen, EXPERTS) * weights[..., None]).sum(-2)
    return torch.stack([expert(x) * table[..., i, None] for i, expert in enumerate(m.experts)]).sum(0)


def compared(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.route(x)
    return sum(expert(x) * ((chosen == i) * weights).sum(-1, keepdim=True) for i, expert in enumerate(m.experts))


def masked(m: Mixture, x: Tensor) -> Tensor:
    """Softmax over what is left of the scores (Shazeer et al., 2017, equation 3), then stacked outputs."""
    scores = m.router(x)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(m.active, -1)[1], value=True)
    weights = scores.masked_fill(~kept, float("-inf")).softmax(-1)
    return (torch.stack([expert(x) for expert in m.experts], -1) * weights[..., None, :]).sum(-1)


def weighed(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.route(x)
    table = torch.einsum("btk,btke->bte", weights, F.one_hot(chosen, EXPERTS).to(weights.dtype))
    return torch.einsum("ebtd,bte->btd", torch.stack([expert(x) for expert in m.experts]), table)


def residual(m: Mixture, x: Tensor) -> Tensor:
    return scattered(m, x) + x


def at_the_input(m: Mixture, x: Tensor) -> Tensor:
    """As Llama 4 does: what an expert reads is nothing where it was not chosen."""
    flat = x.view(-1, WIDTH)
    values, chosen = m.router(flat).topk(m.active, -1)
    scores = torch.full_like(m.router(flat), float("-inf")).scatter_(1, chosen, values).sigmoid()
    routed = flat.repeat(EXPERTS, 1) * scores.transpose(0, 1).reshape(-1, 1)
    gate, up = torch.bmm(routed.view(EXPERTS, -1, WIDTH), m.up).chunk(2, -1)
    return torch.bmm(up * F.silu(gate), m.down).sum(0).view(x.shape)


def by_einsum(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.route(x)
    table = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)
    gate, up = torch.einsum("btd,edh->bteh", x, m.up).chunk(2, -1)
    return torch.einsum("bted,bte->btd", torch.einsum("bteh,ehd->bted", F.silu(gate) * up, m.down), table)


def looked_up(m: Mixture, x: Tensor) -> Tensor:
    """Each token's own weights, gathered."""
    flat = x.view(-1, WIDTH)
    weights, chosen = m.route(flat)
    gate, up = torch.einsum("td,tkdh->tkh", flat, m.up[chosen]).chunk(2, -1)
    return (torch.einsum("tkh,tkhd->tkd", F.silu(gate) * up, m.down[chosen]) * weights[..., None]).sum(1).view(x.shape)


def looked_up_rows(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.route(x)
    gate, up = (x[..., None, None, :] @ m.up[chosen]).chunk(2, -1)
    each = m.down[chosen].transpose(-1, -2) @ (F.silu(gate) * up).transpose(-1, -2)
    return (each.squeeze(-1) * weights[..., None]).sum(-2)


LOOPS = {f.__name__: f for f in (scattered, one_hot, compared, masked, weighed, residual)}
STACKS = {f.__name__: f for f in (at_the_input, by_einsum, looked_up, looked_up_rows)}
FORMS: dict[str, Any] = {**LOOPS, **STACKS}


def exported(module: nn.Module, x: Tensor, *, symbolic: bool) -> Grouped:
    shapes = ({0: torch.export.Dim("users"), 1: torch.export.Dim("tokens")},) if symbolic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), (x,), dynamic_shapes=shapes, strict=False).run_decompositions({})
    axes = {("x", 0): "users", ("x", 1): "tokens"}
    return group_experts(simplify(lower_exported(program, "mixture", Names(axes, {}, {}))))


def assert_same(module: nn.Module, grouped: Grouped, x: Tensor) -> None:
    weights = stacked(module.state_dict(), grouped.stacks)
    values = interpret(verify(grouped.graph), {**weights, grouped.graph.inputs[0].name: x})
    torch.testing.assert_close(values[grouped.graph.outputs[0]], module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic"])
@pytest.mark.parametrize("form", FORMS)
def test_experts_become_groups_that_compute_the_same(form: str, symbolic: bool) -> None:
    module = Mixture(form)
    grouped = exported(module, torch.randn(2, 3, WIDTH), symbolic=symbolic)
    products = [node for node in grouped.graph.nodes if node.op == "grouped_linear"]
    assert len(products) == (3 if form in LOOPS else 2)
    assert len([node for node in grouped.graph.nodes if node.op in ("linear", "matmul")]) <= 2  # the router
    assert all(len(parts) == EXPERTS for parts in grouped.stacks.values())
    for seed in range(3):
        torch.manual_seed(seed)
        assert_same(module, grouped, torch.randn(*((4, 7) if symbolic else (2, 3)), WIDTH))


@pytest.mark.parametrize("active", [1, EXPERTS])
@pytest.mark.parametrize("form", FORMS)
def test_one_expert_and_all_experts(form: str, active: int) -> None:
    module, x = Mixture(form, active), torch.randn(2, 3, WIDTH)
    grouped = exported(module, x, symbolic=True)
    assert any(node.op == "grouped_linear" for node in grouped.graph.nodes)
    assert_same(module, grouped, x)


def test_stacks_say_what_they_hold() -> None:
    grouped = exported(Mixture("scattered"), torch.randn(2, 3, WIDTH), symbolic=True)
    assert grouped.stacks["experts.:.up.bias"] == tuple(f"experts.{i}.up.bias" for i in range(EXPERTS))
    assert {p.name for p in grouped.graph.parameters} == {
        *("router.weight", "router.bias", "experts.:.gate.weight", "experts.:.up.weight", "experts.:.up.bias"),
        *("experts.:.down.weight", "experts.:.down.bias"),
    }


class Layers(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "moe": Mixture(form)}) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer["moe"](layer["norm"](x))
        return self.head(x)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_groups(form: str) -> None:
    module = Layers(form)
    grouped = exported(module, torch.randn(2, 3, WIDTH), symbolic=True)
    model = build_model(grouped.graph)
    groups = model.of_kind(BlockKind.EXPERTS)
    assert [(block.experts, block.active_experts) for block in groups] == [(EXPERTS, ACTIVE)] * 2
    mixture = module.layers[0]["moe"]
    own = [p for name, p in mixture.named_parameters() if not name.startswith("router")]
    assert {b.weight_bytes for b in groups} == {sum(p.numel() for p in own) * 4}
    assert {b.macs_per_token for b in groups} == {sum(p.numel() for p in own if p.dim() > 1) // EXPERTS * ACTIVE}
    assert len(model.together) == 2
    assert model.weight_bytes == sum(p.numel() for p in module.parameters()) * 4
    assert_same(module, grouped, torch.randn(2, 3, WIDTH))


class Beside(nn.Module):
    """Mixtures in attributes of their own, not in a list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), Mixture("scattered"), Mixture("one_hot")
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(self.norm(x))
        return self.head(x + self.second(self.norm(x)))


def test_mixtures_outside_of_layers_are_groups_too() -> None:
    model = build_model(exported(Beside(), torch.randn(2, 3, WIDTH), symbolic=True).graph)
    groups = model.of_kind(BlockKind.EXPERTS)
    assert [block.name for block in groups] == ["first.experts", "second.experts"]
    assert [(block.experts, block.active_experts) for block in groups] == [(EXPERTS, ACTIVE)] * 2
    assert [[model.blocks[i].name for i in group] for group in model.together] == [
        ["first.router", "first.experts"],
        ["second.router", "second.experts"],
    ]


@pytest.mark.parametrize("form", ["scattered", "stacked"] if "stacked" in FORMS else sorted(FORMS)[:2])
def test_a_mixture_alone_is_a_group(form: str) -> None:
    model = build_model(exported(Mixture(form), torch.randn(2, 3, WIDTH), symbolic=True).graph)
    assert [(b.kind, b.experts) for b in model.blocks] == [(BlockKind.ROUTER, 0), (BlockKind.EXPERTS, EXPERTS)]
    assert model.together == ((0, 1),)


# --- what is no group -----------------------------------------------------------------------------------------------


def soft(m: Mixture, x: Tensor) -> Tensor:
    """Every expert serves every token."""
    weights = m.router(x).softmax(-1)
    return sum(expert(x) * weights[..., i : i + 1] for i, expert in enumerate(m.experts))


def threshold(m: Mixture, x: Tensor) -> Tensor:
    """Equal scores may choose more than k."""
    scores = m.router(x).softmax(-1)
    least = scores.topk(m.active, -1)[0][..., -1:]
    weights = torch.where(scores >= least, scores, 0.0)
    return sum(expert(x) * weights[..., i : i + 1] for i, expert in enumerate(m.experts))


def one_missing(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.route(x)
    table = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)
    return sum(expert(x) * table[..., i : i + 1] for i, expert in list(enumerate(m.experts))[1:])


def not_zero(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.route(x)
    table = torch.full((*x.shape[:-1], EXPERTS), 0.125).scatter(-1, chosen, weights)
    return sum(expert(x) * table[..., i : i + 1] for i, expert in enumerate(m.experts))


def others_bias(m: Mixture, x: Tensor) -> Tensor:
    """An expert with a bias yields something even where it reads nothing."""
    weights, chosen = m.route(x)
    table = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)
    return sum(expert(x * table[..., i : i + 1]) for i, expert in enumerate(m.experts))


def swapped(m: Mixture, x: Tensor) -> Tensor:
    """Weighted by another expert's weight."""
    weights, chosen = m.route(x)
    table = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights).flip(-1)
    return sum(expert(x) * table[..., i : i + 1] for i, expert in enumerate(m.experts))


def other_tokens(m: Mixture, x: Tensor) -> Tensor:
    """Tokens weighted by each other's choice."""
    weights, chosen = m.route(x)
    table = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights).roll(1, 1)
    return sum(expert(x) * table[..., i : i + 1] for i, expert in enumerate(m.experts))


NO_GROUPS = (soft, threshold, one_missing, not_zero, others_bias, swapped, other_tokens)


@pytest.mark.parametrize("form", NO_GROUPS, ids=lambda form: form.__name__)
def test_what_cannot_be_proven_stays(form: Any, monkeypatch) -> None:
    monkeypatch.setitem(FORMS, "scattered", form)
    module, x = Mixture("scattered"), torch.randn(4, 4, WIDTH)
    grouped = exported(module, x, symbolic=False)
    assert not grouped.stacks
    assert not any(node.op == "grouped_linear" for node in grouped.graph.nodes)
    assert_same(module, grouped, x)


def test_tokens_and_other_axes_of_the_same_size_are_told_apart(monkeypatch) -> None:
    """Where an axis of features is as long as that of the tokens, only what an axis stands for decides."""

    def turned(m: Mixture, x: Tensor) -> Tensor:
        weights, chosen = m.route(x)
        table = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)
        return sum(expert(x).transpose(0, 1) * table[..., i : i + 1] for i, expert in enumerate(m.experts))

    monkeypatch.setitem(FORMS, "scattered", turned)
    module, x = Mixture("scattered"), torch.randn(WIDTH, WIDTH, WIDTH)
    assert_same(module, exported(module, x, symbolic=False), x)
