"""Models of transformers: graphs compute what the models do, stamped layers are the exported ones, known figures."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from ir.diagnostics import UnsupportedModelError
from ir.encoding import ENCODINGS
from ir.graph import Graph, Node, Parameter, Value
from ir.interpret import interpret
from ir.model import BlockKind, Model
from ir.text import parse_graph, print_graph
from ir.types import Dim, DType, TensorType
from ir.verify import verify
from partitioner.api import Request, workload_of
from partitioner.compile import build_model as blocks_of
from partitioner.frontends import huggingface
from partitioner.frontends.aten import RULES
from partitioner.frontends.catalog import catalog, configuration
from partitioner.frontends.huggingface import build_model, lower_config
from partitioner.frontends.layers import layer_list
from partitioner.frontends.load import load
from partitioner.frontends.lowered import Lowered
from partitioner.frontends.original import open_original
from partitioner.frontends.quantization import WeightRole, encoding_rule
from partitioner.frontends.stamp import Layers, NotRepeatableError, stamp
from partitioner.frontends.weights import tensors_of

LAYERS = 3
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
MIXTURE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
SHARED = {**MIXTURE, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT = {"num_key_value_heads": 4, "head_dim": 8, "q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 16}
LATENT |= {"qk_rope_head_dim": 8, "v_head_dim": 16}
ALTERNATING = {"num_hidden_layers": 4, "sliding_window": 3}

DENSE = {"embedding": 1, "attention": LAYERS, "dense_mlp": LAYERS, "head": 1}
EXPERTS = {"embedding": 1, "attention": LAYERS, "router": LAYERS, "experts": LAYERS, "head": 1}
SHARED_EXPERTS = {
    "embedding": 1,
    "attention": 3,
    "dense_mlp": 1,
    "router": 2,
    "shared_expert": 2,
    "experts": 2,
    "head": 1,
}
GROUPED = {(2 * 2 * 16 * 4, 0): LAYERS}
"""Keys and values of two heads of 16 values, four bytes each, in every layer."""


@dataclass(frozen=True)
class Family:
    """A small sibling: its configuration, blocks by kind, and layers by what they remember (bytes a token, window)."""

    options: dict[str, Any]
    kinds: dict[str, int]
    caches: dict[tuple[int, int], int]

    def config(self, model_type: str) -> dict[str, Any]:
        return {"model_type": model_type, **SMALL, **self.options}


FAMILIES: dict[str, Family] = {
    "llama": Family({}, DENSE, GROUPED),
    "qwen2": Family({}, DENSE, GROUPED),
    "qwen3": Family({"tie_word_embeddings": True}, DENSE, GROUPED),
    "qwen3_moe": Family({**MIXTURE, "num_experts": 8}, EXPERTS, GROUPED),
    "mixtral": Family({"num_local_experts": 4}, EXPERTS, GROUPED),
    # Windows on every other layer, sinks, biases, and experts whose gate and up rows are interleaved.
    "gpt_oss": Family(
        {**ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"embedding": 1, "attention": 4, "router": 4, "experts": 4, "head": 1},
        {(256, 0): 2, (256, 3): 2},
    ),
    # 32 values of the latent and 8 of the rotary key that heads share, not 4 heads of 24 + 16.
    "deepseek_v3": Family({**SHARED, **LATENT, "n_group": 2, "topk_group": 1}, SHARED_EXPERTS, {(4 * 40, 0): 3}),
    # Rotations as products of complex numbers; the experts of a token are chosen greedily.
    "deepseek_v2": Family({**SHARED, **LATENT, "n_group": 1, "topk_group": 1}, SHARED_EXPERTS, {(4 * 40, 0): 3}),
    # Experts as products with all of their weights; chunks and rotations on some layers, scaled queries on the others.
    "llama4_text": Family(
        {
            "num_hidden_layers": 4,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 3,
            "attn_temperature_tuning": True,
            "floor_scale": 2,
        },
        {"embedding": 1, "attention": 4, "dense_mlp": 2, "router": 2, "shared_expert": 2, "experts": 2, "head": 1},
        {(256, 3): 2, (256, 0): 2},
    ),
    "glm4_moe": Family({**SHARED, "n_group": 1, "topk_group": 1, "use_qk_norm": True}, SHARED_EXPERTS, GROUPED),
    "ernie4_5_moe": Family(
        {**MIXTURE, "moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 1}, SHARED_EXPERTS, GROUPED
    ),
    # Soft caps, norms after each part, windows, and a scaled embedding that is also the head.
    "gemma2": Family(
        ALTERNATING, {"embedding": 1, "attention": 4, "dense_mlp": 4, "head": 1}, {(256, 0): 2, (256, 3): 2}
    ),
    # Learnt positions, transposed weights, one head of keys for each of queries.
    "gpt2": Family(
        {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 128},
        {**DENSE, "embedding": 2},
        {(2 * 4 * 16 * 4, 0): LAYERS},
    ),
    "phi3": Family({"sliding_window": 3}, DENSE, {(256, 3): LAYERS}),
    "starcoder2": Family({"sliding_window": None, "tie_word_embeddings": True}, DENSE, GROUPED),
    # Attention and MLP beside each other.
    "cohere": Family({}, DENSE, GROUPED),
    # The attention interface gets its mask by keyword.
    "afmoe": Family(
        {**MIXTURE, **ALTERNATING, "num_experts": 8, "num_shared_experts": 1, "num_dense_layers": 3},
        {"embedding": 1, "attention": 4, "dense_mlp": 3, "router": 1, "shared_expert": 1, "experts": 1, "head": 1},
        {(256, 3): 3, (256, 0): 1},
    ),
    # A window stands in the configuration, but masks know nothing of it.
    "olmoe": Family({"num_experts": 4, "num_experts_per_tok": 2, "sliding_window": 3}, EXPERTS, GROUPED),
}


Siblings = Callable[[str], Lowered]


@dataclass(frozen=True)
class Sibling:
    """A lowered small model with its blocks."""

    graph: Graph
    model: Model
    original: Any


def sibling(lowered: Lowered) -> Sibling:
    assert lowered.max_context == SMALL["max_position_embeddings"]
    original = open_original(lowered.origin, lowered.graph.parameters, seed=0)
    return Sibling(lowered.graph, blocks_of(lowered.graph), original)


def own_tensors(original: Any) -> dict[str, torch.Tensor]:
    """The tensors that the original computes with."""
    return {name: tensor.detach() for name, tensor in tensors_of(original.module).items()}


def shake(original: Any, parameters: tuple[Parameter, ...]) -> None:
    """Change every weight a little: norms and biases start as ones and zeros, which would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    weights = own_tensors(original)
    for parameter in parameters:
        tensor = weights[parameter.name]
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_graphs_compute_what_the_models_do(model_type: str, lowered_sibling: Siblings) -> None:
    family, it = FAMILIES[model_type], sibling(lowered_sibling(model_type))
    assert verify(it.model.graph) is it.model.graph
    assert parse_graph(print_graph(it.model.graph)) == it.model.graph
    assert Counter(block.kind.value for block in it.model.blocks) == family.kinds
    caches = [cache for block in it.model.blocks for cache in block.caches]
    assert Counter((cache.bytes_per_token, cache.window) for cache in caches) == family.caches
    _every_weight_is_accounted_for(it, model_type)

    shake(it.original, it.graph.parameters)
    ids = torch.randint(1, 97, (2, 5), generator=torch.Generator().manual_seed(2))
    inputs = {"input_ids": ids, "position_ids": torch.arange(5).expand(2, 5)}
    (wanted,) = it.original.forward(inputs)
    assert wanted.std() > 0.01
    for graph in (it.graph, it.model.graph):
        (output,) = graph.outputs
        got = interpret(graph, {**own_tensors(it.original), **inputs})[output]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def _every_weight_is_accounted_for(it: Sibling, model_type: str) -> None:
    """The graph's parameters are the model's, each once, and blocks hold all those that are read."""
    whole = build_model(FAMILIES[model_type].config(model_type), torch.device("meta"))
    stored = {id(tensor): tensor.numel() for tensor in whole.state_dict(keep_vars=True).values()}
    names = [parameter.name for parameter in it.graph.parameters]
    assert len(set(names)) == len(names) == len(stored)
    assert sum(parameter.elements for parameter in it.graph.parameters) == sum(stored.values())
    held = {name for block in it.model.blocks for name in block.parameters}
    assert held == set(names) - {parameter.name for parameter in it.model.unplaced}
    assert not it.model.unplaced
    assert it.model.parameters == sum(stored.values())
    assert sum(block.weight_bytes for block in it.model.blocks) == it.model.weight_bytes + it.model.copied_bytes
    assert it.model.weight_bytes == 4 * it.model.parameters


