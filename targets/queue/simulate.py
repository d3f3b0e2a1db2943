"""What users get from a pipeline, by simulation: users are processes of simpy, stations are served in order."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import simpy

from targets.queue.line import Line, Route, Times, routes
from targets.queue.serve import Service, serve
from targets.queue.work import Job

Waits = Generator[simpy.Event, None, None]
WARM_UP = 2  # requests of each user that end before those that are measured
CONTEXTS = 16  # at so many contexts of a request the decode pass is asked for


@dataclass(frozen=True, slots=True)
class Served:
    """One request: when it arrived, got its first token, and ended."""

    user: int
    output_tokens: int
    arrived_s: float
    first_token_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a sample: its mean, median, and what 95 of 100 stay below."""

    mean: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """A service as simulated. Its figures are means; the spreads are of the same requests.

    Attributes:
        token_s: between a user's tokens, after the first one; tokens of one step share its time.
        users: mean number of requests that are being served.
        requests: those that were measured, in the order in which they ended.
    """

    service: Service
    time_to_first_token_s: Spread
    token_s: Spread
    request_s: Spread
    users: float
    requests: tuple[Served, ...]


def simulate(
    job: Job,
    users: int,
    *,
    requests: int | None = None,
    vary: float = 0.5,
    arrivals_per_s: float | None = None,
    seed: int = 0,
) -> Simulated:
    """Let users send requests, and measure once the pipeline has got into its stride.

    Without ``arrivals_per_s``, each of ``users`` users starts the next request as soon as the last one has ended; their
    first ones are spread evenly over the time that a request takes alone. With it, requests arrive at random (Poisson),
    ``users`` of them are served at a time, and others wait. A chunk of a prompt queues when the one before has left the
    first station, so that other users' steps go between; queues between stations have no limit. A request takes whole
    decode steps.

    Args:
        job: what each user asks for, again and again.
        users: at the same time.
        requests: for each user, measured; two more pass before. Four where nothing is said, fewer for over 50 users.
        vary: outputs are up to this share shorter or longer than the job's. Where all are equal (0), many users fall
            into step: they send their prompts together and decode together, which hides what prompts cost decoding.
        arrivals_per_s: of requests, by whomever.
        seed: of arrivals and lengths.

    Raises:
        ValueError: for less than one user or request, arrivals that are not above zero, or a share outside 0 to 1.
    """
    requests = min(4, max(1, 200 // max(1, users))) if requests is None else requests
    if users < 1 or requests < 1 or not (arrivals_per_s is None or arrivals_per_s > 0) or not 0 <= vary <= 1:
        raise ValueError("a simulation has users, requests, arrivals above zero, and outputs that vary from 0 to 1")
    run = _Run(job, users, requests, vary, arrivals_per_s is None, np.random.default_rng(seed))
    if arrivals_per_s is None:
        apart_s = serve(job, 1).request_s / users
        for user in range(users):
            run.env.process(_user(run, user, user * apart_s))
    else:
        run.env.process(_arrivals(run, arrivals_per_s))
    run.env.run(run.measured)
    return _summary(run)


@dataclass(frozen=True, slots=True, eq=False)
class _Mark:
    """The state of the line at one moment: the start or the end of what is measured."""

    now_s: float
    tokens: float
    waited_s: float
    free_s: Times
    work_s: Times


@dataclass(slots=True, eq=False)
class _Run:
    """A simulation under way."""

    job: Job
    users: int
    requests: int
    vary: float
    closed: bool
    random: np.random.Generator
    env: simpy.Environment = field(default_factory=simpy.Environment)
    marks: list[_Mark] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    deck: list[float] = field(default_factory=list)
    tokens: float = 0.0
    present: int = 0
    waited_s: float = 0.0
    changed_s: float = 0.0
    line: Line = field(init=False)
    chunks: tuple[Route, ...] = field(init=False)
    decode: tuple[Route, ...] = field(init=False)
    measured: simpy.Event = field(init=False)

    def __post_init__(self) -> None:
        request = self.job.request
        contexts = {
            request.input_tokens + request.output_tokens * (2 * i + 1) // (2 * CONTEXTS) for i in range(CONTEXTS)
        }
        self.decode = routes([self.job.decode_at(context) for context in sorted(contexts)])
        self.chunks = routes(self.job.prefill) if self.job.prefill else self.decode[:1]
        self.line = Line(len(self.decode[0].busy_s))
        self.measured = self.env.event()

    @property
    def warm_up(self) -> int:
        """Requests that end before the measured ones."""
        return WARM_UP * self.users

    def output_tokens(self) -> int:
        """What the next request asks for: a card of a shuffled deck of evenly spread lengths, for their mean's sake."""
        if not self.deck:
            cards = 2 * self.users
            spread = self.vary * ((2 * np.arange(cards) + 1) / cards - 1)
            self.deck = (self.job.request.output_tokens * (1 + self.random.permutation(spread))).tolist()
        return max(1, round(self.deck.pop()))

    def count(self, change: int) -> None:
        """Let a request come (1) or go (-1); ``waited_s`` is what all have spent here so far."""
        self.waited_s += self.present * (self.env.now - self.changed_s)
        self.changed_s = self.env.now
        self.present += change

    def end(self, request: Served) -> None:
        """Take down a request that has ended; the first ones warm the pipeline up."""
        self.count(-1)
        self.served.append(request)
        if len(self.served) in (self.warm_up, self.warm_up + self.users * self.requests):
            self.marks.append(
                _Mark(self.env.now, self.tokens, self.waited_s, self.line.free_s, self.line.work_s.copy())
            )
            if len(self.marks) == 2:
                self.measured.succeed()
            else:
                self.token_s.clear()


def _user(run: _Run, user: int, start_s: float) -> Waits:
    yield run.env.timeout(start_s)
    while True:
        yield from _request(run, user, run.env.now)


def _arrivals(run: _Run, per_s: float) -> Waits:
    places = simpy.Resource(run.env, run.users)
    number = 0
    while True:
        yield run.env.timeout(run.random.exponential(1 / per_s))
        run.env.process(_arrival(run, number, places))
        number += 1


def _arrival(run: _Run, number: int, places: simpy.Resource) -> Waits:
    arrived_s = run.env.now
    with places.request() as place:
        yield place
        yield from _request(run, number, arrived_s)


def _request(run: _Run, user: int, arrived_s: float) -> Waits:
    env, line, output_tokens = run.env, run.line, run.output_tokens()
    run.count(1)
    back_s = env.now
    for chunk in run.chunks:
        left_s, back_s = line.enter(env.now, chunk)
        yield env.timeout(left_s - env.now)
    yield env.timeout(back_s - env.now)
    run.tokens += 1
    first_s = env.now
    steps = math.ceil((output_tokens - 1) / run.job.tokens_per_step * (1 - 1e-12))
    for step in range(steps):
        start_s = env.now
        _, back_s = line.enter(start_s, run.decode[step * len(run.decode) // steps])
        yield env.timeout(back_s - start_s)
        tokens = (output_tokens - 1) / steps
        run.tokens += tokens
        run.token_s.append((env.now - start_s) / tokens)
    run.end(Served(user, output_tokens, arrived_s, first_s, env.now))


def _summary(run: _Run) -> Simulated:
    (begin, end), formula = run.marks, serve(run.job, run.users)
    requests = tuple(run.served[run.warm_up :])
    first_s = np.array([each.first_token_s - each.arrived_s for each in requests])
    request_s = np.array([each.ended_s - each.arrived_s for each in requests])
    decode_s = sum(each.ended_s - each.first_token_s for each in requests)
    tokens = sum(each.output_tokens for each in requests)
    span_s = end.now_s - begin.now_s
    work_s = end.work_s - begin.work_s
    total_per_s = (end.tokens - begin.tokens) / span_s
    if run.closed:  # from whole requests, as a span counts parts of requests, with their prompts or without
        total_per_s = run.users * tokens / float(request_s.sum())
    # From when a station is free of all that entered before, until it is free of all that entered since.
    open_s = end.free_s - begin.free_s
    return Simulated(
        Service(
            tokens_per_s_per_user=(tokens - len(requests)) / decode_s if decode_s else formula.tokens_per_s_per_user,
            total_tokens_per_s=total_per_s,
            time_to_first_token_s=float(first_s.mean()),
            request_s=float(request_s.mean()),
            utilisation=tuple(np.divide(work_s, open_s, out=np.zeros_like(work_s), where=open_s > 0).tolist()),
            bottleneck=int(work_s.argmax()),
            users_at_full_speed=formula.users_at_full_speed,
        ),
        _spread(first_s),
        _spread(np.array(run.token_s or [0.0])),
        _spread(request_s),
        (end.waited_s - begin.waited_s) / span_s,
        requests,
    )


def _spread(sample: Times) -> Spread:
    p50, p95 = np.percentile(sample, (50, 95))
    return Spread(float(sample.mean()), float(p50), float(p95))
