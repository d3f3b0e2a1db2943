"""``waferc inspect``."""

from __future__ import annotations

import time
from dataclasses import asdict

from ir.model import BlockKind, Model
from partitioner.api import LoadOptions, lower
from partitioner.cli.output import Output, scaled
from partitioner.compile import build_model
from partitioner.figures import Figures, figures
from targets.host import peak_rss_bytes


def run_inspect(model: str, options: LoadOptions, out: Output) -> None:
    """Lower the model and report what it is."""
    begin = time.perf_counter()
    with out.progress() as progress:
        progress(f"reading {model}")
        lowered = lower(model, options)
        progress("finding blocks")
        built = build_model(lowered.graph)
    lower_s = time.perf_counter() - begin
    for note in lowered.notes:
        out.note(note)
    found = figures(built)
    if out.json:
        measured = {"lower_s": round(lower_s, 3), "peak_rss_bytes": peak_rss_bytes()}
        out.result({"model": lowered.graph.name, "max_context": lowered.max_context, **asdict(found), **measured})
        return
    _print_table(built)
    print(_summary(found))
    print(f"lowered in {lower_s:.1f} s, {peak_rss_bytes() / 1e6:,.0f} MB at most")


def _print_table(model: Model) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=model.graph.name, title_justify="left")
    table.add_column("blocks of kind")
    for name in ("number", "weights", "bytes", "multiply-adds per token", "KV bytes per token"):
        table.add_column(name, justify="right")
    for kind in BlockKind:
        blocks = model.of_kind(kind)
        if not blocks:
            continue
        weights = sum(model.graph.parameter[name].elements for block in blocks for name in block.parameters)
        table.add_row(
            kind.value,
            f"{len(blocks):,}",
            scaled(weights),
            f"{scaled(sum(block.weight_bytes for block in blocks))}B",
            scaled(sum(block.macs_per_token for block in blocks)),
            f"{sum(block.cache_bytes_per_token for block in blocks):,}",
        )
    Console().print(table)


def _summary(found: Figures) -> str:
    experts = (
        f", {found.moe_layers} of them with {found.experts_per_layer} experts, {found.active_experts} active"
        if found.moe_layers
        else ""
    )
    left_out = f"; {len(found.unplaced)} weights are read by no block" if found.unplaced else ""
    picture = f", {scaled(found.macs_per_picture)} for a picture" if found.macs_per_picture else ""
    return (
        f"{scaled(found.parameters)} parameters, {scaled(found.weight_bytes)}B; {found.layers} layers{experts}; "
        f"{_spans(found)}; {scaled(found.macs_per_token)} multiply-adds for a token{picture}{left_out}"
    )


def _spans(found: Figures) -> str:
    """Cache bytes of the layers, each distinct amount once."""
    kinds = sorted(set(zip(found.kv_bytes_per_token_per_layer, found.kv_windows, strict=True)))
    told = [f"{size:,}" + (f" (of the last {window:,} tokens)" if window else "") for size, window in kinds]
    return f"KV bytes per token and layer {' or '.join(told) or 'none'}"
