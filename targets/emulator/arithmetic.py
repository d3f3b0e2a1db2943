"""What the host computes with: element types, the order of sums, and the device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from ir.diagnostics import Diagnostic, UsageError
from ir.graph import Graph
from ir.ops import torch_dtype
from ir.types import DType


def require_device(device: str) -> None:
    """Refuse a device that this computer does not have.

    Raises:
        UsageError: W0655, it is neither ``cpu`` nor a GPU that torch finds.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or device == "cpu:":
        message = f"a device is cpu or cuda, or cuda:1 for one of several, not {device!r}"
        raise UsageError(Diagnostic("W0655", message, "--device"))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= found:
        help_ = ("install a build of torch for CUDA, and a driver for the GPU", "--device cpu")
        message = f"torch {torch.__version__} finds {found} CUDA devices here"
        raise UsageError(Diagnostic("W0655", message, device, {"devices": found}, help_))


class Precision(StrEnum):
    """``float32``: all floating-point values and weights in 32 bit, to compare with an original in 32 bit.

    ``native``: what the machine does. Weights as stored, values in 16 bit, products summed in 32 bit. Values that the
    model itself keeps in 32 bit beside its 16-bit ones, such as a router's scores, stay so.
    """

    FLOAT32 = "float32"
    NATIVE = "native"


class Order(StrEnum):
    """``mesh``: sums are taken tile after tile, as the mesh takes them. ``host``: by the host's own routine at once.

    They differ by the rounding of 32-bit sums alone; a test holds them together.
    """

    MESH = "mesh"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the host computes. ``wide`` is the type of values that the graph states in 32 bit."""

    precision: Precision = Precision.FLOAT32
    order: Order = Order.HOST
    device: str = "cpu"
    wide: torch.dtype = torch.float32

    @staticmethod
    def of(
        graph: Graph, precision: Precision = Precision.FLOAT32, order: Order | None = None, device: str = "cpu"
    ) -> Arithmetic:
        """The arithmetic for ``graph``. A model in 32 bit computes in bf16 where the machine does in 16."""
        types = {parameter.type.dtype for parameter in graph.parameters}
        narrow = types & {DType.BF16, DType.F16}
        wide = torch.bfloat16 if precision is Precision.NATIVE and not narrow else torch.float32
        default = Order.MESH if precision is Precision.NATIVE else Order.HOST
        return Arithmetic(precision, order or default, device, wide)

    def dtype(self, dtype: DType) -> torch.dtype:
        """The type in which a value that the graph states as ``dtype`` is computed."""
        if dtype is DType.F32:
            return self.wide
        if self.precision is Precision.FLOAT32 and dtype in (DType.BF16, DType.F16):
            return torch.float32
        return torch_dtype(torch, dtype)  # type: ignore[no-any-return]
