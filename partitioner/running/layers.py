"""One step beside the original, layer by layer, each layer alone and all of them one after the other.

The original runs two texts at once. The first is its own from the tokens on: how far the emulator is from it after each
layer is the *drift*. The second is handed, before each layer, what the emulator computed there: how far the emulator's
next value is from what the original makes of it is the *error* of that layer alone, which can be bounded.

Routers choose by comparing scores, and two that are closer than their roundings may be chosen in either's place. Such a
near tie is told, and the original then computes with the emulator's choice, so that the layer can still be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ir.diagnostics import Diagnostic, Fact
from ir.graph import Graph, Node
from ir.types import symbols_of
from partitioner.frontends.reference import modules_of
from partitioner.frontends.tasks import step_outputs
from partitioner.running.mixture import Mixture
from partitioner.running.verify import values_between_layers
from targets.emulator import Emulator, Precision
from targets.emulator.watch import Seen

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]
BOUNDS = {Precision.FLOAT32: 1e-4, Precision.NATIVE: 4 * 2.0**-8}
"""Greatest relative error of one layer. ``native``: on its way through a layer a value is rounded to bf16 about a dozen
times, by 2^-8 of itself at most; independent roundings add up as their root, so to less than four. ``float32``: what
another order of sums changes, over sums of tens of thousands."""


@dataclass(frozen=True, slots=True)
class Tie:
    """A token's expert ``ours`` that the original passed over for ``theirs``; ``gap``: how far the emulator's scores of
    the two lie apart, in standard deviations of that token's scores.
    """

    token: int
    ours: int
    theirs: int
    gap: float


@dataclass(frozen=True, slots=True)
class LayerError:
    """What left a layer beside the original's: the greatest over tokens of |ours - theirs| / |theirs|.

    ``ties`` are its router's other choices, ``experts`` how many were chosen.
    """

    layer: str
    error: float
    drift: float
    experts: int = 0
    ties: tuple[Tie, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """A step beside the original.

    Attributes:
        bound: of each layer's error, and half of that of a tie's gap.
        layers: in order; the last are the logits.
        tokens: the likeliest next token of each position in the emulator, ``fed`` in the original when it reads the
            emulator's last layer, ``reference`` in the original by itself.
        behind: how far the original's logit of the emulator's token lies below its greatest; ``allowed``: how far the
            logits' errors let it.
    """

    bound: float
    layers: tuple[LayerError, ...]
    tokens: tuple[int, ...] = ()
    fed: tuple[int, ...] = ()
    reference: tuple[int, ...] = ()
    behind: float = 0.0
    allowed: float = 0.0

    @property
    def ties(self) -> tuple[Tie, ...]:
        """All choices of experts that differ."""
        return tuple(tie for layer in self.layers for tie in layer.ties)

    @property
    def worst(self) -> LayerError:
        """The layer with the greatest error."""
        return max(self.layers, key=lambda layer: layer.error)


@dataclass(slots=True)
class _Beside:
    """The comparison under way: ``ours`` by value, and what was found so far."""

    ours: Tensors
    bound: float
    tell: Callable[[LayerError], None]
    found: list[LayerError] = field(default_factory=list)
    choice: tuple[int, tuple[Tie, ...]] = (0, ())

    def compare(self, layer: str, ours: Tensor, both: Tensor) -> Tensor:
        """Note how far ``ours`` is from the original's two, and hand ours on in the place of the second."""
        ours = ours.to(both.dtype)
        own, fed = both.chunk(2)
        experts, ties = self.choice
        self.found.append(LayerError(layer, _relative(ours, fed), _relative(ours, own), experts, ties))
        self.choice = (0, ())
        self.tell(self.found[-1])
        return torch.cat((own, ours.reshape(own.shape)))

    def choose(self, scores: Tensor, ours: Tensor, both: Tensor) -> Tensor:
        """Note where the original's second choice is not ``ours``, and take ours where it is a near tie."""
        both = both.clone()
        ties: list[Tie] = []
        for token, (mine, its, row) in enumerate(zip(ours.tolist(), both[len(ours) :], scores, strict=True)):
            theirs = [expert for expert in its.tolist() if expert not in mine]
            others = [expert for expert in mine if expert not in its.tolist()]
            spread = float(row[torch.isfinite(row)].std())
            for one, other in zip(others, theirs, strict=True):
                tie = Tie(token, one, other, float(row[others].max() - row[theirs].min()) / spread)
                ties.append(tie)
                if tie.gap <= 2 * self.bound:
                    its[its == other] = one
        self.choice = (len(set(ours.flatten().tolist())), tuple(ties))
        return both


def compare_layers(
    emulator: Emulator, module: Any, inputs: Tensors, tell: Callable[[LayerError], None] = lambda _layer: None
) -> LayerCheck:
    """Run one step of a language model on the emulator, and hold it against ``module``, the library's own model in 32
    bit with the same weights; ``tell`` is told of each layer once it is compared.
    """
    beside, logits, both = _run(emulator, module, inputs, lambda twice: step_outputs(module, twice)[0], tell)
    beside.compare("logits", logits, both)
    own, fed = both.chunk(2)
    chosen = logits.argmax(-1, keepdim=True)
    behind = float((fed.amax(-1, keepdim=True) - fed.gather(-1, chosen)).max())
    allowed = 2 * float((logits - fed).abs().max())
    found = tuple(beside.found)
    return LayerCheck(beside.bound, found, _likeliest(logits), _likeliest(fed), _likeliest(own), behind, allowed)


