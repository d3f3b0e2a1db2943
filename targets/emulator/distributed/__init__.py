"""A run over several processes, on one computer or many: each has wafers of its own, and values go between them."""

from targets.emulator.distributed.generate import generate_over, step_over
from targets.emulator.distributed.launch import launch
from targets.emulator.distributed.member import Member, alone, member, threads_of_each, under_torchrun
from targets.emulator.distributed.owners import share_out
from targets.emulator.distributed.report import Run, decode, encode

__all__ = [
    "Member",
    "Run",
    "alone",
    "decode",
    "encode",
    "generate_over",
    "launch",
    "member",
    "share_out",
    "step_over",
    "threads_of_each",
    "under_torchrun",
]
