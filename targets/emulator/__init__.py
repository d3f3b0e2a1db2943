"""A functional executor: runs a partitioned model on emulated tiles, and counts what moves."""

from targets.emulator.executor import Counters, Emulator
from targets.emulator.generate import Generated, generate
from targets.emulator.mesh import Traffic

__all__ = ["Counters", "Emulator", "Generated", "Traffic", "generate"]
