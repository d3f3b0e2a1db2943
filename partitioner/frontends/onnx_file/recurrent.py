"""Recurrent networks, one step after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Results
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, counting, fixed, full, join, optional, term

_ACTIVATIONS = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "Softplus": "softplus"}
_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_MOST_STEPS = 512


@dataclass(frozen=True, slots=True)
class _Direction:
    """Weights of one direction: [gates * hidden, inputs], [gates * hidden, hidden], biases, and LSTM's peepholes."""

    site: Site
    hidden: int
    weight: Term
    recurrence: Term
    biases: tuple[Term, Term] | None
    peepholes: Term | None
    activations: list[str]

    def act(self, index: int, x: Term) -> Term:
        """An activation, after the clipping that the node asks for."""
        clip = self.site.attribute("clip")
        x = x.apply("clamp", min=-float(clip), max=float(clip)) if clip else x
        return x.apply(_ACTIVATIONS[self.activations[index]])

    def gate(self, x: Term, index: int, count: int = 1) -> Term:
        """Parts of the last axis that belong to a gate."""
        return x.cut(len(x.shape) - 1, index * self.hidden, (index + count) * self.hidden)

    def peephole(self, index: int, state: Term) -> Term | None:
        """What the state adds to a gate."""
        return None if self.peepholes is None else self.gate(self.peepholes, index) * state

    def projected(self, x: Term, h: Term) -> tuple[Term, Term]:
        """All gates of an input and of the last state, biases included."""
        first, second = self.biases or (None, None)
        inputs = x.apply("linear", self.weight, *([first] if first else []), transposed=False)
        return inputs, h.apply("linear", self.recurrence, *([second] if second else []), transposed=False)


Step = Callable[[_Direction, Term, Term, Term | None], tuple[Term, Term | None]]


def _rnn_step(d: _Direction, x: Term, h: Term, _cell: Term | None) -> tuple[Term, None]:
    left, right = d.projected(x, h)
    return d.act(0, left + right), None


def _gru_step(d: _Direction, x: Term, h: Term, _cell: Term | None) -> tuple[Term, None]:
    left, right = d.projected(x, h)
    update, reset = (d.act(0, d.gate(left, index) + d.gate(right, index)) for index in (0, 1))
    if d.site.attribute("linear_before_reset", 0):
        remembered = reset * d.gate(right, 2)
    else:
        rows = d.recurrence.cut(0, 2 * d.hidden, 3 * d.hidden)
        bias = [d.gate(d.biases[1], 2)] if d.biases else []
        remembered = (reset * h).apply("linear", rows, *bias, transposed=False)
    new = d.act(1, d.gate(left, 2) + remembered)
    return (-update + 1) * new + update * h, None


def _lstm_step(d: _Direction, x: Term, h: Term, cell: Term | None) -> tuple[Term, Term]:
    """Gates in ONNX's order: input, output, forget, cell."""
    assert cell is not None
    left, right = d.projected(x, h)
    gates = left + right
    into, out, keep, new = (d.gate(gates, index) for index in range(4))
    into = d.act(0, _plus(into, d.peephole(0, cell)))
    keep = -into + 1 if d.site.attribute("input_forget", 0) else d.act(0, _plus(keep, d.peephole(2, cell)))
    state = keep * cell + into * d.act(1, new)
    return d.act(0, _plus(out, d.peephole(1, state))) * state.apply(_ACTIVATIONS[d.activations[2]]), state


def _plus(x: Term, other: Term | None) -> Term:
    return x if other is None else x + other


_STEPS: dict[str, Step] = {"RNN": _rnn_step, "GRU": _gru_step, "LSTM": _lstm_step}


