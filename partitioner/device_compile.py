"""The compiler for clusters of devices: from a lowered graph to a checked plan.

build_model       simplify, verify, find_blocks    blocks with bytes and caches
profile_of        kernels and their sizes          what a forecast needs
choose_parallel   every layout that fits           the one with the fastest token for each user
make_device_plan  what every rank holds
check_devices     every byte counted again
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ir.device_plan import DevicePlan
from ir.diagnostics import CheckError
from ir.model import Model
from ir.profile import Profile
from partitioner.api import Request, workload_of
from partitioner.check_devices import check_devices
from partitioner.compile import build_model
from partitioner.device_folder import write_device_plan
from partitioner.device_plan import make_device_plan
from partitioner.frontends.lowered import Lowered
from partitioner.passes.profile import profile_of
from partitioner.placing import Progress
from targets.machines import load_devices
from targets.parallel import Choice, choose_parallel


@dataclass(frozen=True, slots=True)
class CompiledForDevices:
    """A plan that passed its check, the model that it places, and the layouts that it was chosen from."""

    lowered: Lowered
    plan: DevicePlan
    model: Model
    profile: Profile
    choice: Choice

    def save(self, folder: Path) -> None:
        """Write the plan's folder.

        Raises:
            UsageError: W0105, it cannot be written.
        """
        write_device_plan(folder, self.plan, self.model, self.lowered)


def compile_for_devices(
    lowered: Lowered, request: Request, progress: Progress = lambda _step: None
) -> CompiledForDevices:
    """Place a lowered model on the cluster of devices that ``request`` names.

    Raises:
        UsageError: W0107, the context is longer than the model's; W0110 or W0111, the machine; W0113, it is no cluster
            of devices.
        InfeasibleError: W0701, no layout holds the model and its users.
    """
    cluster = load_devices(request.target, request.systems, request.reserve_bytes)
    workload = workload_of(lowered, request)
    progress("finding blocks")
    model = build_model(lowered.graph)
    profile = profile_of(model, lowered.max_context)
    progress(f"comparing layouts on {cluster.nodes} x {cluster.devices} devices")
    choice = choose_parallel(profile, cluster, workload)
    plan = make_device_plan(profile, cluster, workload, choice.fastest)
    progress("checking the plan")
    faults = check_devices(plan, model)
    if faults:
        raise CheckError(*faults)
    return CompiledForDevices(lowered, plan, model, profile, choice)
