"""Users who take turns at the copies of blocks: user u is served by copy u mod n of each block that has n.

Users whose numbers leave the same remainder by the least common multiple of all n meet the same copies of all blocks.
They are one turn: a plan without copies.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from math import lcm

from ir.model import Model
from ir.plan import Plan


def plans_of_turns(model: Model, plan: Plan) -> tuple[Plan, ...]:
    """What of ``plan`` each turn meets, by its number: as many as users can tell apart, and all copies in them."""
    copies = plan.copies
    counts = [len(own) for own in copies.values()]
    if max(counts, default=1) == 1:
        return (plan,)
    readers: defaultdict[str, set[str]] = defaultdict(set)
    for edge in model.edges:
        readers[edge.value].add(model.blocks[edge.target].name)
    return tuple(_turn(plan, readers, turn) for turn in range(max(*counts, min(lcm(*counts), plan.workload.users))))


def _turn(plan: Plan, readers: defaultdict[str, set[str]], turn: int) -> Plan:
    placed = {name: own[turn % len(own)] for name, own in plan.copies.items()}
    transfers = (
        transfer
        for transfer in plan.transfers
        if transfer.source in placed
        and placed[transfer.source].wafer == transfer.source_wafer
        and any(placed[name].wafer == transfer.target_wafer for name in readers[transfer.value] & placed.keys())
    )
    blocks = tuple(block for block in plan.blocks if placed[block.name] is block)
    return replace(plan, blocks=blocks, transfers=tuple(transfers))
