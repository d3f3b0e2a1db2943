"""The nouns of waferc: graph, operators, models, machines, workloads and plans.

This package imports nothing of ours and nothing heavy: torch reaches an operator's reference meaning as an argument.
"""
