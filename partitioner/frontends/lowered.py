"""What every frontend returns: the graph, and how to find the model again when the plan is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ir.graph import Graph

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model came from, as far as a later run needs it; written into the plan's folder as it is.

    Attributes:
        kind: ``config`` (a transformers configuration), ``onnx``, ``exported`` (a ``.pt2`` file) or ``module``.
        config: the configuration, for ``config``; else empty.
        path: the file or checkpoint folder that holds the weights; empty where there is none.
        sha256: of the file; empty otherwise.
        max_context: tokens that the model has positions for; ``None`` if it does not say.
        stored: whether the checkpoint folder held weights.
    """

    kind: str
    config: dict[str, Any]
    path: str = ""
    sha256: str = ""
    max_context: int | None = None
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Lowered:
    """A model in the graph's terms. ``notes`` tell the user what was left out or ignored; ``stacks`` names, for each
    weight of the graph that stacks weights which the model keeps apart (see ``passes.experts``), those weights;
    ``fixed`` holds the sizes that were fixed on the way, as the model cannot be read without.
    """

    graph: Graph
    origin: Origin
    max_context: int | None = None
    notes: tuple[str, ...] = ()
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)


def stacked(weights: Mapping[str, torch.Tensor], stacks: Mapping[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """The model's ``weights`` and those that ``stacks`` makes of them, by name."""
    import torch

    return {**weights, **{name: torch.stack([weights[part] for part in parts]) for name, parts in stacks.items()}}
