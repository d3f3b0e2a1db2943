"""From ``torch.export`` to the graph."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ir.builder import GraphBuilder
from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.encoding import plain
from ir.graph import Attribute, Graph, Node
from ir.types import Dim, DType, Size, TensorType
from partitioner.frontends.aten import RULES, Rule
from partitioner.frontends.in_place import Memory, functional_name, is_write, written_back
from partitioner.frontends.pairs import Pair, pair_rule

DTYPES = {
    torch.float64: DType.F64,
    torch.float32: DType.F32,
    torch.float16: DType.F16,
    torch.bfloat16: DType.BF16,
    torch.int64: DType.I64,
    torch.int32: DType.I32,
    torch.int16: DType.I16,
    torch.int8: DType.I8,
    torch.uint8: DType.U8,
    torch.bool: DType.BOOL,
}
_PARTS = {torch.complex64: DType.F32, torch.complex128: DType.F64}
"""Complex values are pairs of real ones, each of this type."""
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_size")
_MOST_CONSTANT_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Names:
    """What the exported program does not say itself.

    Attributes:
        axes: names of symbolic axes by input and axis; others are named after their input.
        tied: for each further name of a tied weight, its first name.
        constants: values of buffers that are computed, not stored, by their full name.
        prefix: leading part of module paths to drop.
    """

    axes: Mapping[tuple[str, int], str]
    tied: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    prefix: str = ""


def lower_exported(program: ExportedProgram, name: str, names: Names) -> Graph:
    """The graph of an exported program; writing in place becomes functional on the way, where it goes through simple
    views (elsewhere W0201: apply ``run_decompositions({})`` first).

    Raises:
        UnsupportedModelError: W0201, one for each operator that has no rule or a form that it does not cover; W0305,
            our inference contradicts torch's; W0306, a size that is no polynomial.
    """
    return _Lowering(program, name, names).run()


def tied_names(module: nn.Module, prefix: str = "") -> dict[str, str]:
    """For each further name of a weight that stands in several places of ``module``, its first name."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {
        f"{prefix}{name}": f"{prefix}{first[id(tensor)]}"
        for name, tensor in named
        if first.setdefault(id(tensor), name) != name
    }


