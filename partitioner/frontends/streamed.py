"""The library's own model whose weights come and go: each module has them in 32 bit while it runs, and no longer.

So the original of a model of any size runs in the memory of its largest matrix. Of routed experts only those that the
router chose are read, of a table only the rows that are looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from partitioner.frontends.huggingface import build_model, computed_values, is_expert_stack
from targets.emulator.parts import ahead, row_parts
from targets.emulator.weights import Stored, WeightSource

_MOST_ELEMENTS = 1 << 24
"""Of a matrix that is unpacked at once."""
_FLOAT = torch.float32


def streamed_model(config: Mapping[str, Any], source: WeightSource) -> Any:
    """The library's model for ``config``, computing in 32 bit with weights that ``source`` gives when they are needed.

    Raises:
        UnsupportedModelError: W0204 or W0205.
    """
    model = build_model(config, torch.device("meta"))
    for path, value in computed_values(model).items():
        module, _, name = path.rpartition(".")
        setattr(model.get_submodule(module), name, value)
    model = model.to(_FLOAT)
    names = {id(tensor): name for name, tensor in _tensors(model) if source.shape(name) is not None}
    for module in model.modules():
        own = {name: names[id(tensor)] for name, tensor in _tensors(module, recurse=False) if id(tensor) in names}
        if own:
            _equip(module, own, source)
    return model


def _tensors(module: nn.Module, *, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=recurse, remove_duplicate=False)
    yield from module.named_buffers(recurse=recurse, remove_duplicate=False)


def _equip(module: nn.Module, own: Mapping[str, str], source: WeightSource) -> None:
    """Let ``module`` read its weights, which are called ``own`` by its names for them, when it runs."""
    stacks = {name for name in own if is_expert_stack(module, getattr(module, name))}
    for name in stacks:
        delattr(module, name)
        setattr(module, name, _Stack(own[name], source))
    if type(module) is nn.Embedding:
        module.forward = _Table(own["weight"], source)  # type: ignore[assignment]
    elif type(module) is nn.Linear and module.bias is None and module.weight.numel() > _MOST_ELEMENTS:
        module.forward = _Large(own["weight"], source)
    else:
        _load_while_it_runs(module, {name: own[name] for name in own.keys() - stacks}, source)


def _load_while_it_runs(module: nn.Module, own: Mapping[str, str], source: WeightSource) -> None:
    empty = {name: getattr(module, name) for name in own}

    def load(_module: nn.Module, _inputs: Any) -> None:
        for name, tensor in empty.items():
            values = _unpacked(source.read(own[name]))
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(values, requires_grad=False) if is_parameter else values)

    def drop(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        for name, tensor in empty.items():
            setattr(module, name, tensor)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop, always_call=True)


def _unpacked(stored: Stored) -> Tensor:
    """A weight in 32 bit; of a matrix no more than a part is there as it is stored."""
    if len(stored.shape) != 2:
        return stored.unpack(_FLOAT, "cpu")
    values, end = torch.empty(stored.shape), 0
    for part in ahead(row_parts(stored)):
        begin, end = end, end + part.shape[0]
        values[begin:end] = part.unpack(_FLOAT, "cpu")
    return values


@dataclass(frozen=True, slots=True)
class _Stack:
    """The weights of routed experts [experts, ...], read one expert at a time."""

    name: str
    source: WeightSource

    def __getitem__(self, expert: Any) -> Tensor:
        return _unpacked(self.source.read(self.name, int(expert)))


@dataclass(frozen=True, slots=True)
class _Table:
    """Looks up rows, and reads no others."""

    name: str
    source: WeightSource

    def __call__(self, indices: Tensor) -> Tensor:
        chosen, place = torch.unique(indices, return_inverse=True)
        rows = [self.source.read(self.name, None, range(i, i + 1)).unpack(_FLOAT, "cpu") for i in chosen.tolist()]
        return torch.cat(rows)[place]


@dataclass(frozen=True, slots=True)
class _Large:
    """A product by a matrix that is unpacked a part at a time."""

    name: str
    source: WeightSource

    def __call__(self, x: Tensor) -> Tensor:
        parts = ahead(part.unpack(_FLOAT, "cpu") for part in row_parts(self.source.read(self.name)))
        return torch.cat([nn.functional.linear(x, part) for part in parts], dim=-1)
