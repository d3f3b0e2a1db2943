"""What the machine must serve at once."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes that decide how much memory caches and activations take.

    Attributes:
        users: users whose caches are resident at the same time.
        context: tokens remembered for each of them.
        chunk: tokens that one pipeline stage works on at once (1 in decode; the chunk length in prefill).
    """

    users: int
    context: int
    chunk: int

    def share(self, copy: int, copies: int) -> Workload:
        """What copy number ``copy`` of ``copies`` of a block serves: every user u with u mod ``copies`` = ``copy``."""
        return replace(self, users=max(0, -(-(self.users - copy) // copies)))
