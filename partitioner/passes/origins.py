"""Reading module paths: which repeated layer a node stands in, and which part of it."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(.+?\.\d+)(?:\.|$)(.*)")


def layer_of(origin: str) -> tuple[str, str]:
    """The layer's path and the rest: ``model.layers.17.mlp.gate`` gives ``model.layers.17`` and ``mlp.gate``.

    ONNX node names use slashes for dots. Outside numbered layers the first part is empty.
    """
    path = origin.strip("/").replace("/", ".")
    match = _LAYER.match(path)
    return (match[1], match[2]) if match else ("", path)
