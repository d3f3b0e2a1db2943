"""What forecasts were held against: outside of it they are first principles alone, and say so."""

from __future__ import annotations

from collections.abc import Iterator

from ir.profile import Attention, Product, Profile
from ir.target import LayerRegions, Target, Wafers
from targets.machines import load_target

_PARAMETERS = (8.0e9, 72.8e9)
_MOST_CONTEXT = 8192
_MESH_SIDES = (420, 720)
_MACHINES = ("cs2", "cs3")
"""Whose published speeds forecasts were compared with."""


def outside(profile: Profile, target: Target, context: int, users: int, *, is_speculative: bool) -> Iterator[str]:
    """In which ways a forecast lies outside of the measurements that it was compared with, docs/forecast.md."""
    strange = [*_strange_model(profile), *_strange_machine(target)]
    if context > _MOST_CONTEXT:
        strange.append(f"a context of {context:,} tokens (compared: to {_MOST_CONTEXT:,})")
    if users > 1:
        strange.append(f"{users:,} users (compared: one)")
    if is_speculative:
        strange.append("speculative decoding (compared: published speeds of unknown acceptance)")
    if strange:
        yield f"outside of what was validated: {'; '.join(strange)}"
    speed = target.cluster.speed if isinstance(target.cluster, Wafers) else None
    if speed is not None and speed.layers is LayerRegions.OWN_TILES:
        yield "no published time of a prompt through layers on tiles of their own is known to compare with"
    if users > 1:
        yield "the first token is told without waiting for other users; on wafers --simulate plays that out"
    if any(not block.takes_tokens for block in profile.blocks):
        yield "what does not take tokens, such as a vision tower, takes memory here but no time"


def _strange_model(profile: Profile) -> Iterator[str]:
    low, high = _PARAMETERS
    if not low <= profile.parameters <= high:
        yield f"{profile.parameters / 1e9:,.1f} B parameters (compared: {low / 1e9:g} to {high / 1e9:g} B)"
    kernels = {kernel for block in profile.blocks for kernel in block.kernels}
    products = [kernel for kernel in kernels if isinstance(kernel, Product)]
    if any(product.experts for product in products):
        yield "routed experts"
    if any(product.weight_bits < 16 for product in products):
        yield f"weights of {min(product.weight_bits for product in products)} bit"
    if any(isinstance(kernel, Attention) and kernel.key_width != kernel.value_width for kernel in kernels):
        yield "latent attention"


def _strange_machine(target: Target) -> Iterator[str]:
    if not isinstance(target.cluster, Wafers):
        yield "GPUs and LPUs (docs/devices.md tells how far published points are off)"
        return
    if target.cluster.speed is None:
        return
    machine = target.cluster.machine
    known = [load_target(name) for name in _MACHINES]
    for name, figure in target.figures.items():
        bounds = [other.figures[name] for other in known if name in other.figures]
        if name.startswith(_SIZES) or not bounds:
            continue
        low, high = min(f.low for f in bounds), max(f.high for f in bounds)
        if not low <= figure.value <= high:
            yield f"{name} = {figure.value:g} (compared: {low:g} to {high:g})"
    low, high = _MESH_SIDES
    is_whole = target.cluster.speed.layers is LayerRegions.WHOLE_MESH
    if is_whole and not low <= min(machine.rows, machine.columns) <= max(machine.rows, machine.columns) <= high:
        yield f"layers on a mesh of {machine.columns} x {machine.rows} (compared: {low} to {high} a side)"
    own = known[-1].cluster
    if not is_whole and isinstance(own, Wafers) and machine.tiles != own.machine.tiles:
        yield f"a wafer of {machine.tiles:,} tiles (compared: {own.machine.tiles:,})"


_SIZES = ("mesh.", "cluster.systems", "cluster.usd", "stated.")
"""Figures that are told in other words, or that no speed depends on."""
