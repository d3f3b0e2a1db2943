"""Running plans: on emulated tiles, as the original runs, and the one held against the other.

How a run is set up (:mod:`~partitioner.running.setup`), what it is given (``inputs``), what it yields (``runs``), how
that compares with the original (``compare``, ``verify``), and how it is told (``record``).
"""
