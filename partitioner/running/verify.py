"""The plan and the original side by side, layer by layer: where they part first is where the fault is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ir.diagnostics import CheckError, Diagnostic, Fact
from ir.model import Block, Model
from ir.types import symbols_of
from partitioner.frontends.reference import Reference
from partitioner.running.compare import Bound, TextComparison, compare_text, error_of, text_inputs
from partitioner.running.inputs import Prompts, require_prompts
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
