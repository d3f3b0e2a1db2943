"""Collectives between devices, alpha-beta: a latency, and bytes over a link.

Inside a node the latency is one measured for the collective as a whole; between nodes a tree of messages adds its
depth. Bytes are a ring's, 2 (p - 1) / p of the payload for a device (Thakur et al., 2005), first inside of nodes.
"""

from __future__ import annotations

import math

from ir.target import DeviceCluster


def all_reduce_s(cluster: DeviceCluster, devices: int, payload_bytes: float) -> float:
    """Seconds to sum ``payload_bytes`` over ``devices`` neighbours, for all of them."""
    return _ring_s(cluster, devices, payload_bytes, 2)


def all_gather_s(cluster: DeviceCluster, devices: int, payload_bytes: float) -> float:
    """Seconds until ``devices`` neighbours all have ``payload_bytes``, of which each held its share."""
    return _ring_s(cluster, devices, payload_bytes, 1)


def _ring_s(cluster: DeviceCluster, devices: int, payload_bytes: float, rounds: int) -> float:
    nodes, near = _spread(cluster, devices)
    seconds = 0.0
    if near > 1:
        seconds += cluster.link_latency_s + rounds * (near - 1) / near * payload_bytes / cluster.link_bytes_per_s
    if nodes > 1:
        sent_bytes = rounds * (nodes - 1) / nodes * payload_bytes / near
        seconds += cluster.network_latency_s * math.ceil(math.log2(nodes)) + sent_bytes / cluster.network_bytes_per_s
    return seconds


def all_to_all_s(cluster: DeviceCluster, groups: int, group_devices: int, sent_bytes: float) -> float:
    """Seconds for a device of each of ``groups`` groups to send ``sent_bytes``, spread evenly over the other groups."""
    if groups <= 1:
        return 0.0
    near = min(groups, max(1, cluster.devices // group_devices))
    far_share = (groups - near) / (groups - 1)
    seconds = 0.0
    if far_share < 1:
        seconds += cluster.link_latency_s + (1 - far_share) * sent_bytes / cluster.link_bytes_per_s
    if far_share > 0:
        seconds += cluster.network_latency_s + far_share * sent_bytes / cluster.network_bytes_per_s
    return seconds


def send_s(cluster: DeviceCluster, payload_bytes: float, *, far: bool) -> float:
    """Seconds to send ``payload_bytes`` from one device to another, of another node where ``far``."""
    if far:
        return cluster.network_latency_s + payload_bytes / cluster.network_bytes_per_s
    return cluster.link_latency_s + payload_bytes / cluster.link_bytes_per_s


def _spread(cluster: DeviceCluster, devices: int) -> tuple[int, int]:
    """Over how many nodes ``devices`` neighbours spread, and how many of them share one."""
    return -(-devices // cluster.devices), min(devices, cluster.devices)
