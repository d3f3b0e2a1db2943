"""Which module of the exported model each node of an ONNX file stands in.

Exporters tell it in two ways: the one built on ``torch.export`` as metadata of each node
(``pkg.torch.onnx.name_scopes``: the paths of the modules around it and its own name), the older TorchScript one as a
node's name, a path with slashes whose last part is the operator. Nodes that an optimiser added stand where what they
compute is read first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SCOPES, _NAMESPACE = "pkg.torch.onnx.name_scopes", "namespace"
_MOST_CHARACTERS = 1 << 14
_QUOTED = re.compile(r"'([^']*)'")
_PATH = re.compile(r"[A-Za-z0-9_.\-]*")


def module_paths(nodes: Sequence[Any]) -> dict[str, str]:
    """The path of its module, with dots, for each node by its first output; none where the file tells of no modules."""
    own = [_own_path(node) for node in nodes]
    if all(path is None for path in own):
        return {}
    home: dict[str, str] = {}
    reader: dict[str, str] = {}
    for node, path in reversed(list(zip(nodes, own, strict=True))):
        if path is None:
            path = next((reader[name] for name in node.output if reader.get(name)), None)
        if path is not None:
            home.update(dict.fromkeys(node.output, path))
            # Read in reverse, the first of the readers is the last to say so.
            reader.update(dict.fromkeys(node.input, path))
    for node in nodes:
        if node.output and node.output[0] not in home:
            home.update(dict.fromkeys(node.output, next((home[name] for name in node.input if home.get(name)), "")))
    return home


def _own_path(node: Any) -> str | None:
    """What the node itself says; ``None`` if nothing."""
    told = {entry.key: entry.value for entry in node.metadata_props if len(entry.value) <= _MOST_CHARACTERS}
    if _SCOPES in told:
        *modules, _name = _QUOTED.findall(told[_SCOPES]) or [""]
        return _innermost(modules)
    if _NAMESPACE in told:
        *modules, _name = told[_NAMESPACE].split("/")
        return _innermost([module.partition(":")[0] for module in modules])
    if str(node.name).startswith("/"):
        return str(node.name).rpartition("/")[0].strip("/").replace("/", ".")
    return None


def _innermost(modules: Sequence[str]) -> str:
    """The last path that is one; exporters put words of their own, which begin with an underscore, in its place."""
    return next((path for path in reversed(modules) if not path.startswith("_") and _PATH.fullmatch(path)), "")
