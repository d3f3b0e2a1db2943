"""What a kernel sees while it runs: values at hand, its block's memory, and the meter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import torch

from ir.diagnostics import CheckError, Diagnostic
from ir.layout import MatrixLayout
from ir.plan import Rectangle
from ir.types import TensorType, for_one_token
from targets.emulator.arithmetic import Arithmetic
from targets.emulator.memory import TileWeights
from targets.emulator.meter import Meter
from targets.program.instructions import Program

Tensor = torch.Tensor
Sources: TypeAlias = tuple[tuple[tuple[str, Rectangle], ...], tuple[str, ...]]
"""Where a block reads values of others: on its wafer, by their region, and of other wafers."""


@dataclass(slots=True)
class BlockMemory:
    """The weights of one block: on its own region, and on the region of each routed expert, by its number.

    ``kernels`` are those made so far, by the first value that each computes; ``arrivals`` count what comes from other
    blocks, by the program's ``relays`` and ``arrivals``.
    """

    own: TileWeights
    experts: Mapping[int, TileWeights]
    kernels: dict[str, Prepared] = field(default_factory=dict)
    arrivals: dict[Sources, Sequence[tuple[tuple[str, str], Callable[[Scope], None]]]] = field(default_factory=dict)

    def gather(self, name: str) -> Tensor | None:
        """A whole weight, a stacked one from all experts; ``None`` if it is not here."""
        if self.own.holds(name):
            return self.own.values(name)
        held = [weights.values(name) for weights in self._experts_with(name)]
        return torch.stack(held) if held else None

    def layouts(self, name: str) -> tuple[tuple[Rectangle, MatrixLayout | None], ...]:
        """The regions where the matrices of a weight lie, one after the other, and how; none for vectors.

        Experts' vectors lie at their elements' homes on each expert's region, without a layout.
        """
        if self.own.holds(name):
            layout = self.own.layouts.get(name)
            return ((self.own.region, layout),) if layout else ()
        return tuple((weights.region, weights.layouts.get(name)) for weights in self._experts_with(name))

    def _experts_with(self, name: str) -> list[TileWeights]:
        return [weights for _, weights in sorted(self.experts.items()) if weights.holds(name)]


@dataclass(frozen=True, slots=True)
class Scope:
    """Where an instruction runs: the values at hand, what the symbols stand for, and its block's memory."""

    program: Program
    memory: BlockMemory
    arithmetic: Arithmetic
    types: Mapping[str, TensorType]
    meter: Meter
    bindings: Mapping[str, int]
    values: dict[str, Tensor]

    def read(self, name: str) -> Tensor:
        """A value, or a weight of the block.

        Raises:
            CheckError: W0603, it is not at hand.
        """
        if name in self.values:
            return self.values[name]
        weight = self.memory.gather(name)
        if weight is None:
            message = f"{name} is read, but was neither computed on this wafer nor sent to it"
            help_ = ("the plan lacks a transfer, or has it in the wrong direction",)
            raise CheckError(Diagnostic("W0603", message, self.program.where, {}, help_))
        return weight

    def element_bytes(self, name: str) -> int:
        """Bytes of an element of a value on the machine."""
        return self.types[name].dtype.held_bits // 8

    def elements(self, name: str) -> int:
        """Elements of a value for one token of one user."""
        return _elements(self.types[name])


@lru_cache(maxsize=4096)
def _elements(type_: TensorType) -> int:
    return for_one_token(type_.elements)


@dataclass(frozen=True, slots=True)
class Charge:
    """A collective: bytes over links for each token of the value ``of``, which has so many ``elements`` for one token;
    or once, if ``of`` is ``None``.
    """

    collective: str
    hops: int
    link_bytes: int
    of: str | None = None
    elements: int = 1


@dataclass(frozen=True, slots=True)
class Kernel:
    """One instruction of one block, with all settled that its types, layouts and region decide.

    ``compute`` yields its results; what it moves for each token, whatever the values are, stands in ``charges``.
    """

    compute: Callable[[Scope], tuple[Tensor, ...]]
    charges: Sequence[Charge] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel as it runs: the operator that it counts under, the values that it computes, and what it counts."""

    op: tuple[str, str]
    names: tuple[str, ...]
    compute: Callable[[Scope], tuple[Tensor, ...]]
    count: Callable[[Scope], None]
