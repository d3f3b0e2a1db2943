"""What operators compute whose elements meet, tile by tile: on values [tokens, elements] and a tree of meetings.

Each takes the values, the further operands, the node's attributes and the tree, and yields results [tokens, elements].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ir.graph import Attributes
from targets.emulator.kernels.tree import Tree, taken
from targets.emulator.scope import Tensor

Meaning = Callable[[Tensor, Sequence[Tensor], Attributes, Tree], tuple[Tensor, ...]]


def _wide(x: Tensor) -> Tensor:
    """In the type in which sums are taken: 32 bit at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.int64)


def _sum(x: Tensor, tree: Tree) -> Tensor:
    return tree.fold(x, 0, lambda own: own.sum(2), torch.add)


def _greatest(x: Tensor, tree: Tree) -> Tensor:
    return tree.fold(x, _least(x), lambda own: own.amax(2), torch.maximum)


def _smallest(x: Tensor, tree: Tree) -> Tensor:
    return tree.fold(x, _most(x), lambda own: own.amin(2), torch.minimum)


def _least(x: Tensor) -> float:
    """No element of its type is smaller."""
    if x.dtype is torch.bool:
        return False
    return float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min


def _most(x: Tensor) -> float:
    """No element of its type is greater."""
    if x.dtype is torch.bool:
        return True
    return float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).max


def _mean(x: Tensor, _others: Sequence[Tensor], _attributes: Attributes, tree: Tree) -> tuple[Tensor, ...]:
    total = _sum(_wide(x), tree)
    return (total / (x.shape[1] / total.shape[1]),)


def _rms_norm(x: Tensor, scale: Sequence[Tensor], attributes: Attributes, tree: Tree) -> tuple[Tensor, ...]:
    wide = _wide(x)
    squares = _sum(wide * wide, tree)
    factor = torch.rsqrt(squares * (squares.shape[1] / x.shape[1]) + attributes["epsilon"])
    return (_scaled(wide * factor[:, tree.rows], scale),)


def _layer_norm(x: Tensor, affine: Sequence[Tensor], attributes: Attributes, tree: Tree) -> tuple[Tensor, ...]:
    """Each tile sends the mean of its share and the sum of squared distances from it; how many they are is known."""
    wide = _wide(x)
    state = torch.stack((torch.ones_like(wide), wide, torch.zeros_like(wide)), dim=-1)
    count, mean, squares = tree.fold(state, 0, _moments, _both_moments).unbind(-1)
    factor = torch.rsqrt(squares / count + attributes["epsilon"])
    return (_scaled((wide - mean[:, tree.rows]) * factor[:, tree.rows], affine),)


def _moments(own: Tensor) -> Tensor:
    """Count, mean and squared distances [..., 3] of elements along axis 2; some are none, and count nothing."""
    count, values, _ = own.unbind(-1)
    total = count.sum(2)
    mean = values.sum(2) / total.clamp(min=1)
    distances = (values - mean[:, :, None]) * count
    return torch.stack((total, mean, (distances * distances).sum(2)), dim=-1)


def _both_moments(one: Tensor, other: Tensor) -> Tensor:
    """Those of two shares together."""
    (count, mean, squares), (more, further, others) = one.unbind(-1), other.unbind(-1)
    total = (count + more).clamp(min=1)
    distance = further - mean
    middle = mean + distance * (more / total)
    return torch.stack((count + more, middle, squares + others + distance**2 * (count * more / total)), dim=-1)


def _scaled(x: Tensor, affine: Sequence[Tensor]) -> Tensor:
    """Rows times a scale, plus a shift, as long as they are; ``affine`` may have none, one or both."""
    for number, vector in enumerate(affine):
        rows = x.reshape(len(x), -1, len(vector))
        x = (rows * vector if number == 0 else rows + vector).reshape(len(x), -1)
    return x


def _softmax(x: Tensor, _others: Sequence[Tensor], _attributes: Attributes, tree: Tree) -> tuple[Tensor, ...]:
    wide = _wide(x)
    powers = torch.exp(wide - _greatest(wide, tree)[:, tree.rows])
    return (powers / _sum(powers, tree)[:, tree.rows],)


def _log_softmax(x: Tensor, _others: Sequence[Tensor], _attributes: Attributes, tree: Tree) -> tuple[Tensor, ...]:
    wide = _wide(x)
    below = wide - _greatest(wide, tree)[:, tree.rows]
    return (below - torch.log(_sum(torch.exp(below), tree))[:, tree.rows],)


def _choice(x: Tensor, tree: Tree, most: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The ``most`` greatest elements of each row and their places [tokens, rows, most], the first of equals first.

    Each tile hands on the best of what it has and of what arrived.
    """
    values, none = x[..., None], _least(x) if largest else _most(x)
    places = tree.places.expand(x.shape)[..., None]
    for level in (tree.local, *tree.across):
        values = taken(values, level, none).flatten(2)
        places = taken(places, level, x.shape[1]).flatten(2)  # what is none comes after all others
        by_place = places.argsort(dim=2)
        values, places = values.gather(2, by_place), places.gather(2, by_place)
        values, order = values.sort(dim=2, descending=largest, stable=True)
        values, places = values[..., :most], places.gather(2, order)[..., :most]
    return values, places


def _topk(x: Tensor, _others: Sequence[Tensor], attributes: Attributes, tree: Tree) -> tuple[Tensor, ...]:
    values, places = _choice(x, tree, attributes["k"], largest=attributes.get("largest", True))
    return values.flatten(1), places.flatten(1)


def _place(*, largest: bool) -> Meaning:
    return lambda x, _others, _attributes, tree: (_choice(x, tree, 1, largest=largest)[1].flatten(1),)


MESH_MEANINGS: dict[str, Meaning] = {
    "sum": lambda x, _others, _attributes, tree: (_sum(_wide(x), tree),),
    "mean": _mean,
    "prod": lambda x, _others, _attributes, tree: (tree.fold(_wide(x), 1, lambda own: own.prod(2), torch.mul),),
    "amax": lambda x, _others, _attributes, tree: (_greatest(x, tree),),
    "amin": lambda x, _others, _attributes, tree: (_smallest(x, tree),),
    "argmax": _place(largest=True),
    "argmin": _place(largest=False),
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "topk": _topk,
}
