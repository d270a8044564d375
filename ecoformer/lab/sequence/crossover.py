"""Costs between the measured numbers of tokens, and where one kind becomes cheaper than another."""

import math
from collections.abc import Mapping
from itertools import pairwise


def crossovers(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Token counts where the costs of two kinds are equal, between the points that both have.

    The logarithm of their ratio is taken as linear in the logarithm of the tokens between neighbours.
    """
    shared = sorted(n for n in first.keys() & second.keys() if first[n] > 0 and second[n] > 0)
    ratios = [math.log(first[n] / second[n]) for n in shared]
    found = []
    for (low, a), (high, b) in pairwise(zip(shared, ratios, strict=True)):
        if (a < 0) != (b < 0):
            share = a / (a - b)
            found.append(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    return found


def describe(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    """In words, where `first` costs less than `second`: "from 430 tokens", "up to 900 tokens", "always", ..."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return "not comparable"
    points = crossovers(first, second)
    cheaper = first[shared[0]] < second[shared[0]]
    if not points:
        return f"{'always' if cheaper else 'never'} ({shared[0]} to {shared[-1]} tokens)"
    spans = list(pairwise([None, *points, None]))[0 if cheaper else 1 :: 2]
    return " and ".join(_in_words(*span) for span in spans)


def _in_words(low: float | None, high: float | None) -> str:
    if low is None:
        return f"up to {high:.0f} tokens"
    return f"from {low:.0f} tokens" if high is None else f"from {low:.0f} to {high:.0f} tokens"


def interpolate(points: Mapping[int, float], tokens: float) -> float | None:
    """The cost at a token count, on the straight line between its neighbours in a log-log plot; None outside."""
    below, above = [n for n in points if n <= tokens], [n for n in points if n >= tokens]
    if not below or not above:
        return None
    low, high = max(below), min(above)
    if low == high:
        return points[low]
    share = math.log(tokens / low) / math.log(high / low)
    return points[low] ** (1 - share) * points[high] ** share
