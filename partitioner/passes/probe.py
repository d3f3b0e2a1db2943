"""What a piece of a graph that may be attention means, measured by running it on small concrete sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ir.graph import Graph, Node, Value
from ir.interpret import interpret
from ir.ops import OPS
from ir.types import Dim, DType, TensorType, evaluate, symbols_of

_NEW, _OLD = 9, 4
"""Tokens, new and remembered, of the sizes that a piece is run with; small windows show in them."""
_FEW = 1e-4
"""Greatest difference to the operator's own result, of values of about 1."""
_HIDDEN = 1e-6
_LARGEST_WINDOW = 1 << 18
_SMALL_SCORE, _LARGE_SCORE = 2.0**-7, 2.0**40


@dataclass(frozen=True, slots=True)
class Piece:
    """Names in a graph: what attention reads (query, key, value, perhaps sinks), the scores, what the softmax reads and
    yields, and the result [users, heads, tokens, width].
    """

    operands: tuple[str, ...]
    scores: str
    logits: str
    weights: str
    result: str

    def signature(self, graph: Graph) -> object:
        """Equal for pieces that compute the same, such as those of like layers."""
        numbers: dict[str, object] = {name: (i, graph.types[name]) for i, name in enumerate(self.operands)}
        described: list[object] = []
        for node in _needed(graph, (self.result,), self.operands):
            read = tuple(numbers.get(name, name) for name in node.inputs)
            described.append((node.op, read, tuple(sorted((k, repr(v)) for k, v in node.attributes.items()))))
            numbers |= {value.name: (len(described), i) for i, value in enumerate(node.results)}
        return tuple(described), numbers.get(self.scores), numbers.get(self.logits)


@dataclass(frozen=True, slots=True)
class Meaning:
    """Attributes of the operator ``attention``."""

    scale: float
    causal: bool
    window: int
    softcap: float


def measure(graph: Graph, piece: Piece) -> Meaning | None:
    """The attention that ``piece`` is; ``None`` if it is none that the operator can express."""
    try:
        return _measure(_Probe(graph, piece))
    except _NotAttention:
        return None


class _NotAttention(Exception):  # noqa: N818 - an answer, not a fault
    """The piece means something else."""


def _measure(probe: _Probe) -> Meaning:
    sizes = probe.sizes()
    causal, window = _sight(probe, sizes)
    scale, softcap = _scale(probe, sizes[0])
    meaning = Meaning(scale, causal, window, softcap)
    for size in sizes:
        operands = probe.operands(size)
        ours = probe.run({**operands}, size, (probe.piece.result,))[probe.piece.result]
        theirs = _attention(list(operands.values()), meaning)
        if ours.shape != theirs.shape or not _close(ours, theirs):
            raise _NotAttention
    return meaning


def _attention(operands: Sequence[Any], meaning: Meaning) -> Any:
    import torch

    operands = [*operands[:3], *(sinks.reshape(-1) for sinks in operands[3:])]
    attributes = {n: getattr(meaning, n) for n in ("scale", "causal", "window", "softcap")}
    return OPS["attention"].reference(torch, operands, attributes).transpose(1, 2)


def _close(ours: Any, theirs: Any) -> bool:
    return bool(((ours.double() - theirs.double()).abs() <= _FEW * (1 + theirs.double().abs())).all())


# --- who sees whom --------------------------------------------------------------------------------------------------


def _sight(probe: _Probe, sizes: Sequence[Mapping[str, int]]) -> tuple[bool, int]:
    """Whether tokens see only earlier ones, and how many at most (0: all)."""
    seen: set[int] = set()
    hidden: set[int] = set()
    for size in sizes:
        _look(probe, size, None, seen, hidden)
    for limit in probe.limits():
        for size, positions in probe.around(limit):
            _look(probe, size, positions, seen, hidden)
    if not seen or seen & hidden:
        raise _NotAttention
    reach = max(seen)
    window = reach + 1 if any(distance > reach for distance in hidden) else 0
    causal = min(seen) >= 0
    for distance in seen | hidden:
        is_far = bool(window) and abs(distance) >= window
        if (distance in seen) == (is_far or (causal and distance < 0)):
            raise _NotAttention
    return causal, window


