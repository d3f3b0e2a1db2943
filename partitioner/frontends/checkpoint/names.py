"""Names of tensors as templates: a model has hundreds of thousands of names, but few that differ in more than numbers.

A template is a name whose numbers (layers, experts) are replaced by ``{}``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBER = re.compile(r"(?:(?<=\.)|^)([0-9]+)(?=\.|$)")


def split(name: str) -> list[str]:
    """Texts and the numbers between them, in turn."""
    return _NUMBER.split(name)


def templated(name: str) -> tuple[str, tuple[str, ...]]:
    """The template of ``name`` and the numbers that stand in its places."""
    pieces = split(name)
    return "{}".join(pieces[::2]), tuple(pieces[1::2])


def filled(template: str, numbers: Iterable[str]) -> str:
    """The name that ``template`` and ``numbers`` make."""
    head, *rest = template.split("{}")
    return head + "".join(number + text for number, text in zip(numbers, rest, strict=True))


def grouped(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names by template, each with the range of its numbers and how many there are, for people to read."""
    members: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name in names:
        template, numbers = templated(name)
        members[template].append(numbers)
    return [(filled(template, map(_span, zip(*found, strict=True))), len(found)) for template, found in members.items()]


def _span(numbers: Iterable[str]) -> str:
    found = sorted({int(number) for number in numbers})
    return str(found[0]) if len(found) == 1 else f"{{{found[0]}..{found[-1]}}}"
