"""``waferc verify``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ir.diagnostics import CheckError
from partitioner.cli.output import Output
from partitioner.running.inputs import Prompts, read_arrays
from partitioner.running.setup import How, Opened, open_plan
from partitioner.running.verify import Place, Verification, require_same, verify_plan
from targets.host import peak_rss_bytes

_WIDTH = 20


def verify(
    folder: Path,
    prompts: Prompts,
    inputs: Path | None,
    tokens: int,
    reference: str,
    how: How,
    out: Output,
    *,
    trust_code: bool = False,
) -> None:
    """Run plan and original side by side, and tell the error of every layer.

    Raises:
        UsageError: as for ``waferc run``.
        CheckError: the plan is unsound.
        SystemExit: 6 after W0663, the run differs from the original.
    """
    begin = time.perf_counter()
    with out.progress() as progress:
        progress("checking the plan")
        opened = Opened(open_plan(folder, trust_code=trust_code), how)
        progress("running plan and original")
        arrays = None if inputs is None else read_arrays(inputs)
        found = verify_plan(opened, reference, prompts=prompts, inputs=arrays, tokens=tokens)
    record = _record(found, opened) | {
        "peak_rss_bytes": peak_rss_bytes(),
        "wall_s": round(time.perf_counter() - begin, 3),
    }
    if not out.json:
        _print(found, record)
    try:
        require_same(found, opened.runnable.model.graph.name)
    except CheckError as error:
        out.failed(record, error)
    if out.json:
        out.result(record)


def _record(found: Verification, opened: Opened) -> dict[str, Any]:
    rows = (*found.places, *found.outputs)
    text: dict[str, Any] = {}
    if found.texts:
        text = {
            "prompt_ids": [list(ids) for ids in found.prompts],
            "tokens": [list(ids) for ids in found.tokens],
            "reference_tokens": [list(it.tokens) for it in found.texts],
            "tokens_equal": all(it.tokens == ids for it, ids in zip(found.texts, found.tokens, strict=True)),
            "max_abs_logit_error": max(it.max_abs_logit_error for it in found.texts),
        }
    return {
        "ok": found.ok,
        "reference": found.reference,
        "precision": opened.how.precision,
        "max_abs_error": max(row.error for row in rows),
        **text,
        "layers": [_row(place) for place in found.places],
        "outputs": [_row(place) for place in found.outputs],
        "unseen_layers": list(found.unseen),
        "first_wrong": None if found.first_wrong is None else found.first_wrong.layer,
        "weights": opened.weights.note,
    }


def _row(place: Place) -> dict[str, Any]:
    return {**asdict(place), "ok": place.ok}


def _print(found: Verification, record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"beside {found.reference}, {record['precision']}", title_justify="left")
    for heading, side in (("layer", "left"), ("wafer", "right"), ("error", "right"), ("allowed", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    table.add_column("share of what is allowed")
    for place in (*found.places, *found.outputs):
        share = place.error / place.tolerance if place.tolerance else float(place.error > 0)
        bar = "#" * min(_WIDTH, round(share * _WIDTH)) + ("" if place.ok else " wrong")
        table.add_row(place.layer, str(place.wafer), f"{place.error:.2e}", f"{place.tolerance:.2e}", bar)
    Console().print(table)
    if found.unseen:
        print(f"not shown by the reference: {', '.join(found.unseen)}")
    if found.texts:
        verdict = "all the original's" if record["tokens_equal"] else "not all the original's"
        print(f"{sum(map(len, found.tokens))} tokens, {verdict}")
    print("the same as the original" if found.ok else "not the same as the original")
