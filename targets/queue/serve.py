"""What users get from a pipeline, by formula."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from targets.queue.line import Convoy, Times, send
from targets.queue.work import Job, Pass


@dataclass(frozen=True, slots=True)
class Service:
    """What each of some users gets, and what all get together.

    Attributes:
        tokens_per_s_per_user: after the first token.
        total_tokens_per_s: output of all users, with the time in which they wait for their first tokens.
        time_to_first_token_s: of a request.
        request_s: from a request's start to its last token.
        utilisation: for each station, the share of time for which it serves.
        bottleneck: the station that serves longest for a request (index).
        users_at_full_speed: users that can decode at the same time as fast as one alone.
    """

    tokens_per_s_per_user: float
    total_tokens_per_s: float
    time_to_first_token_s: float
    request_s: float
    utilisation: tuple[float, ...]
    bottleneck: int
    users_at_full_speed: int


@dataclass(frozen=True, slots=True, eq=False)
class Alone:
    """One request in an otherwise empty pipeline, and what it does to the decode steps of others.

    Attributes:
        decode: a decode step in the middle of the output.
        first_s: until the first token.
        stall_s: what another user's decode steps lose in total by one prompt that enters among them.
        work_s: of each station, for the whole request.
    """

    job: Job
    decode: Pass
    first_s: float
    stall_s: float
    work_s: Times

    def serve(self, users: int) -> Service:
        """See :func:`serve`."""
        if users < 1:
            raise ValueError("a service has at least one user")
        job = self.job
        full_s = max(self.decode.latency_s, users * self.decode.longest_s)
        stall_s = max(0.0, self.stall_s - (full_s - self.decode.latency_s))
        step_s = full_s + stall_s * (1 - (1 - 1 / (job.steps + 1)) ** (users - 1))
        first_s = self.first_s if job.prefill else full_s
        request_s = first_s + job.steps * step_s
        stretch = max(1.0, users * float(self.work_s.max()) / request_s)
        return Service(
            tokens_per_s_per_user=job.tokens_per_step / (step_s * stretch),
            total_tokens_per_s=users * job.request.output_tokens / (request_s * stretch),
            time_to_first_token_s=first_s * stretch,
            request_s=request_s * stretch,
            utilisation=tuple((self.work_s * (users / (request_s * stretch))).tolist()),
            bottleneck=int(self.work_s.argmax()),
            users_at_full_speed=self.decode.users_at_full_speed,
        )


def alone(job: Job) -> Alone:
    """What the formulas need of a request, whatever the number of users."""
    decode = job.decode_at(job.request.middle_context)
    convoy = send(job.prefill or (decode,), decode)
    return Alone(
        job=job,
        decode=decode,
        first_s=convoy.back_s,
        stall_s=_stall_s(convoy, decode.latency_s) if job.prefill else 0.0,
        work_s=convoy.work_s + job.steps * np.array(decode.busy_s),
    )


def serve(job: Job, users: int) -> Service:
    """``users`` users who each start the next request as soon as the last one has ended.

    Exact where all passes are equal: a step takes max(latency, users * largest busy time).

    With prompts among them it is an estimate. Passes do not overtake each other, so a step that comes behind a chunk is
    as slow as the chunk. All users who decode are caught behind the same prompt and come back together, and prompts
    begin when somebody comes back; so in each round of steps, one of the ``users - 1`` others begins a prompt with
    probability 1 - (1 - 1 / rounds) ** (users - 1). It costs what a prompt costs a decoding user alone, less the time
    for which steps wait for each other in any case. A request takes no less than the busiest station needs for one
    request of each user (the asymptotic bound of Denning and Buzen, The Operational Analysis of Queueing Network
    Models, 1978); what that adds is spread over prefill and decode.

    Against the simulation, total and speed are within a tenth in most cases and within a fifth near overload; the time
    to the first token leaves out how chunks wait for others' steps. :func:`targets.queue.simulate.simulate` tells.

    Raises:
        ValueError: for less than one user.
    """
    return alone(job).serve(users)


PHASES = 4  # moments of a decode step at which a prompt may begin


def _stall_s(convoy: Convoy, step_s: float) -> float:
    """What the steps of a decoding user lose by a prompt, on average over the moments of a step at which it begins."""
    return sum(_lost_s(convoy, step_s, (phase + 0.5) / PHASES * step_s) for phase in range(PHASES)) / PHASES


def _lost_s(convoy: Convoy, step_s: float, enter_s: float) -> float:
    """The same for a step that enters at ``enter_s`` after the prompt, and those after it."""
    lost_s = 0.0
    while enter_s < convoy.back_s:
        ahead = min(bisect_left(convoy.left_s, enter_s), len(convoy.left_s) - 1)
        wait_s = max(0.0, convoy.open_s[ahead] - enter_s)
        lost_s += wait_s
        enter_s += wait_s + step_s
    return lost_s