def _bound(rule: Rule, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """The rule with its arguments.

    Raises:
        NotImplementedError: the operator has an overload or an option that the rule does not know.
    """
    try:
        inspect.signature(rule).bind(*args, **kwargs)
    except TypeError:
        raise NotImplementedError("a form that its rule does not cover") from None
    return partial(rule, *args, **kwargs)


def _is_complex(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_complex()


def _holds_pair(value: Any) -> bool:
    return isinstance(value, Pair) or (isinstance(value, tuple) and any(isinstance(item, Pair) for item in value))


def _live(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the outputs or something written in place depend on."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in live or node.op == "output" or is_write(node):
            live.update((node, *node.all_input_nodes))
    return live


class _Lowering:
    """One pass over an exported program; implements :class:`partitioner.frontends.aten.Translator`."""

    def __init__(self, program: ExportedProgram, name: str, names: Names) -> None:
        self._program = program
        self._builder = GraphBuilder(name)
        self._names = names
        self._symbols: dict[str, str] = {}
        self._values: dict[fx.Node, Any] = {}
        self._memory = Memory(program.graph)
        self._parameters: set[str] = set()
        self._unsupported: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], str] = {}
        self._node: fx.Node
        self._results: Counter[fx.Node] = Counter()

    def run(self) -> Graph:
        """Lower every node in order."""
        kinds = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        live = _live(self._program.graph)
        outputs: Sequence[str] = ()
        for node in self._program.graph.nodes:
            self._node = node
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node, kinds[node.name])
            elif node.op == "output":
                outputs = [self._value(value) for value in node.args[0] if isinstance(value, fx.Node)]
            elif node in live:
                self._values[node] = self._call(node)
                self._memory.is_fresh(node)
        if self._unsupported:
            raise UnsupportedModelError(*(self._report(key, count) for key, count in self._unsupported.items()))
        if any(isinstance(output, Pair) for output in outputs):
            raise UnsupportedModelError(Diagnostic("W0201", "a complex output has no type here", "outputs"))
        return self._builder.finish(outputs)

    # --- what rules use ---------------------------------------------------------------------------------------------

    @property
    def result(self) -> TensorType:
        """Type of the node's result, as torch states it."""
        value = self._node.meta["val"]
        return self._type_of(value[0] if isinstance(value, (tuple, list)) else value)

    def type(self, name: str) -> TensorType:
        """Type of a name in the graph."""
        return self._builder.type(name)

    def maker(self, name: str) -> Node | None:
        """The node that yields ``name``, unless it is an input or a weight."""
        return self._builder.maker(name)

    def is_parameter(self, name: str) -> bool:
        """Whether ``name`` is a stored weight."""
        return name in self._parameters

    def add(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        """Add a node named after the exported one.

        Raises:
            NotImplementedError: an attribute is a symbolic size where the operator needs a number.
        """
        if any(isinstance(attribute, Dim) for attribute in attributes.values()):
            raise NotImplementedError("a symbolic size in the place of a number")
        count = self._results[self._node]
        base = f"{self._node.name}.{count}" if count else self._node.name
        self._results[self._node] += 1
        names = (base, f"{base}.indices") if op == "topk" else (base,)
        return self._builder.add(op, inputs, self._origin(), names, **attributes)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node, spec: Any) -> Any:
        if spec.kind is InputKind.USER_INPUT:
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                return value
            if _is_complex(value):
                fault = f"element type {value.dtype} is unknown for an input"
                raise UnsupportedModelError(Diagnostic("W0201", fault, node.name))
            self._learn_symbols(node.name, value)
            return self._builder.input(node.name, self._type_of(value))
        name = self._canonical(spec.target)
        if spec.target in self._names.constants:
            return self._constant(name, self._names.constants[spec.target]) if node.users else None
        if name in self._parameters:
            return name
        if _is_complex(node.meta["val"]):
            raise UnsupportedModelError(Diagnostic("W0201", "a complex weight or constant has no type here", name))
        type_ = self._type_of(node.meta["val"])
        self._parameters.add(name)
        return self._builder.parameter(name, type_, plain(type_.dtype))

    def _canonical(self, target: str) -> str:
        """The name of a weight; one that is tied to others goes by the first of its names."""
        return self._names.tied.get(target, target).removeprefix(self._names.prefix)

    def _constant(self, name: str, tensor: torch.Tensor) -> str | Pair:
        if tensor.is_complex():
            real, imaginary = self._constant(f"{name}.real", tensor.real), self._constant(f"{name}.imag", tensor.imag)
            return Pair(str(real), str(imaginary))
        dtype, shape = DTYPES[tensor.dtype], tuple(tensor.shape)
        if tensor.numel() > _MOST_CONSTANT_ELEMENTS:
            self._parameters.add(name)
            return self._builder.parameter(name, TensorType(dtype, shape), plain(dtype))
        values = tuple(tensor.double().flatten().tolist() if dtype.is_float else tensor.flatten().tolist())
        return self._builder.add("constant", (), name, (name,), values=values, shape=shape, dtype=dtype)

    def _call(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            return self._size(value)
        if node.target is operator.getitem:
            source = self._value(node.args[0])  # type: ignore[arg-type]
            return None if source is None else source[node.args[1]]
        name = self._rule_name(node.target)
        if name.split(".")[0] in _CHECKS:
            return None
        try:
            if any(self._value(operand) is None for operand in node.all_input_nodes):
                return None  # it needs what has no type here, and that will be reported
            if is_write(node):
                return self._write(node, name)
            result = _bound(self._rule(node, name), self, *self._arguments(node), **self._options(node))()
        except NotImplementedError as error:
            key = (name, str(error))
            self._unsupported[key] += 1
            self._first.setdefault(key, self._origin())
            return self._stand_in(value)
        self._cross_check(result, value)
        return result

    def _value(self, node: fx.Node) -> Any:
        """The value of a node as of now: one whose memory was written since is computed again."""
        if self._memory.is_stale(node):
            current, self._node = self._node, node
            self._values[node] = self._value(node.args[0]) if is_write(node) else self._call(node)  # type: ignore[arg-type]
            self._memory.is_fresh(node)
            self._node = current
        return self._values[node]

    def _arguments(self, node: fx.Node) -> list[Any]:
        return self._plain(fx.node.map_arg(node.args, self._value))  # type: ignore[no-any-return]

    def _options(self, node: fx.Node) -> dict[str, Any]:
        return self._plain(fx.node.map_arg(node.kwargs, self._value))  # type: ignore[no-any-return]

    def _write(self, node: fx.Node, name: str) -> str:
        """Compute what is written, and what that makes of the tensors that the target is a view of."""
        rule = self._rule(node, functional_name(name))
        target = node.args[0]
        assert isinstance(target, fx.Node)
        path = self._memory.path(target)
        if path[-1].op == "placeholder":
            raise NotImplementedError("writing into what the model was given")
        type_ = self.type(self._value(target))
        value = _bound(rule, self, *self._arguments(node), **self._options(node))()
        value = value if self.type(value) == type_ else RULES["copy"](self, self._value(target), value)
        new = [value]
        for view, source in pairwise(path):
            name = self._rule_name(view.target)
            arguments = self._arguments(view)[1:]
            new.append(written_back(self, name, self._value(source), new[-1], *arguments, **self._options(view)))
        self._values |= dict(zip(path, new, strict=True))
        self._memory.write(path)
        return value  # type: ignore[no-any-return]

    def _rule(self, node: fx.Node, name: str) -> Rule:
        operands = [self._value(operand) for operand in node.all_input_nodes]
        if _is_complex(node.meta.get("val")) or any(_holds_pair(value) for value in operands):
            rule = pair_rule(name)
            fault = "complex numbers, other than in products and rotations"
        else:
            rule, fault = RULES.get(name) or RULES.get(name.split(".")[0]), "no rule"
        if rule is None:
            raise NotImplementedError(fault)
        return rule

    def _stand_in(self, value: Any) -> Any:
        """What an unsupported operator yields, as inputs: those after it are looked at all the same, and the report
        is complete. ``None`` where our types cannot say what that is.
        """
        several = isinstance(value, (tuple, list))
        if _is_complex(value):
            return Pair(*(self._builder.input(f"{self._node.name}?{i}", self._type_of(value)) for i in range(2)))
        try:
            types = [self._type_of(tensor) for tensor in (value if several else (value,))]
        except (UnsupportedModelError, AttributeError):
            return None
        names = [self._builder.input(f"{self._node.name}?{i}", type_) for i, type_ in enumerate(types)]
        return tuple(names) if several else names[0]

    def _plain(self, argument: Any) -> Any:
        """Arguments with torch's own kinds replaced by ours."""
        if isinstance(argument, torch.SymInt):
            return self._size(argument)
        if isinstance(argument, dict):
            return {key: self._plain(item) for key, item in argument.items()}
        if isinstance(argument, (tuple, list)):
            return [self._plain(item) for item in argument]
        return argument

    def _rule_name(self, target: Any) -> str:
        namespace, _, rest = str(target).partition(".")
        return (rest if namespace == "aten" else f"{namespace}.{rest}").removesuffix(".default")

    def _cross_check(self, result: Any, value: Any) -> None:
        """Our inference must agree with torch's, or the graph would mean something else."""
        if isinstance(result, Pair):
            result, value = (result.real, result.imaginary), (value, value)
        names = result if isinstance(result, tuple) else (result,)
        stated = value if isinstance(value, (tuple, list)) else (value,)
        for name, tensor in zip(names, stated, strict=False):
            if self.type(name) != self._type_of(tensor):
                fault = f"{self._node.target} yields {self.type(name)} here and {self._type_of(tensor)} in torch"
                raise UnsupportedModelError(Diagnostic("W0305", fault, self._origin()))

    def _origin(self) -> str:
        stack = self._node.meta.get("nn_module_stack") or {}
        path = next((path for path, _ in reversed(stack.values()) if not path.startswith("_")), "")
        return (path + ".").removeprefix(self._names.prefix).removesuffix(".")

    # --- types ------------------------------------------------------------------------------------------------------

    def _learn_symbols(self, name: str, value: torch.Tensor) -> None:
        """Name each symbolic axis of an input; the first name that a symbol gets stays."""
        for axis, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                self._symbols.setdefault(str(size.node.expr), self._names.axes.get((name, axis), f"{name}_{axis}"))

    def _type_of(self, tensor: torch.Tensor) -> TensorType:
        dtype = DTYPES.get(tensor.dtype) or _PARTS.get(tensor.dtype)
        if dtype is None:
            raise UnsupportedModelError(Diagnostic("W0201", f"element type {tensor.dtype} is unknown", self._origin()))
        return TensorType(dtype, tuple(self._size(size) for size in tensor.shape))

    def _size(self, size: int | torch.SymInt) -> Size:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        return self._polynomial(expression)

    def _polynomial(self, expression: Any) -> Size:
        """A sympy expression as a polynomial over our symbols."""
        if expression.is_Integer:
            return int(expression)
        if expression.is_Symbol and str(expression) in self._symbols:
            return Dim.symbol(self._symbols[str(expression)])
        parts = [self._polynomial(part) for part in expression.args] if expression.is_Add or expression.is_Mul else []
        if not parts:
            fault = f"at {self._rule_name(self._node.target)}, a size is {expression}"
            raise UnsupportedModelError(Diagnostic("W0306", fault, self._origin()))
        total = parts[0]
        for part in parts[1:]:
            total = total + part if expression.is_Add else total * part
        return total

    def _report(self, key: tuple[str, str], count: int) -> Diagnostic:
        name, reason = key
        return Diagnostic(
            "W0201",
            f"operator {name} is not supported: {reason}",
            self._first[key],
            {"occurrences": count},
            ("an operator is added in ir/ops and partitioner/frontends/aten: see CONTRIBUTING.md",),
        )
