"""Reading the device-placement instances of Tarnawski et al. (NeurIPS 2020), and scoring an assignment of one.

The format: https://github.com/msr-fiddle/dnn-partitioning#input-format. ``maxSizePerFPGA`` in bytes, ``maxFPGAs``
accelerators, ``maxCPUs`` further devices without a limit or a charge; times and costs in any one unit.
:func:`score` works on the floats of the file alone and shares nothing with the solver.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from partitioner.solver.dag.problem import DagProblem, Kind, Node

WORK_BITS = 40
"""All times and charges of an instance add up to fewer units than two to this: values agree to 1e-9, sums are exact."""
MOST_DEVICES = 10_000
MOST_NODES = 20_000
"""A search names each of them, and keeps sets of them."""
MOST_BITS = 1000
"""No unit is finer than two to minus this."""
MOST_BYTES = 2.0**50
"""Sums of bytes up to this are exact, whatever the units."""
SAME_COST = 1e-6
"""Costs of edges out of one node that differ by less are the same, as for the authors' program."""


class InstanceError(ValueError):
    """A file that is no instance; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A node as the file has it, with ``cost`` of the edges out of it."""

    id: int
    accelerator_time: float
    cpu_time: float
    size_bytes: float
    supported: bool
    backward: bool
    color: int | str | None
    cost: float


@dataclass(frozen=True)
class Instance:
    """A graph and its devices; ``operators`` in topological order of ``edges`` (pairs of ids)."""

    operators: tuple[Operator, ...]
    edges: tuple[tuple[int, int], ...]
    accelerators: int
    cpus: int
    memory_bytes: float

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of devices, in the order of the problem's machines."""
        return (*(f"acc{i}" for i in range(self.accelerators)), *(f"cpu{i}" for i in range(self.cpus)))

    def with_devices(self, accelerators: int | None, memory_bytes: float | None) -> Instance:
        """The same graph with another number or size of accelerators; ``None`` leaves the file's.

        Raises:
            InstanceError: there are more devices than a search can name.
        """
        accelerators = self.accelerators if accelerators is None else accelerators
        if accelerators + self.cpus > MOST_DEVICES:
            raise InstanceError(f"there are more than {MOST_DEVICES:,} devices")
        return replace(
            self,
            accelerators=accelerators,
            memory_bytes=self.memory_bytes if memory_bytes is None else memory_bytes,
        )

    @property
    def units(self) -> float:
        """Integer units of the problem in one unit of the file's times: a power of two."""
        total = sum(o.accelerator_time + o.cpu_time + 2 * o.cost for o in self.operators)
        if not total:
            return 1.0
        # The solver gives each node that an accelerator cannot run a time longer than all others together.
        unsupported = sum(not operator.supported for operator in self.operators)
        precise = min(WORK_BITS, 50 - unsupported.bit_length())
        return math.ldexp(1.0, min(precise - math.frexp(total)[1], MOST_BITS))

    @property
    def byte_units(self) -> int:
        """Integer units of the problem in one byte: 1 where sizes are whole, else a power of two to make them so."""
        total = sum(operator.size_bytes for operator in self.operators)
        able = [bits for bits in (0, 8, 20) if total * 2**bits <= MOST_BYTES]
        whole = (bits for bits in able if all((o.size_bytes * 2**bits).is_integer() for o in self.operators))
        return int(2 ** next(whole, able[-1]))


