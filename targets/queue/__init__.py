"""Users in a pipeline of stations: what each gets, by formula (:func:`serve`) and by simulation (:func:`simulate`)."""

from targets.queue.serve import Alone, Service, alone, serve
from targets.queue.simulate import Served, Simulated, Spread, simulate
from targets.queue.work import Job, Pass, Request

__all__ = [
    "Alone",
    "Job",
    "Pass",
    "Request",
    "Served",
    "Service",
    "Simulated",
    "Spread",
    "alone",
    "serve",
    "simulate",
]
