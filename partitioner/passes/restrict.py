"""A value at the experts that each token chose: what must be computed of it, and nothing for the others.

For a value V with an axis of experts e, or for one value V_e of each expert, the restriction is V at e = the j-th
chosen expert of token t, for each t and j. It is found from the end to the beginning: element-wise operators are
repeated on the restricted operands, a product with the expert's own weight becomes ``grouped_linear``, what does not
depend on the expert is taken as it is, and routing weights are gathered. Restricted values are [tokens or 1, chosen
or 1, *features], with one axis of features for each axis of the original (1 for axes of tokens or experts).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

from ir.graph import Attribute, Graph, Node, Parameter, Value
from ir.ops import ELEMENT_BY_ELEMENT, OPS
from ir.types import DType, Shape, Size, TensorType
from partitioner.passes.axes import (
    EXPERT,
    FEATURE,
    ROW,
    SLOT,
    TOKEN,
    Axes,
    Axis,
    are_all_tokens,
    axis,
    kind,
    kinds,
    of_kind,
    present,
    regroup,
    size_of,
    through_views,
)
from partitioner.passes.routing import Choice, Facts

_LAST_AXIS = ("layer_norm", "rms_norm")
_ALONG = ("softmax", "log_softmax")
_REDUCTIONS = ("sum", "mean", "amax", "amin")


class NotAGroupError(Exception):
    """What looked like a group of experts cannot be rewritten."""


class Stacks:
    """Parameters that stack one parameter of each expert."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[str, ...], Parameter] = {}

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All that were made."""
        return tuple(self._made.values())

    @property
    def mapping(self) -> dict[str, tuple[str, ...]]:
        """What each of them stacks, in order."""
        return {parameter.name: names for names, parameter in self._made.items()}

    def of(self, names: tuple[str, ...]) -> Parameter:
        """The stack of ``names``.

        Raises:
            NotAGroupError: they are no weights, or not all alike.
        """
        if names not in self._made:
            parts = [self._graph.parameter.get(name) for name in names]
            first = parts[0]
            if first is None or any(part is None or part.type != first.type for part in parts):
                raise NotAGroupError
            if any(part is None or part.encoding != first.encoding for part in parts):
                raise NotAGroupError
            shape = (len(names), *first.type.shape)
            self._made[names] = Parameter(self._name(names), first.type.with_shape(shape), first.encoding)
        return self._made[names]

    def _name(self, names: tuple[str, ...]) -> str:
        """The first one's, with a colon for the expert's number: ``experts.:.up.weight``."""
        pieces = [re.split(r"(\d+)", name) for name in names]
        differing = {
            i for other in pieces[1:] for i, (a, b) in enumerate(zip(pieces[0], other, strict=False)) if a != b
        }
        same_form = len({len(piece) for piece in pieces}) == 1 and len(differing) == 1
        joined = "".join(":" if same_form and i in differing else piece for i, piece in enumerate(pieces[0]))
        stem = joined if same_form else f"{names[0]}:"
        taken = {*self._graph.types, *(parameter.name for parameter in self._made.values())}
        return next(name for n in range(len(taken) + 1) if (name := f"{stem}{n or ''}") not in taken)


class Restriction:
    """Collects the nodes that compute values at the experts chosen.

    Attributes:
        nodes: what was added so far.
        origin: the module of the group, once a product with the experts' weights was found.
    """

    def __init__(self, graph: Graph, facts: Facts, choice: Choice, stacks: Stacks, root: Node) -> None:
        self._graph = graph
        self._facts = facts
        self._choice = choice
        self._stacks = stacks
        self._root = root
        self._types: dict[str, TensorType] = {}
        self._memo: dict[tuple[tuple[str, ...], Axes], str] = {}
        self._added: dict[object, str] = {}
        self._shaped_from: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.origin = ""

    def type(self, name: str) -> TensorType:
        """Type of an old or a new name."""
        return self._types.get(name) or self._graph.types[name]

    def add(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        """The name of a node's result, which is added unless it is there already."""
        key = (op, inputs, tuple(sorted(attributes.items())))
        if key not in self._added:
            types = OPS[op].infer([self.type(name) for name in inputs], attributes)
            name = f"{self._root.result.name}/{len(self.nodes)}"
            self.nodes.append(Node(op, inputs, (Value(name, types[0]),), attributes, ""))
            self._types[name] = types[0]
            self._added[key] = name
        return self._added[key]

    def reshape(self, name: str, shape: Sequence[Size]) -> str:
        """``name`` in another shape."""
        name = self._shaped_from.get(name, name)
        if self.type(name).shape == tuple(shape):
            return name
        result = self.add("reshape", name, shape=tuple(shape))
        self._shaped_from[result] = name
        return result

    def indices(self) -> str:
        """The experts chosen [tokens, chosen]."""
        return self.reshape(self._choice.indices, (self._choice.count, self._choice.active))

    def value(self, names: tuple[str, ...], axes: Axes) -> str:
        """The restriction of a value (one name), or of one value of each expert (as many names).

        Raises:
            NotAGroupError: some operator on the way is not one of those that can be restricted.
        """
        if len(set(names)) == 1:
            names = names[:1]
        axes = present(axes, self.type(names[0]).shape)
        if (names, axes) not in self._memo:
            self._memo[names, axes] = self._value(names, axes)
        return self._memo[names, axes]

    def _value(self, names: tuple[str, ...], axes: Axes) -> str:
        if any(self.type(name) != self.type(names[0]) for name in names):
            raise NotAGroupError
        if len(names) == 1 and not of_kind(axes, EXPERT):
            return self._shared(names[0], axes)
        try:
            return self._step(names, axes)
        except NotAGroupError:
            if of_kind(axes, FEATURE) or of_kind(axes, SLOT):
                raise
            return self._gathered(names, axes)

    # --- what is taken as it is -------------------------------------------------------------------------------------

    def _shared(self, name: str, axes: Axes) -> str:
        if not axes:
            return name  # a number: its having no axes decides on types
        tokens = self._choice.count if of_kind(axes, TOKEN) else 1
        slots = size_of(of_kind(axes, SLOT))
        arranged = self._arranged(name, axes)
        return self.reshape(arranged, (tokens, slots, *_features(axes)))

    def _arranged(self, name: str, axes: Axes) -> str:
        """The value with tokens first, then slots or experts, then the rest; with an axis for each atom."""
        atoms = [atom for one in axes for atom in one]
        tokens = of_kind(axes, TOKEN)
        if tokens and not are_all_tokens(tokens, self._choice.count):
            raise NotAGroupError
        rank = {TOKEN: 0, SLOT: 1, EXPERT: 1, ROW: 0, FEATURE: 2}
        order = sorted(range(len(atoms)), key=lambda i: rank[kind(atoms[i])])
        if order == list(range(len(atoms))):
            return name
        apart = self.reshape(name, tuple(size for _, size in atoms))
        return self.add("transpose", apart, permutation=tuple(order))

    def _gathered(self, names: tuple[str, ...], axes: Axes) -> str:
        """Routing weights [tokens, experts] at the experts chosen."""
        count, experts = self._choice.count, self._choice.experts
        if not are_all_tokens(of_kind(axes, TOKEN), count):
            raise NotAGroupError
        if len(names) == 1:
            all_experts = self.reshape(self._arranged(names[0], axes), (count, experts))
        else:
            columns = [self.reshape(self._arranged(name, axes), (count, 1)) for name in names]
            all_experts = self.add("concat", *columns, dim=1)
        chosen = self.add("gather", all_experts, self.indices(), dim=1)
        return self.reshape(chosen, (count, self._choice.active, *_features(axes)))

    # --- operators --------------------------------------------------------------------------------------------------

    def _step(self, names: tuple[str, ...], axes: Axes) -> str:
        if names[0] in self._graph.parameter:
            return self._weights(names, axes)
        if any(name not in self._graph.producer for name in names):
            raise NotAGroupError
        nodes = [self._graph.nodes[self._graph.producer[name]] for name in names]
        first = nodes[0]
        if any(node.op != first.op or len(node.inputs) != len(first.inputs) for node in nodes) or first.op == "topk":
            raise NotAGroupError
        if first.op == "eq" and self._is_certain(names, axes):
            return self.add("full", shape=(1,) * (2 + len(axes)), value=True, dtype=DType.BOOL)
        if first.op == "slice" and len(nodes) > 1 and len({node.inputs for node in nodes}) == 1:
            return self._slices(nodes, axes)
        if any(node.attributes != first.attributes for node in nodes):
            raise NotAGroupError
        operands = list(zip(*(node.inputs for node in nodes), strict=True))
        if first.op in ELEMENT_BY_ELEMENT:
            given = [self._padded(self.value(operand, axes), len(axes)) for operand in operands]
            return self.add(first.op, *given, **first.attributes)
        rule = {
            **dict.fromkeys(("reshape", "transpose", "expand"), self._view),
            **dict.fromkeys(_REDUCTIONS, self._reduce),
            **dict.fromkeys((*_ALONG, *_LAST_AXIS), self._along),
            "slice": self._slice,
            "concat": self._concat,
            "scatter": self._scatter,
            "full": self._full,
            "linear": self._linear,
            "matmul": self._matmul,
        }.get(first.op)
        if rule is None:
            raise NotAGroupError
        return rule(nodes, operands, axes)

    def _is_certain(self, names: tuple[str, ...], axes: Axes) -> bool:
        """Whether a comparison asks if the slot holds the expert that it does hold."""
        facts = [self._facts.get(name) for name in names]
        ours = all(fact and fact.exact and fact.choice == self._choice for fact in facts)
        experts = [fact.expert for fact in facts if fact]
        in_order = experts == ([None] if len(names) == 1 else list(range(self._choice.experts)))
        return ours and in_order and (bool(of_kind(axes, SLOT)) or self._choice.active == 1)

    def _padded(self, name: str, rank: int) -> str:
        """With as many axes of features as the other operands have."""
        shape = self.type(name).shape
        if not shape or len(shape) == 2 + rank:
            return name
        return self.reshape(name, (*shape[:2], *(1,) * (2 + rank - len(shape)), *shape[2:]))

    def _view(self, nodes: list[Node], operands: list[tuple[str, ...]], axes: Axes) -> str:
        node, source = nodes[0], self.type(operands[0][0]).shape
        if node.op == "reshape":
            before = regroup(axes, source)
            if before is None:
                raise NotAGroupError
            inner = self.value(operands[0], before)
            return self.reshape(inner, (*self.type(inner).shape[:2], *_features(axes)))
        if node.op == "expand":
            inner = self._padded(self.value(operands[0], axes), len(axes))
            wanted = (*self.type(inner).shape[:2], *_features(axes))
            return inner if self.type(inner).shape == wanted else self.add("expand", inner, shape=wanted)
        order = node.attributes["permutation"]
        inner = self.value(operands[0], tuple(axes[order.index(i)] for i in range(len(order))))
        return self.add("transpose", inner, permutation=(0, 1, *(2 + i for i in order)))

    def _slices(self, nodes: list[Node], axes: Axes) -> str:
        """Each expert's own part of one value: that value, with an axis of experts."""
        dim = nodes[0].attributes["dim"]
        parts = [tuple(node.attributes[name] for name in ("dim", "start", "end", "step")) for node in nodes]
        source = nodes[0].inputs[0]
        whole = self.type(source).shape[dim] == self._choice.experts
        if not whole or parts != [(dim, i, i + 1, 1) for i in range(self._choice.experts)]:
            raise NotAGroupError
        return self.value((source,), (*axes[:dim], axis(EXPERT, self._choice.experts), *axes[dim + 1 :]))

    def _slice(self, nodes: list[Node], operands: list[tuple[str, ...]], axes: Axes) -> str:
        dim = nodes[0].attributes["dim"]
        size = self.type(operands[0][0]).shape[dim]
        if kinds(axes[dim]) - {FEATURE}:
            raise NotAGroupError
        inner = self.value(operands[0], (*axes[:dim], axis(FEATURE, size), *axes[dim + 1 :]))
        return self.add("slice", inner, **{**nodes[0].attributes, "dim": dim + 2})

    def _concat(self, nodes: list[Node], operands: list[tuple[str, ...]], axes: Axes) -> str:
        dim = nodes[0].attributes["dim"]
        if axes[dim] == axis(EXPERT, len(operands)) and len(nodes) == 1 and len(operands) == self._choice.experts:
            parts = tuple(name for (name,) in operands)
            return self.value(parts, (*axes[:dim], (), *axes[dim + 1 :]))
        if kinds(axes[dim]) - {FEATURE}:
            raise NotAGroupError
        sizes = [self.type(operand[0]).shape[dim] for operand in operands]
        given = [
            self.value(operand, (*axes[:dim], axis(FEATURE, size), *axes[dim + 1 :]))
            for operand, size in zip(operands, sizes, strict=True)
        ]
        lead = [max((self.type(name).shape[i] for name in given), key=lambda size: size != 1) for i in (0, 1)]
        wide = [self._widened(name, (*lead, *self.type(name).shape[2:])) for name in given]
        return self.add("concat", *wide, dim=dim + 2)

    def _widened(self, name: str, shape: Shape) -> str:
        return name if self.type(name).shape == shape else self.add("expand", name, shape=shape)

    def _scatter(self, nodes: list[Node], operands: list[tuple[str, ...]], axes: Axes) -> str:
        """What was written at the experts chosen."""
        node, dim = nodes[0], nodes[0].attributes["dim"]
        index = self._facts.get(node.inputs[1])
        ours = index is not None and index.outside is None and index.choice == self._choice
        if not ours or len(nodes) > 1 or axes[dim] != axis(EXPERT, self._choice.experts):
            raise NotAGroupError
        assert index is not None
        beside = [one for i, one in enumerate(index.axes) if i != dim]
        # A slot beside the experts must be the one that is asked for.
        if any(SLOT in kinds(one) for one in beside) and not of_kind(axes, SLOT):
            raise NotAGroupError
        inside = (*axes[:dim], index.axes[dim], *axes[dim + 1 :])
        if len(operands) == 2:
            value, dtype = node.attributes["value"], node.result.type.dtype
            return self.add("full", shape=(1,) * (2 + len(axes)), value=value, dtype=dtype)
        if self.type(node.inputs[2]).shape != self.type(node.inputs[1]).shape:
            raise NotAGroupError
        return self.value(operands[2], inside)

    def _full(self, nodes: list[Node], _operands: list[tuple[str, ...]], axes: Axes) -> str:
        return self.add("full", **{**nodes[0].attributes, "shape": (1, 1, *_features(axes))})

    def _along(self, nodes: list[Node], operands: list[tuple[str, ...]], axes: Axes) -> str:
        node = nodes[0]
        dim = node.attributes["dim"] if node.op in _ALONG else len(axes) - 1
        if kinds(axes[dim]) - {FEATURE} or any(len(set(operand)) > 1 for operand in operands[1:]):
            raise NotAGroupError
        attributes = {**node.attributes, "dim": dim + 2} if node.op in _ALONG else node.attributes
        affine = [operand[0] for operand in operands[1:]]
        return self.add(node.op, self.value(operands[0], axes), *affine, **attributes)

    def _reduce(self, nodes: list[Node], operands: list[tuple[str, ...]], axes: Axes) -> str:
        node, source = nodes[0], self.type(operands[0][0]).shape
        dims, keeps = node.attributes["dims"], node.attributes["keepdim"]
        facts = [self._facts.get(name) for name in operands[0]]
        over_slots = all(fact and fact.by_slot and fact.outside == 0 and fact.choice == self._choice for fact in facts)
        kept = iter(axes)
        before = []
        for i, size in enumerate(source):
            one = next(kept) if keeps or i not in dims else ()
            if i in dims:
                fact = facts[0]
                one = fact.axes[i] if fact else axis(FEATURE, size)
            before.append(one)
        away = {label for i in dims for label in kinds(before[i])}
        if away == {SLOT} and over_slots and node.op == "sum":
            # Of all slots only one holds the expert, and the others add nothing.
            inner = self.value(operands[0], tuple(before))
            return self.reshape(inner, (*self.type(inner).shape[:2], *_features(axes)))
        if away - {FEATURE}:
            raise NotAGroupError
        inner = self.value(operands[0], tuple(before))
        return self.add(node.op, inner, dims=tuple(d + 2 for d in dims), keepdim=keeps)

    # --- weights ----------------------------------------------------------------------------------------------------

    def _weights(self, names: tuple[str, ...], axes: Axes) -> str:
        """A weight of each expert that is no matrix, such as a bias: the chosen experts' rows of a table."""
        if of_kind(axes, TOKEN) or of_kind(axes, SLOT):
            raise NotAGroupError
        if len(names) > 1:
            if len(names) != self._choice.experts:
                raise NotAGroupError
            stack = self._stacks.of(names)
            self._types[stack.name] = stack.type
            name = stack.name
        elif axes and axes[0] == axis(EXPERT, self._choice.experts) and not of_kind(axes[1:], EXPERT):
            name = names[0]
        else:
            raise NotAGroupError
        table = self.reshape(name, (self._choice.experts, size_of(of_kind(axes, FEATURE))))
        rows = self.add("embedding", table, self.indices())
        return self.reshape(rows, (self._choice.count, self._choice.active, *_features(axes)))

    def _linear(self, nodes: list[Node], operands: list[tuple[str, ...]], axes: Axes) -> str:
        x, weights, *bias = operands
        width = self.type(x[0]).shape[-1]
        inner = self.value(x, (*axes[:-1], axis(FEATURE, width)))
        attributes = nodes[0].attributes
        if len(set(weights)) == 1 and all(len(set(b)) == 1 for b in bias):
            return self.add("linear", inner, weights[0], *(b[0] for b in bias), **attributes)
        if len(weights) != self._choice.experts:
            raise NotAGroupError
        given = [self._stacks.of(operand) for operand in (weights, *bias)]
        self._types |= {stack.name: stack.type for stack in given}
        names = [stack.name for stack in given]
        self.origin = self.origin or self._named(_common(node.origin for node in nodes))
        return self.grouped(inner, names[0], names[1:], bool(attributes["transposed"]), axes)

    def _matmul(self, nodes: list[Node], operands: list[tuple[str, ...]], axes: Axes) -> str:
        """A product with a stack of the experts' weights."""
        (left, right), shape = operands, self.type(nodes[0].result.name).shape
        if len(nodes) > 1:
            raise NotAGroupError
        name, stored = self._stack_behind(right[0])
        stored = ((),) * (len(shape) - len(stored)) + stored
        inputs, outputs = ([label for label, _ in stored[i] if label != EXPERT] for i in (-2, -1))
        at = [i for i, one in enumerate(stored) if EXPERT in kinds(one)]
        lies = len(at) == 1 and at[0] != len(stored) - 2 and _labels(axes[at[0]]) == _labels(stored[at[0]])
        if not lies or [inputs, outputs] not in ([["p"], ["q"]], [["q"], ["p"]]):
            raise NotAGroupError
        width = self.type(left[0]).shape[-1]
        inner = self.value(left, (*axes[:-1], axis(FEATURE, width)))
        self.origin = self.origin or self._named(name.rpartition(".")[0])
        return self.grouped(inner, name, (), inputs == ["p"], axes)

    def grouped(self, x: str, weight: str, bias: Sequence[str], transposed: bool, axes: Axes) -> str:
        """The product of restricted ``x`` with each chosen expert's weight."""
        tokens, slots = self.type(x).shape[:2]
        if tokens != self._choice.count:
            raise NotAGroupError
        narrow = self.reshape(x, (tokens, slots, self.type(x).shape[-1]))
        product = self.add("grouped_linear", narrow, weight, self.indices(), *bias, transposed=transposed)
        return self.reshape(product, (tokens, self._choice.active, *_features(axes)))

    def _stack_behind(self, name: str) -> tuple[str, Axes]:
        """The parameter [experts, p, q] that ``name`` is a view of, and what the axes of ``name`` are of it."""
        views: list[Node] = []
        while name in self._graph.producer:
            node = self._graph.nodes[self._graph.producer[name]]
            if node.op not in ("reshape", "transpose"):
                raise NotAGroupError
            views.append(node)
            (name,) = node.inputs
        parameter = self._graph.parameter.get(name)
        if parameter is None or len(parameter.shape) != 3 or parameter.shape[0] != self._choice.experts:
            raise NotAGroupError
        labels = (EXPERT, "p", "q")
        own = tuple(axis(label, size) for label, size in zip(labels, parameter.shape, strict=True))
        axes = through_views(own, views)
        if axes is None:
            raise NotAGroupError
        return name, axes

    # --- origins ----------------------------------------------------------------------------------------------------

    def _named(self, path: str) -> str:
        """A path below the root's: a group without a module of its own is called experts."""
        root = self._root.origin
        inside = path.startswith(f"{root}.") if root else bool(path)
        return path if inside else f"{root}.experts".lstrip(".")


def _labels(one: Axis) -> list[str]:
    """Where experts and features lie in an axis."""
    return [EXPERT if kind(atom) == EXPERT else FEATURE for atom in one]


def _common(paths: Iterable[str]) -> str:
    columns = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))


def _features(axes: Axes) -> Shape:
    """The size of the features in each axis."""
    return tuple(size_of([atom for atom in one if kind(atom) == FEATURE]) for one in axes)
