"""Proofs of what the search over chains finds: its own word, and a certificate that was checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ir.objective import Objective
from partitioner.solver.certificates import OUT_OF_REACH, Array, Claim, Potentials, no_placement, no_shortcut
from partitioner.solver.costs import shared_out
from partitioner.solver.counting import Kept, counted_out, counting_bound
from partitioner.solver.cuts import Table, is_feasible_work, solve
from partitioner.solver.problem import Wafer
from partitioner.solver.runs import Chain, Thresholds, furthest
from partitioner.solver.score import MOST_USERS

_SEARCH = "exact parametric search"
_TABLE = "shortest path over cuts"
_POTENTIALS = "verified potentials"


def proves_anything(chain: Chain) -> bool:
    """Whether contiguous runs are all placements that there are, and the search leaves none out."""
    return chain.exact and not chain.cautious and chain.problem.is_chain and chain.problem.is_plain


def proof_of_threshold(
    chain: Chain,
    objective: Objective,
    value: int,
    thresholds: Thresholds,
    sums: Sequence[Objective],
    kept: Kept,
) -> str:
    """Why no placement within ``thresholds``, of those that reach ``kept``, has a better value of ``objective``.

    ``sums``: those of ``kept`` that add up over runs, in order.
    """
    if not proves_anything(chain):
        return ""
    if objective is Objective.ROOM and value == MOST_USERS:
        return f"{_SEARCH} and the most that is counted"
    if counting_bound(chain.problem, objective, kept) == value:
        return f"{_SEARCH} and counting bound"
    better = replace(thresholds, **{objective.value: value + 1 if objective.is_maximum else value - 1})
    if windows := _windows(chain, better):
        return f"{_SEARCH} and {windows}"
    if not sums or not is_feasible_work(chain, better):
        return ""
    table = solve(chain, sums, better)
    least = tuple(kept[earlier] for earlier in sums)
    beyond = (*least[:-1], least[-1] + 1)
    return f"{_TABLE} and {_POTENTIALS}" if table and _certified(chain, table, sums, beyond) else ""


def proof_of_sum(chain: Chain, table: Table, sums: Sequence[Objective], kept: Kept) -> str:
    """Why no placement has less of the last of ``sums`` than the table, of those that reach ``kept``."""
    if not proves_anything(chain):
        return ""
    if counting_bound(chain.problem, sums[-1], kept) == table.least[-1]:
        return f"{_TABLE} and counting bound"
    return f"{_TABLE} and {_POTENTIALS}" if _certified(chain, table, sums, table.least) else ""


def why_nothing_fits(chain: Chain) -> str:
    """Two arguments that there is no placement; empty if there are fewer."""
    if not chain.count or not chain.problem.wafers:
        return ""
    found = [*counted_out(chain.problem)]
    if proves_no_placement(chain):
        found.append("exact search over contiguous placements")
        if windows := _windows(chain, Thresholds(len(chain.problem.wafers))):
            found.append(windows)
    return " and ".join(found) if len(found) > 1 else ""


def proves_no_placement(chain: Chain) -> bool:
    """Whether the search says that there is no placement: rules of the user could only forbid more."""
    if not (chain.problem.is_chain and chain.exact and not chain.cautious):
        return False
    everything = Thresholds(len(chain.problem.wafers))
    return max(furthest(chain.wafers, chain.reach(everything), everything.machines)) < chain.count


def _windows(chain: Chain, thresholds: Thresholds) -> str:
    """What shows that there is no placement within ``thresholds``; empty if nothing does."""
    reached = furthest(chain.wafers, chain.reach(thresholds), thresholds.machines)
    claim = Claim(chain.problem, thresholds, chain.wafers.kinds)
    found = no_placement(claim, dict(zip(chain.wafers.states, reached, strict=False)))
    return (
        f"{found} windows that no wafer can hold" if found > 1 else "a window that no wafer can hold" if found else ""
    )


def _certified(chain: Chain, table: Table, sums: Sequence[Objective], least: tuple[int, ...]) -> bool:
    """Whether the table's own sums, as potentials, prove that no placement within its thresholds has less."""
    stops, at = table.bands.stops, {}
    for number, (state, low) in enumerate(zip(chain.wafers.states, table.low, strict=False)):
        potentials = np.full((len(sums), chain.count + 1), OUT_OF_REACH)
        potentials[:, stops] = table.sums[:, number]
        potentials[:, stops[:low]] = -OUT_OF_REACH
        at[state] = potentials
    reach = [kind.tolist() for kind in chain.reach(table.thresholds)]
    claim = Claim(chain.problem, table.thresholds, chain.wafers.kinds, tuple(sums), least)

    def witness(kind: Wafer, starts: Array, ends: Array) -> Array:
        return shared_out(chain, kind, starts, ends).prices

    return no_shortcut(claim, Potentials(at, reach), witness)
