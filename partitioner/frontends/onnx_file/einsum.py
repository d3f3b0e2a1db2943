"""Einstein sums as products of matrices: shared letters are batches, letters that vanish are summed over."""

from __future__ import annotations

from ir.types import Size, product
from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, counting, term


@operator("Einsum")
def _einsum(site: Site) -> Operand:
    equation = site.attribute("equation").replace(" ", "")
    terms = [term(site, index) for index in range(len(site.node.inputs))]
    inputs, output = _letters(equation, terms)
    labelled = [_diagonal(x, letters) for x, letters in zip(terms, inputs, strict=True)]
    x, letters = labelled[0]
    for position, (other, theirs) in enumerate(labelled[1:], start=1):
        later = {letter for _, more in labelled[position + 1 :] for letter in more}
        x, letters = _product(x, letters, other, theirs, later | set(output))
    gone = [index for index, letter in enumerate(letters) if letter not in output]
    x = x.reduce("sum", gone).cast(terms[0].dtype)
    kept = [letter for letter in letters if letter in output]
    return x.transpose(*(kept.index(letter) for letter in output)).name


def _letters(equation: str, terms: list[Term]) -> tuple[list[list[str]], list[str]]:
    """Letters of each operand and of the result; those of an ellipsis are numbers, counted from the last axis."""
    left, arrow, right = equation.partition("->")
    given = left.split(",")
    if len(given) != len(terms):
        raise UnfoldableError(f"{equation} is not an equation of {len(terms)} operands")
    inputs = []
    for text, x in zip(given, terms, strict=True):
        before, dots, after = text.partition("...")
        hidden = len(x.shape) - len(before) - len(after)
        if hidden < 0 or (hidden and not dots):
            raise UnfoldableError(f"{text} does not fit a tensor of {len(x.shape)} axes")
        inputs.append([*before, *(str(i) for i in range(hidden, 0, -1)), *after])
    numbers = sorted({letter for letters in inputs for letter in letters if letter.isdigit()}, key=int, reverse=True)
    if arrow:
        before, dots, after = right.partition("...")
        return inputs, [*before, *(numbers if dots else []), *after]
    every = [letter for letters in inputs for letter in letters if not letter.isdigit()]
    return inputs, [*numbers, *sorted(letter for letter in set(every) if every.count(letter) == 1)]


def _diagonal(x: Term, letters: list[str]) -> tuple[Term, list[str]]:
    """An operand without letters that occur twice: of those axes only the diagonal is left."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first = letters.index(letter)
            second = letters.index(letter, first + 1)
            size, rank = x.shape[first], len(letters)
            rows, columns = (
                counting(x.site, size).reshape(*(size if i == axis else 1 for i in range(rank)))
                for axis in (first, second)
            )
            x = (x * rows.with_("eq", columns).cast(x.dtype)).reduce("sum", [second]).cast(x.dtype)
            letters = [*letters[:second], *letters[second + 1 :]]
    return x, letters


def _product(x: Term, letters: list[str], y: Term, theirs: list[str], kept: set[str]) -> tuple[Term, list[str]]:
    """The product of two operands, summed over the letters of both that nobody needs any more."""
    both = [letter for letter in letters if letter in theirs]
    batch, summed = ([letter for letter in both if (letter in kept) is is_kept] for is_kept in (True, False))
    rows = [letter for letter in letters if letter not in theirs]
    columns = [letter for letter in theirs if letter not in letters]
    sizes: dict[str, Size] = {}
    for operand, names in ((x, letters), (y, theirs)):
        sizes |= {name: size for name, size in zip(names, operand.shape, strict=True) if sizes.get(name, 1) == 1}
    left = _arranged(x, letters, [batch, rows, summed], sizes)
    right = _arranged(y, theirs, [batch, summed, columns], sizes)
    result = (left @ right).reshape(*(sizes[name] for name in (*batch, *rows, *columns)))
    return result, [*batch, *rows, *columns]


def _arranged(x: Term, letters: list[str], groups: list[list[str]], sizes: dict[str, Size]) -> Term:
    """``x`` with its axes in the order of ``groups``, each group as one axis; axes of one element are repeated."""
    order = [name for group in groups for name in group]
    x = x.transpose(*(letters.index(name) for name in order)).expand(*(sizes[name] for name in order))
    return x.reshape(*(product(sizes[name] for name in group) for group in groups))
