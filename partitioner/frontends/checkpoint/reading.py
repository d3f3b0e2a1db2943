"""Values of stored tensors: only the byte ranges that are needed are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import groupby

import torch

from ir.diagnostics import Diagnostic, UsageError
from partitioner.frontends.checkpoint.headers import StoredTensor, malformed, open_regular
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


def read_tensor(tensor: StoredTensor, rows: range | None = None) -> torch.Tensor:
    """The values of a tensor as they are stored; of its first axis these ``rows`` alone.

    Raises:
        UsageError: W0221, the file cannot be read or has become shorter.
    """
    shape, begin, size = tensor.shape, tensor.begin, tensor.bytes
    if rows is not None and shape[0]:
        each = tensor.bytes // shape[0]
        begin, size, shape = begin + rows.start * each, len(rows) * each, (len(rows), *shape[1:])
    content = torch.empty(size, dtype=torch.uint8)
    with open_regular(tensor.file) as file:
        if os.fstat(file.fileno()).st_size < tensor.end:
            raise malformed("the file has become shorter", tensor.file)
        file.seek(begin)
        if file.readinto(content.numpy().data) != size:
            raise malformed("the file has become shorter", tensor.file)
    return content.view(_TORCH[tensor.dtype]).reshape(shape)


def read_weight(weight: StoredWeight, rows: range | None = None) -> Stored:
    """A weight as it is stored; ``rows`` of the first axis, which all of its tensors must have.

    Raises:
        UsageError: W0221, the file cannot be read.
    """
    parts = [read_tensor(part, rows) for part in weight.held]
    return Plain(parts[0]) if weight.scheme is None else weight.scheme.hold(parts)


def require_stated_shapes(weights: Iterable[StoredWeight]) -> None:
    """Compare the shapes that tensors state of ``weights`` with those of their values.

    Raises:
        UsageError: W0221, one is another, or its file cannot be read.
    """
    stated = [(weight, tensor) for weight in weights for tensor in weight.stated]
    stated.sort(key=lambda pair: (str(pair[1].file), pair[1].begin))
    for path, pairs in groupby(stated, key=lambda pair: pair[1].file):
        with open_regular(path) as file:
            for weight, tensor in pairs:
                file.seek(tensor.begin)
                content = file.read(tensor.bytes)
                found = tuple(int.from_bytes(content[i : i + 4], "little") for i in range(0, len(content), 4))
                if found != weight.shape:
                    message = f"{tensor.name!r} states the shape {[*found]} of values of shape {[*weight.shape]}"
                    raise malformed(message, path)


def untied(name: str) -> UsageError:
    """W0230: tensors that the configuration ties to each other are stored with different values."""
    help_ = ('"tie_word_embeddings": false in config.json makes them two weights',)
    message = f"{name} is stored with other values than the weight that the configuration ties it to"
    return UsageError(Diagnostic("W0230", message, name, help=help_))
