"""Sums of products by Einstein's convention, as one matrix product for each pair of operands."""

from __future__ import annotations

from collections.abc import Sequence

from ir.types import Size, product
from partitioner.frontends.aten.registry import Translator, reshape, rule


@rule("einsum")
def _einsum(t: Translator, equation: str, operands: Sequence[str], path: Sequence[int] | None = None) -> str:
    """Operands are joined from the left; a letter is summed over once nothing later reads it."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = _without_dots(t, left.split(","), operands)
    letters = "".join(terms)
    result = right if "->" in equation else "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if "." in result:
        result = result.replace("...", max((_dots(term) for term in terms), key=len))
    if any(len(set(term)) != len(term) for term in (*terms, result)):
        raise NotImplementedError("an einsum of diagonals")
    name, term = operands[0], terms[0]
    for number, (other, other_term) in enumerate(zip(operands[1:], terms[1:], strict=True), start=2):
        later = set(result).union(*terms[number:])
        name, term = _pair(t, (name, term), (other, other_term), later)
    return _arranged(t, *_summed(t, name, term, set(result)), result)


def _without_dots(t: Translator, terms: Sequence[str], operands: Sequence[str]) -> list[str]:
    """Terms with a capital-free letter of its own for each axis that three dots stand for, counted from the last."""
    free = [chr(code) for code in range(0x3B1, 0x3B1 + 24)]
    named = []
    for term, operand in zip(terms, operands, strict=True):
        hidden = len(t.type(operand).shape) - len(term.replace("...", ""))
        named.append(term.replace("...", "".join(reversed(free[:hidden]))))
    return named


def _dots(term: str) -> str:
    return "".join(letter for letter in term if ord(letter) >= 0x3B1)


def _summed(t: Translator, name: str, term: str, kept: set[str]) -> tuple[str, str]:
    dims = tuple(i for i, letter in enumerate(term) if letter not in kept)
    if not dims:
        return name, term
    return t.add("sum", name, dims=dims, keepdim=False), "".join(letter for letter in term if letter in kept)


def _arranged(t: Translator, name: str, term: str, wanted: str) -> str:
    order = tuple(term.index(letter) for letter in wanted)
    return name if order == tuple(range(len(order))) else t.add("transpose", name, permutation=order)


def _pair(t: Translator, left: tuple[str, str], right: tuple[str, str], later: set[str]) -> tuple[str, str]:
    """The product of two operands: letters of both that are read later are stacks, other letters of both are summed."""
    left = _summed(t, *left, later | set(right[1]))
    right = _summed(t, *right, later | set(left[1]))
    sizes: dict[str, Size] = {}
    for name, term in (left, right):
        for letter, size in zip(term, t.type(name).shape, strict=True):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]
    both = [letter for letter in left[1] if letter in right[1]]
    stack = "".join(letter for letter in both if letter in later)
    summed = "".join(letter for letter in both if letter not in later)
    rows = "".join(letter for letter in left[1] if letter not in both)
    columns = "".join(letter for letter in right[1] if letter not in both)
    if not summed:
        return _outer(t, left, right, stack + rows + columns), stack + rows + columns
    a = _flat(t, left, (*stack, rows, summed))
    b = _flat(t, right, (*stack, summed, columns))
    weight = not stack and t.is_parameter(right[0]) and len(right[1]) == 2
    found = t.add("linear", a, b, transposed=True) if weight and b == right[0] else t.add("matmul", a, b)
    term = stack + rows + columns
    return reshape(t, found, tuple(sizes[letter] for letter in term)), term


def _flat(t: Translator, operand: tuple[str, str], axes: Sequence[str]) -> str:
    """The operand with its letters in order, and an axis for each group of them."""
    name, term = operand
    sizes = dict(zip(term, t.type(name).shape, strict=True))
    arranged = _arranged(t, name, term, "".join(axes))
    return reshape(t, arranged, tuple(product(sizes[letter] for letter in group) for group in axes))


def _outer(t: Translator, left: tuple[str, str], right: tuple[str, str], term: str) -> str:
    spread = []
    for name, own in (left, right):
        sizes = dict(zip(own, t.type(name).shape, strict=True))
        ordered = _arranged(t, name, own, "".join(letter for letter in term if letter in own))
        spread.append(reshape(t, ordered, tuple(sizes.get(letter, 1) for letter in term)))
    return t.add("mul", *spread)