@operator("RNN", "GRU", "LSTM")
def _recurrent(site: Site) -> Results:
    by_users = bool(site.attribute("layout", 0))
    x = term(site, 0)
    x = x.transpose(1, 0, 2) if by_users else x
    steps, users = fixed(x.shape[0]), x.shape[1]
    if steps > _MOST_STEPS:
        raise UnfoldableError(f"{steps:,} steps are more than the {_MOST_STEPS} that are lowered one by one")
    directions = _directions(site)
    is_lstm = site.node.op_type == "LSTM"
    initial = [_initial(site, index, x, by_users=by_users) for index in ((5, 6) if is_lstm else (5,))]
    reverse = [site.attribute("direction", "forward") == "reverse", True]
    outputs, last, cells = [], [], []
    for index, direction in enumerate(directions):
        starts = [start.cut(0, index, index + 1).reshape(users, direction.hidden) for start in initial]
        rows, h, cell = _run(direction, x, starts, optional(site, 4), backwards=reverse[index])
        outputs.append(rows.reshape(steps, 1, users, direction.hidden))
        last.append(h.reshape(1, users, direction.hidden))
        cells += [cell.reshape(1, users, direction.hidden)] if cell else []
    y, ends = join(outputs, 1), [join(states, 0) for states in (last, cells) if states]
    if by_users:
        y, ends = y.transpose(2, 0, 1, 3), [end.transpose(1, 0, 2) for end in ends]
    return (y.name, *(end.name for end in ends))


def _directions(site: Site) -> list[_Direction]:
    weight, recurrence, bias, peepholes = term(site, 1), term(site, 2), optional(site, 3), None
    hidden, count = fixed(recurrence.shape[-1]), fixed(weight.shape[0])
    if site.node.op_type == "LSTM":
        peepholes = optional(site, 7)
    names = site.attribute("activations") or _DEFAULTS[site.node.op_type] * count
    unknown = sorted(set(names) - set(_ACTIVATIONS))
    if unknown or len(names) % count:
        raise UnfoldableError(f"the activations {', '.join(unknown or names)} are not supported")
    each, gates = len(names) // count, _GATES[site.node.op_type] * hidden

    def row(x: Term, index: int) -> Term:
        return x.cut(0, index, index + 1).reshape(*x.shape[1:])

    return [
        _Direction(
            site,
            hidden,
            row(weight, i),
            row(recurrence, i),
            None if bias is None else (row(bias, i).cut(0, 0, gates), row(bias, i).cut(0, gates, 2 * gates)),
            None if peepholes is None else row(peepholes, i),
            names[i * each : (i + 1) * each],
        )
        for i in range(count)
    ]


def _initial(site: Site, index: int, x: Term, *, by_users: bool) -> Term:
    given = optional(site, index)
    if given is None:
        weight = site.shape(2)
        return full(site, x.dtype, (weight[0], x.shape[1], weight[-1]), 0.0)
    return given.transpose(1, 0, 2) if by_users else given


def _run(
    d: _Direction, x: Term, starts: list[Term], lengths: Term | None, *, backwards: bool
) -> tuple[Term, Term, Term | None]:
    """The states after each step [steps, users, hidden], and the last state and cell of each user."""
    steps = fixed(x.shape[0])
    x = _backwards(x, lengths) if backwards else x
    h, cell = starts[0], starts[1] if len(starts) > 1 else None
    rows = []
    for step in range(steps):
        new, state = _STEPS[d.site.node.op_type](d, x.cut(0, step, step + 1).reshape(*x.shape[1:]), h, cell)
        row = new
        if lengths is not None:
            alive = lengths.with_("gt", step).reshape(*lengths.shape, 1)
            row = new.apply("masked_fill", alive.apply("logical_not"), value=0.0)
            new = alive.apply("where", new, h)
            state = alive.apply("where", state, cell) if state is not None and cell is not None else state
        h, cell = new, state
        rows.append(row.reshape(1, *row.shape))
    y = join(rows, 0)
    return (_backwards(y, lengths) if backwards else y), h, cell


def _backwards(x: Term, lengths: Term | None) -> Term:
    """Steps [steps, users, width] in reverse, each user's own number of them."""
    if lengths is None:
        return x.apply("flip", dim=0)
    steps = counting(x.site, x.shape[0]).reshape(x.shape[0], 1)
    own = lengths.cast(steps.dtype).reshape(1, *lengths.shape)
    source = steps.with_("lt", own).apply("where", own - steps - 1, steps)
    return x.apply("gather", source.reshape(*source.shape, 1).expand(*x.shape), dim=0)
