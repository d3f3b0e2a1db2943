"""Products that onnxruntime contributes (domain ``com.microsoft``): by weights of few bits, and by experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ir.encoding import ENCODINGS, Encoding
from ir.types import DType, product
from partitioner.frontends.onnx_file.arrays import to_numpy, to_torch
from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.contributed import DOMAIN
from partitioner.frontends.onnx_file.lowering import Operand, Site
from partitioner.frontends.onnx_file.reading import DTYPES, Array, Weight
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, fixed, optional, term

if TYPE_CHECKING:
    from targets.emulator.encodings import Blockwise


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A weight [..., out, in] that is stored as unsigned integers of ``bits`` bits, the first in the lowest bits of a
    byte, with a scale and perhaps a zero point for each ``block`` of a row: (integer - zero point) * scale.
    """

    packed: Weight
    scales: Weight
    zeros: Weight | None
    shape: tuple[int, ...]
    bits: int
    block: int

    @property
    def name(self) -> str:
        """The name of the stored integers."""
        return self.packed.name

    @property
    def dtype(self) -> DType:
        """The element type of the scales."""
        return DTYPES[self.scales.tensor.data_type]

    def array(self) -> Array:
        """The weights, in the element type of their scales.

        Raises:
            UsageError: W0202 or W0203, the data cannot be read.
        """
        import torch

        made = self.stored()
        return to_numpy(torch, made.unpack(made.scales.dtype, "cpu"), self.dtype)

    def stored(self) -> Blockwise:
        """The weights as they are stored; zero points of few bits take a byte each.

        Raises:
            UsageError: W0202 or W0203, the data cannot be read.
        """
        import torch

        from targets.emulator.encodings import Blockwise, unsigned

        *stack, outputs, inputs = self.shape
        groups = (*stack, outputs, -(-inputs // self.block))
        integers = to_torch(torch, self.packed.array()).reshape(*stack, outputs, -1)
        scales = to_torch(torch, self.scales.array()).reshape(groups)
        zeros = None if self.zeros is None else to_torch(torch, self.zeros.array())
        if zeros is not None and zeros.dtype == torch.uint8:
            zeros = unsigned(zeros, self.bits).reshape(*stack, outputs, -1)[..., : groups[-1]]
        return Blockwise(
            integers, scales, None if zeros is None else zeros.reshape(groups), self.bits, self.block, inputs
        )


def encoding_of(weight: Unpacked) -> Encoding:
    """How the bytes of ``weight`` are counted: an odd number of 4-bit zero points in a row takes a byte for each.

    Raises:
        UnfoldableError: bits, blocks or scales of another kind.
    """
    scale = DTYPES[weight.scales.tensor.data_type]
    inputs = weight.shape[-1]
    place = "row" if weight.block >= inputs else f"g{weight.block}"
    name = f"uint{weight.bits}_{place}_{scale}"
    if weight.zeros is not None:
        zero = DTYPES[weight.zeros.tensor.data_type]
        paired = weight.bits == 4 and place != "row" and not (inputs // weight.block) % 2
        name += f"_zero_{zero}" if zero is not DType.U8 else "_zeros" if paired else "_zero"
    if name not in ENCODINGS or (place != "row" and inputs % weight.block):
        raise UnfoldableError(
            f"weights of {weight.bits} bits in blocks of {weight.block} of {inputs} are not supported"
        )
    return ENCODINGS[name]


def _take(site: Site, weight: Unpacked) -> Term:
    return Term(site, site.lowering.unpacked(weight, encoding_of(weight)))


def _stored(site: Site, index: int) -> Weight:
    weight = site.weight(index)
    if weight is None:
        raise UnfoldableError(f"its input {index} must be among the weights")
    return weight


@operator("MatMulNBits", domain=DOMAIN)
def _matmul_nbits(site: Site) -> Operand:
    """A [..., K] times the weight [N, K], plus a bias [N]."""
    if site.has(4) or site.attribute("weight_prepacked", 0):
        raise UnfoldableError("reordered or prepacked weights are not supported")
    outputs, inputs = int(site.attribute("N")), int(site.attribute("K"))
    bits, block = int(site.attribute("bits", 4)), int(site.attribute("block_size"))
    weight = Unpacked(
        _stored(site, 1), _stored(site, 2), _stored(site, 3) if site.has(3) else None, (outputs, inputs), bits, block
    )
    x, bias = term(site, 0), [term(site, 5)] if site.has(5) else []
    return x.apply("linear", _take(site, weight), *bias, transposed=False).name


@operator("MoE", domain=DOMAIN)
def _moe(site: Site) -> Operand:
    """Input, router, then weights [experts, out, in] and bias of the first, second and third product."""
    weights = [term(site, 2 + 2 * i) if site.has(2 + 2 * i) else None for i in range(3)]
    return _mixture(site, weights, [optional(site, 3 + 2 * i) for i in range(3)])


@operator("QMoE", domain=DOMAIN)
def _quantised_moe(site: Site) -> Operand:
    """The same with weights of few bits: integers, scales and bias of each product, then zero points."""
    if site.attribute("quant_type", "int") != "int" or any(site.has(index) for index in range(14, 21)):
        raise UnfoldableError("only integers, and weights of experts from the router's own scores, are supported")
    if site.attribute("weights_prepacked", 0) not in (0, -1):
        raise UnfoldableError("prepacked weights are not supported")
    weights = [_packed_experts(site, i) if site.has(2 + 3 * i) else None for i in range(3)]
    return _mixture(site, weights, [optional(site, 4 + 3 * i) for i in range(3)])


def _packed_experts(site: Site, number: int) -> Term:
    bits = int(site.attribute(f"fc{number + 1}_expert_weight_bits") or site.attribute("expert_weight_bits", 4))
    packed, scales = _stored(site, 2 + 3 * number), _stored(site, 3 + 3 * number)
    zeros = _stored(site, 11 + number) if site.has(11 + number) else None
    experts, outputs, width = packed.shape
    inputs = width * 8 // bits
    block = int(site.attribute("block_size", 0)) or inputs
    return _take(site, Unpacked(packed, scales, zeros, (experts, outputs, inputs), bits, block))


def _mixture(site: Site, weights: Sequence[Term | None], biases: Sequence[Term | None]) -> Operand:
    """The sum of the chosen experts' outputs, each times its weight: the softmax of the router's scores."""
    first, second, third = weights
    if site.attribute("use_sparse_mixer", 0) or first is None or second is None:
        raise UnfoldableError("the sparse mixer is not supported")
    x, router, count = term(site, 0), term(site, 1), int(site.attribute("k", 1))
    width = x.shape[-1]
    rows = product(x.shape[:-1])
    scores = router.reshape(rows, router.shape[-1]).apply("softmax", dim=1)
    names = [site.lowering.unique(f"{site.node.outputs[0]}.{part}") for part in ("weights", "experts")]
    site.lowering.builder.add("topk", [scores.name], site.origin, names, dim=1, k=count)
    chosen, indices = (Term(site, name) for name in names)
    if site.attribute("normalize_routing_weights", 0):
        chosen = chosen / chosen.apply("sum", dims=(1,), keepdim=True)

    # What follows is the experts', what was before the router's: they are blocks of their own.
    site = replace(site, part="experts")
    x, chosen, indices = (Term(site, value.name) for value in (x, chosen, indices))

    def by_expert(operand: Term, weight: Term, bias: Term | None) -> Term:
        extra = [] if bias is None else [bias]
        return Term(site, operand.name).apply("grouped_linear", weight, indices, *extra, transposed=False)

    tokens = x.reshape(rows, 1, width)
    inner = by_expert(tokens, first, biases[0])
    gate = None if third is None else by_expert(tokens, third, biases[2])
    outputs = by_expert(_activated(site, inner, gate), second, biases[1])
    total = (outputs * chosen.reshape(rows, count, 1)).apply("sum", dims=(1,), keepdim=False)
    return total.reshape(*x.shape).name


def _activated(site: Site, inner: Term, gate: Term | None) -> Term:
    kind = str(site.attribute("activation_type", "relu"))
    if kind == "swiglu":
        return _swiglu(site, inner, gate)
    if kind == "gelu":
        result = inner.apply("gelu", approximate="none")
    elif kind in ("relu", "silu"):
        result = inner.apply(kind)
    elif kind == "identity":
        result = inner
    else:
        raise UnfoldableError(f"the activation {kind} is not supported")
    return result if gate is None else result * gate


def _swiglu(site: Site, inner: Term, linear: Term | None) -> Term:
    """``g * sigmoid(alpha * g) * (l + beta)``, with both halves in one product or each in its own."""
    fusion, size = int(site.attribute("swiglu_fusion", 0)), fixed(inner.shape[-1])
    if fusion == 1:
        inner, linear = inner.cut(2, 0, size, 2), inner.cut(2, 1, size, 2)
    elif fusion == 2:
        inner, linear = inner.cut(2, 0, size // 2), inner.cut(2, size // 2, size)
    if linear is None:
        raise UnfoldableError("the linear half is missing")
    limit = site.attribute("swiglu_limit")
    if limit is not None:
        inner = inner.apply("clamp", max=float(limit))
        linear = linear.apply("clamp", min=-float(limit), max=float(limit))
    gated = inner * (inner * float(site.attribute("activation_alpha", 1.0))).apply("sigmoid")
    return gated * (linear + float(site.attribute("activation_beta", 0.0)))
