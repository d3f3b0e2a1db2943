"""What forecasts were held against: outside of it they are first principles alone, and say so."""

from __future__ import annotations

from collections.abc import Iterator

from ir.profile import Attention, Product, Profile
from ir.target import LayerRegions, Target, Wafers

_PARAMETERS = (8.0e9, 72.8e9)
_MOST_CONTEXT = 8192
_MESH_SIDES = (420, 720)


def outside(profile: Profile, target: Target, context: int, speculative: bool) -> Iterator[str]:
    """In which ways a forecast lies outside of the measurements that it was compared with, docs/forecast.md."""
    strange = [*_strange_model(profile), *_strange_machine(target)]
    if context > _MOST_CONTEXT:
        strange.append(f"a context of {context:,} tokens (compared: to {_MOST_CONTEXT:,})")
    if speculative:
        strange.append("speculative decoding (compared: published speeds of unknown acceptance)")
    if strange:
        yield f"outside of what was validated: {'; '.join(strange)}"


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
    if not isinstance(target.cluster, Wafers) or target.cluster.speed is None:
        return
    machine = target.cluster.machine
    low, high = _MESH_SIDES
    if target.cluster.speed.layers is LayerRegions.WHOLE_MESH and not (
        low <= min(machine.rows, machine.columns) and max(machine.rows, machine.columns) <= high
    ):
        yield f"layers on a mesh of {machine.columns} x {machine.rows} (compared: {low} to {high} a side)"
