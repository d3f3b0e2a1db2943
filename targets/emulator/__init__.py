"""A functional executor: runs a partitioned model on emulated tiles, and counts what moves."""

from targets.counters import Counters, Traffic
from targets.emulator.arithmetic import Arithmetic, Order, Precision
from targets.emulator.executor import Emulator
from targets.emulator.generate import Generated, Prompt, generate, generate_together
from targets.emulator.speculate import Draft, DraftModel, PromptLookup

__all__ = [
    "Arithmetic",
    "Counters",
    "Draft",
    "DraftModel",
    "Emulator",
    "Generated",
    "Order",
    "Precision",
    "Prompt",
    "PromptLookup",
    "Traffic",
    "generate",
    "generate_together",
]