def read_instance(path: Path) -> Instance:
    """Read and check one file. :class:`InstanceError` says what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InstanceError(f"cannot read it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InstanceError(f"is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise InstanceError("the top level must be an object")
    nodes = _objects(data, "nodes")
    if len(nodes) > MOST_NODES:
        raise InstanceError(f"it has {len(nodes):,} nodes; at most {MOST_NODES:,} are taken")
    ids = [_integer(node, "id", f"nodes[{index}]") for index, node in enumerate(nodes)]
    if len(set(ids)) != len(ids):
        raise InstanceError(f"id {next(i for i in ids if ids.count(i) > 1)} belongs to two nodes")
    edges, costs = _edges(data, set(ids))
    operators = {i: _operator(node, i, costs.get(i, 0.0)) for i, node in zip(ids, nodes, strict=True)}
    _check_totals(operators.values())
    return Instance(
        tuple(operators[i] for i in _topological(ids, edges)),
        edges,
        _integer(data, "maxFPGAs", "the top level", least=0),
        _integer(data, "maxCPUs", "the top level", least=0),
        _number(data, "maxSizePerFPGA", "the top level"),
    )


def _objects(data: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    found = _field(data, field, "the top level")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InstanceError(f"{field} must be a list of objects")
    return found


def _field(data: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in data:
        raise InstanceError(f"{where} has no {field}")
    return data[field]


def _integer(data: Mapping[str, Any], field: str, where: str, least: int | None = None) -> int:
    found = _field(data, field, where)
    if isinstance(found, bool) or not isinstance(found, int) or (least is not None and found < least):
        raise InstanceError(
            f"{field} of {where} must be {'an' if least is None else 'a non-negative'} integer: {found!r}"
        )
    return found


def _number(data: Mapping[str, Any], field: str, where: str) -> float:
    found = _field(data, field, where)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InstanceError(f"{field} of {where} must be a number: {found!r}")
    try:
        number = float(found)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise InstanceError(f"{field} of {where} must be finite and not negative: {number!r}")
    return number


def _flag(data: Mapping[str, Any], field: str, where: str) -> bool:
    found = _field(data, field, where)
    if found not in (0, 1):
        raise InstanceError(f"{field} of {where} must be true or false: {found!r}")
    return bool(found)


def _operator(node: Mapping[str, Any], number: int, cost: float) -> Operator:
    where = f"node {number}"
    color = node.get("colorClass")
    if isinstance(color, bool) or not isinstance(color, int | str | None):
        raise InstanceError(f"colorClass of {where} must be an integer: {color!r}")
    return Operator(
        number,
        _number(node, "fpgaLatency", where),
        _number(node, "cpuLatency", where),
        _number(node, "size", where),
        _flag(node, "supportedOnFpga", where),
        _flag(node, "isBackwardNode", where),
        color,
        cost,
    )


def _check_totals(operators: Iterable[Operator]) -> None:
    """Sums must stay numbers that floats can tell apart."""
    listed = list(operators)
    if not math.isfinite(sum(o.accelerator_time + o.cpu_time + 2 * o.cost for o in listed)):
        raise InstanceError("its times and costs add up to more than a number can hold")
    if sum(o.size_bytes for o in listed) > MOST_BYTES:
        raise InstanceError(f"its sizes add up to more than {MOST_BYTES:.0f} bytes")


def _edges(data: Mapping[str, Any], ids: set[int]) -> tuple[tuple[tuple[int, int], ...], dict[int, float]]:
    """Pairs of ids, each once and none to itself, and the cost of each source."""
    costs: dict[int, float] = {}
    pairs: dict[tuple[int, int], None] = {}
    for index, edge in enumerate(_objects(data, "edges")):
        where = f"edges[{index}]"
        source, target = _integer(edge, "sourceId", where), _integer(edge, "destId", where)
        cost = _number(edge, "cost", where)
        for end in (source, target):
            if end not in ids:
                raise InstanceError(f"{where} names node {end}, which there is none of")
        if abs(costs.setdefault(source, cost) - cost) > SAME_COST:
            raise InstanceError(
                f"edges out of node {source} cost {costs[source]!r} and {cost!r}; they must cost the same"
            )
        pairs[source, target] = None
    return tuple(pairs), costs


def _topological(ids: Iterable[int], edges: Iterable[tuple[int, int]]) -> list[int]:
    """The ids in an order that follows all edges (Kahn's algorithm), by the order of the file."""
    entering = dict.fromkeys(ids, 0)
    leaving: dict[int, list[int]] = defaultdict(list)
    for source, target in edges:
        entering[target] += 1
        leaving[source].append(target)
    order = [i for i, count in entering.items() if not count]
    for i in order:
        for target in leaving[i]:
            entering[target] -= 1
            if not entering[target]:
                order.append(target)
    if len(order) < len(entering):
        raise InstanceError(f"its edges have a cycle, through node {min(set(entering) - set(order))} or before it")
    return order


def to_problem(instance: Instance, *, contiguous: bool) -> DagProblem:
    """The instance in integers: times in :attr:`Instance.units`, bytes rounded up and limits down."""
    units, byte_units = instance.units, instance.byte_units
    number = {operator.id: index for index, operator in enumerate(instance.operators)}
    colors: dict[int | str, int] = {}
    nodes = []
    for index, operator in enumerate(instance.operators):
        group = index if operator.color is None else colors.setdefault(operator.color, index)
        nodes.append(
            Node(
                times=(
                    round(operator.accelerator_time * units) if operator.supported else None,
                    round(operator.cpu_time * units),
                ),
                bytes=math.ceil(operator.size_bytes * byte_units),
                group=group,
                charge=round(operator.cost * units),
                backward=operator.backward,
            )
        )
    kinds = (
        Kind(
            "accelerator",
            instance.accelerators,
            math.floor(instance.memory_bytes) * byte_units
            + math.floor(math.fmod(instance.memory_bytes, 1.0) * byte_units),
        ),
        Kind("cpu", instance.cpus, None, charged=False),
    )
    edges = tuple((number[source], number[target]) for source, target in instance.edges)
    return DagProblem(tuple(nodes), edges, kinds, contiguous)


@dataclass(frozen=True, slots=True)
class Score:
    """The load of each device, in the file's unit of time, and a sentence for each rule that is broken."""

    loads: dict[str, float]
    broken: tuple[str, ...]

    @property
    def objective(self) -> float:
        """The largest load."""
        return max(self.loads.values(), default=0.0)


def score(instance: Instance, assignment: Mapping[int, str], *, contiguous: bool) -> Score:
    """Loads and broken rules of an assignment of node ids to devices, from the file's floats alone."""
    missing = [o.id for o in instance.operators if assignment.get(o.id) not in instance.devices]
    if missing:
        return Score({}, (f"node {missing[0]} has no device",))
    terms: dict[str, list[float]] = {device: [] for device in instance.devices}
    sizes: dict[str, list[float]] = {device: [] for device in instance.devices}
    crossing: dict[str, set[int]] = {device: set() for device in instance.devices}
    for source, target in instance.edges:
        ends = {assignment[source], assignment[target]}
        for device in ends if len(ends) == 2 else ():
            crossing[device].add(source)
    for operator in instance.operators:
        device = assignment[operator.id]
        terms[device].append(operator.cpu_time if device.startswith("cpu") else operator.accelerator_time)
        sizes[device].append(operator.size_bytes)
    costs = {operator.id: operator.cost for operator in instance.operators}
    for device, sources in crossing.items():
        if device.startswith("acc"):
            terms[device].extend(costs[source] for source in sorted(sources))
    broken = [
        *_rules_broken(instance, assignment, sizes),
        *(_leaves_and_returns(instance, assignment) if contiguous else ()),
    ]
    return Score({device: math.fsum(terms[device]) for device in instance.devices}, tuple(broken))


def _rules_broken(instance: Instance, assignment: Mapping[int, str], sizes: Mapping[str, list[float]]) -> Iterable[str]:
    for device in instance.devices:
        held = math.fsum(sizes[device])
        if device.startswith("acc") and held > instance.memory_bytes:
            yield f"{device} holds {held:,.0f} bytes of {instance.memory_bytes:,.0f}"
    colors: dict[int | str, str] = {}
    for operator in instance.operators:
        device = assignment[operator.id]
        if not operator.supported and device.startswith("acc"):
            yield f"node {operator.id} cannot run on {device}"
        if operator.color is not None and colors.setdefault(operator.color, device) != device:
            yield f"node {operator.id} is not on {colors[operator.color]} with its color class {operator.color}"


def _leaves_and_returns(instance: Instance, assignment: Mapping[int, str]) -> Iterable[str]:
    """Devices that a path leaves and comes back to, within the forward or within the backward pass."""
    backward = {operator.id: operator.backward for operator in instance.operators}
    leaving: dict[int, list[int]] = defaultdict(list)
    for source, target in instance.edges:
        if backward[source] == backward[target]:
            leaving[source].append(target)
    left: dict[int, set[str]] = defaultdict(set)  # devices that some path to the node has left
    for operator in instance.operators:
        device = assignment[operator.id]
        if device in left[operator.id]:
            yield f"a path leaves {device} and comes back to it at node {operator.id}"
        for target in leaving[operator.id]:
            left[target] |= left[operator.id]
            if assignment[target] != device:
                left[target].add(device)
