"""What must be placed: nodes of a graph with times, on machines that are held by what they compute and exchange.

The objective is that of Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators" (NeurIPS
2020), section 3, for throughput: with one pipeline stage on each machine, the largest load is the time between results.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes:
        times: on each kind of machine, in integer units of the problem's choice; ``None`` where it cannot run.
        bytes: kept on its machine.
        group: nodes of the same group share a machine.
        charge: what its value costs each charged machine that it leaves or enters, once, in units of time.
        backward: whether it belongs to the backward pass of a training graph.
    """

    times: tuple[int | None, ...]
    bytes: int
    group: int
    charge: int
    backward: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """``machines`` equal ones of ``bytes`` each (``None``: any), ``charged`` for values that cross their border."""

    name: str
    machines: int
    bytes: int | None
    charged: bool = True


@dataclass(frozen=True)
class DagProblem:
    """Nodes in topological order of ``edges`` (pairs of indices), for the machines of ``kinds``, numbered kind by kind.

    ``contiguous``: machines have an order along which values flow: those of the forward pass never go back in it, and
    those of the backward pass never go on. Without it, any machine may hold any nodes.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    kinds: tuple[Kind, ...]
    contiguous: bool

    @cached_property
    def kind_of(self) -> tuple[int, ...]:
        """For each machine the index of its kind."""
        return tuple(index for index, kind in enumerate(self.kinds) for _ in range(kind.machines))

    @property
    def machines(self) -> int:
        """Number of machines of all kinds."""
        return len(self.kind_of)


@dataclass(frozen=True, slots=True)
class Placement:
    """A machine for each node, or none where none was found or exists.

    Attributes:
        machines: for each node, an index into the problem's machines; empty if there is none.
        value: the largest load; ``bound`` is proven to be a lower bound of it, for any placement.
        status: ``optimal``, ``feasible``, ``infeasible`` or ``unknown``.
        proof: the arguments behind ``optimal`` or ``infeasible``, two of them, of different kinds.
    """

    machines: tuple[int, ...]
    value: int
    bound: int
    status: str
    proof: str
