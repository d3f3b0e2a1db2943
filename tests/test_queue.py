"""Users in a pipeline: formulas, the simulation, and independent ways to the same figures."""

import heapq

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.queue import Job, Pass, Request, serve, simulate
from targets.queue.line import Line, route, send

TIMES = st.floats(1e-6, 1e-2)


@st.composite
def passes(draw, stations):
    busy = tuple(draw(st.lists(st.one_of(st.just(0.0), TIMES), min_size=stations, max_size=stations)))
    return Pass(max(busy) + draw(TIMES), busy)


@st.composite
def jobs(draw, most_chunks=4):
    stations = draw(st.integers(1, 5))
    chunks = draw(st.lists(passes(stations), max_size=most_chunks))
    request = Request(100 * len(chunks), draw(st.integers(1, 9)))
    return Job(request, tuple(chunks), draw(passes(stations)), draw(st.floats(1, 3)))


def decoding(latency_s, busy_s, output_tokens=50, tokens_per_step=1.0):
    """A job without a prompt."""
    return Job(Request(0, output_tokens), (), Pass(latency_s, busy_s), tokens_per_step)


def offsets(step):
    return route(step).offset_s.tolist()


def backs_by_recursion(entries):
    """When the results of ``(ready_s, pass)`` are back: the longest path, station by station and pass by pass."""
    left = [0.0] * len(entries[0][1].busy_s)
    backs = []
    for ready, step in entries:
        offset, moment = offsets(step), ready
        for station, busy in enumerate(step.busy_s):
            way = offset[station] - offset[station - 1] if station else 0.0
            moment = max(moment + way, left[station])
            left[station] = moment + busy
        backs.append(moment + step.latency_s - offset[-1])
    return backs


class Stations:
    """The same users in simpy, where every station is a resource: a pass queues for the next one when it enters one."""

    def __init__(self, job, users, count, apart_s):
        self.env, self.job, self.count, self.ended = simpy.Environment(), job, count, []
        self.stations = [simpy.Resource(self.env) for _ in job.decode.busy_s]
        self.done = self.env.event()
        for number in range(users):
            self.env.process(self.user(number * apart_s))
        self.env.run(self.done)

    def go(self, step, left_first):
        offset = [*offsets(step), step.latency_s]
        held = self.stations[0].request()
        yield held
        for station, busy in enumerate(step.busy_s):
            self.env.process(self.leave(station, held, busy, left_first))
            way = self.env.timeout(offset[station + 1] - offset[station])
            if station + 1 < len(self.stations):
                held = self.stations[station + 1].request()
                yield held & way
            else:
                yield way

    def leave(self, station, held, busy, left_first):
        yield self.env.timeout(busy)
        self.stations[station].release(held)
        if station == 0:
            left_first.succeed()

    def user(self, start_s):
        yield self.env.timeout(start_s)
        while True:
            begun = self.env.now
            for chunk in self.job.prefill:
                left_first = self.env.event()
                back = self.env.process(self.go(chunk, left_first))
                yield left_first
            yield back
            first = self.env.now
            for _ in range(self.job.request.output_tokens - 1):
                yield self.env.process(self.go(self.job.decode, self.env.event()))
            self.ended.append((begun, first, self.env.now))
            if len(self.ended) == self.count:
                self.done.succeed()


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.tuples(st.floats(0, 0.05), passes(n)), min_size=1, max_size=8)))
def test_the_line_is_the_longest_path(entries):
    line = Line(len(entries[0][1].busy_s))
    entries = sorted(entries, key=lambda entry: entry[0])
    ours = [line.enter(ready, route(step))[1] for ready, step in entries]
    assert ours == pytest.approx(backs_by_recursion(entries), rel=1e-12)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 6).flatmap(passes), st.integers(1, 9))
def test_equal_chunks_follow_each_other_by_the_longest_station(chunk, count):
    assert send((chunk,) * count, chunk).back_s == pytest.approx(
        chunk.latency_s + (count - 1) * max(chunk.busy_s), rel=1e-12
    )


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 6).flatmap(lambda n: st.tuples(passes(n), passes(n))))
def test_one_user_never_waits_for_the_own_pass(pair):
    first, second = pair
    backs = backs_by_recursion([(0.0, first), (first.latency_s, second)])
    assert backs == pytest.approx([first.latency_s, first.latency_s + second.latency_s], rel=1e-12)


