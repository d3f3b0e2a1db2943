"""The textual form of a graph, and its parser: ``parse_graph(print_graph(g)) == g``.

One line for each input, parameter and node::

    graph "small" {
      input %input_ids : i64[users, tokens]
      param %embed.weight : bf16[512, 128] as bf16
      %h : bf16[users, tokens, 128] = embedding(%embed.weight, %input_ids) @ "embed"
      %values : f32[8, 4], %indices : i64[8, 4] = topk(%scores) {dim = 1, k = 4} @ "gate"
      return %h
    }
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from ir.diagnostics import Diagnostic, UsageError
from ir.encoding import ENCODINGS
from ir.graph import Attribute, Graph, Node, Parameter, Value
from ir.types import Dim, DType, TensorType, parse_size

NAME = re.compile(r"[\w.\-/:]+")
"""What a value or parameter can be called."""
_NAME = rf"%({NAME.pattern})"
_TYPE = r"(\w+)\[([^\]]*)\]"
_STRING = r'("(?:[^"\\]|\\.)*")'
_HEADER = re.compile(rf"graph {_STRING} {{")
_INPUT = re.compile(rf"input {_NAME} : {_TYPE}")
_PARAMETER = re.compile(rf"param {_NAME} : {_TYPE} as (\w+)")
_NODE = re.compile(
    rf"(?P<results>%[^=]+) = (?P<op>\w+)\((?P<inputs>[^)]*)\)(?: \{{(?P<attributes>[^@]*)\}})? @ (?P<origin>{_STRING})"
)
_FLOAT = re.compile(r"-?(\d+\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+|inf)|nan")
_RESULT = re.compile(rf"{_NAME} : {_TYPE}")
_ATTRIBUTE = re.compile(rf"(\w+) = (\[[^\]]*\]|{_STRING}|[^,\[\"]+)(?:, |$)")


def print_graph(graph: Graph) -> str:
    """The text of ``graph``."""
    lines = [f"graph {json.dumps(graph.name)} {{"]
    lines += [f"  input %{value.name} : {value.type}" for value in graph.inputs]
    lines += [f"  param %{p.name} : {p.type} as {p.encoding.name}" for p in graph.parameters]
    lines += [f"  {print_node(node)}" for node in graph.nodes]
    lines.append(f"  return {_names(graph.outputs)}")
    return "\n".join([*lines, "}", ""])


def print_node(node: Node) -> str:
    """One node as a line of the text."""
    results = ", ".join(f"%{value.name} : {value.type}" for value in node.results)
    listed = ", ".join(f"{name} = {_print_attribute(value)}" for name, value in sorted(node.attributes.items()))
    attributes = f" {{{listed}}}" if listed else ""
    return f"{results} = {node.op}({_names(node.inputs)}){attributes} @ {json.dumps(node.origin)}"


def parse_graph(text: str) -> Graph:
    """The graph that ``text`` describes. Types are read, not checked: see :func:`ir.verify.verify`.

    Raises:
        UsageError: W0302 with the line that cannot be read.
    """
    lines = [line.strip() for line in text.splitlines()]
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if header is None or "}" not in lines[-1:]:
        raise UsageError(Diagnostic("W0302", "the graph's text cannot be read: it has no beginning or no end"))
    inputs: list[Value] = []
    parameters: list[Parameter] = []
    nodes: list[Node] = []
    outputs: tuple[str, ...] = ()
    for number, line in enumerate(lines[1:-1], start=2):
        try:
            if match := _INPUT.fullmatch(line):
                inputs.append(Value(match[1], _parse_type(match[2], match[3])))
            elif match := _PARAMETER.fullmatch(line):
                parameters.append(Parameter(match[1], _parse_type(match[2], match[3]), ENCODINGS[match[4]]))
            elif match := _NODE.fullmatch(line):
                nodes.append(_parse_node(match))
            elif line == "return" or line.startswith("return "):
                outputs = _parse_names(line.removeprefix("return"))
            else:
                raise ValueError("not a line of a graph")
        except (ValueError, KeyError) as error:
            fault = Diagnostic("W0302", f"the graph's text cannot be read: {error}", f"line {number}: {line[:120]}")
            raise UsageError(fault) from None
    return Graph(json.loads(header[1]), tuple(inputs), tuple(parameters), tuple(nodes), outputs)


def _parse_node(match: re.Match[str]) -> Node:
    found = list(_RESULT.finditer(match["results"]))
    given = list(_ATTRIBUTE.finditer(match["attributes"] or ""))
    if ", ".join(item[0] for item in found) != match["results"] or "".join(item[0] for item in given) != (
        match["attributes"] or ""
    ):
        raise ValueError("results or attributes are not of the grammar")
    results = tuple(Value(item[1], _parse_type(item[2], item[3])) for item in found)
    attributes = {item[1]: _parse_attribute(item[2].strip()) for item in given}
    return Node(match["op"], _parse_names(match["inputs"]), results, attributes, json.loads(match["origin"]))


def _parse_type(dtype: str, shape: str) -> TensorType:
    return TensorType(DType(dtype), tuple(parse_size(size) for size in shape.split(",") if size.strip()))


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"%{name}" for name in names)


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().removeprefix("%") for name in text.split(",") if name.strip())


def _print_attribute(value: Attribute | Dim) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_print_attribute(item) for item in value)}]"
    if isinstance(value, Dim):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, DType):
        return str(value)
    # An at sign begins the origin, so none stands before it.
    return json.dumps(value).replace("@", "\\u0040") if isinstance(value, str) else repr(value)


def _parse_attribute(text: str) -> Attribute:
    if text.startswith("["):
        items = [item.strip() for item in text[1:-1].split(",") if item.strip()]
        if items and set(items) <= {"true", "false"}:
            return tuple(item == "true" for item in items)
        if any(_is_float(item) for item in items):
            return tuple(float(item) for item in items)
        return tuple(parse_size(item) for item in items)
    if text.startswith('"'):
        return str(json.loads(text))
    if text in ("true", "false"):
        return text == "true"
    if text in set(DType):
        return DType(text)
    return float(text) if _is_float(text) else int(text)


def _is_float(text: str) -> bool:
    return bool(_FLOAT.fullmatch(text))