def test_tied_weights_are_stored_once_and_copied_to_the_head() -> None:
    config = FAMILIES["starcoder2"].config("starcoder2")
    model = blocks_of(lower_config(config, "tied").graph)
    table = 97 * 64 * 4
    assert model.copied_bytes == table
    (embedding,), (head,) = model.of_kind(BlockKind.EMBEDDING), model.of_kind(BlockKind.HEAD)
    assert set(embedding.parameters) & set(head.parameters) == {"model.embed_tokens.weight"}
    untied = blocks_of(lower_config({**config, "tie_word_embeddings": False}, "untied").graph)
    assert (untied.copied_bytes, untied.weight_bytes) == (0, model.weight_bytes + table)


ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    # A class of the configuration's choice; its second output is the pooled first token.
    "bert with a pooler": {"architectures": ["BertModel"]},
    # Windows that reach both ways on some layers.
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
}


def configuration_of(name: str) -> dict[str, Any]:
    """The configuration of a family's small sibling, or of an encoder."""
    if name in FAMILIES:
        return FAMILIES[name].config(name)
    return {"model_type": name.split()[0], **SMALL, **ENCODERS[name]}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_see_all_tokens_and_remember_none(name: str, lowered_sibling: Siblings) -> None:
    lowered = lowered_sibling(name)
    model = blocks_of(lowered.graph)
    attention = [node for node in model.graph.nodes if node.op == "attention"]
    assert len(attention) == len(model.of_kind(BlockKind.ATTENTION)) == model.layers
    assert not any(node.attributes["causal"] for node in attention)
    assert not any(block.caches for block in model.blocks)
    assert not model.unplaced
    workload = workload_of(lowered, Request())
    assert workload.chunk == workload.context > 1  # a text passes as a whole

    original = open_original(lowered.origin, lowered.graph.parameters, seed=0)
    shake(original, lowered.graph.parameters)
    tokens = {"input_ids": torch.randint(3, 97, (2, 7)), "position_ids": torch.arange(7).expand(2, 7)}
    inputs = {value.name: tokens[value.name] for value in model.graph.inputs}
    wanted = original.forward(inputs)
    assert len(wanted) == (2 if "pooler" in name else 1)
    got = interpret(model.graph, {**own_tensors(original), **inputs})
    for output, tensor in zip(model.graph.outputs, wanted, strict=True):
        torch.testing.assert_close(got[output], tensor, rtol=1e-4, atol=1e-4)