def decode_by_heap(step, users, steps):
    """Time of one step of one user, late in a closed cycle: users' turns from a heap."""
    turns = [(user * step.latency_s / users, user, 0) for user in range(users)]
    left, offset, times = [0.0] * len(step.busy_s), offsets(step), []
    while True:
        moment, user, number = heapq.heappop(turns)
        start = moment
        for station, busy in enumerate(step.busy_s):
            moment = max(moment + (offset[station] - offset[station - 1] if station else 0.0), left[station])
            left[station] = moment + busy
        back = moment + step.latency_s - offset[-1]
        if number == steps:
            times.append(back - start)
            if len(times) == users:
                return sum(times) / users
        heapq.heappush(turns, (back, user, number + 1))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(1, 5).flatmap(passes), st.integers(1, 12))
def test_decode_of_equal_users_is_the_formula(step, users):
    job = decoding(step.latency_s, step.busy_s, 60)
    cycle = max(step.latency_s, users * max(step.busy_s))
    formula, simulated = serve(job, users), simulate(job, users, requests=2, vary=0).service
    for service in (formula, simulated):
        assert service.tokens_per_s_per_user == pytest.approx(1 / cycle, rel=1e-9)
        assert service.total_tokens_per_s == pytest.approx(users / cycle, rel=1e-9)
        assert service.request_s == pytest.approx(60 * cycle, rel=1e-9)
    assert decode_by_heap(step, users, 60) == pytest.approx(cycle, rel=1e-9)


def test_users_at_full_speed():
    job = decoding(10e-3, (1e-3, 2e-3, 1e-3))
    assert serve(job, 1).users_at_full_speed == 5
    speeds = [serve(job, users).tokens_per_s_per_user for users in (1, 5, 6, 10)]
    assert speeds == pytest.approx([100, 100, 1 / 12e-3, 50])
    assert serve(job, 3).bottleneck == 1


@pytest.mark.parametrize("seed", range(25))
def test_the_simulation_is_that_of_every_station(seed):
    random = np.random.default_rng(
        seed
    )  # not hypothesis, which likes equal times: who is first then is anybody's guess
    stations, chunks, users = random.integers(1, 6), random.integers(1, 5), int(random.integers(1, 6))

    def one():
        busy = random.uniform(1e-4, 1e-2, stations)
        return Pass(float(random.uniform(busy.max(), 1.5 * busy.sum() + 1e-3)), tuple(busy.tolist()))

    job = Job(Request(100, int(random.integers(2, 9))), tuple(one() for _ in range(chunks)), one())
    ours = simulate(job, users, requests=2, vary=0)
    theirs = Stations(job, users, 4 * users, serve(job, 1).request_s / users).ended[2 * users :]
    assert [each.ended_s for each in ours.requests] == pytest.approx([ended for *_, ended in theirs], rel=1e-9)
    assert [each.first_token_s for each in ours.requests] == pytest.approx([first for _, first, _ in theirs], rel=1e-9)
    assert [each.arrived_s for each in ours.requests] == pytest.approx([begun for begun, *_ in theirs], rel=1e-9)


@settings(deadline=None, derandomize=True)
@given(jobs(), st.integers(1, 40))
def test_more_users_never_speed_up_one_and_never_slow_down_all(job, users):
    fewer, more = serve(job, users), serve(job, users + 1)
    assert more.tokens_per_s_per_user <= fewer.tokens_per_s_per_user * (1 + 1e-12)
    assert more.total_tokens_per_s >= fewer.total_tokens_per_s * (1 - 1e-12)
    assert max(more.utilisation) <= 1 + 1e-12
    assert more.request_s >= fewer.request_s * (1 - 1e-12)


@settings(deadline=None, derandomize=True)
@given(jobs())
def test_one_user_sees_full_speed(job):
    alone = serve(job, 1)
    assert alone.tokens_per_s_per_user == pytest.approx(job.tokens_per_step / job.decode.latency_s)
    assert alone.request_s == pytest.approx(
        alone.time_to_first_token_s + (job.request.output_tokens - 1) / alone.tokens_per_s_per_user
    )


@settings(deadline=None, derandomize=True, max_examples=40)
@given(jobs(), st.integers(1, 6))
def test_what_every_simulation_keeps(job, users):
    job = Job(job.request, job.prefill, job.decode)
    formula, simulated = serve(job, users), simulate(job, users, requests=3, vary=0)
    assert all(0 <= share <= 1 + 1e-9 for share in simulated.service.utilisation)
    assert simulated.service.request_s >= serve(job, 1).request_s * (1 - 1e-9)
    assert simulated.users == pytest.approx(users, rel=1e-9)
    if users == 1:
        assert simulated.service.request_s == pytest.approx(formula.request_s, rel=1e-9)
        assert simulated.service.time_to_first_token_s == pytest.approx(formula.time_to_first_token_s, rel=1e-9)


