"""Which wafer holds what: exact answers for chains, CP-SAT for the rest, and a second argument for each claim."""
