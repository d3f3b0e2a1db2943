"""Attention on tiles: over a cache that lies on all of them, or among the tokens of one step.

New tokens' cached values go from their homes to their tiles (``store``); queries stream past all tiles (``queries``);
each tile scores what it holds, and of a token on several tiles partial scores go from the first to the last and back
(``scores``); maxima and sums meet (``all_reduce``); weighted values are summed over the tiles to the first one and go
home (``values``). Where a latent is cached, the weights that would make keys and values from it are applied to queries
and results instead (:mod:`targets.emulator.by_head`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from ir.graph import Node
from ir.layout import Ints
from ir.types import one_token_shape
from targets.emulator.by_head import count_by_head, from_values, to_keys
from targets.emulator.history import History, as_step, by_token
from targets.emulator.kernels import run
from targets.emulator.scope import Scope
from targets.emulator.scores import Layout, Meaning, Operands, attention
from targets.program.caches import Sight, Spread
from targets.program.homes import homes
from targets.program.instructions import CachedAttention, Instruction
from targets.program.kinds import SUM_BYTES
from targets.program.look import Look, Table

Tensor = torch.Tensor
_BLOCK = 64
"""Tokens whose ways are worked out together."""


def attend(instruction: Instruction, cached: CachedAttention, scope: Scope, history: History, context: int) -> History:
    """Run an attention node on new tokens' values, after those in ``history``, which is left as it is.

    ``context``: tokens that the plan's caches have room for.

    Returns:
        What the node remembers then.
    """
    _enter(instruction, scope)
    new = {name: by_token(name, scope.read(name), scope.types[name]) for name in cached.cache.values}
    tokens = len(next(iter(new.values())))
    history = history.visible(cached.cache).append(new, tokens)
    width = sum(scope.elements(name) for name in new)
    spread = Spread(cached.cache.tokens(context), width, scope.program.placed.region)
    _count_store(scope, spread, list(new), history.seen - tokens, tokens)
    if cached.look is None:
        _recomputed(instruction, cached, scope, history, spread)
    else:
        _looked(instruction, cached, cached.look, scope, history, spread)
    return history


def _looked(
    instruction: Instruction, cached: CachedAttention, look: Look, scope: Scope, history: History, spread: Spread
) -> None:
    """Attention looks at what is cached."""
    node, arithmetic = instruction.node, scope.arithmetic
    query, values = scope.read(node.inputs[0]), history.values
    queries = to_keys(query, look, cached, scope)
    count_by_head(look.keys, cached, scope, node.inputs[0], query.shape[1], query.shape[2], forward=False)
    operands = Operands(
        tuple(torch.unflatten(piece, 1, (look.heads, -1)) for piece in queries),
        tuple(_picked(values[piece.source], piece.at).to(query.dtype) for piece in look.keys),
        tuple(_picked(values[piece.source], piece.at).to(query.dtype) for piece in look.values),
        _sinks(instruction, scope, look.heads),
        history.seen - history.tokens,
    )

    def layout() -> Layout:
        starts = dict(zip(values, np.cumsum([0, *(v.shape[1] for v in values.values())]).tolist(), strict=False))
        keys, others = (
            tuple(starts[piece.source] + piece.at.numbers for piece in pieces) for pieces in (look.keys, look.values)
        )
        return Layout(spread, keys, others)

    sight = Sight.of(node)
    seen = attention(operands, Meaning.of(sight, node.attributes), layout, arithmetic.order).flatten(1, 2)
    _count(instruction, scope, spread, operands, sight, query.shape[1] * seen.shape[3])
    result = from_values(seen, look, cached, scope)
    count_by_head(look.values, cached, scope, node.result.name, query.shape[1], query.shape[2], forward=True)
    scope.values[node.result.name] = _as_result(result, node, scope)


def _recomputed(
    instruction: Instruction, cached: CachedAttention, scope: Scope, history: History, spread: Spread
) -> None:
    """Keys and values are computed again: what is cached goes home for it, token by token, and keys and values come
    back to the tile of the token's first element (``recall``), which scores it alone.
    """
    node = instruction.node
    own = {name: as_step(name, rows, scope.types[name]) for name, rows in history.values.items()}
    constants = {name: scope.read(name) for name in cached.constants}
    past = replace(scope, bindings={**scope.bindings, "tokens": history.tokens}, values={**constants, **own})
    for earlier in cached.recompute:
        run(earlier, past)
    _enter(instruction, scope)
    key, value = (past.read(name) for name in node.inputs[1:3])
    first = history.seen - history.tokens
    _count_recall(scope, spread, list(own), node.inputs[1:3], range(first, history.seen))
    _attend_whole(instruction, scope, (key, value), first, replace(spread, width=1))


def attend_in_step(instruction: Instruction, scope: Scope) -> None:
    """Run an attention node that remembers nothing: of an encoder, or among a picture's patches. Keys and values lie
    over all tiles, as a cache would.
    """
    _enter(instruction, scope)
    names = instruction.node.inputs[1:3]
    key, value = (scope.read(name) for name in names)
    stacks, heads, tokens, _ = key.shape
    width = heads * (key.shape[3] + value.shape[3])
    spread = Spread(stacks * tokens, width, scope.program.placed.region)
    rows = [_homes_of(scope, name, tuple(x.shape)) for name, x in zip(names, (key, value), strict=True)]
    place = np.arange(stacks * tokens)
    hops, links = _ways(spread, place, tuple(np.concatenate(side, axis=1) for side in zip(*rows, strict=True)))
    parts = np.split(links, [heads * key.shape[3]], axis=1)
    sizes = [int(part.sum()) * scope.element_bytes(name) for part, name in zip(parts, names, strict=True)]
    scope.meter.record("store", hops, sum(sizes))
    _attend_whole(instruction, scope, (key, value), 0, spread)


def _attend_whole(
    instruction: Instruction, scope: Scope, held: tuple[Tensor, Tensor], first: int, spread: Spread
) -> None:
    """Attention over keys and values as the node reads them, of tokens from position ``first`` on.

    ``spread`` is that of their elements in order; of one element each where whole tokens lie on a tile.
    """
    node, arithmetic = instruction.node, scope.arithmetic
    query, (key, value) = scope.read(node.inputs[0]), held
    heads, sight = key.shape[1], Sight.of(node)
    operands = Operands(
        (torch.unflatten(query, 1, (heads, -1)),), (key.to(query.dtype),), (value.to(query.dtype),),
        _sinks(instruction, scope, heads), first,
    )  # fmt: skip

    def layout() -> Layout:
        cut, end = heads * key.shape[3], heads * (key.shape[3] + value.shape[3])
        numbers = np.arange(end) if spread.width > 1 else np.zeros(end, np.int64)
        at = (numbers[:cut].reshape(heads, -1), numbers[cut:].reshape(heads, -1))
        return Layout(spread, (at[0],), (at[1],), key.shape[2] if len(key) > 1 else 0)

    seen = attention(operands, Meaning.of(sight, node.attributes), layout, arithmetic.order).flatten(1, 2)
    _count(instruction, scope, spread, operands, sight, scope.elements(node.result.name))
    scope.values[node.result.name] = _as_result(seen, node, scope)


def _as_result(seen: Tensor, node: Node, scope: Scope) -> Tensor:
    """What each head has seen [stacks, heads, tokens, width] as the node's result."""
    return seen.transpose(1, 2).to(scope.arithmetic.dtype(node.result.type.dtype, node.result.name))


