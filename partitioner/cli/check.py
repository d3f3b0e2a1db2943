"""``waferc check``."""

from __future__ import annotations

from pathlib import Path

from partitioner.cli.devices import run_check_devices
from partitioner.cli.output import Output
from partitioner.device_folder import is_device_plan
from partitioner.folder import read_plan
from partitioner.sound import require_sound


def run_check(folder: Path, out: Output) -> None:
    """Check the plan in ``folder`` and say what was found.

    Raises:
        CheckError: with every fault.
    """
    if is_device_plan(folder):
        run_check_devices(folder, out)
        return
    with out.progress() as progress:
        progress("reading the plan")
        stored = read_plan(folder)
        progress("deriving it again")
        require_sound(stored)
    plan = stored.plan
    experts = sum(len(block.experts) for block in plan.blocks)
    if out.json:
        out.result({"ok": True, "diagnostics": [], "blocks": len(plan.blocks), "experts": experts})
    else:
        print(
            f"sound: {len(plan.blocks)} blocks and {experts:,} experts on {len(plan.wafers_used)} wafers, "
            f"every weight placed, no tile over its memory, {len(plan.transfers)} transfers as the graph needs them"
        )
