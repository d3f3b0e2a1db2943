"""What a model is in figures, before it is placed."""

from __future__ import annotations

from dataclasses import dataclass

from ir.model import BlockKind, Model


@dataclass(frozen=True, slots=True)
class Figures:
    """A model's size and work.

    Attributes:
        parameters: number of weights that are placed, each counted once.
        weight_bytes: their bytes as stored.
        copied_bytes: bytes stored again, as several blocks read the same weight.
        kv_bytes_per_token_per_layer: bytes that each layer remembers of a token.
        kv_windows: for each layer the number of tokens that it can still see; 0 for all.
        layers: number of repeated layers, ``moe_layers`` of them with routed experts.
        experts_per_layer: routed experts of a layer (the most of any), ``active_experts`` of them for each token.
        macs_per_token: multiply-adds for one token, attention's look at the cache left out.
        macs_per_picture: multiply-adds for one picture, in a model of text and pictures.
        macs_per_cached_token: multiply-adds for one token and each token that attention sees.
        blocks: number of blocks.
        unplaced: names of weights that no block reads.
    """

    parameters: int
    weight_bytes: int
    copied_bytes: int
    kv_bytes_per_token_per_layer: tuple[int, ...]
    kv_windows: tuple[int, ...]
    layers: int
    moe_layers: int
    experts_per_layer: int
    active_experts: int
    macs_per_token: int
    macs_per_picture: int
    macs_per_cached_token: int
    blocks: int
    unplaced: tuple[str, ...]


def figures(model: Model) -> Figures:
    """The figures of ``model``."""
    groups = model.of_kind(BlockKind.EXPERTS)
    work = sum(block.macs_per_token for block in model.blocks)
    takes_tokens = any(block.takes_tokens for block in model.blocks)
    beside = sum(block.macs_per_token for block in model.blocks if takes_tokens and not block.takes_tokens)
    kv_bytes, windows = [0] * model.layers, [0] * model.layers
    for block in model.blocks:
        if block.layer is not None:
            kv_bytes[block.layer] += block.cache_bytes_per_token
            windows[block.layer] = max((windows[block.layer], *(cache.window for cache in block.caches)))
    return Figures(
        parameters=model.parameters,
        weight_bytes=model.weight_bytes,
        copied_bytes=model.copied_bytes,
        kv_bytes_per_token_per_layer=tuple(kv_bytes),
        kv_windows=tuple(windows),
        layers=model.layers,
        moe_layers=len({block.layer for block in groups}),
        experts_per_layer=max((block.experts for block in groups), default=0),
        active_experts=max((block.active_experts for block in groups), default=0),
        macs_per_token=work - beside,
        macs_per_picture=beside,
        macs_per_cached_token=sum(block.macs_per_cached_token for block in model.blocks),
        blocks=len(model.blocks),
        unplaced=tuple(parameter.name for parameter in model.unplaced),
    )