def _look(
    probe: _Probe, size: Mapping[str, int], positions: Sequence[int] | None, seen: set[int], hidden: set[int]
) -> None:
    """Note the distances at which tokens see each other when all scores are zero."""
    import torch

    scores = torch.zeros(probe.shape(probe.piece.scores, size))
    sinks = {name: torch.zeros(probe.shape(name, size)) for name in probe.piece.operands[3:]}
    weights = probe.run({probe.piece.scores: scores, **sinks}, size, (probe.piece.weights,), positions)
    rows, columns = scores.shape[-2:]
    table = weights[probe.piece.weights][..., :columns].reshape(-1, rows, columns)
    visible = table > _HIDDEN
    if not bool((visible == visible[:1]).all()):
        raise _NotAttention
    row_sums = torch.where(visible, table, 0).amax(-1) - torch.where(visible, table, 2).amin(-1)
    if bool((row_sums.abs() > _HIDDEN).any()):
        raise _NotAttention  # a bias by distance
    keys = torch.tensor(positions if positions is not None else range(columns))
    distance = keys[columns - rows :, None] - keys[None, :]
    seen.update(distance[visible[0]].tolist())
    hidden.update(distance[~visible[0]].tolist())


# --- scale ----------------------------------------------------------------------------------------------------------


def _scale(probe: _Probe, size: Mapping[str, int]) -> tuple[float, float]:
    """The factor from query times key to what the softmax reads, and its soft cap (0: none)."""
    import torch

    operands = probe.operands(size)
    names = list(operands)
    query, key = operands[names[0]], operands[names[1]]
    groups = query.shape[1] // key.shape[1]
    raw = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3)
    given = probe.run({n: operands[n] for n in names[:2]}, size, (probe.piece.scores,))[probe.piece.scores]
    if given.numel() != raw.numel():
        raise _NotAttention
    before = float((given.reshape(raw.shape).double() * raw.double()).sum() / raw.double().square().sum())
    shape, sinks = given.shape, {n: operands[n] for n in names[3:]}

    def logit(score: float) -> float:
        full = torch.full(shape, score)
        return float(probe.run({probe.piece.scores: full, **sinks}, size, (probe.piece.logits,), stop=True))

    slope, most = logit(_SMALL_SCORE) / _SMALL_SCORE, logit(_LARGE_SCORE)
    softcap = most if abs(most) < slope * _LARGE_SCORE / 2 else 0.0
    return _rounded(before * slope, query.shape[-1]), _rounded(softcap, 0)


def _rounded(value: float, width: int) -> float:
    """``value`` without what 32-bit arithmetic added: a power of the width if it is one, else to seven digits."""
    if width and math.isclose(value, width**-0.5, rel_tol=1e-5):
        return float(width**-0.5)
    return float(f"{value:.6g}")


