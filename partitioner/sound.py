"""Whether a plan that was read back is sound, files and all."""

from __future__ import annotations

from ir.diagnostics import CheckError, Diagnostic, UnsupportedModelError
from ir.model import Model
from ir.verify import verify
from partitioner.check import check
from partitioner.folder import PlanFolder
from partitioner.manifest import model_entry
from partitioner.passes.blocks import find_blocks


def require_sound(stored: PlanFolder) -> Model:
    """The model of a plan that passes every check.

    Raises:
        CheckError: with every fault of the files and of the plan.
    """
    try:
        model = find_blocks(verify(stored.graph), stored.manifest.model.granularity)
    except UnsupportedModelError as error:
        raise CheckError(*stored.faults, *error.diagnostics) from None
    manifest = stored.manifest
    faults = [*stored.faults, *check(stored.plan, model)]
    if manifest.model != model_entry(model.graph.name, model, manifest.model.notes):
        faults.append(Diagnostic("W0510", "the manifest's figures of the model are wrong", "manifest.json"))
    faults += [
        Diagnostic("W0510", "the number of experts is wrong", entry.name, {"stated": entry.experts})
        for entry, block in zip(manifest.blocks, stored.plan.blocks, strict=True)
        if entry.experts != len(block.experts)
    ]
    gaps = [entry.gap for entry in manifest.solver.scores]
    if gaps != [score.gap for score in stored.plan.solver.scores]:
        faults.append(Diagnostic("W0510", "the manifest's gap is wrong", "manifest.json"))
    if faults:
        raise CheckError(*faults)
    return model
