"""From ONNX nodes to nodes of the graph: names, values, and what one operator's function sees of its node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ir.builder import GraphBuilder
from ir.diagnostics import Diagnostic, Fact, UnsupportedModelError
from ir.encoding import Encoding, plain
from ir.graph import Attribute, Graph
from ir.ops import OPS
from ir.types import Dim, DType, Shape, Size, TensorType
from partitioner.frontends.onnx_file.constants import FOLDS, Known, UnfoldableError, fold, normal_axis
from partitioner.frontends.onnx_file.evaluation import evaluated
from partitioner.frontends.onnx_file.inputs import Symbols, input_type
from partitioner.frontends.onnx_file.nodes import OnnxNode, Scope, items_of, small_contents, spelled, weight_dtype
from partitioner.frontends.onnx_file.nodes import Operand as Operand
from partitioner.frontends.onnx_file.nodes import Results as Results
from partitioner.frontends.onnx_file.reading import DTYPES, OnnxFile, Stored, Weight, type_name
from partitioner.frontends.onnx_file.table import NEWEST_OPSET, OPERATORS

_MOST_SIZES = 8


@dataclass(slots=True)
class Lowering:
    """The state of one file's lowering. ``parameters`` grows as weights are first read; ``without_rule`` lowers
    operators that are not in the table.

    ``origins`` gives the module path of a node by its first output, ``sizes`` what the file's own symbols stand for.
    """

    file: OnnxFile
    builder: GraphBuilder
    without_rule: Callable[[Site], Results]
    origins: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, Size] = field(default_factory=dict)
    values: dict[str, Operand] = field(default_factory=dict)
    parameters: dict[str, Weight | Stored] = field(default_factory=dict)
    scope: Scope = field(init=False)
    notes: list[str] = field(default_factory=list)
    outputs: tuple[int, ...] | None = None
    """Which of the file's outputs the graph has; all, if not said."""
    home: str = ""
    """The module path of the file's own node that is being lowered, perhaps by its function's body."""
    wanted: list[str] = field(default_factory=list)
    """Values that had to be known while lowering and were not."""
    unrolled: int = 0
    """Nodes that the turns of loops have come to."""
    _taken: set[str] = field(default_factory=set)
    _names: dict[str, str] = field(default_factory=dict)
    _contents: dict[str, Known | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scope = Scope(self.file.opsets.get("", NEWEST_OPSET))
        for name, weight in self.file.weights.items():
            self._names[name] = self.unique(name)
            self.values[name] = weight

    def unique(self, name: str) -> str:
        """``name`` in the characters that the graph's text accepts, not used before."""
        base = spelled(name)
        candidate, count = base, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{base}.{count}"
        self._taken.add(candidate)
        return candidate

    def add_inputs(self, bound: Mapping[str, Known] | None = None) -> None:
        """Declare the graph's inputs, with a symbol for every size that is not fixed; those in ``bound`` are known."""
        symbols = Symbols(self.sizes)
        self.values.update(bound or {})
        for value in self.file.graph.input:
            if value.name not in self.values:
                type_ = input_type(value, symbols)
                self.values[value.name] = self.builder.input(self.unique(value.name), type_)
        self.notes += symbols.notes

    def add_weight(self, tensor: Any, name: str) -> Weight:
        """The tensor of a constant inside of a function or of a node's own graph, as the weight ``name``.

        Raises:
            UnfoldableError: its data lies in another file.
        """
        if tensor.external_data:
            raise UnfoldableError("the value of a constant lies in another file")
        named = type(tensor).FromString(tensor.SerializeToString())
        named.name = name
        self._names[name] = self.unique(name)
        return Weight(named, next(iter(self.file.weights.values())).folder if self.file.weights else Path())

    def contents(self, operand: Operand) -> Known | None:
        """The items of ``operand`` where they are known: small integer weights and scalars among them."""
        if not isinstance(operand, Weight):
            return operand if isinstance(operand, Known) else None
        if operand.name not in self._contents:
            self._contents[operand.name] = small_contents(operand)
        return None if operand.transposed else self._contents[operand.name]

    def parameter(self, weight: Weight) -> str:
        """The parameter of the graph for ``weight``, as stored."""
        name = self._names[weight.name]
        if name not in self.parameters:
            dtype = weight_dtype(weight)
            self.builder.parameter(name, TensorType(dtype, weight.shape), plain(dtype))
            self.parameters[name] = weight
        return name

    def unpacked(self, weight: Stored, encoding: Encoding) -> str:
        """The parameter of the graph for a weight that several tensors of the file hold, in ``encoding``."""
        name = self._names[weight.name]
        if name not in self.parameters:
            self.builder.parameter(name, TensorType(weight.dtype, weight.shape), encoding)
            self.parameters[name] = weight
        return name

    def type(self, operand: Operand) -> TensorType:
        """Element type and shape of ``operand``."""
        if isinstance(operand, str):
            return self.builder.type(operand)
        if isinstance(operand, Known):
            return TensorType(operand.dtype, operand.shape)
        if not isinstance(operand, Weight):
            raise UnfoldableError("a list of values, or none, is no tensor")
        shape = operand.shape[::-1] if operand.transposed else operand.shape
        return TensorType(weight_dtype(operand), shape)

    def lower(self, node: OnnxNode) -> None:
        """Lower one node.

        Raises:
            UnsupportedModelError: W0201, this form of the operator is not supported; W0303, operands do not fit.
        """
        site, start = Site(self, node), len(self.builder.nodes)
        self.home = self.origins.get(node.outputs[0], self.home) if node.outputs else self.home
        try:
            results = self._fold(site) or self._rule(node)(site)
        except (UnfoldableError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            site.refuse(reason)
        results = results if isinstance(results, tuple) else (results,)
        used = [name for name in node.outputs[len(results) :] if name]
        if used:
            site.refuse(f"its output {used[0]} is not supported")
        self.values.update(zip(node.outputs, self._named(node, results, start), strict=False))

    def _rule(self, node: OnnxNode) -> Callable[[Site], Results]:
        return OPERATORS.get((node.domain, node.op_type), self.without_rule)

    def _named(self, node: OnnxNode, results: tuple[Operand, ...], start: int) -> tuple[Operand, ...]:
        """Results that nodes from ``start`` on computed get the names of the node's outputs."""
        made = {value.name for added in self.builder.nodes[start:] for value in added.results}
        renamed: dict[str, str] = {}
        for output, result in zip(node.outputs, results, strict=False):
            if isinstance(result, str) and result in made and result not in renamed and result != spelled(output):
                renamed[result] = self.unique(output)
        if renamed:
            self.builder.rename(renamed, start)
        return tuple(renamed.get(result, result) if isinstance(result, str) else result for result in results)

    def _fold(self, site: Site) -> Operand | None:
        names = [name for name in site.node.inputs if name]
        if site.node.op_type not in FOLDS or site.node.domain or not names:
            return None
        found = [self.contents(self.values[name]) for name in names]
        if any(known is not None and known.is_symbolic for known in found):
            # Beside symbolic sizes, numbers must be known too; the graph cannot compute with sizes.
            found = [known or self.evaluated(name) for known, name in zip(found, names, strict=True)]
        operands = [known for known in found if known is not None]
        if len(operands) < len(names):
            return None
        try:
            return fold(site.node.op_type, operands, site.node.attributes)
        except UnfoldableError:
            return None

    def evaluated(self, name: str) -> Known | None:
        """The contents of a value that the graph computes from constants alone."""
        operand = self.values[name]
        return evaluated(operand, self.builder, self.parameters) if isinstance(operand, str) else None

    def finish(self) -> Graph:
        """The graph with the file's outputs; those that are lists are their items, one after the other."""
        outputs = []
        for value in self.file.graph.output:
            node = OnnxNode("output", "", value.name, (value.name,), (value.name,), {}, self.scope)
            try:
                outputs += [Site(self, node).as_tensor(item) for item in items_of(self.values[value.name])]
            except (UnfoldableError, LookupError) as error:
                Site(self, node).refuse(str(error))
        return self.builder.finish(outputs)


@dataclass(frozen=True, slots=True)
class Site:
    """One node in its place: what the operator's function may ask for and how it adds to the graph.

    ``part`` names a part of a node that stands for a module with parts of its own.
    """

    lowering: Lowering
    node: OnnxNode
    part: str = ""

    @property
    def origin(self) -> str:
        """The path of the module that the node stands in; the node's name where the file does not tell."""
        told = self.lowering.origins
        home = told.get(self.node.outputs[0], self.lowering.home) if told else self.node.name
        return f"{home}.{self.part}" if self.part else home

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators that the model was written for."""
        return self.node.scope.opset

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node, or ``default``."""
        return self.node.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def operand(self, index: int) -> Operand:
        """What an input became."""
        if not self.has(index):
            raise UnfoldableError(f"input {index} is missing")
        return self.lowering.values[self.node.inputs[index]]

    def known(self, index: int) -> Known | None:
        """The contents of an input where they are known."""
        return self.lowering.contents(self.operand(index))

    def weight(self, index: int) -> Weight | None:
        """The input as a weight, if it is one."""
        operand = self.operand(index)
        return operand if isinstance(operand, Weight) else None

    def parameter(self, weight: Weight) -> str:
        """The parameter of the graph that ``weight`` is."""
        return self.lowering.parameter(weight)

    def demanded(self, index: int) -> Known:
        """The contents of an input that must be known, such as a shape."""
        return self.contents_of(self.operand(index), f"its input {self.node.inputs[index]}")

    def contents_of(self, operand: Operand, what: str) -> Known:
        """The contents of an operand that must be known; ``what`` names it."""
        known = self.lowering.contents(operand)
        if known is None and isinstance(operand, str):
            stored = {n: w for n, w in self.lowering.parameters.items() if isinstance(w, Weight)}
            known = evaluated(operand, self.lowering.builder, stored)
        if known is None:
            self.lowering.wanted += [operand] if isinstance(operand, str) else []
            raise UnfoldableError(f"{what} is only known when the model runs")
        return known

    def ints(self, name: str, index: int) -> tuple[int, ...] | None:
        """Integers that older opsets give as an attribute and newer ones as an input; ``None`` if not given."""
        given = self.attribute(name)
        if given is not None:
            return tuple(given) if isinstance(given, Sequence) else (given,)
        return self.demanded(index).ints() if self.has(index) else None

    def scalar(self, index: int, beside: int) -> int | float | None:
        """The one number that an input holds, where it does not widen the shape of the input ``beside`` it."""
        known = self.known(index)
        if known is None or known.items.size != 1 or self.known(beside) is not None:
            return None
        (item,) = known.list()
        fits = len(known.shape) <= len(self.type(beside).shape)
        return item if fits and isinstance(item, int | float) and not isinstance(item, bool) else None

    def type(self, index: int) -> TensorType:
        """Element type and shape of an input."""
        return self.lowering.type(self.operand(index))

    def shape(self, index: int) -> Shape:
        """Shape of an input."""
        return self.type(index).shape

    def axis(self, default: int, index: int = 0) -> int:
        """The attribute ``axis`` counted from the front of an input's shape."""
        return normal_axis(self.attribute("axis", default), len(self.shape(index)))

    def element_type(self, name: str, default: DType) -> DType:
        """The element type that the attribute ``name`` holds."""
        given = self.attribute(name) or None
        if given is not None and given not in DTYPES:
            raise UnfoldableError(f"the graph has no element type {type_name(given)}")
        return DTYPES[given] if given is not None else default

    def tensor(self, index: int) -> str:
        """The input as a value of the graph; known contents become a constant, a weight a parameter."""
        return self.as_tensor(self.operand(index))

    def as_tensor(self, operand: Operand) -> str:
        """``operand`` as a value of the graph."""
        if isinstance(operand, str):
            return operand
        known = self.lowering.contents(operand)
        if known is not None:
            return self.constant(known)
        if not isinstance(operand, Weight):
            raise UnfoldableError("a list of values, or none, is no tensor")
        name = self.parameter(operand)
        return self.step("transpose", [name], permutation=(1, 0)) if operand.transposed else name

    def tensors(self) -> list[str]:
        """All inputs as values of the graph."""
        return [self.tensor(index) for index in range(len(self.node.inputs)) if self.has(index)]

    def constant(self, known: Known) -> str:
        """A constant of the graph with these contents."""
        items = known.list()
        if any(isinstance(item, Dim) for item in items):
            return self._sizes_as_data(known)
        # The text form has no tuples of booleans.
        values = tuple(int(item) if isinstance(item, bool) else item for item in items)
        if any(item != item for item in values):
            raise UnfoldableError("a constant is not a number")
        if len(values) > 1 and len(set(values)) == 1:
            return self.step("full", [], dtype=known.dtype, shape=known.shape, value=values[0])
        return self.step("constant", [], dtype=known.dtype, shape=known.shape, values=values)

    def _sizes_as_data(self, known: Known) -> str:
        """Sizes that depend on the inputs, as values of the graph: the sums of so many ones."""
        if known.dtype is not DType.I64 or len(known.list()) > _MOST_SIZES:
            raise UnfoldableError("a size that depends on the model's inputs is computed with as data")
        counts = []
        for size in known.list():
            ones = self.step("full", [], dtype=DType.I64, shape=(size,), value=1)
            counts.append(self.step("sum", [ones], dims=(0,), keepdim=True))
        joined = counts[0] if len(counts) == 1 else self.step("concat", counts, dim=0)
        return self.reshape(joined, known.shape, last=False)

    def value_type(self, name: str) -> TensorType:
        """Element type and shape of a value of the graph."""
        return self.lowering.builder.type(name)

    def step(self, op: str, inputs: Sequence[str], **attributes: Attribute) -> str:
        """Add a node on the way to this node's result."""
        names = [self.lowering.unique(f"{self._output(0)}.1")]
        return self.lowering.builder.add(op, inputs, self.origin, names, **attributes)

    def emit(
        self, op: str, inputs: Sequence[str], output: int = 0, as_dtype: DType | None = None, **attributes: Attribute
    ) -> str:
        """Add the node that computes an output, cast to ``as_dtype`` where the operator promotes to another type."""
        builder = self.lowering.builder
        if as_dtype is not None:
            (type_,) = OPS[op].infer([builder.type(name) for name in inputs], attributes)
            if type_.dtype is not as_dtype:
                inputs, op, attributes = [self.step(op, inputs, **attributes)], "cast", {"dtype": as_dtype}
        names = [self.lowering.unique(self._output(output))]
        return builder.add(op, inputs, self.origin, names, **attributes)

    def emit_all(self, op: str, inputs: Sequence[str], count: int, **attributes: Attribute) -> tuple[str, ...]:
        """Add one node that computes the first ``count`` outputs."""
        names = tuple(self.lowering.unique(self._output(index)) for index in range(count))
        self.lowering.builder.add(op, inputs, self.origin, names, **attributes)
        return names

    def reshape(self, name: str, shape: Shape, *, last: bool = True) -> str:
        """``name`` in another shape; no node where that is the shape it has."""
        if self.value_type(name).shape == shape:
            return name
        return (self.emit if last else self.step)("reshape", [name], shape=shape)

    def refuse(self, reason: str) -> NoReturn:
        """Say that this form of the operator is not supported.

        Raises:
            UnsupportedModelError: W0201.
        """
        domain = self.node.domain or "ai.onnx"
        message = f"{self.node.op_type} cannot be lowered: {reason}"
        facts: dict[str, Fact] = {
            "domain": domain,
            "opset": self.lowering.file.opsets.get(self.node.domain, 1),
        }
        raise UnsupportedModelError(Diagnostic("W0201", message, self.node.name, facts)) from None

    def _output(self, index: int) -> str:
        outputs = self.node.outputs
        return outputs[index] if index < len(outputs) and outputs[index] else f"{outputs[0]}.{index}"
