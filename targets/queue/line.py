"""Stations in a line as a max-plus recursion, all stations at once.

A pass enters a station when it has got there and the pass before it has left. Passes never overtake each other, so
whoever enters the first station earlier is earlier everywhere, and all that happens to a pass is known when it enters:

    enter(pass, station) = max(enter(pass, station - 1) + way, enter(previous pass, station) + busy(previous, station))

(Baccelli, Cohen, Olsder and Quadrat, Synchronization and Linearity, 1992, chapter 1). Subtracting each station's
distance from the first turns the recursion along the line into a running maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from targets.queue.work import Pass

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A pass as arrays over stations: when it enters each one in an empty line (``offset_s``), and for how long."""

    latency_s: float
    offset_s: Times
    busy_s: Times


def route(step: Pass) -> Route:
    """Spread a pass's latency over its stations in proportion to their busy times.

    Where stations work side by side the latency is shorter than their sum; then a station is entered early enough to
    be done when the result is back, so a user never waits for the own pass before.
    """
    busy = np.array(step.busy_s)
    total = busy.sum()
    before = (np.cumsum(busy) - busy) * (step.latency_s / total) if total else np.zeros_like(busy)
    latest = np.minimum(before, step.latency_s - busy)
    return Route(step.latency_s, np.minimum.accumulate(latest[::-1])[::-1], busy)


class Line:
    """Stations and when each is free, given the passes that entered so far.

    Attributes:
        free_s: when each station has served all of them.
        work_s: how long each served, in total.
    """

    def __init__(self, stations: int) -> None:
        self.free_s: Times = np.zeros(stations)
        self.work_s: Times = np.zeros(stations)

    def enter(self, ready_s: float, step: Route) -> tuple[float, float]:
        """Send a pass that is ready at ``ready_s`` behind all others.

        Returns:
            When it leaves the first station, and when its result is back.
        """
        slack = self.free_s - step.offset_s
        if slack[0] < ready_s:
            slack[0] = ready_s
        np.maximum.accumulate(slack, out=slack)
        back_s = float(slack[-1]) + step.latency_s
        slack += step.offset_s
        slack += step.busy_s
        self.free_s = slack
        self.work_s += step.busy_s
        return float(slack[0]), back_s


def send(passes: tuple[Pass, ...]) -> tuple[float, Line]:
    """Passes through an empty line, each entering as soon as the one before has left the first station.

    Returns:
        When the last one's result is back, and the line. For ``m`` equal passes the time is the latency and ``m - 1``
        times the largest busy time.
    """
    routes = {step: route(step) for step in set(passes)}
    line = Line(len(passes[0].busy_s))
    back_s = 0.0
    for step in passes:
        back_s = line.enter(0.0, routes[step])[1]
    return back_s, line