def _sinks(instruction: Instruction, scope: Scope, heads: int) -> Tensor | None:
    """The logits of sinks [heads that are looked at, heads of each]."""
    names = instruction.node.inputs[3:]
    return scope.read(names[0]).reshape(heads, -1) if names else None


def _picked(rows: Tensor, at: Table) -> Tensor:
    """Of ``rows`` [tokens, elements] each head's own [1, heads, tokens, elements], a view where evenly apart."""
    if at.steps is None:
        numbers = torch.from_numpy(at.numbers).to(rows.device)
        return rows[:, numbers].transpose(0, 1)[None]
    start, by_head, by_element = at.steps
    shape = (1, at.numbers.shape[0], len(rows), at.numbers.shape[1])
    stride = rows.stride(1)
    return rows.as_strided(
        shape, (0, by_head * stride, rows.stride(0), by_element * stride), rows.storage_offset() + start * stride
    )


# --- what it moves ----------------------------------------------------------------------------------------------------


def _enter(instruction: Instruction, scope: Scope) -> None:
    scope.meter.op = (scope.program.placed.title, instruction.node.result.name)


def _count(
    instruction: Instruction, scope: Scope, spread: Spread, operands: Operands, sight: Sight, elements: int
) -> None:
    """Queries, scores, the softmax, and values, of all queries in ``operands``; ``elements`` of the result lie at
    homes, for each token.
    """
    node, region, meter = instruction.node, spread.region, scope.meter
    looks = _Looks(
        replace(spread, region=region.at_origin),
        sight,
        stacks=operands.queries[0].shape[0],
        heads=operands.queries[0].shape[1:3].numel(),
        new=operands.new,
        first=operands.first,
        tokens=operands.tokens,
        key_width=sum(piece.shape[3] for piece in operands.keys),
        value_width=sum(piece.shape[3] for piece in operands.values),
        elements=elements,
        query_bytes=scope.element_bytes(node.inputs[0]),
        result_bytes=scope.element_bytes(node.result.name),
    )
    multiply_adds, moved = _taken(looks)
    meter.multiply_adds(multiply_adds)
    for collective, hops, link_bytes in moved:
        meter.record(collective, hops, link_bytes)
    far = region.rows + region.columns - 2
    for name in node.inputs[3:]:
        payload = scope.elements(name) * scope.element_bytes(name)
        meter.record("broadcast", far, payload * (region.tiles - 1))


