"""A plan with what it takes to run it, and how it is to be run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ir.diagnostics import CheckError, Diagnostic, UsageError
from ir.model import Model
from ir.plan import Plan
from partitioner.device_folder import is_device_plan
from partitioner.folder import PlanFolder, read_plan
from partitioner.frontends.lowered import Origin
from partitioner.frontends.original import Original, open_original
from partitioner.frontends.reference import Reference, choose_reference, open_reference
from partitioner.frontends.tokens import Words, open_words
from partitioner.frontends.weights import Weights, open_weights
from partitioner.passes.blocks import find_blocks
from partitioner.sound import require_sound
from targets.emulator import Arithmetic, Emulator, Order, Precision
from targets.emulator.arithmetic import require_device

_SMALL_MODEL_BYTES = 64 << 20
"""Below this, waking a second thread for each product costs more than it gains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How the host computes.

    Attributes:
        seed: of the random weights of a model that has no checkpoint, and of inputs that nobody has given.
        precision: ``float32``, to compare with the original in 32 bit; ``native``, weights as stored and 16-bit values.
        order: in which sums are taken: ``host``, by the host's own routine at once; ``mesh``, tile after tile.
            ``None``: host in float32, mesh in native.
        host_bytes: bytes of weights that the host keeps at most; all if ``None``.
        device: ``cpu``, or ``cuda`` for a GPU, ``cuda:1`` for that one.

    Raises:
        UsageError: W0103 or W0104, one of them is not possible; W0655, there is no such device.
    """

    seed: int = 0
    precision: str = Precision.FLOAT32
    order: str | None = None
    host_bytes: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 31:
            raise UsageError(Diagnostic("W0103", f"--seed must be from 0 to 2^31 - 1, not {self.seed}", "--seed"))
        if self.host_bytes is not None and self.host_bytes < 1:
            raise UsageError(Diagnostic("W0103", "--host-memory must be at least one byte", "--host-memory"))
        for option, value, known in (("--precision", self.precision, Precision), ("--order", self.order, Order)):
            if value is not None and value not in [*known]:
                raise UsageError(Diagnostic("W0104", f"{option} is {' or '.join(known)}, not {value!r}", option))
        require_device(self.device)

    def arithmetic(self, model: Model) -> Arithmetic:
        """The same for the emulator of ``model``."""
        order = None if self.order is None else Order(self.order)
        return Arithmetic.of(model.graph, Precision(self.precision), order, self.device)


@dataclass(frozen=True)
class Runnable:
    """A plan that is sound, its model, and where that came from; ``in_memory``: the original, if that is so already,
    ``folder``: the plan's, if it has one.
    """

    model: Model
    plan: Plan
    origin: Origin
    in_memory: Original | None = None
    trust_code: bool = False
    folder: Path | None = None

    def opened(self, how: How) -> Opened:
        """Ready to run."""
        return Opened(self, how)


@dataclass(frozen=True)
class Opened:
    """A plan about to run in one way; weights, emulator and original are made when they are first asked for.

    ``wafers`` are those that the emulator runs, if not all.
    """

    runnable: Runnable
    how: How
    wafers: tuple[int, ...] | None = None

    @cached_property
    def weights(self) -> Weights:
        """The plan's weights, which are read as they are needed.

        Raises:
            UsageError: W0610 to W0612, they cannot be had.
        """
        it = self.runnable
        if it.in_memory is not None:
            return Weights(it.in_memory.weights, it.in_memory.note)
        if it.model.weight_bytes < _SMALL_MODEL_BYTES:
            torch.set_num_threads(1)
        return open_weights(it.origin, it.model.placed, self.how.seed, trust_code=it.trust_code)

    @cached_property
    def original(self) -> Original:
        """The original with the same weights; raises as ``weights``, and W0610 if it is too large to be built here."""
        it, seed = self.runnable, self.how.seed
        if it.in_memory is not None:
            return it.in_memory
        return open_original(it.origin, it.model.placed, seed, weights=self.weights, trust_code=it.trust_code)

    @cached_property
    def emulator(self) -> Emulator:
        """The plan's tiles with the weights on them; raises as :class:`Emulator` does."""
        it = self.runnable
        arithmetic = self.how.arithmetic(it.model)
        return Emulator(it.model, it.plan, self.weights.source, arithmetic, self.how.host_bytes, self.wafers)

    @cached_property
    def words(self) -> Words:
        """The tokenizer beside the checkpoint.

        Raises:
            UsageError: W0664, there is none.
        """
        return open_words(self.runnable.origin)

    def reference(self, asked: str) -> Reference:
        """What to hold a run against.

        Raises:
            UsageError: W0661, there is no such reference for this model.
        """
        name = choose_reference(asked, self.runnable.origin)
        return open_reference(name, self.original, self.runnable.model.graph, self.runnable.origin)


def open_plan(folder: Path, *, trust_code: bool = False) -> Runnable:
    """The plan in ``folder``, if it passes every check.

    Raises:
        UsageError: W0106, there is no plan in ``folder``; W0616, it is one for GPUs or LPUs.
        CheckError: with every fault of the plan.
    """
    stored = _read(folder)
    return Runnable(require_sound(stored), stored.plan, stored.origin, trust_code=trust_code, folder=folder)


def open_unchecked(folder: Path, *, trust_code: bool = False) -> Runnable:
    """The plan in ``folder``, which was checked when it had the same manifest.

    Raises:
        UsageError: W0106 or W0616, as :func:`open_plan`.
        CheckError: a file is not the one that the manifest names.
    """
    stored = _read(folder)
    if stored.faults:
        raise CheckError(*stored.faults)
    model = find_blocks(stored.graph, stored.manifest.model.granularity)
    return Runnable(model, stored.plan, stored.origin, trust_code=trust_code, folder=folder)


def _read(folder: Path) -> PlanFolder:
    if is_device_plan(folder):
        help_ = ("compile for a cluster of wafers; the plan's own folder says which flags serving engines take",)
        raise UsageError(
            Diagnostic("W0616", "a plan for devices is no program for emulated tiles", str(folder), help=help_)
        )
    return read_plan(folder)
