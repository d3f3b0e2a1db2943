"""What users get from a pipeline, by formula."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from targets.queue.line import Times, send
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


def serve(job: Job, users: int) -> Service:
    """``users`` users who each start the next request as soon as the last one has ended.

    Exact where all passes are equal: a step takes max(latency, users * largest busy time). With prompts among them, the
    request's time is its least one: as long as alone, and as long as the busiest station needs for one request of each
    user (the asymptotic bounds of Denning and Buzen, The Operational Analysis of Queueing Network Models, 1978); what
    it takes longer than alone is spread over prefill and decode alike. :func:`targets.queue.simulate.simulate` tells
    how far users' chunks and steps really stand in each other's way.

    Raises:
        ValueError: for less than one user.
    """
    if users < 1:
        raise ValueError("a service has at least one user")
    alone = _alone(job)
    longest_s = float(alone.work_s.max())
    stretch = max(1.0, users * longest_s / alone.request_s)
    request_s = alone.request_s * stretch
    return Service(
        tokens_per_s_per_user=job.tokens_per_step / (alone.decode.latency_s * stretch),
        total_tokens_per_s=users * job.request.output_tokens / request_s,
        time_to_first_token_s=alone.first_s * stretch,
        request_s=request_s,
        utilisation=tuple((alone.work_s * (users / request_s)).tolist()),
        bottleneck=int(alone.work_s.argmax()),
        users_at_full_speed=alone.decode.users_at_full_speed,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Alone:
    """One request in an otherwise empty pipeline; ``work_s`` of each station."""

    decode: Pass
    first_s: float
    request_s: float
    work_s: Times


def _alone(job: Job) -> _Alone:
    decode = job.decode_at(job.request.middle_context)
    first = job.prefill or (decode,)
    first_s, line = send(first)
    work_s = line.work_s + job.steps * np.array(decode.busy_s)
    return _Alone(decode, first_s, first_s + job.steps * decode.latency_s, work_s)
