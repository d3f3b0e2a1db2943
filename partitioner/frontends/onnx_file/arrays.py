"""Between numpy, as ONNX uses it, and torch, as the graph's reference meaning does."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.helper

from ir.ops import torch_dtype
from ir.types import DType
from partitioner.frontends.onnx_file.reading import DTYPES

Array = npt.NDArray[Any]

_ONNX_TYPES = {dtype: element_type for element_type, dtype in DTYPES.items()}
_AS_BITS = {
    DType.BF16: (np.int16, "int16"),
    **{dtype: (np.uint8, "uint8") for dtype in DType if dtype.value.startswith("f8")},
}
"""Types that numpy does not have by itself, and the integers whose bits are copied."""


def element_type(array: Array) -> DType:
    """The element type of an array.

    Raises:
        KeyError: the graph has no such type.
    """
    return DTYPES[onnx.helper.np_dtype_to_tensor_dtype(array.dtype)]


def to_torch(torch: ModuleType, array: Array) -> Any:
    """A tensor with the contents of ``array``, narrow elements each in a byte."""
    dtype, array = element_type(array), np.array(array, order="C")
    held = torch_dtype(torch, dtype)
    if dtype in _AS_BITS:
        return torch.from_numpy(array.view(_AS_BITS[dtype][0])).view(held)
    if dtype is DType.F4E2M1:
        return torch.from_numpy(array.astype(np.float32)).to(held)
    if dtype.bits < 8:
        return torch.from_numpy(array.astype(np.int8)).to(held)
    return torch.from_numpy(array)


def to_numpy(torch: ModuleType, tensor: Any, dtype: DType) -> Array:
    """The inverse of :func:`to_torch`."""
    theirs = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(_ONNX_TYPES[dtype]))
    tensor = tensor.detach().contiguous()
    if dtype in _AS_BITS:
        return np.asarray(tensor.view(getattr(torch, _AS_BITS[dtype][1])).numpy().view(theirs))
    if dtype is DType.F4E2M1:
        tensor = tensor.to(torch.float32)
    return np.asarray(tensor.numpy().astype(theirs, copy=False))
