"""A functional executor: runs a partitioned model on emulated tiles, and counts what moves."""

from targets.counters import Counters, Traffic
from targets.emulator.arithmetic import Arithmetic, Order, Precision
from targets.emulator.executor import Emulator
from targets.emulator.generate import Generated, generate

__all__ = ["Arithmetic", "Counters", "Emulator", "Generated", "Order", "Precision", "Traffic", "generate"]
