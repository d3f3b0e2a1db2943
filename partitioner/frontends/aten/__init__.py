"""What each ATen operator means in the graph's operators: one small rule for each, found by its name.

A rule gets the :class:`Translator` and the operator's arguments, tensors as names in the graph and sizes as numbers or
polynomials, and returns the name (or tuple of names) of its result.
"""

from partitioner.frontends.aten import einsum, elementwise, movement, products, reductions, spatial
from partitioner.frontends.aten.registry import RULES, Rule, Translator

__all__ = ["RULES", "Rule", "Translator", "einsum", "elementwise", "movement", "products", "reductions", "spatial"]
