"""Costs between the measured numbers of tokens, and where one kind becomes cheaper than another."""

import math
from collections.abc import Mapping


def crossovers(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Token counts where the costs of two kinds are equal, between the points that both have.

    The logarithm of their ratio is taken as linear in the logarithm of the tokens between neighbours.
    """
    shared = sorted(first.keys() & second.keys())
    ratios = [math.log(first[n] / second[n]) for n in shared]
    found = []
    for (low, a), (high, b) in zip(
        zip(shared, ratios, strict=True), zip(shared[1:], ratios[1:], strict=True), strict=False
    ):
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
    parts, begin = [], None if not cheaper else float(shared[0])
    for point in points:
        if begin is None:
            begin = point
        else:
            parts.append(
                f"up to {point:.0f} tokens" if begin == shared[0] else f"from {begin:.0f} to {point:.0f} tokens"
            )
            begin = None
    if begin is not None:
        parts.append(f"from {begin:.0f} tokens")
    return " and ".join(parts)


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
