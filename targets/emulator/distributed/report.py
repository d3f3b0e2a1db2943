"""What each process has made, as bytes for the first one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from targets.counters import Counters
from targets.emulator.distributed.channel import Channel
from targets.emulator.distributed.pipeline import FIRST, Made
from targets.host import peak_rss_bytes

Tensor = torch.Tensor
_TYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


class _Array(msgspec.Struct, array_like=True, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Taken(msgspec.Struct, frozen=True):
    """One step of a user: which new token it led to (``place``), after how many tokens, and what it took."""

    user: int
    place: int
    remembered: int
    bindings: dict[str, int]
    counted: Counters


class _Report(msgspec.Struct, frozen=True):
    counters: dict[int, Counters]
    results: dict[tuple[int, str], _Array]
    tokens: dict[tuple[int, int], int]
    rss_bytes: tuple[int, ...]
    steps: tuple[Taken, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Run:
    """What a run has made, of all processes.

    Attributes:
        made: as in each process; counters are added up.
        rss_bytes: the most memory that each process has held.
        steps: what each step took, in the order in which they began.
        note: where the weights are from.
    """

    made: Made
    rss_bytes: tuple[int, ...]
    steps: tuple[Taken, ...] = ()
    note: str = ""


def gather(made: Made, rank: int, processes: int, channel: Channel | None) -> Run | None:
    """In the first process what all have made; ``None`` in the others.

    Raises:
        PeerLostError: a process is not there any more.
    """
    own = Run(made, (peak_rss_bytes(),))
    if channel is None:
        return own
    if rank != FIRST:
        data = torch.frombuffer(bytearray(encode(own)), dtype=torch.uint8)
        channel.send(FIRST, [torch.tensor([data.numel()])])
        channel.send(FIRST, [data])
        channel.settle()
        return None
    runs = [own]
    for source in range(1, processes):
        (length,) = channel.receive(source, [((1,), torch.int64)])
        (data,) = channel.receive(source, [((int(length),), torch.uint8)])
        runs.append(decode(data.numpy().tobytes()))
    return Run(_joined([run.made for run in runs]), tuple(rss for run in runs for rss in run.rss_bytes))


def _joined(parts: list[Made]) -> Made:
    whole = Made()
    for part in parts:
        for index, counted in part.counters.items():
            whole.counters[index] = whole.counters.get(index, Counters()) + counted
        whole.results |= part.results
        whole.tokens |= part.tokens
    return whole


def encode(run: Run) -> bytes:
    """A run as bytes."""
    results = {key: _array(tensor) for key, tensor in run.made.results.items()}
    return msgspec.msgpack.encode(
        _Report(run.made.counters, results, run.made.tokens, run.rss_bytes, run.steps, run.note), enc_hook=_plain
    )


def decode(data: bytes) -> Run:
    """The run that :func:`encode` wrote.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    report = msgspec.msgpack.decode(data, type=_Report, dec_hook=_counts)
    results = {key: _tensor(array) for key, array in report.results.items()}
    return Run(Made(report.counters, results, report.tokens), report.rss_bytes, report.steps, report.note)


def _array(tensor: Tensor) -> _Array:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return _Array(str(tensor.dtype), tuple(tensor.shape), data)


def _tensor(array: _Array) -> Tensor:
    return torch.frombuffer(bytearray(array.data), dtype=torch.uint8).view(_TYPES[array.dtype]).reshape(array.shape)


def _plain(value: Any) -> object:
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(type(value))


def _counts(_type: type, value: Any) -> object:
    shape, data = value
    return np.frombuffer(data, np.int64).reshape(shape).copy()