def load(latency_s=1e-3, stations=12, chunks=10, chunk_s=8e-3, output_tokens=100):
    """A job like a model's on wafers: uneven stations, chunks that are many times a decode step."""
    shares = [1 + 0.5 * (station % 3) for station in range(stations)]
    busy = tuple(0.8 * latency_s * share / sum(shares) for share in shares)
    chunk = tuple(chunk_s * share / sum(shares) for share in reversed(shares))
    return Job(Request(512 * chunks, output_tokens), (Pass(1.3 * chunk_s, chunk),) * chunks, Pass(latency_s, busy))


@pytest.mark.parametrize("users", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize(
    "job", [load(), load(chunk_s=2e-3), load(chunks=2, output_tokens=200)], ids=["long", "fine", "short"]
)
def test_the_estimate_follows_the_simulation(job, users):
    estimate, simulated = serve(job, users), simulate(job, users).service
    assert estimate.total_tokens_per_s == pytest.approx(simulated.total_tokens_per_s, rel=0.15)
    assert estimate.tokens_per_s_per_user == pytest.approx(simulated.tokens_per_s_per_user, rel=0.15)
    assert max(estimate.utilisation) == pytest.approx(max(simulated.utilisation), rel=0.15)


def test_arrivals_wait_for_places_when_there_are_more_than_can_be_served():
    job = load()
    most = 1 / serve(job, 100).request_s * 100
    calm, busy = (simulate(job, 20, arrivals_per_s=share * most, requests=10, seed=3) for share in (0.1, 0.5))
    assert calm.users < busy.users < 20
    assert calm.time_to_first_token_s.p95 < busy.time_to_first_token_s.p95
    for simulated, share in ((calm, 0.1), (busy, 0.5)):
        span_s = simulated.requests[-1].ended_s - simulated.requests[0].ended_s
        per_s = (len(simulated.requests) - 1) / span_s
        assert per_s == pytest.approx(share * most, rel=0.2)
        assert simulated.users == pytest.approx(per_s * simulated.service.request_s, rel=0.2)  # Little's law
    over = simulate(job, 20, arrivals_per_s=2 * most)
    assert over.users == pytest.approx(20)
    assert over.time_to_first_token_s.p50 > 2 * busy.time_to_first_token_s.p95


@settings(deadline=None, derandomize=True, max_examples=20)
@given(jobs(), st.integers(1, 6), st.integers(0, 9))
def test_littles_law_and_the_seed(job, users, seed):
    simulated = simulate(job, users, requests=20, seed=seed)
    span_s = max(each.ended_s for each in simulated.requests) - min(each.arrived_s for each in simulated.requests)
    assert len(simulated.requests) * simulated.service.request_s <= users * span_s * (1 + 1e-9)
    assert len(simulated.requests) * simulated.service.request_s >= users * span_s * 0.8
    assert simulate(job, users, requests=20, seed=seed) == simulated


def test_decode_may_depend_on_the_context():
    asked = []

    def decode(context):
        asked.append(context)
        return Pass(1e-3 * (1 + context / 1000), (1e-4,))

    job = Job(Request(1000, 401), (Pass(5e-3, (5e-3,)),), decode)
    alone = serve(job, 1)
    assert alone.request_s == pytest.approx(5e-3 + 400 * 2.2e-3)
    assert simulate(job, 1, vary=0).service.request_s == pytest.approx(alone.request_s, rel=1e-3)
    assert all(1000 <= context < 1401 for context in asked)
    assert len(asked) < 60


def test_speculation_yields_more_tokens_from_a_step():
    plain, speculative = (decoding(1e-3, (1e-4, 2e-4), 61, each) for each in (1.0, 3.0))
    for way in (serve, lambda job, users: simulate(job, users, vary=0)):
        slow, fast = (getattr(each, "service", each) for each in (way(plain, 2), way(speculative, 2)))
        assert fast.tokens_per_s_per_user == pytest.approx(3 * slow.tokens_per_s_per_user)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Pass(1.0, ()),
        lambda: Pass(0.0, (0.0,)),
        lambda: Pass(1.0, (0.5, 2.0)),
        lambda: Pass(1.0, (-0.5,)),
        lambda: Pass(float("nan"), (0.5,)),
        lambda: Pass(1.0, (float("nan"),)),
        lambda: Request(-1, 5),
        lambda: Request(5, 0),
        lambda: decoding(1.0, (0.5,), tokens_per_step=0.5),
        lambda: Job(Request(1, 1), (Pass(1.0, (0.5, 0.5)),), Pass(1.0, (0.5,))),
        lambda: serve(decoding(1.0, (0.5,)), 0),
        lambda: simulate(decoding(1.0, (0.5,)), 1, arrivals_per_s=0.0),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"."):
        wrong()