@dataclass(frozen=True, slots=True)
class _Looks:
    """All that decides what an attention takes: the layers of a step often agree in it."""

    spread: Spread
    sight: Sight
    stacks: int
    heads: int
    new: int
    first: int
    tokens: int
    key_width: int
    value_width: int
    elements: int
    query_bytes: int
    result_bytes: int


@lru_cache(maxsize=1024)
def _taken(it: _Looks) -> tuple[int, tuple[tuple[str, int, int], ...]]:
    """Multiply-adds, and what moves: collective, hops, bytes over links."""
    region, rows = it.spread.region, it.stacks * it.heads * it.new
    far, others = region.rows + region.columns - 2, region.tiles - 1
    end = it.first + it.tokens
    first, last = it.sight.span(np.arange(end - it.new, end), end)
    multiply_adds = int((last - first).sum()) * it.stacks * it.heads * (it.key_width + it.value_width)
    paths, before = _paths(it.spread)
    links, longest = 0, 0
    for stack in range(it.stacks):
        low, high = first + stack * it.tokens, last + stack * it.tokens
        links += int((_up_to(before, high) - _up_to(before, low)).sum())
        seen = np.arange(int(low.min()), int(high.max()))
        longest = max(longest, int(paths.take(seen, mode="wrap").max(initial=0)))
    row, column = homes(it.elements, region)
    away = row + column
    sums = others * it.elements * max(SUM_BYTES, it.result_bytes) + int(away.sum()) * it.result_bytes
    return multiply_adds, (
        ("queries", far, rows * it.key_width * it.query_bytes * others),
        ("scores", 2 * longest, 2 * links * it.heads * SUM_BYTES),
        ("all_reduce", 2 * far, 2 * others * rows * 2 * SUM_BYTES),
        ("values", far + int(away.max(initial=0)), rows * it.value_width // it.elements * sums),
    )


@lru_cache(maxsize=256)
def _paths(spread: Spread) -> tuple[Ints, Ints]:
    """Links between the tiles of the token at each place [capacity], and added up before each place [capacity + 1]."""
    paths = spread.path(np.arange(spread.capacity))
    return paths, np.concatenate(([0], np.cumsum(paths)))


def _up_to(sums: Ints, position: Ints) -> Ints:
    """What ``sums`` of a cache's places come to for all positions before ``position``."""
    turns, place = np.divmod(position, len(sums) - 1)
    found: Ints = turns * sums[-1] + sums[place]
    return found


def _count_store(scope: Scope, spread: Spread, names: list[str], first: int, tokens: int) -> None:
    """What is cached of ``tokens`` tokens from position ``first`` on goes from its homes to its tiles."""
    hops, link_bytes = _between_homes(scope, spread, names, first, tokens)
    scope.meter.record("store", hops, link_bytes)


def _between_homes(scope: Scope, spread: Spread, names: list[str], first: int, tokens: int) -> tuple[int, int]:
    """Hops of the longest path between homes and tiles of cached values, and bytes over links."""
    elements = tuple(scope.elements(name) for name in names)
    sizes = tuple(scope.element_bytes(name) for name in names)
    return _home_ways(replace(spread, region=spread.region.at_origin), elements, sizes, first, tokens)


@lru_cache(maxsize=1024)
def _home_ways(
    spread: Spread, elements: tuple[int, ...], sizes: tuple[int, ...], first: int, tokens: int
) -> tuple[int, int]:
    place = np.arange(first, first + tokens) % spread.capacity
    hops = link_bytes = 0
    for block, count in zip(*np.unique(place // _BLOCK, return_counts=True), strict=True):
        own = place[place // _BLOCK == block] if len(place) > count else place
        longest, links = _stored_block(spread, elements, int(block))
        hops = max(hops, int(longest[own % _BLOCK].max()))
        link_bytes += int((links[:, own % _BLOCK].sum(axis=1) * sizes).sum())
    return hops, link_bytes


@lru_cache(maxsize=4096)
def _stored_block(spread: Spread, elements: tuple[int, ...], block: int) -> tuple[Ints, Ints]:
    """For each place of a block the longest path [places] and the links of each value [values, places] between homes
    and tiles.
    """
    place = np.arange(block * _BLOCK, min(spread.capacity, (block + 1) * _BLOCK))
    sides = zip(*(homes(count, spread.region) for count in elements), strict=True)
    row, column = (np.concatenate(side)[None] for side in sides)
    _, links = _ways(spread, place, (row, column))
    starts = np.cumsum([0, *elements[:-1]])
    return links.max(axis=1), np.add.reduceat(links, starts, axis=1).T


def _ways(spread: Spread, place: Ints, source: tuple[Ints, ...]) -> tuple[int, Ints]:
    """Links [places, elements] between the elements of the tokens at ``place`` and ``source``; the most of them."""
    region = spread.region
    tile = spread.tile(place[:, None], np.arange(spread.width)[None])
    row, column = region.row + tile // region.columns, region.column + tile % region.columns
    links = np.abs(row - source[0]) + np.abs(column - source[1])
    return int(links.max(initial=0)), links


def _homes_of(scope: Scope, name: str, shape: tuple[int, ...]) -> tuple[Ints, Ints]:
    """The homes of a key or value [stacks, heads, tokens, width] as [stacks x tokens, heads x width]."""
    one = one_token_shape(scope.types[name].shape)
    row, column = homes(scope.elements(name), scope.program.placed.region)
    rows, columns = (
        np.broadcast_to(side.reshape(one), shape).transpose(0, 2, 1, 3).reshape(shape[0] * shape[2], -1)
        for side in (row, column)
    )
    return rows, columns


def _count_recall(scope: Scope, spread: Spread, cached: list[str], read: tuple[str, ...], positions: range) -> None:
    """What is cached goes home, and keys and values go to the tile of the token's first element."""
    there, link_bytes = _between_homes(scope, spread, cached, positions.start, len(positions))
    place = np.arange(positions.start, positions.stop) % spread.capacity
    tile = spread.tile(place, 0 * place)[:, None]
    region, back = spread.region, 0
    for name in read:
        row, column = homes(scope.elements(name), region)
        away = np.abs(region.row + tile // region.columns - row)
        away = away + np.abs(region.column + tile % region.columns - column)
        back, link_bytes = max(back, int(away.max())), link_bytes + int(away.sum()) * scope.element_bytes(name)
    scope.meter.record("recall", there + back, link_bytes)
