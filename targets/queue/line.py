"""Stations in a line as a max-plus recursion, all stations at once.

A pass enters a station when it has got there and the pass before it has left. Passes never overtake each other, so
whoever enters the first station earlier is earlier everywhere, and all that happens to a pass is known when it enters:

    enter(pass, station) = max(enter(pass, station - 1) + way, enter(previous pass, station) + busy(previous, station))

(Baccelli, Cohen, Olsder and Quadrat, Synchronization and Linearity, 1992, chapter 1). Subtracting each station's
distance from the first turns the recursion along the line into a running maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """See :func:`routes`."""
    return routes((step,))[0]


def routes(steps: Sequence[Pass]) -> tuple[Route, ...]:
    """Spread each pass's latency over its stations in proportion to their busy times.

    Where stations work side by side the latency is shorter than their sum; then a station is entered early enough to
    be done when the result is back, so a user never waits for the own pass before.
    """
    latency_s = np.array([[step.latency_s] for step in steps])
    busy_s = np.array([step.busy_s for step in steps])
    done_s = np.cumsum(busy_s, axis=1)
    scale = latency_s / np.where(done_s[:, -1:] > 0, done_s[:, -1:], 1.0)
    latest_s = np.minimum((done_s - busy_s) * scale, latency_s - busy_s)
    offset_s = np.minimum.accumulate(latest_s[:, ::-1], axis=1)[:, ::-1]
    return tuple(Route(step.latency_s, *rows) for step, *rows in zip(steps, offset_s, busy_s, strict=True))


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


@dataclass(frozen=True, slots=True, eq=False)
class Convoy:
    """Passes that went through an empty line, each entering as soon as the one before had left the first station.

    Attributes:
        back_s: when the last one's result is back. For ``m`` equal passes this is the latency and ``m - 1`` times the
            largest busy time.
        left_s: when each has left the first station, that is, when the next one enters.
        open_s: for each, when a pass like the follower may enter behind it, so as not to catch up with it anywhere.
        work_s: how long each station served.
    """

    back_s: float
    left_s: tuple[float, ...]
    open_s: tuple[float, ...]
    work_s: Times


def send(passes: tuple[Pass, ...], follower: Pass) -> Convoy:
    """Send passes through an empty line."""
    *ahead, behind = routes((*passes, follower))
    line = Line(len(follower.busy_s))
    left, opens, back_s = [], [], 0.0
    for each in ahead:
        left_s, back_s = line.enter(0.0, each)
        left.append(left_s)
        opens.append(float((line.free_s - behind.offset_s).max()))
    return Convoy(back_s, tuple(left), tuple(opens), line.work_s)
