"""The repeated layers of a model: which are alike, and the model with one of each kind alone."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_INDEX_NAMES = ("layer_idx", "layer_id", "layer_index")


@dataclass(frozen=True, slots=True)
class LayerList:
    """A list of layers in the model, and the first layer of each distinct kind."""

    path: str
    representatives: tuple[int, ...]
    kind_of: tuple[int, ...]

    @property
    def repeats(self) -> bool:
        """Whether some layer is like an earlier one."""
        return len(self.representatives) < len(self.kind_of)


def layer_list(model: Any) -> LayerList | None:
    """The list of layers with the most weights whose length is the configuration's number of layers."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        return None
    path, layers = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    kinds: dict[object, int] = {}
    kind_of = tuple(kinds.setdefault(_signature(model, layer), len(kinds)) for layer in layers)
    return LayerList(path, tuple(kind_of.index(kind) for kind in range(len(kinds))), kind_of)


def _signature(model: Any, module: nn.Module) -> object:
    """What decides what a layer computes: classes, attributes of plain data, shapes, and the values of buffers that
    are computed; its position left out.
    """
    attributes = tuple(sorted((k, repr(v)) for k, v in vars(module).items() if _is_plain(v) and k not in _INDEX_NAMES))
    tensors = tuple((k, tuple(t.shape), t.dtype) for k, t in module.named_parameters(recurse=False))
    buffers = tuple((k, tuple(t.shape), t.dtype) for k, t in module.named_buffers(recurse=False))
    values = tuple((k, _digest(t)) for k, t in computed_buffers(model, module).items())
    children = tuple((k, _signature(model, child)) for k, child in module.named_children())
    return type(module), attributes, tensors, buffers, values, children


def computed_buffers(model: Any, module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of ``module`` itself that are computed when the model is built (rotary frequencies), not stored: made
    again on the CPU, as they have no values on the meta device.
    """
    stored = module.state_dict(keep_vars=True)
    names = [name for name, _ in module.named_buffers(recurse=False) if name not in stored]
    if not any(getattr(module, name).is_meta for name in names):
        return {name: getattr(module, name) for name in names}
    real = copy.deepcopy(module).to_empty(device="cpu", recurse=False)
    model._init_weights(real)
    return {name: getattr(real, name) for name in names}


def _is_plain(value: Any) -> bool:
    """Whether a value is data through and through, so that its text says all of it."""
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (bool, int, float, str, bytes, type(None), torch.dtype))


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).digest()


class only:  # noqa: N801 - reads as a verb where it is used
    """Within the block the model has only one layer of each kind, and a configuration that says so."""

    def __init__(self, model: Any, layers: LayerList) -> None:
        self._config = model.config.get_text_config()
        self._parent = model.get_submodule(layers.path.rpartition(".")[0])
        self._attribute = layers.path.rpartition(".")[2]
        self._whole = getattr(self._parent, self._attribute)
        self._chosen = layers.representatives
        self._before = (self._config.num_hidden_layers, vars(self._config).get("layer_types"))

    def __enter__(self) -> None:
        count, types = self._before
        setattr(self._parent, self._attribute, nn.ModuleList([self._whole[i] for i in self._chosen]))
        if types is not None and len(types) == count:
            self._config.layer_types = [types[i] for i in self._chosen]
        self._config.num_hidden_layers = len(self._chosen)

    def __exit__(self, *_: object) -> None:
        count, types = self._before
        setattr(self._parent, self._attribute, self._whole)
        self._config.num_hidden_layers = count
        if types is not None:
            self._config.layer_types = types