def compare_mixture(emulator: Emulator, module: Any, mixture: Mixture, hidden: Tensor) -> LayerError:
    """Run a mixture of experts alone, and hold it against its modules in ``module``, the library's own model."""
    name = mixture.hidden.name
    beside, ours, both = _run(
        emulator,
        module,
        {name: hidden},
        lambda twice: mixture.forward(module, twice[name].float()),
        lambda _layer: None,
    )
    beside.compare(mixture.module, ours, both)
    return beside.found[-1]


def _run(
    emulator: Emulator,
    module: Any,
    inputs: Tensors,
    forward: Callable[[Tensors], Tensor],
    tell: Callable[[LayerError], None],
) -> tuple[_Beside, Tensor, Tensor]:
    """What the emulator computes last, and what ``forward`` does for the original's two texts."""
    graph = emulator.model.graph
    leaving, paths = values_between_layers(emulator.model), modules_of(graph)
    routers = {node.origin: _scores(graph, node) for node in graph.nodes if node.op == "grouped_linear"}
    wanted = {*leaving, *(name for pair in routers.values() for name in pair)}
    seen = Seen(frozenset(wanted))
    emulator.watchers = (*emulator.watchers, seen)
    try:
        (last,) = emulator.step(inputs).values()
    finally:
        emulator.watchers = emulator.watchers[:-1]
    ours = {name: torch.cat(found) for name, found in seen.values.items()}
    beside = _Beside(ours, BOUNDS[emulator.arithmetic.precision], tell)
    places = {_runs(module, paths[value]): (layer, value) for value, layer in leaving.items() if value in paths}
    twice = {name: _twice(graph, name, value) for name, value in inputs.items()}
    with torch.no_grad(), _hooked(module, beside, places, routers):
        both = forward(twice).float()
    return beside, last.float(), both


def faults_of(check: LayerCheck, where: str) -> Iterator[Diagnostic]:
    """W0641 for each layer that is further from the original than its arithmetic explains, for each expert that was
    chosen in no near tie, and for a token that the logits' errors do not explain.
    """
    far = "is further from the original than rounding explains"
    for layer in check.layers:
        if layer.error > check.bound:
            facts: dict[str, Fact] = {"layer": layer.layer, "error": layer.error, "bound": check.bound}
            yield Diagnostic("W0641", f"{layer.layer} {far}", where, facts)
        for tie in layer.ties:
            if tie.gap > 2 * check.bound:
                facts = {"token": tie.token, "ours": tie.ours, "theirs": tie.theirs, "gap": tie.gap}
                yield Diagnostic("W0641", f"the choice of an expert in {layer.layer} {far}", where, facts)
    if check.behind > check.allowed:
        yield Diagnostic("W0641", f"a token {far}", where, {"behind": check.behind, "allowed": check.allowed})


def _likeliest(logits: Tensor) -> tuple[int, ...]:
    return tuple(logits.argmax(-1).flatten().tolist())


def _runs(module: Any, paths: Sequence[str]) -> str:
    """The outermost of the modules at ``paths`` that is run, and no list of such."""
    named = dict(module.named_modules())
    return next(path for path in reversed(paths) if not isinstance(named[path], torch.nn.ModuleList))


def _scores(graph: Graph, node: Node) -> tuple[str, str]:
    """The experts chosen for a product, and the scores that they were chosen by."""
    indices = node.inputs[2]
    return indices, graph.nodes[graph.producer[indices]].inputs[0]


def _twice(graph: Graph, name: str, value: Tensor) -> Tensor:
    """An input of a step for twice as many users."""
    return torch.cat((value, value)) if "users" in symbols_of(graph.types[name].shape[0]) else value


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """The greatest |ours - theirs| / |theirs| of a token; infinite where ours is no number."""
    ours, theirs = (it.reshape(-1, it.shape[-1]).double() for it in (ours, theirs))
    error = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-300)
    return float(error.nan_to_num(nan=torch.inf).max())


@contextmanager
def _hooked(
    module: Any, beside: _Beside, places: Mapping[str, tuple[str, str]], routers: Mapping[str, tuple[str, str]]
) -> Iterator[None]:
    """Let ``beside`` see what the modules at ``places`` yield, and what those at ``routers`` are to compute."""

    def leaves(layer: str, value: str) -> Callable[..., Any]:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            handed = beside.compare(layer, beside.ours[value], first)
            return (handed, *output[1:]) if isinstance(output, tuple) else handed

        return hook

    def chooses(indices: str, scores: str) -> Callable[..., Any]:
        def hook(_module: Any, given: Any) -> Any:
            hidden, chosen, *rest = given
            ours = beside.ours[indices]
            return (hidden, beside.choose(beside.ours[scores].reshape(len(ours), -1), ours, chosen), *rest)

        return hook

    named = dict(module.named_modules())
    with ExitStack() as stack:
        for path, (layer, value) in places.items():
            stack.callback(named[path].register_forward_hook(leaves(layer, value)).remove)
        for path, (indices, scores) in routers.items():
            stack.callback(named[path].register_forward_pre_hook(chooses(indices, scores)).remove)
        yield
