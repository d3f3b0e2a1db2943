"""Tensors whose values are known while a model is traced: what is computed from them alone is computed at once.

A vision tower for pictures of any size reads how many patches a picture has from a tensor. Once that size is settled,
everything that the tower derives from it is a constant: loops over it end, and what meets the traced values stands in
the graph with its values.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

_FACTORIES = frozenset({torch.arange, torch.tensor, torch.zeros, torch.ones, torch.full, torch.linspace, torch.eye})


@torch.library.custom_op("waferc::constant", mutates_args=())
def constant(values: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor of these ``values``, written as :func:`written` writes them; only ever traced."""
    raise NotImplementedError


@constant.register_fake
def _(_values: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def written(tensor: Tensor) -> str:
    """The bytes of a tensor as text: the trace prints its arguments many times over, and lists of numbers are slow."""
    return base64.b64encode(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).decode()


def read_back(values: str, dtype: torch.dtype) -> list[Any]:
    """The numbers that :func:`written` wrote, in a row."""
    data = bytearray(base64.b64decode(values))
    return torch.frombuffer(data, dtype=dtype).tolist() if data else []


class Known(Tensor):
    """A tensor of known values, to be handed to a model that is traced on the ``meta`` device."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute at once where all tensors are known; else trace, with constants for those that are."""
        kwargs = kwargs or {}
        known = all(isinstance(leaf, Known) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        with torch._C.DisableTorchFunctionSubclass():
            if not known:
                args, kwargs = tree_map(_traced, (tuple(args), kwargs))
                return func(*args, **kwargs)
            # The model moves what it computes to its own device, where nothing has values.
            args, kwargs = tree_map(_here, (tuple(args), kwargs))
            with _disable_current_modes():
                return tree_map(_known, func(*args, **kwargs))


class MadeHere(TorchFunctionMode):
    """Within the block, tensors that are made on the CPU are known; those of the model are made on its own device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make tensors of plain numbers at once."""
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        here = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if func not in _FACTORIES or not here or any(isinstance(leaf, torch.SymInt) for leaf in leaves):
            return func(*args, **kwargs)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            plain = [leaf.item() if isinstance(leaf, Known) else leaf for leaf in args]
            return _known(func(*plain, **kwargs))


def _known(value: Any) -> Any:
    return value.as_subclass(Known) if isinstance(value, Tensor) else value


def _here(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _traced(value: Any) -> Any:
    if not isinstance(value, Known):
        return value
    with _disable_current_modes():
        plain = value.as_subclass(Tensor)
        values = written(plain)
    return torch.ops.waferc.constant(values, list(plain.shape), plain.dtype, torch.device("meta"))
