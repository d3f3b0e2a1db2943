"""The plan and the original side by side, layer by layer: where they part first is where the fault is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ir.diagnostics import CheckError, Diagnostic, Fact
from ir.model import Block, Model
from ir.types import symbols_of
from partitioner.passes.step import continues_text
from partitioner.running.compare import Bound, TextComparison, compare_text, error_of, greatest, text_inputs
from partitioner.running.inputs import Prompts, random_inputs, random_prompt, require_inputs, require_prompts
from partitioner.running.setup import Opened
from targets.emulator.generate import generate
from targets.emulator.history import token_axis
from targets.emulator.watch import Seen

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """A value that leaves a layer (or a block that belongs to none), and how far it was from the original's.

    Attributes:
        layer: the layer's name, such as ``layers.3`` or ``embedding``.
        value: the value's name in the graph; ``module``: where the model computes it.
        wafer: where it was computed.
        error: the greatest difference of two elements; ``tolerance``: the greatest that is allowed.
        greatest: the greatest magnitude that the original has there.
    """

    layer: str
    value: str
    module: str
    wafer: int
    error: float
    tolerance: float
    greatest: float

    @property
    def ok(self) -> bool:
        """Whether it is the original's value."""
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found: ``places`` in the graph's order, ``outputs`` by name, and the texts if it is a language model.

    ``unseen`` are layers whose values the reference does not show.
    """

    reference: str
    places: tuple[Place, ...]
    outputs: tuple[Place, ...]
    unseen: tuple[str, ...] = ()
    prompts: Prompts = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    texts: tuple[TextComparison, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether all of it is the original's."""
        return all(place.ok for place in (*self.places, *self.outputs)) and all(text.ok for text in self.texts)

    @property
    def first_wrong(self) -> Place | None:
        """The first place, in the graph's order, where the run is wrong."""
        return next((place for place in (*self.places, *self.outputs) if not place.ok), None)


def verify_plan(
    opened: Opened,
    asked: str = "auto",
    *,
    prompts: Prompts = (),
    inputs: Mapping[str, Tensor] | None = None,
    tokens: int = 8,
) -> Verification:
    """Verify a plan on ``prompts`` or ``inputs``; where none are given, on such as the seed yields."""
    it, seed = opened.runnable, opened.how.seed
    graph, plan = it.model.graph, it.plan
    if prompts or (inputs is None and continues_text(graph)):
        return verify_prompts(opened, prompts or (random_prompt(graph, plan, tokens, seed),), tokens, asked)
    return verify_step(opened, random_inputs(graph, plan, seed) if inputs is None else inputs, asked)


def verify_prompts(opened: Opened, prompts: Prompts, tokens: int, asked: str = "auto") -> Verification:
    """Continue each prompt by ``tokens`` tokens, in chunks and with caches, and hold all values between layers against
    one forward of the original over the whole text.

    Raises:
        UsageError: W0604, W0605, W0613 or W0660, the prompts do not fit the plan; W0661, there is no such reference.
    """
    it = opened.runnable
    require_prompts(it.model.graph, it.plan, prompts, tokens)
    reference, bound = opened.reference(asked), Bound.of(opened)
    leaving, output = values_between_layers(it.model), it.model.graph.outputs[0]
    parts, texts, made = [], [], []
    for ids in prompts:
        seen = Seen(frozenset((*leaving, output)))
        opened.emulator.watchers = (seen,)
        text = generate(opened.emulator, ids, tokens)
        _, theirs = reference.run(text_inputs([*ids, *text.tokens][:-1]), frozenset(leaving))
        parts.append(_places(it.model, leaving, seen, theirs, bound))
        texts.append(compare_text(ids, text, reference, bound))
        made.append(text.tokens)
    places = _worst(parts)
    worst = max(texts, key=lambda text: text.max_abs_logit_error)
    logits = Place(
        "logits", output, "", seen.wafers[output], worst.max_abs_logit_error, worst.tolerance, worst.greatest
    )
    unseen = _unseen(leaving, places)
    return Verification(reference.name, places, (logits,), unseen, prompts, tuple(made), tuple(texts))


