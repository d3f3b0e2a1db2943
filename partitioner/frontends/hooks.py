"""Two operators of ours in the place of attention and of the experts' products, for transformers to call.

With them every model of the library exports with one ``attention`` node and two ``grouped_linear`` nodes a layer,
instead of the masks, sorts and scatters that a particular kernel needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NAME = "waferc"
"""The name under which the hooks are registered with transformers."""


_KNOWN_MASKS = frozenset(
    {
        *("causal_mask_function", "bidirectional_mask_function"),
        *("sliding_window_overlay", "sliding_window_bidirectional_overlay", "chunked_overlay", "and_masks"),
        # Several sequences in one row, told by positions that begin anew: ours are one sequence.
        *("packed_sequence_mask_function", "remap_positions_for_packed_sequence"),
    }
)
_SAYS_NOTHING = frozenset({"position_ids", "cache_position", "position_embeddings"})
"""Tensors that models hand on to the attention interface although it has no use for them."""
_HANDS_ON = "the model's attention computes with a mask itself, which the library's interface does not show"


class HandsOnError(AttributeError, NotImplementedError):
    """A model computes with what it should hand on."""

    def __init__(self, use: str) -> None:
        super().__init__(f"{_HANDS_ON} ({use})")


@dataclass(frozen=True, slots=True)
class Mask:
    """What a mask says, in a mask's place: attention to earlier tokens alone, to the last ``window`` (0: all), and to
    those in the same ``chunk`` of that many tokens (0: all).

    A model that computes with its mask, rather than handing it on to the attention interface, fails on this.
    """

    causal: bool
    window: int
    chunk: int = 0

    def __getattr__(self, name: str) -> Any:
        raise HandsOnError(f"it asks for {name}")

    def __getitem__(self, index: Any) -> Any:
        raise HandsOnError("it takes parts of it")

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        # A TypeError would end as one that names types of ours.
        raise NotImplementedError(_HANDS_ON)


@torch.library.custom_op("waferc::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    chunk: int,
    softcap: float,
) -> Tensor:
    """See ``ir.ops.matrix``; only ever traced."""
    raise NotImplementedError


@attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    chunk: int,
    softcap: float,
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@torch.library.custom_op("waferc::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, transposed: bool) -> Tensor:
    """See ``ir.ops.matrix``; only ever traced."""
    raise NotImplementedError


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(indices.shape[0], indices.shape[1], weight.shape[2 if transposed else 1])


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface. The mask decides who sees whom; where there is none, the keywords do."""
    if isinstance(attention_mask, Tensor):
        raise NotImplementedError("attention with a mask of the model's own")
    decisive = [key for key, item in further.items() if isinstance(item, Tensor) and key not in _SAYS_NOTHING]
    if decisive:
        raise NotImplementedError(f"attention with {', '.join(decisive)}")
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        attention_mask = Mask(bool(causal), sliding_window or 0)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = attention_mask
    result = torch.ops.waferc.attention(
        query, key, value, s_aux, float(scale), mask.causal, mask.window, mask.chunk, softcap or 0.0
    )
    return result, None


def _make_mask(*_args: Any, mask_function: Callable[..., Any], local_size: int | None = None, **_: Any) -> Mask:
    """Transformers' mask interface; a model that computes with the mask itself fails on what it gets here."""
    parts = set(_parts(mask_function))
    if unknown := parts - _KNOWN_MASKS:
        raise NotImplementedError(f"attention under a mask of {', '.join(sorted(unknown))}")
    if "chunked_overlay" in parts:
        return Mask("causal_mask_function" in parts, 0, local_size or 0)
    # Transformers counts the token itself as part of a causal window, but not of one that reaches both ways.
    beside = int("sliding_window_bidirectional_overlay" in parts)
    return Mask("causal_mask_function" in parts, local_size + beside if local_size else 0)


def _parts(function: Callable[..., Any]) -> Iterator[str]:
    """Names of the library's functions that a mask is put together from."""
    yield function.__qualname__.partition(".")[0]
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    for item in held:
        for inner in item if isinstance(item, tuple) else (item,):
            if callable(inner):
                yield from _parts(inner)


def _experts_forward(module: Any, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Transformers' experts interface: hidden [tokens, width], indices and weights [tokens, k] -> [tokens, width]."""

    def project(x: Tensor, name: str) -> Tensor:
        bias = getattr(module, f"{name}_bias") if module.has_bias else None
        return torch.ops.waferc.grouped_linear(x, getattr(module, name), bias, indices, module.is_transposed)  # type: ignore[no-any-return]

    if module.has_gate:
        inner = module._apply_gate(project(hidden.unsqueeze(1), "gate_up_proj"))
    else:
        inner = module.act_fn(project(hidden.unsqueeze(1), "up_proj"))
    outputs = project(inner, "down_proj")
    if getattr(module, "has_post_expert_norm", False):
        outputs = module.post_expert_norm(outputs)
    return (outputs * weights.unsqueeze(-1)).sum(dim=1).to(hidden.dtype)


def register() -> None:
    """Make the hooks known to transformers under :data:`NAME`; harmless when repeated."""
    from transformers import AttentionInterface
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention_forward)
    AttentionMaskInterface.register(NAME, _make_mask)
    ALL_EXPERTS_FUNCTIONS.register(NAME, _experts_forward)
