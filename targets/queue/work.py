"""What users ask of a pipeline: passes through its stations, and requests made of passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pass:
    """One step of one user through all stations of an otherwise empty pipeline: a decode step, or a chunk of a prompt.

    Attributes:
        latency_s: from entering the first station until the result is back where the user's next step starts, with
            all that lies between stations. Where stations work side by side it is less than the sum of ``busy_s``.
        busy_s: for each station, in order, how long it serves this pass and no other.

    Raises:
        ValueError: for a negative or infinite time, no station, or a latency below the largest busy time: a result
            cannot be back before the station that makes it is done.
    """

    latency_s: float
    busy_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.busy_s or min(self.busy_s) < 0 or not math.isfinite(self.latency_s) or self.latency_s <= 0:
            raise ValueError("a pass has a latency above zero, and at least one station with busy times from zero")
        if not self.longest_s <= self.latency_s:
            raise ValueError(f"latency {self.latency_s} s is less than a station's busy time, {self.longest_s} s")

    @property
    def longest_s(self) -> float:
        """The largest busy time: how far apart such passes follow each other at least."""
        return max(self.busy_s)

    @property
    def users_at_full_speed(self) -> int:
        """Users that can repeat this pass without waiting for each other; one where no station is ever busy."""
        return max(1, math.floor(self.latency_s / self.longest_s * (1 + 1e-12))) if self.longest_s else 1


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens that a user sends, and gets."""

    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if self.input_tokens < 0 or self.output_tokens < 1:
            raise ValueError("a request has at least one token of output, and no negative input")

    @property
    def middle_context(self) -> int:
        """Tokens before the middle one of the output."""
        return self.input_tokens + self.output_tokens // 2


@dataclass(frozen=True, slots=True)
class Job:
    """A request as the passes that serve it. All passes have the same stations.

    Attributes:
        prefill: the prompt's chunks, in order; the last one gives the first token. Without any, a decode step does.
        decode: the pass of one decode step, or a function that gives it for the tokens before it.
        tokens_per_step: tokens that a decode step yields, more than 1 under speculation; a draft's own time is part
            of ``decode``.
    """

    request: Request
    prefill: tuple[Pass, ...]
    decode: Pass | Callable[[int], Pass]
    tokens_per_step: float = 1.0

    def __post_init__(self) -> None:
        if not self.tokens_per_step >= 1:
            raise ValueError("a decode step yields at least one token")
        if len({len(each.busy_s) for each in (*self.prefill, self.decode_at(self.request.middle_context))}) > 1:
            raise ValueError("all passes go through the same stations")

    def decode_at(self, context: int) -> Pass:
        """The decode step after ``context`` tokens."""
        return self.decode if isinstance(self.decode, Pass) else self.decode(context)

    @property
    def steps(self) -> float:
        """Decode steps after the first token, on average."""
        return (self.request.output_tokens - 1) / self.tokens_per_step
