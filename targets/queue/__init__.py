"""Users in a pipeline of stations: what each gets, by formula (:func:`serve`) and by simulation (:func:`simulate`)."""

from targets.queue.serve import Service, curve, most_users, serve
from targets.queue.simulate import Served, Simulated, Spread, simulate
from targets.queue.work import Job, Pass, Request, prompt_chunks

__all__ = [
    "Job",
    "Pass",
    "Request",
    "Served",
    "Service",
    "Simulated",
    "Spread",
    "curve",
    "most_users",
    "prompt_chunks",
    "serve",
    "simulate",
]