# --- layers that are stamped ----------------------------------------------------------------------------------------

FURTHER_LAYERS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"num_hidden_layers": 5, "first_k_dense_replace": 2},
    "gemma2": {"num_hidden_layers": 5, "tie_word_embeddings": True},
    "gpt2": {"n_layer": 4},
    "afmoe": {"num_hidden_layers": 8, "num_dense_layers": 2},
    "bert": {},
}


def in_order(graph: Graph) -> Graph:
    """``graph`` with its values named after their place."""
    names = {v.name: f"{i}.{j}" for i, node in enumerate(graph.nodes) for j, v in enumerate(node.results)}
    nodes = tuple(
        Node(
            node.op,
            tuple(names.get(name, name) for name in node.inputs),
            tuple(Value(names[value.name], value.type) for value in node.results),
            node.attributes,
            node.origin,
        )
        for node in graph.nodes
    )
    return Graph(graph.name, graph.inputs, graph.parameters, nodes, tuple(names[name] for name in graph.outputs))


OFTEN = ("llama", "gpt_oss", "deepseek_v3", "mixtral", "bert")
"""Families that are exported whole in the ordinary run; the others' stamped layers run there in test_families."""


@pytest.mark.parametrize(
    "model_type",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in (*FAMILIES, "bert")],
)
def test_stamped_layers_are_the_exported_ones(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamped graph and the export of the whole model differ in nothing but the names of values."""
    given = FAMILIES[model_type].config(model_type) if model_type in FAMILIES else {**SMALL, "model_type": model_type}
    config = {**given, **FURTHER_LAYERS.get(model_type, {})}
    exported: list[int] = []
    export = huggingface._export

    def counted(model: Any, *rest: Any) -> Any:
        exported.append(model.config.get_text_config().num_hidden_layers)
        return export(model, *rest)

    monkeypatch.setattr(huggingface, "_export", counted)
    stamped = lower_config(config, model_type).graph
    layers = blocks_of(stamped).layers
    assert len(exported) == 1 and exported[0] < layers
    monkeypatch.setattr(huggingface, "layer_list", lambda _model: None)
    whole = lower_config(config, model_type).graph
    assert exported[1:] == [layers]
    assert in_order(stamped) == in_order(whole)


def test_layers_that_differ_in_a_list_or_in_computed_values_are_told_apart() -> None:
    """Both would be stamped alike if names, types and shapes alone decided."""

    class Scaled(nn.Module):
        def __init__(self, factors: list[float], table: list[float]) -> None:
            super().__init__()
            self.factors = factors
            self.register_buffer("table", torch.tensor(table), persistent=False)

    class Config:
        num_hidden_layers = 4

        def get_text_config(self) -> Any:
            return self

    class Model(nn.Module):
        config = Config()

        def __init__(self) -> None:
            super().__init__()
            given = [([1.0], [2.0]), ([1.0], [2.0]), ([3.0], [2.0]), ([1.0], [4.0])]
            self.layers = nn.ModuleList(Scaled(*pair) for pair in given)

    found = layer_list(Model())
    assert found is not None
    assert found.kind_of == (0, 0, 1, 2)


def test_what_cannot_be_stamped_is_exported_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAMILIES["llama"].config("llama")
    stamped = lower_config(config, "llama").graph

    def refuse(*_: object) -> None:
        raise NotRepeatableError

    monkeypatch.setattr(huggingface, "stamp", refuse)
    assert in_order(lower_config(config, "llama").graph) == in_order(stamped)


def test_one_layer_and_layers_that_all_differ() -> None:
    one = lower_config({**SMALL, "model_type": "llama", "num_hidden_layers": 1}, "one").graph
    assert {node.origin.split(".")[2] for node in one.nodes if node.origin.startswith("model.layers.")} == {"0"}
    different = {**FAMILIES["deepseek_v3"].config("deepseek_v3"), "num_hidden_layers": 2}
    assert blocks_of(lower_config(different, "two").graph).layers == 2


WIDE, NARROW = TensorType(DType.F32, (Dim.symbol("tokens"), 4)), TensorType(DType.F32, (Dim.symbol("tokens"), 2))


def node(op: str, inputs: str, result: str, origin: str, type_: TensorType = WIDE, **attributes: Any) -> Node:
    return Node(op, tuple(inputs.split()), (Value(result, type_),), attributes, origin)


def layered(*nodes: Node, outputs: tuple[str, ...] = ("y",)) -> Graph:
    parameters = (Parameter("layers.0.w", TensorType(DType.F32, (4,)), ENCODINGS["f32"]),)
    return verify(Graph("layered", (Value("x", WIDE),), parameters, nodes, outputs))


EMBED = node("neg", "x", "e", "embed")
LAYER = node("mul", "e layers.0.w", "a", "layers.0")
NORM = node("relu", "a", "y", "norm")


def test_a_layer_is_stamped_with_its_own_weights_names_and_origins() -> None:
    parameters = tuple(Parameter(f"layers.{i}.w", TensorType(DType.F32, (4,)), ENCODINGS["f32"]) for i in range(3))
    graph = verify(stamp(layered(EMBED, LAYER, NORM), Layers("layers", (0, 0, 0)), parameters))
    assert [(n.op, n.inputs, n.origin) for n in graph.nodes] == [
        ("neg", ("x",), "embed"),
        ("mul", ("e", "layers.0.w"), "layers.0"),
        ("mul", ("0/a", "layers.1.w"), "layers.1"),
        ("mul", ("1/a", "layers.2.w"), "layers.2"),
        ("relu", ("2/a",), "norm"),
    ]
    assert graph.parameters == parameters


SECOND = node("abs", "a", "b", "layers.1")
LAST = node("relu", "b", "y", "norm")
NOT_REPEATABLE = {
    "a layer has no nodes of its own": (EMBED, LAYER, NORM),
    "a layer yields 2 values": (
        *(EMBED, LAYER, node("relu", "a", "a2", "layers.0"), node("mul", "a a2", "b", "layers.1"), LAST),
    ),
    "the first layer reads 2 values": (EMBED, node("mul", "e x", "a", "layers.0"), SECOND, LAST),
    "layers read more than the layer before them": (
        *(EMBED, LAYER, SECOND, node("mul", "a b", "c", "layers.2"), node("relu", "c", "y", "norm")),
    ),
    "layers read more": (
        *(EMBED, LAYER, node("slice", "a", "b", "layers.1", NARROW, dim=1, start=0, end=2, step=1)),
        node("relu", "b", "y", "norm", NARROW),
    ),
}


@pytest.mark.parametrize("reason", NOT_REPEATABLE)
def test_layers_that_do_not_hand_on_one_value_are_not_stamped(reason: str) -> None:
    graph = layered(*NOT_REPEATABLE[reason])
    kinds = len({n.origin for n in graph.nodes if n.origin.startswith("layers.")}) + (reason.startswith("a layer has"))
    with pytest.raises(NotRepeatableError, match=reason):
        stamp(graph, Layers("layers", tuple(range(kinds))), graph.parameters)


# --- full size ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """Published figures: billions of weights and bytes, and layers by what they remember (bytes a token, window)."""

    parameters: float
    weight_bytes: float
    caches: dict[tuple[int, int], int]
    moe_layers: int = 0


KNOWN = {
    "kimi-k2.6": Known(1026.4, 594.2, {(1152, 0): 61}, 60),
    "deepseek-v3": Known(671.0, 673.2, {(1152, 0): 61}, 58),
    "llama-3.3-70b": Known(70.55, 141.1, {(4096, 0): 80}),
    "llama-3.1-405b": Known(405.85, 811.7, {(4096, 0): 126}),
    "llama-3.1-8b": Known(8.03, 16.06, {(4096, 0): 32}),
    "llama-2-13b": Known(13.02, 26.03, {(20480, 0): 40}),
    "codellama-34b": Known(33.74, 67.5, {(4096, 0): 48}),
    "qwen2-72b": Known(72.71, 145.4, {(4096, 0): 80}),
    "qwen3-235b-a22b": Known(235.09, 470.2, {(2048, 0): 94}, 94),
    "mixtral-8x7b": Known(46.7, 93.4, {(4096, 0): 32}, 32),
    "mixtral-8x22b": Known(140.6, 281.2, {(4096, 0): 56}, 56),
    "gpt-oss-120b": Known(116.83, 65.25, {(2048, 128): 18, (2048, 0): 18}, 36),
    "gpt-oss-20b": Known(20.91, 13.76, {(2048, 128): 12, (2048, 0): 12}, 24),
    # Published: 355 B without the layer that predicts a second token.
    "glm-4.6": Known(352.8, 705.6, {(4096, 0): 92}, 89),
    "qwen3-32b": Known(32.76, 65.5, {(4096, 0): 64}),
    "kimi-k2-instruct": Known(1026.4, 1029.2, {(1152, 0): 61}, 60),
    "gpt-3-175b": Known(174.6, 349.2, {(49152, 0): 96}),
    # Published with the vision tower: 109 and 400 B.
    "llama-4-scout": Known(107.8, 215.5, {(4096, 8192): 36, (4096, 0): 12}, 48),
    "llama-4-maverick": Known(400.7, 801.4, {(4096, 8192): 36, (4096, 0): 12}, 24),
    "bert-large": Known(0.335, 1.34, {}, 0),
    # By hand; 32 + 16 values of 4 bytes are remembered.
    "small-kimi": Known(0.001699312, 0.006797248, {(192, 0): 4}, 3),
}


TIED = {"bert-large": 30522 * 1024 * 4, "gpt-3-175b": 50257 * 12288 * 2}
"""Bytes of embeddings that the head reads too."""


def test_norms_of_one_and_a_weight_stand_in_their_layers() -> None:
    """Gemma scales by ``1 + weight``: the sum reads nothing that a block computes."""
    model = blocks_of(lower_config({"model_type": "gemma2", **SMALL}, "gemma2").graph)
    for block in model.blocks:
        own = (
            f"model.layers.{block.layer}."
            if block.layer is not None
            else ("model.embed_tokens", "model.norm", "lm_head")
        )
        assert all(name.startswith(own) for name in block.parameters), block.name


LARGE = ("mixtral-8x7b", "mixtral-8x22b", "glm-4.6", "llama-4-scout")
"""Bundled models that take long and are much like others."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in LARGE else name
        for name in sorted(KNOWN.keys() | catalog())
    ],
)
def test_bundled_models_have_their_published_size(name: str) -> None:
    known, model = KNOWN[name], blocks_of(load(name).graph)
    assert model.parameters / 1e9 == pytest.approx(known.parameters, rel=1e-3)
    assert model.weight_bytes / 1e9 == pytest.approx(known.weight_bytes, rel=1e-3)
    assert sum(block.weight_bytes for block in model.blocks) == model.weight_bytes + TIED.get(name, 0)
    caches = [cache for block in model.blocks for cache in block.caches]
    assert Counter((cache.bytes_per_token, cache.window) for cache in caches) == known.caches
    assert len(model.of_kind(BlockKind.EXPERTS)) == len(model.together) == known.moe_layers
    assert model.layers == (sum(known.caches.values()) or 24)