# --- running --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Probe:
    """A piece in its graph, ready to be run."""

    graph: Graph
    piece: Piece

    def symbols(self) -> set[str]:
        """Symbols of the sizes that the piece works on."""
        names = (*self.piece.operands, self.piece.scores, self.piece.result)
        return {s for name in names for size in self.graph.types[name].shape for s in symbols_of(size)}

    def sizes(self) -> list[dict[str, int]]:
        """Concrete sizes to run with."""
        symbols = self.symbols()
        if symbols - {"users", "tokens", "past"}:
            raise _NotAttention
        past = [(_NEW, 0)] if "past" not in symbols else [(_NEW, _OLD), (1, _NEW)]
        return [{"users": 2, "tokens": new, "past": old} for new, old in past]

    def shape(self, name: str, size: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of a value at concrete sizes."""
        return tuple(evaluate(axis, size) for axis in self.graph.types[name].shape)

    def operands(self, size: Mapping[str, int]) -> dict[str, Any]:
        """Random operands."""
        import torch

        generator = torch.Generator().manual_seed(0)
        return {n: torch.randn(self.shape(n, size), generator=generator) for n in self.piece.operands}

    def limits(self) -> Iterator[int]:
        """Numbers in the mask that may be a window beyond the sizes that the piece is run with anyway."""
        found: set[int] = set()
        for node in _needed(self.graph, (self.piece.weights,), (self.piece.scores, *self.piece.operands)):
            items = [node.attributes.get("scalar"), node.attributes.get("value"), *_few(node.attributes.get("values"))]
            found.update(abs(int(i)) for i in items if isinstance(i, int | float) and math.isfinite(i))
        return iter(sorted(n for n in found if 2 < n <= _LARGEST_WINDOW))

    def around(self, limit: int) -> Iterator[tuple[dict[str, int], list[int] | None]]:
        """Sizes, and positions of the tokens, that show whether sight ends at about ``limit`` tokens."""
        symbols = self.symbols()
        if "past" in symbols:
            yield {"users": 1, "tokens": 1, "past": limit + 2}, None
        elif "tokens" in symbols:
            positions = sorted({0, 1, 2, *range(limit - 2, limit + 3), 2 * limit + 3})
            yield {"users": 1, "tokens": len(positions), "past": 0}, positions

    def run(
        self,
        given: Mapping[str, Any],
        size: Mapping[str, int],
        wanted: tuple[str, ...],
        positions: Sequence[int] | None = None,
        *,
        stop: bool = False,
    ) -> Any:
        """Values of the graph for given ones; tokens stand at ``positions``, one after the other if not given.

        With ``stop``, the largest element of the only one wanted.
        """
        import torch

        nodes = _needed(self.graph, wanted, tuple(given))
        feeds = dict(given) | self._positions(nodes, positions)
        nodes = [_wide(node) for node in nodes if node.result.name not in feeds]
        made = {value.name for node in nodes for value in node.results} | feeds.keys()
        for name in {name for node in nodes for name in node.inputs} - made:
            feeds[name] = self._input(name, size)
        inputs = [Value(name, TensorType(DType.F32, tuple(tensor.shape))) for name, tensor in feeds.items()]
        sizes = Value("?sizes", TensorType(DType.BOOL, tuple(Dim.symbol(name) for name in size)))
        feeds["?sizes"] = torch.zeros(1).expand(*size.values()) if all(size.values()) else torch.zeros(*size.values())
        part = Graph("piece", (*inputs, sizes), (), tuple(nodes), wanted)
        try:
            values = interpret(part, feeds)
        except (RuntimeError, IndexError, KeyError, ValueError, TypeError):
            raise _NotAttention from None
        return values[wanted[0]].amax() if stop else {name: values[name] for name in wanted}

    def _positions(self, nodes: Sequence[Node], positions: Sequence[int] | None) -> dict[str, Any]:
        """What counts tokens, at other ``positions``."""
        import torch

        if positions is None:
            return {}
        counting = [n for n in nodes if n.op == "arange" and "tokens" in symbols_of(n.result.type.shape[0])]
        if any(n.attributes["start"] or n.attributes["step"] != 1 for n in counting):
            raise _NotAttention
        return {n.result.name: torch.tensor(positions) for n in counting}

    def _input(self, name: str, size: Mapping[str, int]) -> Any:
        """Positions [users, tokens] are counted; a piece that reads anything else is no attention."""
        import torch

        type_ = self.graph.types[name]
        is_input = name in {value.name for value in self.graph.inputs}
        if not is_input or type_.dtype.is_float or len(type_.shape) != 2:
            raise _NotAttention
        users, tokens = self.shape(name, size)
        return torch.arange(size["past"], size["past"] + tokens).expand(users, tokens)


def _few(values: Any) -> Sequence[Any]:
    return values if isinstance(values, tuple) and len(values) <= 64 else ()


def _wide(node: Node) -> Node:
    """The node with 32 bits in the place of 16: what is measured is the meaning, not the rounding."""
    if node.attributes.get("dtype") in (DType.F16, DType.BF16):
        return replace(node, attributes={**node.attributes, "dtype": DType.F32})
    return node


def _needed(graph: Graph, wanted: tuple[str, ...], given: tuple[str, ...]) -> list[Node]:
    """The nodes that compute ``wanted`` from ``given``, from inputs and from parameters, in order."""
    found: set[int] = set()
    pending = [name for name in wanted if name not in given]
    while pending:
        index = graph.producer.get(pending.pop())
        if index is not None and index not in found:
            found.add(index)
            pending += [name for name in graph.nodes[index].inputs if name not in given]
    return [graph.nodes[index] for index in sorted(found)]
