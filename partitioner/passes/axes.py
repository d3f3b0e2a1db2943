"""What each axis of a value stands for: a little algebra that views obey.

An axis is a sequence of atoms, outermost first; an atom is a label and a size. Reshaping regroups atoms and may split
one into parts, whose labels extend its own; sizes of 1 have no atoms.
"""

from __future__ import annotations

from collections.abc import Sequence

from ir.graph import Node
from ir.types import Shape, Size, exact_quotient, product

Atom = tuple[str, Size]
Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]

TOKEN, SLOT, EXPERT, FEATURE, ROW = "t", "k", "e", "f", "n"
"""Labels: a token, one of its chosen experts, an expert, anything else, and a pair of token and slot of one expert.

Tokens' labels are followed by a number for each axis that tokens have.
"""


def axis(label: str, size: Size) -> Axis:
    """An axis of one atom; of none where its size is 1."""
    return () if size == 1 else ((label, size),)


def features(shape: Shape) -> Axes:
    """Axes of which nothing is known."""
    return tuple(axis(FEATURE, size) for size in shape)


def kind(atom: Atom) -> str:
    """The label without numbers."""
    return atom[0][0]


def kinds(given: Axis) -> set[str]:
    """The kinds of an axis' atoms."""
    return {kind(atom) for atom in given}


def of_kind(given: Axes, label: str) -> tuple[Atom, ...]:
    """The atoms of one kind in all axes, in order."""
    return tuple(atom for one in given for atom in one if kind(atom) == label)


def size_of(atoms: Sequence[Atom]) -> Size:
    """The product of their sizes."""
    return product(size for _, size in atoms)


def present(given: Axes, shape: Shape) -> Axes:
    """The last of the ``given`` axes as a value of ``shape`` has them: none where it is broadcast."""
    rank = len(shape)
    padded = (((),) * max(0, rank - len(given)) + given)[len(given) - rank if len(given) > rank else 0 :]
    return tuple(() if size == 1 else one for one, size in zip(padded, shape, strict=True))


def regroup(given: Axes, shape: Shape) -> Axes | None:
    """The axes after reshaping to ``shape``; ``None`` where an atom would be cut unevenly."""
    pending = [atom for one in given for atom in one]
    result: list[Axis] = []
    for size in shape:
        taken: list[Atom] = []
        missing: Size | None = size
        while missing is not None and missing != 1:
            if not pending:
                return None
            label, whole = pending.pop(0)
            rest = exact_quotient(missing, whole)
            if rest is None:
                inner = exact_quotient(whole, missing)
                if inner is None:
                    return None
                pending.insert(0, (f"{label}.1", inner))
                label, whole, rest = f"{label}.0", missing, 1
            taken.append((label, whole))
            missing = rest
        result.append(tuple(taken))
    return tuple(result) if not pending else None


def are_all_tokens(atoms: Sequence[Atom], tokens: Size) -> bool:
    """Whether atoms of tokens are all of them, in their order."""
    labels = [label for label, _ in atoms]
    return labels == sorted(labels) and size_of(atoms) == tokens


def through_views(given: Axes, views: Sequence[Node]) -> Axes | None:
    """The axes after ``views`` (the last one first), each a transpose or a reshape; ``None`` where one cuts an atom."""
    axes: Axes | None = given
    for view in reversed(views):
        if axes is None:
            return None
        if view.op == "transpose":
            axes = tuple(axes[i] for i in view.attributes["permutation"])
        else:
            axes = regroup(axes, view.result.type.shape)
    return axes