# --- what is refused, ignored or assumed ----------------------------------------------------------------------------

LLAMA = {**SMALL, "model_type": "llama", "num_hidden_layers": 1}


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "no model type": ("W0204", {"model_type": None}),
    "a model type of a wrong kind": ("W0204", {"model_type": ["llama"]}),
    "an unknown model type": ("W0204", {"model_type": "no_such_model"}),
    "a model of sounds alone": ("W0206", {"model_type": "encodec"}),
    "an activation that does not exist": ("W0205", {"hidden_act": "no_such_function"}),
    "heads that are no number": ("W0205", {"num_attention_heads": "many"}),
    "heads that do not divide": ("W0205", {"num_attention_heads": 3, "head_dim": None}),
    "a padding token outside the vocabulary": ("W0205", {"pad_token_id": 4096}),
    "a negative width": ("W0205", {"hidden_size": -64}),
    "a tower of layers": ("W0205", {"num_hidden_layers": 10**12}),
    "a tower of layers inside": ("W0205", {"vision_config": {"n_layer": 10**9}}),
    "an integer as element type": ("W0205", {"dtype": "int8"}),
    "no element type": ("W0205", {"dtype": "Tensor"}),
    "an object as element type": ("W0205", {"dtype": {"text_config": "bfloat16"}}),
    "layers of unknown kinds": ("W0205", {"model_type": "gemma2", "layer_types": ["no_such_attention"]}),
    "attention that is not shown": ("W0206", {"model_type": "gptj", "rotary_dim": 8, "head_dim": None}),
    "a mask that the model computes with": ("W0206", {"model_type": "bloom"}),
    "attention with a bias": ("W0206", {"model_type": "t5", "d_model": 64, "num_layers": 1, "num_heads": 4}),
    "tokens that meet in a scan": ("W0206", {"model_type": "mamba"}),
    "experts whose share is data": ("W0306", {"model_type": "jetmoe", **MIXTURE, "num_local_experts": 4}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    code, options = REFUSED[what]
    with pytest.raises(UnsupportedModelError) as caught:
        lower_config({**LLAMA, **options}, "refused")
    assert {fault.code for fault in caught.value.diagnostics} == {code}
    assert "Mask" not in str(caught.value)


def test_every_operator_without_a_rule_is_told_with_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "silu")
    monkeypatch.delitem(RULES, "rsqrt")
    with pytest.raises(UnsupportedModelError) as caught:
        lower_config({**LLAMA, "num_hidden_layers": 3}, "without")
    places = [(fault.message.split()[1], fault.where, fault.facts["occurrences"]) for fault in caught.value.diagnostics]
    assert places == [("rsqrt", "model.layers.0.input_layernorm", 3), ("silu", "model.layers.0.mlp.act_fn", 1)]


