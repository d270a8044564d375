"""Operation rules: what each known operation costs, as a function of its call.

Conventions (docs/energy.md states them for readers):
- An inner product of length n is n fused multiply-adds, the sum starting at zero; a bias is one more addition.
- A sum of n terms is n - 1 additions, a maximum n - 1 comparisons.
- A product whose one factor is a code from {-1, 0, +1} is an addition; with both factors 1-bit it is an XNOR/AND plus
  a popcount; with a factor that is a power of two, a shift. `ecoformer.energy.values` has to prove it.
- Moving data costs bytes only, a view nothing.
An operation without a rule here is unknown; it is never assumed to be free.
"""

from collections.abc import Callable, Iterable
from math import prod

from ecoformer.energy.call import Call
from ecoformer.energy.kinds import Counts, counts, scaled
from ecoformer.energy.values import Values, is_one_bit, is_power_of_two, is_signed_unit

Rule = Callable[[Call], Counts]
RULES: dict[str, Rule] = {}
UNREAD: set[str] = set()  # operations that touch no memory: views and uninitialised allocations
PRODUCTS: set[str] = set()  # operations made of inner products: what the paper convention charges
# Operations whose rule holds for complex numbers too, so many times: a product of two is four real ones, accumulated.
# All others that compute are unknown with complex numbers.
COMPLEX = {"mm": 4, "bmm": 4, "mv": 4, "dot": 4, "vdot": 4, "add": 2, "sub": 2, "neg": 2, "sum": 2}
SOFTMAX = ("softmax", "_softmax", "_safe_softmax")


def rule(*names: str, products: bool = False, complex_times: int | None = None) -> Callable[[Rule], Rule]:
    """Register the rule of some operations.

    Args:
        products: matrix products, convolutions and fused attention, all that the paper convention charges.
        complex_times: for complex numbers it holds so many times; None: for real numbers alone.
    """

    def decorate(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = function
            if products:
                PRODUCTS.add(name)
            if complex_times is not None:
                COMPLEX[name] = complex_times
        return function

    return decorate


def inner_products(terms: int, left: Values, right: Values) -> Counts:
    """`terms` products, each accumulated, between operands that can hold the given values."""
    if is_one_bit(left) and is_one_bit(right):
        return counts(binary_mul=terms, popcount=terms)
    if is_signed_unit(left) or is_signed_unit(right):
        return counts(add=terms)
    is_shift = is_power_of_two(left) or is_power_of_two(right)
    return counts(shift=terms, add=terms) if is_shift else counts(fma=terms)


def sum_of(elements: int, groups: int, held: Values = None) -> Counts:
    """`elements` numbers added up into `groups` sums; 1-bit numbers are counted, not added."""
    terms = elements - groups if elements else 0
    return counts(popcount=terms) if is_one_bit(held) else counts(add=terms)


def per_element(**kinds: int) -> Rule:
    """A rule that charges so much per element of the result."""
    each = counts(kinds)
    return lambda call: scaled(each, call.elements)


def is_known(call: Call) -> bool:
    """Whether a rule says what the call costs."""
    return call.name in RULES and (not call.is_complex or call.name in COMPLEX)


def free(operations: Iterable[str], memory: bool) -> None:
    """Register operations without arithmetic; `memory` tells copies from views."""
    for name in operations:
        rule(name, complex_times=1)(lambda call: counts())
        if not memory:
            UNREAD.add(name)


def group_size(call: Call, dims: object) -> int:
    """Elements of `self` that are reduced over `dims` (None or empty: all)."""
    shape = call.arg("self").shape
    if dims is None or dims == []:
        return prod(shape)
    listed = dims if isinstance(dims, list | tuple) else [dims]
    return prod(shape[d] for d in listed) if len(shape) else 1
