"""``waferc view``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ir.diagnostics import CheckError
from ir.plan import Plan
from partitioner.cli.devices import run_view_devices
from partitioner.cli.output import Output
from partitioner.device_folder import is_device_plan
from partitioner.folder import REPORT, read_plan


def run_view(folder: Path, out: Output, *, open_page: bool) -> None:
    """Show the plan in ``folder``.

    Raises:
        UsageError: W0106, no plan there.
        CheckError: its files are damaged.
    """
    if is_device_plan(folder):
        run_view_devices(folder, out)
        return
    stored = read_plan(folder)
    if stored.faults:
        raise CheckError(*stored.faults)
    plan = stored.plan
    page = (folder / REPORT).resolve()
    if out.json:
        wafers = [_wafer(plan, wafer) for wafer in range(plan.machine.systems)]
        out.result({"page": str(page), "pipeline": plan.wafers_used, "wafers": wafers})
    else:
        from partitioner.cli.table import print_plan

        print_plan(plan)
        print(f"page: {page}")
    if open_page:
        import webbrowser

        webbrowser.open(page.as_uri())


def _wafer(plan: Plan, wafer: int) -> dict[str, Any]:
    blocks = plan.on_wafer(wafer)
    return {
        "wafer": wafer,
        "layers": sorted({block.layer for block in blocks if block.layer is not None}),
        "blocks": [block.title for block in blocks],
        "weight_bytes": sum(block.weight_bytes for block in blocks),
        "kv_bytes": sum(block.cache_bytes for block in blocks),
        "activation_bytes": sum(block.activation_bytes for block in blocks),
        "free_bytes": plan.machine.bytes_of(wafer) - plan.wafer_bytes(wafer),
        "tiles_used": sum(block.region.tiles for block in blocks),
        "tiles": plan.machine.wafer(wafer).tiles,
        "in_service": plan.machine.wafer(wafer).in_service,
        "slowness_permille": plan.machine.wafer(wafer).slowness_permille,
    }
