"""Values of stored tensors: only the byte ranges that are needed are read, one weight at a time."""

from __future__ import annotations

import os
from typing import Any

import torch

from ir.diagnostics import Diagnostic, UsageError
from partitioner.frontends.checkpoint.headers import StoredTensor, malformed, open_regular
from partitioner.frontends.checkpoint.match import Match
from partitioner.frontends.checkpoint.schemes import StoredWeight
from targets.emulator.weights import Plain, Stored

_TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
}


def read_tensor(tensor: StoredTensor) -> torch.Tensor:
    """The values of a tensor as they are stored.

    Raises:
        UsageError: W0221, the file cannot be read or has become shorter.
    """
    with open_regular(tensor.file) as file:
        if os.fstat(file.fileno()).st_size < tensor.end:
            raise malformed("the file has become shorter", tensor.file)
        file.seek(tensor.begin)
        content = bytearray(tensor.bytes)
        if file.readinto(content) != tensor.bytes:
            raise malformed("the file has become shorter", tensor.file)
    dtype = _TORCH[tensor.dtype]
    values = torch.frombuffer(content, dtype=torch.uint8).view(dtype) if content else torch.empty(0, dtype=dtype)
    return values.reshape(tensor.shape)


def read_weight(weight: StoredWeight) -> Stored:
    """A weight as it is stored.

    Raises:
        UsageError: W0221, the file cannot be read, or describes the weight otherwise than its header.
    """
    parts = [read_tensor(part) for part in weight.parts]
    if weight.scheme is None:
        return Plain(parts[0])
    try:
        return weight.scheme.hold(parts)
    except ValueError as error:
        raise malformed(f"{weight.name!r} cannot be unpacked: {error}", weight.parts[0].file) from None


def load_weights(model: Any, match: Match) -> None:
    """Copy a checkpoint's values into the parameters and buffers of ``model``, which is on the CPU.

    Raises:
        UsageError: W0221, as :func:`read_weight`; W0230, tensors that the configuration ties to each other are stored
            with different values.
    """
    tensors = model.state_dict(keep_vars=True)
    done: set[int] = set()
    for source in match.sources:
        dtype = tensors[source.target].dtype
        with torch.no_grad():
            for name, values in source.values(model, lambda weight: read_weight(weight).unpack(dtype, "cpu")).items():  # noqa: B023
                tensor = tensors[name]
                if id(tensor) in done and not torch.equal(tensor, values):
                    raise _untied(name)
                tensor.copy_(values)
                done.add(id(tensor))


def _untied(name: str) -> UsageError:
    help_ = ('"tie_word_embeddings": false in config.json makes them two weights',)
    message = f"{name} is stored with other values than the weight that the configuration ties it to"
    return UsageError(Diagnostic("W0230", message, name, help=help_))
