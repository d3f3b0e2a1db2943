"""Vision towers: what of a multimodal model turns a picture into features that its text model reads as tokens.

A step takes one picture. Its size is the one that the configuration states; a tower for pictures of any size gets a
square of :data:`PATCHES` x :data:`PATCHES` patches, 448 x 448 pixels where a patch has 14.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.graph import Graph, Value
from partitioner.frontends.known import Known, MadeHere
from partitioner.frontends.tasks import pictures

PATCHES = 32
PICTURE = "pixel_values"
_PREFIX = "vision/"
_NOT_FEATURES = frozenset({"last_hidden_state", "hidden_states", "attentions", "pooler_output"})


@dataclass(frozen=True, slots=True)
class Picture:
    """What the tower takes: the shape of the pixel values, and what it is told of their size beside them."""

    shape: tuple[int, ...]
    sizes: Mapping[str, Tensor]


def picture_of(model: Any) -> Picture:
    """The form of the one picture of a step.

    Raises:
        UnsupportedModelError: W0244, the model has no tower whose features can be asked for; W0206, the configuration
            does not say how large a picture is.
    """
    config = getattr(model.config, "vision_config", None)
    if config is None or not hasattr(model, "get_image_features"):
        help_ = ("--parts text places the model without it",)
        fault = Diagnostic("W0244", "the model has no vision tower", "--parts", help=help_)
        raise UnsupportedModelError(fault)
    accepted = inspect.signature(model.get_image_features).parameters
    if "image_grid_thw" in accepted:
        return Picture(_patches(model), {"image_grid_thw": torch.tensor([[1, PATCHES, PATCHES]])})
    shape = (1, *(size for size in pictures(model).axes if isinstance(size, int)))
    sizes = {"image_sizes": torch.tensor([shape[2:]])} if "image_sizes" in accepted else {}
    return Picture(shape, sizes)


def _patches(model: Any) -> tuple[int, ...]:
    """Patches come one by one: as pixels to a convolution over pictures, else each as one row of numbers."""
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    if first is None:
        raise UnsupportedModelError(
            Diagnostic("W0206", "the model cannot be exported: its vision tower cuts patches in an unknown way")
        )
    form = (first.in_channels, *first.kernel_size)
    return (PATCHES * PATCHES, *(form if isinstance(first, nn.Conv2d) else (math.prod(form),)))


def features_of(model: Any, sizes: Mapping[str, Tensor], pixels: Tensor) -> tuple[Tensor, ...]:
    """A picture's features by the library's own method, [features, width of the text model], and what else the method
    yields for layers of the text model.
    """
    called: list[nn.Module] = []
    hooks = [m.register_forward_pre_hook(lambda module, _: called.append(module)) for m in model.base_model.children()]
    try:
        output = model.get_image_features(pixels, **sizes)
    finally:
        for hook in hooks:
            hook.remove()
    fields = output if isinstance(output, Mapping) else {"pooler_output": output}
    pooled = fields.get("pooler_output")
    features = _joined(fields["last_hidden_state"] if pooled is None else pooled)
    if features.shape[-1] != model.config.get_text_config().hidden_size:
        features = _projected(model, called, features)
    further = [value for name, value in fields.items() if name not in _NOT_FEATURES and value is not None]
    return (features, *(_joined(part) for value in further for part in _listed(value)))


def _projected(model: Any, called: Sequence[nn.Module], features: Tensor) -> Tensor:
    """Features under the projector, which some classes (Llama 4) apply outside of the method that yields features."""
    parts = [part for part in model.base_model.children() if next(part.parameters(), None) is not None]
    rest = [part for part in parts if not any(part is known for known in (*called, model.get_decoder()))]
    return rest[0](features) if len(rest) == 1 else features


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _joined(value: Any) -> Tensor:
    """The features of all pictures, or parts of one, below each other."""
    parts = [part.reshape(-1, part.shape[-1]) for part in _listed(value)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Features(nn.Module):
    """:func:`features_of` as a function of pixel values, to be traced with sizes that are known."""

    def __init__(self, model: nn.Module, picture: Picture) -> None:
        super().__init__()
        self.model = model

        def forward(pixel_values: Tensor) -> tuple[Tensor, ...]:
            sizes = {name: value.as_subclass(Known) for name, value in picture.sizes.items()}
            with MadeHere():
                return features_of(model, sizes, pixel_values)

        self.forward = forward


def join(text: Graph, tower: Graph) -> Graph:
    """One graph that computes what both do; values of the tower get names of their own."""
    own = {value.name: f"{_PREFIX}{value.name}" for node in tower.nodes for value in node.results}
    nodes = [
        replace(
            node,
            inputs=tuple(own.get(name, name) for name in node.inputs),
            results=tuple(Value(own[value.name], value.type) for value in node.results),
        )
        for node in tower.nodes
    ]
    further = [parameter for parameter in tower.parameters if parameter.name not in text.parameter]
    return replace(
        text,
        inputs=(*text.inputs, *tower.inputs),
        parameters=(*text.parameters, *further),
        nodes=(*text.nodes, *nodes),
        outputs=(*text.outputs, *(own[name] for name in tower.outputs)),
    )
