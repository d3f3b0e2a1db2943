"""Tensors from process to process, by torch.distributed: both sides know shapes and types, so only bytes travel.

Each direction between two processes is a group of its own, where messages keep their order; so nothing that one process
sends waits for what the other sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

Tensor = torch.Tensor
Spec: TypeAlias = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of a tensor."""

_ALIGNMENT = 16
"""Bytes at whose multiples tensors of a message begin, so that each can be read as its type."""


class PeerLostError(Exception):
    """Nothing can be sent to process ``rank``, or received from it."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(reason)
        self.rank = rank
        self.reason = reason


@dataclass(slots=True)
class Channel:
    """One process's ends of all directions. ``device`` is where tensors must lie to travel."""

    rank: int
    groups: dict[tuple[int, int], Any]
    device: str
    _sending: list[tuple[int, int, Any, Tensor]] = field(default_factory=list)

    @staticmethod
    def open(rank: int, directions: Iterable[tuple[int, int]], device: str) -> Channel:
        """Channels for ``directions`` (from rank, to rank); all processes must name the same ones.

        Raises:
            PeerLostError: a process cannot be reached.
        """
        groups = {}
        for source, target in sorted(directions):
            try:
                group = dist.new_group([source, target])
            except RuntimeError as error:
                raise PeerLostError(target if rank == source else source, str(error)) from None
            groups[source, target] = group
        return Channel(rank, groups, device)

    def send(self, target: int, tensors: Sequence[Tensor], round_: int = 0) -> None:
        """Start to send ``tensors`` together; :meth:`settle` waits for it.

        Raises:
            PeerLostError: ``target`` cannot be reached.
        """
        message = _packed(tensors, self.device)
        try:
            work = dist.isend(message, target, group=self.groups[self.rank, target])
        except RuntimeError as error:
            raise PeerLostError(target, str(error)) from None
        self._sending.append((round_, target, work, message))

    def receive(self, source: int, specs: Sequence[Spec], device: str = "cpu") -> list[Tensor]:
        """The next tensors that ``source`` sends, which are as ``specs`` say, on ``device``.

        Raises:
            PeerLostError: ``source`` cannot be reached.
        """
        message = torch.empty(sum(map(_room, specs)), dtype=torch.uint8, device=self.device)
        try:
            dist.recv(message, source, group=self.groups[source, self.rank])
        except RuntimeError as error:
            raise PeerLostError(source, str(error)) from None
        return _unpacked(message.to(device), specs)

    def settle(self, before: int | None = None) -> None:
        """Wait until what was sent in rounds ``before`` that one (of all, if not given) has arrived.

        Raises:
            PeerLostError: a process cannot be reached.
        """
        left = []
        for entry in self._sending:
            round_, target, work, _ = entry
            if before is not None and round_ >= before:
                left.append(entry)
                continue
            try:
                work.wait()
            except RuntimeError as error:
                raise PeerLostError(target, str(error)) from None
        self._sending = left


def _room(spec: Spec) -> int:
    shape, dtype = spec
    return -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def _packed(tensors: Sequence[Tensor], device: str) -> Tensor:
    """The bytes of ``tensors`` one after the other, each beginning at a multiple of the alignment."""
    specs: list[Spec] = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
    message = torch.zeros(sum(map(_room, specs)), dtype=torch.uint8, device=device)
    start = 0
    for tensor, spec in zip(tensors, specs, strict=True):
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        message[start : start + flat.numel()] = flat
        start += _room(spec)
    return message


def _unpacked(message: Tensor, specs: Sequence[Spec]) -> list[Tensor]:
    tensors, start = [], 0
    for spec in specs:
        shape, dtype = spec
        held = message[start : start + prod(shape) * dtype.itemsize]
        tensors.append(held.view(dtype).reshape(shape))
        start += _room(spec)
    return tensors