EVIL = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as EvilForCausalLM
"""


@pytest.mark.parametrize("model_type", ["llama", "evil", "kimi_k2"])
def test_code_in_a_folder_is_never_run(model_type: str, tmp_path: Any) -> None:
    marker = tmp_path / "ran"
    classes = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}
    config = {**SMALL, **SHARED, **LATENT, "model_type": model_type, "num_hidden_layers": 2, "auto_map": classes}
    config |= {"n_group": 1, "topk_group": 1, "architectures": ["EvilForCausalLM"], "trust_remote_code": True}
    config["attn_implementation"] = config["_attn_implementation"] = "evil/kernels"
    config["vision_config"] = {"auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("modeling_evil.py", "configuration_evil.py", "__init__.py", "setup.py"):
        (tmp_path / name).write_text(EVIL.format(marker=str(marker)))
    try:
        lowered = load(str(tmp_path))
    except UnsupportedModelError as error:
        assert (model_type, error.diagnostics[0].code) == ("evil", "W0204")
    else:
        assert lowered.notes == ("the configuration's auto_map is ignored: code from a checkpoint is never run",)
        assert "auto_map" not in json.dumps(lowered.origin.config)
        assert lowered.origin.path == str(tmp_path)
    assert not marker.exists()
    assert not any("evil" in module for module in sys.modules)


def test_a_wrapper_around_a_text_model_is_read_through() -> None:
    """The text part decides on sizes and element type; what the model never reads is left out, and told."""
    config = configuration("small-kimi")
    assert config is not None
    lowered = lower_config(config, "kimi")
    model = blocks_of(lowered.graph)
    assert lowered.max_context == 4096
    (note,) = lowered.notes
    assert note.startswith(
        "left out, as the text model never reads it: model.vision_tower, model.mm_projector (0.2 mill"
    )
    assert {parameter.name.split(".")[1] for parameter in model.unplaced} == {"vision_tower", "mm_projector"}
    assert {parameter.type.dtype for parameter in model.graph.parameters} == {DType.F32}
    inner = blocks_of(lower_config(config["text_config"], "text").graph)
    assert (inner.parameters, inner.weight_bytes) == (model.parameters, model.weight_bytes)
    assert [(block.kind, block.macs_per_token) for block in inner.blocks] == [
        (block.kind, block.macs_per_token) for block in model.blocks
    ]


def test_the_element_type_is_stated_under_either_name_or_assumed() -> None:
    def lowered(**options: Any) -> tuple[set[DType], tuple[str, ...]]:
        config = {key: value for key, value in LLAMA.items() if key != "dtype"}
        it = lower_config({**config, **options}, "typed")
        return {parameter.type.dtype for parameter in it.graph.parameters}, it.notes

    assert lowered(dtype="float16") == ({DType.F16}, ())
    assert lowered(torch_dtype="torch.float32") == ({DType.F32}, ())
    assert lowered(dtype="float32", torch_dtype="bfloat16") == ({DType.F32}, ())
    assert lowered() == ({DType.BF16}, ("the configuration states no dtype: bfloat16 is assumed",))


def test_the_configuration_that_is_given_stays_as_it_is() -> None:
    config = configuration("small-kimi")
    before = json.dumps(config)
    lower_config(config or {}, "kimi")
    assert json.dumps(config) == before


def test_the_smallest_vocabulary_and_one_head() -> None:
    options = {"vocab_size": 1, "pad_token_id": None, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = blocks_of(lower_config({**LLAMA, **options}, "tiny").graph)
    assert model.of_kind(BlockKind.HEAD)[0].macs_per_token == 64


# --- quantization ---------------------------------------------------------------------------------------------------

MLP, ATTENTION, HEAD = "model.layers.3.mlp.down_proj", "model.layers.3.self_attn.q_proj", "lm_head"
ROUTED, ROUTER, TENTH = "model.layers.3.mlp.experts", "model.layers.3.mlp.gate", "model.layers.10.mlp.down_proj"
VISION = "model.visual.blocks.0.attn.qkv"
LINEAR = (MLP, ATTENTION, HEAD, TENTH, VISION)


def int4(*ignore: str) -> dict[str, Any]:
    weights = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": list(ignore)}


def fp8(*kept: str) -> dict[str, Any]:
    return {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": list(kept)}


def mxfp4(*kept: str) -> dict[str, Any]:
    return {"quant_method": "mxfp4", "modules_to_not_convert": list(kept)}


ALL = {*LINEAR, ROUTED}
SCHEMES: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "int4 everywhere": (int4(), "int4_g32", ALL),
    "int4 but for a name": (int4("lm_head"), "int4_g32", ALL - {HEAD}),
    "int4 but for a whole path": (int4(MLP), "int4_g32", ALL - {MLP}),
    "int4 but for expressions": (int4("re:.*self_attn.*", "re:.*lm_head"), "int4_g32", ALL - {ATTENTION, HEAD}),
    "expressions match at the start": (int4("re:self_attn", "re:model.visual"), "int4_g32", ALL - {VISION}),
    "kimi": (int4("lm_head", "re:.*self_attn.*", r"re:.*mlp\.(gate|up|down)_proj.*"), "int4_g32", {ROUTED, VISION}),
    "fp8, the head never": (fp8(), "fp8_b128", ALL - {HEAD}),
    "fp8 but for what a module holds": (fp8("model.layers.3", "model.visual"), "fp8_b128", {TENTH}),
    "fp8 but for one layer": (fp8("model.layers.1"), "fp8_b128", ALL - {HEAD}),
    "fp8 but for a last part": (fp8("down_proj"), "fp8_b128", ALL - {HEAD, MLP, TENTH}),
    "fp8 but for a part alike in name": (fp8("mlp.gate", "proj", "visua"), "fp8_b128", ALL - {HEAD}),
    "fp8 but for a glob": (fp8("model.layers.*.mlp.down_proj"), "fp8_b128", ALL - {HEAD, MLP, TENTH}),
    "mxfp4 is for experts": (mxfp4("model.layers.*.self_attn", "model.layers.*.mlp.router"), "mxfp4", {ROUTED}),
    "mxfp4 for none": (mxfp4("model.layers.*.mlp.experts"), "mxfp4", set()),
    "nothing": ({}, "", set()),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_which_matrices_a_scheme_encodes(name: str) -> None:
    config, encoding, encoded = SCHEMES[name]
    rule = encoding_rule(config)
    roles = [WeightRole(path, path in LINEAR, path == ROUTED) for path in (*LINEAR, ROUTED, ROUTER)]
    found = {role.module: rule(role) for role in roles}
    assert found == {role.module: ENCODINGS[encoding] if role.module in encoded else None for role in roles}


def _changed(config: dict[str, Any], **weights: Any) -> dict[str, Any]:
    config["config_groups"]["group_0"]["weights"] |= weights
    return config


UNKNOWN_SCHEMES: dict[str, Any] = {
    "another method": {"quant_method": "gptq", "bits": 4},
    "no method": {"bits": 4},
    "a method of a wrong kind": {"quant_method": ["fp8"]},
    "a list": ["fp8"],
    "a word": "fp8",
    "eight bits": _changed(int4(), num_bits=8),
    "other groups": _changed(int4(), group_size=128),
    "floats": _changed(int4(), type="float"),
    "channels": _changed(int4(), strategy="channel", group_size=None),
    "two groups": {**int4(), "config_groups": {"a": {}, "b": {}}},
    "groups as a list": {**int4(), "config_groups": [1]},
    "no groups": {"quant_method": "compressed-tensors"},
    "other targets": {**int4(), "config_groups": {"a": {"targets": ["re:.*mlp.*"], "weights": {}}}},
    "no expression": int4("re:(.*"),
    "names that are none": int4(3),  # type: ignore[arg-type]
    "other blocks": {**fp8(), "weight_block_size": [64, 64]},
    "no blocks": {"quant_method": "fp8"},
    "blocks as a number": {**fp8(), "weight_block_size": 128},
}


@pytest.mark.parametrize("name", UNKNOWN_SCHEMES)
def test_unknown_schemes_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        encoding_rule(UNKNOWN_SCHEMES[name])
    assert [fault.code for fault in caught.value.diagnostics] == ["W0207"]


def test_a_scheme_counts_scales_and_leaves_vectors_biases_and_norms() -> None:
    config = {**LLAMA, "dtype": "bfloat16", "hidden_size": 128, "intermediate_size": 160, "attention_bias": True}
    graph = lower_config({**config, "quantization_config": fp8("self_attn")}, "fp8").graph
    stored = {p.name.removeprefix("model.layers.0."): (p.encoding.name, p.stored_bytes) for p in graph.parameters}
    # A block of 128 x 128 that is cut off by an edge has a scale of its own.
    assert stored["mlp.up_proj.weight"] == ("fp8_b128", 160 * 128 + 2 * 4)
    assert stored["mlp.down_proj.weight"] == ("fp8_b128", 128 * 160 + 2 * 4)
    plain = {name for name, (encoding, _) in stored.items() if encoding == "bf16"}
    assert plain == stored.keys() - {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


def test_a_scheme_in_the_text_part_says_nothing_of_what_is_beside_it() -> None:
    config: dict[str, Any] = json.loads(json.dumps(configuration("small-kimi")))
    config["text_config"]["quantization_config"] = int4("re:.*self_attn.*")
    graph = lower_config(config, "kimi").graph
    by_encoding = Counter((p.encoding.name, p.name.split(".")[1]) for p in graph.parameters)
    assert {part for encoding, part in by_encoding if encoding == "int4_g32"} == {"language_model"}
    encoded = {p.name.rpartition(".layers.")[2] for p in graph.parameters if p.encoding.name == "int4_g32"}
    assert {name.split(".", 1)[1] for name in encoded} == {
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        *(f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")),
        *("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    }


def test_weights_of_modules_that_are_no_linear_layers_keep_their_type() -> None:
    embedding = nn.Embedding(4, 4)
    assert not isinstance(embedding, nn.Linear)
    assert encoding_rule(fp8())(WeightRole("model.embed_tokens", is_linear=False, is_experts=False)) is None
