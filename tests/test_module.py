"""Modules and exported programs: they compute the same, their blocks hold their weights, bad input is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import waferc
from ir.diagnostics import UnsupportedModelError, UsageError, WafercError
from ir.interpret import interpret
from ir.ops import OPS
from ir.types import evaluate
from partitioner.cli import main
from partitioner.compile import build_model
from partitioner.frontends.module import lower_module
from partitioner.frontends.program import LoweredProgram


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.other_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.other_norm(self.second(F.relu(self.norm(self.first(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3)
        self.layers = nn.Sequential(Residual(), Residual())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.max_pool2d(self.stem(x), 3, 2, 1))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm, self.up, self.out = nn.GroupNorm(4, 16), nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.silu(self.into(x))
        deep = self.up(F.silu(self.norm(self.down(wide))))
        skipped = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        return self.out(torch.cat([deep, wide], 1)) + skipped


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
        self.item = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        return F.cosine_similarity(self.query(query), self.item(item))


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(50, 8, mode="sum") for _ in range(3))
        self.below, self.above = nn.Linear(4, 8), nn.Linear(14, 1)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        parts = [F.relu(self.below(x)), *(table(ids[:, i]) for i, table in enumerate(self.tables))]
        z = torch.stack(parts, 1)
        rows, columns = torch.tril_indices(4, 4, -1)
        return torch.sigmoid(self.above(torch.cat([z[:, 0], torch.bmm(z, z.mT)[:, rows, columns]], 1)))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(16), "tokens": nn.Linear(16, 16), "channels": nn.Linear(16, 16)})
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            z = z + layer["tokens"](layer["norm"](z).transpose(1, 2)).transpose(1, 2)
            z = z + F.gelu(layer["channels"](z))
        return z.mean(1)


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.body = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        found = self.body(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True)
        return F.linear(found, self.embed.weight)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.body = kind(8, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[0]


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.both = nn.Linear(32, 32), nn.Linear(16, 64)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = self.both(memory).unflatten(-1, (2, 4, 8)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 30, shape)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "resnet": lambda: (ResNet(), (torch.randn(2, 3, 32, 32),)),
    "unet": lambda: (UNet(), (torch.randn(2, 3, 16, 16),)),
    "towers": lambda: (Towers(), (torch.randn(3, 12), torch.randn(3, 20))),
    "recommender": lambda: (Recommender(), (torch.randn(3, 4), ids(3, 3, 5))),
    "mixer": lambda: (Mixer(), (torch.randn(2, 3, 16, 16),)),
    "translator": lambda: (Translator(), (ids(2, 6), ids(2, 5))),
    "gru": lambda: (Recurrent(nn.GRU), (torch.randn(2, 4, 8),)),
    "lstm": lambda: (Recurrent(nn.LSTM), (torch.randn(2, 4, 8),)),
    "cross": lambda: (Cross(), (torch.randn(2, 5, 32), torch.randn(2, 7, 16))),
}
NO_COUNT = {"lstm": "torch's counter does not know its fused LSTM", "cross": "nor its fused attention"}


def work_of(found: LoweredProgram) -> int:
    graph = found.lowered.graph
    return sum(
        evaluate(
            OPS[node.op].work(
                [graph.types[name] for name in node.inputs], [v.type for v in node.results], node.attributes
            ),
            {"context": 0},
        )
        for node in graph.nodes
    )


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_kinds_compute_the_same_and_run(name: str) -> None:
    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    wanted = module.eval()(*inputs)
    placed = waferc.compile(module, inputs, target="mini")
    (got,) = placed.run(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    placed_weights = {parameter.name for parameter in placed.model.placed}
    assert {parameter for parameter, _ in module.named_parameters()} <= placed_weights
    assert placed.model.parameters == sum(
        tensor.numel() for n, tensor in dict(module.named_parameters()).items()
    ) + sum(buffer.numel() for n, buffer in module.named_buffers() if n in placed_weights)
    if name not in NO_COUNT:
        torch.backends.mha.set_fastpath_enabled(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*inputs)
        assert 2 * work_of(lower_module(module, inputs)) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_layers_of_lists_are_layers() -> None:
    module, inputs = MODELS["resnet"]()
    model = build_model(lower_module(module, inputs).lowered.graph)
    assert model.layers == 2
    assert [block.name for block in model.blocks if block.layer == 1] == ["layers.1.dense_mlp", "layers.1.dense_mlp.1"]
    tables = build_model(lower_module(*MODELS["recommender"]()).lowered.graph)
    assert [block.name for block in tables.blocks if "embedding" in block.name] == [
        f"tables.{i}.embedding" for i in range(3)
    ]


# --- exported programs ----------------------------------------------------------------------------------------------


def exported(module: nn.Module, *inputs: Tensor, **options: Any) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module.eval(), inputs, strict=False, **options)


def test_an_exported_program_is_compiled_as_its_module_is() -> None:
    module, inputs = MODELS["towers"]()
    placed = waferc.compile(exported(module, *inputs), target="mini")
    torch.testing.assert_close(placed.run(*inputs)[0], module(*inputs))
    assert placed.model.weight_bytes == waferc.compile(module, inputs, target="mini").model.weight_bytes


def test_a_program_in_a_file_needs_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, inputs = MODELS["towers"]()
    path, plan, arrays = tmp_path / "towers.pt2", tmp_path / "plan", tmp_path / "inputs.npz"
    torch.export.save(exported(module, *inputs), path)
    with pytest.raises(UsageError, match=r"W0242.*pickle"):
        waferc.compile(path, target="mini")
    placed = waferc.compile(path, target="mini", trust_code=True)
    torch.testing.assert_close(placed.run(*inputs)[0], module(*inputs))
    np.savez(arrays, query=inputs[0].numpy(), item=inputs[1].numpy())
    compiled = ["compile", str(path), "--target", "mini", "-o", str(plan)]
    assert_code(capsys, compiled, "W0242")
    assert_code(capsys, [*compiled, "--trust-code"], "plan", fails=False)
    run = ["run", str(plan), "--inputs", str(arrays), "--compare", "--json"]
    assert_code(capsys, run, "W0242")
    assert_code(capsys, [*run, "--trust-code"], '"ok": true', fails=False)
    path.write_bytes(b"nothing")
    assert_code(capsys, [*run, "--trust-code"], "W0611")
    assert_code(capsys, [*compiled, "--trust-code"], "W0243")


def assert_code(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str, *, fails: bool = True) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    assert (ended.value.code not in (0, None)) == fails
    assert told in shown.err + shown.out


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return F.gelu(self.embed(ids))


def test_symbolic_sizes_are_called_what_they_are() -> None:
    free = torch.export.Dim.DYNAMIC
    graph = lower_module(Words(), (ids(2, 5),), dynamic_shapes=({0: free, 1: free},)).lowered.graph
    assert str(graph.inputs[0].type) == "i64[users, tokens]"
    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")
    graph = lower_module(Words(), (ids(2, 5),), dynamic_shapes=({0: rows, 1: columns},)).lowered.graph
    assert str(graph.inputs[0].type) == "i64[rows, columns]"
    graph = lower_module(Words(), (), {"ids": ids(2, 5)}, {"ids": {0: rows}}).lowered.graph
    assert str(graph.inputs[0].type) == "i64[rows, 5]"


# --- what users get wrong -------------------------------------------------------------------------------------------


class Answers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Any]:
        return {"first": self.up(x) * scale, "none": None, "more": (x + torch.tensor([1.0, 2, 3, 4]), [x * 2])}


def test_outputs_in_containers_and_inputs_by_keyword() -> None:
    module, x, scale = Answers(), torch.randn(2, 4), torch.randn(4)
    placed = waferc.compile(module, (x,), example_kwargs={"scale": scale}, target="mini")
    wanted = [value for value in pytree.tree_leaves(module(x, scale=scale)) if value is not None]
    for got, theirs in zip(placed.run(x, scale), wanted, strict=True):
        torch.testing.assert_close(got, theirs)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.seen


class Selecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.moe = nn.Module()
        self.moe.forward = lambda x: x[x.sum(-1) > 0].relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([Branch()])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](x)


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("on purpose")


X = torch.randn(2, 4)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown option": (lambda: waferc.compile(Words(), (ids(2, 5),), tarjet="mini"), r"W0103.*tarjet"),
    "option of the wrong type": (lambda: waferc.compile(Words(), (ids(2, 5),), users="many"), "W0103"),
    "no example": (lambda: waferc.compile(Words()), "W0108"),
    "a tensor for a tuple": (lambda: waferc.compile(Words(), ids(2, 5)), r"W0108.*tuple"),
    "no model": (lambda: waferc.compile(3), "W0108"),
    "too many inputs": (lambda: waferc.compile(Words(), (ids(2, 5), X)), "W0206"),
    "wrong shapes": (lambda: waferc.compile(nn.Linear(3, 3), (X,)), "W0206"),
    "nonsense dimensions": (lambda: waferc.compile(Words(), (ids(2, 5),), dynamic_shapes="any"), "W0206"),
    "a module that raises": (lambda: waferc.compile(Raising(), (X,)), r"W0206.*on purpose"),
    "a buffer that is written": (lambda: waferc.compile(Counting(), (X,)), r"W0240.*seen"),
    "sizes of the data": (lambda: waferc.compile(Selecting(), (X,)), "W0241"),
    "a branch on the data": (lambda: waferc.compile(Branching(), (X,)), r"W0241[\s\S]*inner\.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name: str) -> None:
    call, pattern = WRONG[name]
    with pytest.raises(WafercError, match=pattern) as caught:
        call()
    assert isinstance(caught.value, (UsageError, UnsupportedModelError))


def test_a_module_keeps_its_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    module[0].eval()
    found = lower_module(module, (X,))
    assert [part.training for part in module.modules()] == [True, False, True]
    values = interpret(found.lowered.graph, {**found.weights, found.lowered.graph.inputs[0].name: X})
    torch.testing.assert_close(values[found.lowered.graph.outputs[0]], module[0](X))
