"""Which of a layer's experts a batch of tokens meets, if all are as likely."""

from __future__ import annotations

import math

import numpy as np

from ir.layout import Ints


def touched_share(experts: int, active: int, tokens: int) -> float:
    """Expected share of a layer's experts that ``tokens`` tokens touch: 1 - (1 - k/E)^tokens."""
    return float(1 - (1 - active / experts) ** tokens)


def busiest_load(experts: int, active: int, tokens: int) -> float:
    """Tokens of ``tokens`` that the busiest expert serves: mean and three deviations (Poisson), as far as there are
    tokens.
    """
    if tokens == 1:
        return 1.0
    mean = tokens * active / max(1, experts)
    return min(float(tokens), max(1.0, mean + 3 * math.sqrt(mean)))


def even_routing(experts: int, places: int, tokens: int) -> Ints:
    """How many of ``tokens`` tokens each expert serves at each place of their choice [experts, places], where experts
    are chosen in turn: place j of token t goes to expert t places + j, counted round.
    """
    chosen = np.arange(tokens * places).reshape(tokens, places) % experts
    return np.stack([np.bincount(chosen[:, place], minlength=experts) for place in range(places)], axis=1)
