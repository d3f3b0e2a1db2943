"""Curves of time over tiles: convex, falling, true at their bends, and shared out as well as can be."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from ir.workload import Workload
from partitioner.curves import CostCurves, at_once, falling, in_turn
from partitioner.passes.profile import profile_of
from partitioner.problem import ExpertLayout, measure
from partitioner.solver.problem import Curve
from partitioner.solver.score import least_slowest, least_time
from targets.machines import load_wafers

savings = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=3)
curves = st.builds(
    lambda drops, rest: Curve(rest + sum(t * s for t, s in drops), tuple(sorted(drops, key=lambda d: -d[1]))),
    savings,
    st.integers(0, 20),
)


def shares(count: int, spare: int) -> list[tuple[int, ...]]:
    return [share for share in product(range(spare + 1), repeat=count) if sum(share) <= spare]


@given(st.lists(curves, min_size=1, max_size=3), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_tiles_are_shared_out_as_well_as_can_be(own, spare):
    ways = [[curve.time(tiles) for curve, tiles in zip(own, share, strict=True)] for share in shares(len(own), spare)]
    assert least_time(own, spare) == in_turn(own).time(spare) == min(map(sum, ways))
    assert least_slowest(own, spare) == min(map(max, ways))


@given(st.lists(curves, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_the_slowest_of_several_is_a_curve_again(own):
    """True where it bends; between bends a straight line, which is above what whole tiles allow, or just below it."""
    together, spare = at_once(own), 0
    for tiles, _ in (*together.drops, (0, 0)):
        assert together.time(spare) + spare >= least_slowest(own, spare) >= together.time(spare) - spare - 9
        spare += tiles


@given(curves, st.integers(0, 60))
def test_the_tiles_for_a_time_are_the_fewest(curve, most):
    needed = curve.spare(most)
    if needed is None:
        assert curve.time(10_000) > most
    else:
        assert curve.time(needed) <= most
        assert needed == 0 or curve.time(needed - 1) > most


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1000)), min_size=1, max_size=12))
def test_a_curve_lies_under_its_points_and_is_convex(points):
    first = min(points)[0]
    curve = falling((tiles - first, time_fs) for tiles, time_fs in points)
    assert all(curve.time(tiles - first) <= time_fs + (tiles - first) for tiles, time_fs in points)
    saved = [saved for _, saved in curve.drops]
    assert saved == sorted(saved, reverse=True)
    assert curve.time_fs == min(time_fs for tiles, time_fs in points if tiles == first)


def test_times_of_a_model_fall_with_tiles(compiled_small_kimi):
    model, plan = compiled_small_kimi.model, compiled_small_kimi.plan
    speed = load_wafers("mini").speed
    workload = Workload(1, 64, 1)
    speeds = CostCurves(profile_of(model, None), plan.machine, speed, workload, ExpertLayout.AUTO)
    problem = measure(model, plan.machine, workload, ExpertLayout.AUTO, speeds)
    assert problem.hand_over_fs == round(speed.system_latency_s * 1e15)
    attention = next(item for item in problem.items if item.state_bytes)
    assert attention.latency.drops
    assert attention.latency.time(0) > attention.latency.time(100)
    assert all(item.slowest.time(9) <= item.latency.time(9) for item in problem.items)
    assert all(flow.link_fs > 0 for flow in problem.flows if flow.bytes_per_token)
