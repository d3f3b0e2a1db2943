"""Matrix products. A product by a matrix among the weights is ``linear``, the only kind that placement splits."""

from __future__ import annotations

from ir.types import Shape, TensorType
from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand
from partitioner.frontends.onnx_file.reading import Weight
from partitioner.frontends.onnx_file.table import operator


def _matrix(site: Site, index: int) -> Weight | None:
    """The input as a weight with two axes, if it is one."""
    weight = site.weight(index)
    return weight if weight is not None and len(weight.shape) == 2 else None


@operator("MatMul")
def _matmul(site: Site) -> Operand:
    weight = _matrix(site, 1)
    if weight is not None and site.shape(0):
        # A weight that went through Transpose is [out, in] as stored, which is what linear takes by itself.
        operands = [site.tensor(0), site.parameter(weight)]
        return site.emit("linear", operands, transposed=not weight.transposed)
    left, right = site.type(0), site.type(1)
    if not left.shape or not right.shape:
        raise UnfoldableError("a number is not a matrix")
    a = site.reshape(site.tensor(0), left.shape if len(left.shape) > 1 else (1, *left.shape), last=False)
    b = site.reshape(site.tensor(1), right.shape if len(right.shape) > 1 else (*right.shape, 1), last=False)
    if len(left.shape) > 1 and len(right.shape) > 1:
        return site.emit("matmul", [a, b])
    product = site.step("matmul", [a, b])
    return site.reshape(product, _without_vectors(site.value_type(product), left.shape, right.shape))


def _without_vectors(product: TensorType, left: Shape, right: Shape) -> Shape:
    """The shape of a product once the axes are gone that made matrices of vectors."""
    *stack, rows, columns = product.shape
    return (*stack, *((rows,) if len(left) > 1 else ()), *((columns,) if len(right) > 1 else ()))


@operator("Gemm")
def _gemm(site: Site) -> Operand:
    """``alpha * A * B + beta * C``, either matrix perhaps transposed."""
    alpha, beta = site.attribute("alpha", 1.0), site.attribute("beta", 1.0)
    has_bias = site.has(2) and beta != 0
    folds_bias = has_bias and alpha == beta == 1 and _is_bias(site)
    a = site.tensor(0)
    if site.attribute("transA", 0):
        a = site.step("transpose", [a], permutation=(1, 0))
    is_last = alpha == 1 and (not has_bias or folds_bias)
    result = _gemm_product(site, a, with_bias=folds_bias, last=is_last)
    if is_last:
        return result
    if alpha != 1:
        result = (site.step if has_bias else site.emit)("mul", [result], scalar=alpha)
    if not has_bias:
        return result
    bias = site.tensor(2)
    if beta != 1:
        bias = site.step("mul", [bias], scalar=beta)
    return site.emit("add", [result, bias])


def _is_bias(site: Site) -> bool:
    """Whether C is a vector among the weights, one number for each output of a product by a weight."""
    outputs = site.shape(1)[0 if site.attribute("transB", 0) else 1]
    return _matrix(site, 1) is not None and site.weight(2) is not None and site.shape(2) == (outputs,)


def _gemm_product(site: Site, a: str, *, with_bias: bool, last: bool) -> str:
    add = site.emit if last else site.step
    weight, flipped = _matrix(site, 1), bool(site.attribute("transB", 0))
    if weight is None:
        b = site.tensor(1)
        return add("matmul", [a, site.step("transpose", [b], permutation=(1, 0)) if flipped else b])
    operands = [a, site.parameter(weight)]
    if with_bias:
        bias = site.weight(2)
        assert bias is not None
        operands.append(site.parameter(bias))
    return add("linear", operands, transposed=flipped == weight.transposed)