def verify_step(opened: Opened, inputs: Mapping[str, Tensor], asked: str = "auto") -> Verification:
    """Run a model once, and hold all values between layers and its outputs against the original's.

    Raises:
        UsageError: W0604, W0605, W0609 or W0660, they do not fit the model or plan; W0661, there is no such reference.
    """
    model = opened.runnable.model
    require_inputs(model, opened.runnable.plan, inputs)
    bound = Bound.of(opened)
    reference = opened.reference(asked)
    leaving = values_between_layers(model)
    seen = Seen(frozenset((*leaving, *model.graph.outputs)))
    opened.emulator.watchers = (seen,)
    ours = opened.emulator.step(inputs)
    outputs, theirs = reference.run(inputs, frozenset(leaving))
    places = _places(model, leaving, seen, theirs, bound)
    found = [
        Place("output", name, "", seen.wafers[name], error_of(value, it), bound.of_outputs(it), greatest(it))
        for (name, value), it in zip(ours.items(), outputs, strict=True)
    ]
    return Verification(reference.name, places, tuple(found), _unseen(leaving, places))


def require_same(found: Verification, where: str) -> None:
    """Refuse a plan whose run is not the original's.

    Raises:
        CheckError: W0663, with the first layer that is wrong.
    """
    if found.ok:
        return
    place = found.first_wrong
    if place is None:
        raise CheckError(Diagnostic("W0663", "the tokens are not the original's, though all logits are", where))
    facts: dict[str, Fact] = {
        "value": place.value,
        "error": place.error,
        "tolerance": place.tolerance,
        "wafer": place.wafer,
    }
    message = f"the run differs from the original, first in {place.layer}"
    raise CheckError(Diagnostic("W0663", message, place.module or where, facts))


def values_between_layers(model: Model) -> dict[str, str]:
    """Floating-point values that leave a layer, by name: the layer's name. A block outside of layers is one itself."""
    graph = model.graph
    found: dict[str, str] = {}
    for edge in model.edges:
        source, target = model.blocks[edge.source], model.blocks[edge.target]
        if _layer(source) != _layer(target) and graph.types[edge.value].dtype.is_float:
            found[edge.value] = _layer(source)
    return found


def _layer(block: Block) -> str:
    return block.name if block.layer is None else block.name.rpartition(".")[0]


def _places(
    model: Model, leaving: Mapping[str, str], seen: Seen, theirs: Mapping[str, Tensor], bound: Bound
) -> tuple[Place, ...]:
    """The places whose values both sides have, in the same shape."""
    graph = model.graph
    places = []
    for name, layer in leaving.items():
        ours, wanted = _whole(seen, name, model), theirs.get(name)
        if ours is None or wanted is None or _squeezed(ours) != _squeezed(wanted):
            continue
        error = error_of(ours.flatten(), wanted.flatten())
        module = graph.nodes[graph.producer[name]].origin
        allowed = bound.of_values(wanted)
        places.append(Place(layer, name, module, seen.wafers[name], error, allowed, greatest(wanted)))
    return tuple(places)


def _whole(seen: Seen, name: str, model: Model) -> Tensor | None:
    """A value for all tokens: its steps one after the other."""
    parts = seen.values.get(name)
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    type_ = model.graph.types[name]
    grows = any("tokens" in symbols_of(size) for size in type_.shape)
    return torch.cat(parts, dim=token_axis(name, type_)) if grows else parts[-1]


def _squeezed(value: Tensor) -> list[int]:
    return [size for size in value.shape if size != 1]


def _worst(parts: list[tuple[Place, ...]]) -> tuple[Place, ...]:
    """Of each place the one with the greatest share of what is allowed, over all texts."""
    by_value: dict[str, list[Place]] = {}
    for places in parts:
        for place in places:
            by_value.setdefault(place.value, []).append(place)
    return tuple(max(own, key=lambda place: place.error / (place.tolerance or 1.0)) for own in by_value.values())


def _unseen(leaving: Mapping[str, str], places: tuple[Place, ...]) -> tuple[str, ...]:
    """Layers of which no value could be compared."""
    known = {place.layer for place in places}
    return tuple(dict.fromkeys(layer for layer in leaving.values() if layer not in known))
