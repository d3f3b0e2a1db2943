"""What a forecast sees of a model: kernels against the multiply-adds and the weights that blocks are known to have."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from test_work import FAMILIES, SMALL, TOKENS, lowered_family

from ir.graph import Graph
from ir.model import BlockKind, Model
from ir.profile import Attention, BlockProfile, Kernel, Product, Profile, Reduction
from ir.text import parse_graph
from partitioner.compile import build_model
from partitioner.frontends.huggingface import lower_config
from partitioner.frontends.module import lower_module
from partitioner.passes.profile import profile_of

WINDOWED = {"mistral", "gemma2", "gpt_oss"}


@cache
def lowered(family: str) -> tuple[Model, Profile]:
    found = lowered_family(family)
    model = build_model(found.graph)
    return model, profile_of(model, found.max_context)


def of_kind(profile: Profile, kind: BlockKind) -> BlockProfile:
    """The last block of a kind."""
    return [block for block in profile.blocks if block.kind is kind][-1]


def products(block: BlockProfile) -> list[Product]:
    return [kernel for kernel in block.kernels if isinstance(kernel, Product)]


def shapes(block: BlockProfile) -> list[tuple[int, ...]]:
    """Kernels by their sizes alone: a product has three, attention four, a reduction two."""
    found: list[tuple[int, ...]] = []
    for kernel in block.kernels:
        if isinstance(kernel, Product):
            found.append((kernel.parts, kernel.inputs, kernel.outputs))
        elif isinstance(kernel, Attention):
            found.append((kernel.heads, kernel.cached_heads, kernel.key_width, kernel.value_width))
        else:
            found.append((kernel.elements, kernel.results))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_a_blocks_work_and_its_matrices(family: str) -> None:
    """All multiply-adds and all weights of a block are in its products, but for the look at the remembered tokens, of
    which ``macs_per_token`` counts a window in full, and for tables that are read and not multiplied.
    """
    model, profile = lowered(family)
    for block, seen in zip(model.blocks, profile.blocks, strict=True):
        looks = [kernel for kernel in seen.kernels if isinstance(kernel, Attention)]
        windowed = sum(look.window * look.macs_per_cached_token for look in looks)
        assert sum(product.macs for product in products(seen)) + windowed == block.macs_per_token
        if block.kind is not BlockKind.EMBEDDING:
            weights = [model.graph.parameter[name] for name in block.parameters]
            stored = sum(weight.elements for weight in weights if len(weight.shape) > 1)
            biases = sum(weight.elements for weight in weights if block.experts and len(weight.shape) == 2)
            assert sum(product.weights for product in products(seen)) == stored - biases
        assert seen.cache_bytes(3, 7) == block.cache_bytes(3, 7)
    assert any(look.window == TOKENS for b in profile.blocks for look in b.kernels if isinstance(look, Attention)) == (
        family in WINDOWED
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "gpt2"])
def test_attention_looks_at_what_the_cache_holds(family: str) -> None:
    model, profile = lowered(family)
    for block, seen in zip(model.blocks, profile.blocks, strict=True):
        looks = [kernel for kernel in seen.kernels if isinstance(kernel, Attention)]
        assert sum(look.macs_per_cached_token for look in looks) == block.macs_per_cached_token
        for look in looks:
            held = look.cached_heads * (look.key_width + look.value_width) * 4  # bytes of an f32
            assert look.bytes_per_token == held == block.cache_bytes_per_token


def test_kernels_of_a_llama_in_order() -> None:
    _, profile = lowered("llama")
    width, heads, wide = 64, (4, 2, 16, 16), 96
    assert shapes(of_kind(profile, BlockKind.ATTENTION)) == [
        (width, 1),
        (1, width, 64 + 32 + 32),
        heads,
        (1, 64, width),
    ]
    assert shapes(of_kind(profile, BlockKind.DENSE_MLP)) == [(width, 1), (1, width, 2 * wide), (1, wide, width)]
    assert profile.max_context == 256
    assert profile.layers == 2


def test_norms_of_heads_are_one_kernel() -> None:
    """Qwen3 normalises the heads of queries and keys: 4 and 2 means in one go, over at most 4 heads of 16."""
    _, profile = lowered("qwen3")
    assert shapes(of_kind(profile, BlockKind.ATTENTION))[2] == (4 * 16, 4 + 2)


def test_experts_are_products_of_which_some_serve_a_token() -> None:
    _, profile = lowered("deepseek_v3")
    for product in products(of_kind(profile, BlockKind.EXPERTS)):
        assert (product.experts, product.active) == (8, 2)
    router = of_kind(profile, BlockKind.ROUTER).kernels
    # A norm, the scores, and the choice, whose scores every tile then has: their sum needs no exchange.
    assert [type(kernel) for kernel in router] == [Reduction, Product, Reduction]
    assert router[-1] == Reduction(8, 2)


def test_choosing_groups_of_experts_is_a_choice_of_its_own() -> None:
    groups = {"model_type": "deepseek_v3", "head_dim": 8, "n_group": 4, "topk_group": 2}
    found = lower_config({**SMALL, **FAMILIES["deepseek_v3"], **groups}, "grouped")
    profile = profile_of(build_model(found.graph), None)
    router = of_kind(profile, BlockKind.ROUTER).kernels
    assert [kernel for kernel in router if isinstance(kernel, Reduction)][1:] == [Reduction(8, 8), Reduction(8, 2)]


def test_a_latent_is_looked_at_by_all_heads_as_it_is_cached() -> None:
    """The products that make keys and values from DeepSeek's latent (32 wide, 8 for the rotary key) move to the query
    and to the result: DeepSeek-V2, section 2.1.2.
    """
    model, profile = lowered("deepseek_v3")
    attention = of_kind(profile, BlockKind.ATTENTION)
    assert shapes(attention) == [
        (64, 1),  # the layer's norm
        (1, 64, 48 + 32 + 8),  # queries and latents, narrow
        (48, 2),  # their norms
        (1, 48, 4 * (16 + 8)),  # queries
        (4, 16, 32),  # each head's query into the latents' space
        (4, 1, 32 + 8, 32),
        (4, 32, 16),  # and its result out of it
        (1, 4 * 16, 64),
    ]
    (look,) = [kernel for kernel in attention.kernels if isinstance(kernel, Attention)]
    (cache,) = next(block.caches for block in reversed(model.blocks) if block.caches)
    assert look.bytes_per_token == cache.bytes_per_token == (32 + 8) * 4


def narrow(bend: str) -> Graph:
    """Attention of 4 heads, of which each 2 share a key and a value of 16, made from one cached value of 8 by a product
    each; the operator ``bend`` lies between the products and the attention.
    """
    at = '@ "layers.0.attention"'
    lines = [
        f"%narrow : f32[users, tokens, 8] = linear(%x, %down) {{transposed = false}} {at}",
        f"%query : f32[users, tokens, 64] = linear(%x, %q) {{transposed = false}} {at}",
        f"%q0 : f32[users, tokens, 4, 16] = reshape(%query) {{shape = [users, tokens, 4, 16]}} {at}",
        f"%q1 : f32[users, 4, tokens, 16] = transpose(%q0) {{permutation = [0, 2, 1, 3]}} {at}",
    ]
    for part in ("k", "v"):
        lines += [
            f"%{part}0 : f32[users, tokens, 32] = linear(%narrow, %{part}) {{transposed = false}} {at}",
            f"%{part}1 : f32[users, tokens, 32] = {bend} {at}".replace("PART", f"{part}0"),
            f"%{part}2 : f32[users, tokens, 2, 16] = reshape(%{part}1) {{shape = [users, tokens, 2, 16]}} {at}",
            f"%{part}3 : f32[users, 2, tokens, 16] = transpose(%{part}2) {{permutation = [0, 2, 1, 3]}} {at}",
        ]
    settings = "{causal = true, scale = 0.25, softcap = 0.0, window = 0}"
    lines.append(f"%out : f32[users, tokens, 4, 16] = attention(%q1, %k3, %v3) {settings} {at}")
    weights = {"down": "8, 64", "q": "64, 64", "k": "32, 8", "v": "32, 8"}
    given = ["input %x : f32[users, tokens, 64]", *(f"param %{n} : f32[{s}] as f32" for n, s in weights.items())]
    return parse_graph("\n".join(['graph "narrow" {', *given, *lines, "return %out", "}", ""]))


def kernels_of(module: torch.nn.Module, *example: int) -> list[Kernel]:
    return kernels(lower_module(module, (torch.zeros(example),), None, None).lowered.graph)


def kernels(graph: Graph) -> list[Kernel]:
    profile = profile_of(build_model(graph), None)
    return [kernel for block in profile.blocks for kernel in block.kernels]


def test_heads_that_share_a_key_share_its_matrix() -> None:
    assert kernels(narrow("reshape(%PART) {shape = [users, tokens, 32]}")) == [
        Product(64, 64 + 8, 32),
        Product(16, 8, 32, parts=2, vectors=2),
        Attention(heads=4, cached_heads=1, key_width=8, value_width=8, bytes_per_token=8 * 4),
        Product(8, 16, 32, parts=2, vectors=2),
    ]


def test_a_recomputation_that_cannot_be_moved_counts_as_products() -> None:
    """What lies between the products and the attention is no product, and so they cannot change places."""
    assert kernels(narrow("tanh(%PART)")) == [
        Product(64, 64 + 8, 32),
        Product(8, 32 + 32, 32),
        Attention(heads=4, cached_heads=2, key_width=16, value_width=16, bytes_per_token=8 * 4),
    ]


def test_items_and_flows_go_forward() -> None:
    model, profile = lowered("deepseek_v3")
    assert sorted(block for item in profile.items for block in item) == list(range(len(model.blocks)))
    assert all(first[0] < second[0] for first, second in pairwise(profile.items))
    handed = sum(edge.bytes_per_token for edge in model.edges)
    assert sum(flow.bytes_per_token for flow in profile.flows) == handed
    assert set(model.together) <= set(profile.items)


def test_a_convolution_is_a_product_for_each_window() -> None:
    """Sixteen windows of 2 x 2 pixels in 3 channels, and then the sum over each of 4 groups alone."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 2, stride=2), torch.nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
    )
    first, second = kernels_of(module, 1, 3, 8, 8)
    assert first == Product(3 * 2 * 2, 8, 32, vectors=16)
    assert second == Product(2 * 3 * 3, 2, 32, parts=4, vectors=16)


def test_a_product_of_two_values_stores_nothing() -> None:
    class Outer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.transpose(1, 2)

    _, product = kernels_of(torch.nn.Sequential(torch.nn.Linear(6, 6), Outer()), 2, 5, 6)
    assert (product.macs, product.weights) == (2 * 5 * 5 * 6, 0)
