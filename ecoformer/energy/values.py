"""Which tensors can only hold a few known values, told by how they were made.

A product with a factor from {-1, 0, +1} is an addition, a subtraction or nothing; a product of two 1-bit factors is
an XNOR or an AND. Claiming either needs proof, and the proof here is dataflow: each operation maps the sets of values
that its inputs can hold to the set of its output. Nothing is annotated and no data is looked at. A set that would
grow beyond MAX_VALUES, or that an operation without a rule here touches, is forgotten, so the claim errs towards
full multiplications. Two endless sets are known by name: whole numbers, which tensors of whole dtypes hold, and the
powers of two that they are exponents of, by which to multiply is to add to an exponent. Signs turn these into their
negatives and 0, which cost no more, and products of powers are powers: all of them are one set.
"""

from collections.abc import Callable, Iterable
from enum import Enum
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Endless(Enum):
    """Sets of numbers that are too many to list."""

    WHOLE = "whole numbers"
    POWERS = "powers of two, their negatives, and 0"


Values = frozenset[float] | Endless | None  # None: anything

MAX_VALUES = 4
BITS = frozenset({0.0, 1.0})
SIGNS = frozenset({-1.0, 1.0})
TERNARY = frozenset({-1.0, 0.0, 1.0})


def is_one_bit(values: Values) -> bool:
    """Whether one bit tells the value: {-1, +1} or {0, 1}, or one of these alone."""
    return isinstance(values, frozenset) and (values <= SIGNS or values <= BITS)


def is_signed_unit(values: Values) -> bool:
    """Whether multiplying by the value is keeping, negating or dropping the other factor."""
    return isinstance(values, frozenset) and values <= TERNARY


def is_power_of_two(values: Values) -> bool:
    """Whether multiplying by the value is adding to an exponent, whatever becomes of the sign."""
    return values is Endless.POWERS


class ValueTracker:
    """Value sets of live tensors. An operation that writes into a tensor voids the sets of all its views."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._writes: dict[int, int] = {}

    def get(self, x: Any) -> Values:
        """The values that an operand (tensor, number or anything else) can hold; None if disabled."""
        if not self.enabled:
            return None
        if isinstance(x, bool | int | float):
            return frozenset({float(x)})
        if not isinstance(x, Tensor):
            return None
        known = self._known.get(x)
        if known is not None and known[1] == self._writes.get(storage_of(x), 0):
            return known[0]
        if x.dtype == torch.bool:
            return BITS
        return None if x.is_floating_point() or x.is_complex() else Endless.WHOLE

    def set(self, x: Tensor, values: Values) -> None:
        too_many = isinstance(values, frozenset) and len(values) > MAX_VALUES
        if values is None or too_many or x.dtype.is_complex:
            self._known.pop(x, None)
        else:
            self._known[x] = (values, self._writes.get(storage_of(x), 0))

    def written(self, x: Tensor) -> None:
        """Note that the storage of `x` changed."""
        key = storage_of(x)
        self._writes[key] = self._writes.get(key, 0) + 1


def storage_of(x: Tensor) -> int:
    """The identity of the memory behind a tensor, which its views share."""
    return x.untyped_storage()._cdata


def _union(sets: Iterable[Values]) -> Values:
    listed = list(sets)
    if len(set(listed)) == 1:
        return listed[0]
    result: frozenset[float] = frozenset()
    for values in listed:
        if not isinstance(values, frozenset):
            return None
        result |= values
    return result


def _map(function: Callable[..., float], *sets: Values) -> Values:
    listed = [values for values in sets if isinstance(values, frozenset)]
    if len(listed) < len(sets):
        return None
    return frozenset(float(function(*combination)) for combination in product(*listed))


def names(text: str) -> frozenset[str]:
    """The words of a text: operation names, written without quotes."""
    return frozenset(text.split())


KEEPING = names("""
    view _unsafe_view _reshape_alias t transpose permute expand select slice split split_with_sizes chunk
    unbind unsqueeze squeeze alias detach unfold diagonal narrow movedim swapaxes lift_fresh clone
    contiguous roll flip repeat index _unsafe_index index_select gather tile flatten unflatten view_as expand_as
    broadcast_to repeat_interleave
""")
COMPARING = names("eq ne lt le gt ge logical_not logical_and logical_or logical_xor isnan isinf isfinite signbit")

ValueRule = Callable[[Callable[[str], Values], Any], Values]
"""(values of a named argument, the call) -> values of the output."""


def _two(function: Callable[[float, float], float]) -> ValueRule:
    return lambda values, call: _map(function, values("self"), values("other"))


def _with_alpha(function: Callable[[float, float, float], float]) -> ValueRule:
    """Of self, other and the factor alpha."""
    return lambda values, call: _map(
        function, values("self"), values("other"), frozenset({float(call.arg("alpha", 1))})
    )


def _holding(value: float) -> ValueRule:
    return lambda values, call: frozenset({value})


def _held_by(name: str) -> ValueRule:
    return lambda values, call: values(name)


def _mul(values: Callable[[str], Values], call: Any) -> Values:
    factors = values("self"), values("other")
    if Endless.POWERS in factors and all(is_power_of_two(held) or is_signed_unit(held) for held in factors):
        return Endless.POWERS
    return _map(lambda a, b: a * b, *factors)


def _div(values: Callable[[str], Values], call: Any) -> Values:
    divisors = values("other")
    if call.arg("rounding_mode") is not None or not isinstance(divisors, frozenset) or 0.0 in divisors:
        return None
    return _map(lambda a, b: a / b, values("self"), divisors)


def _cast(values: Callable[[str], Values], call: Any) -> Values:
    held = values("self")
    dtype = call.outputs[0].dtype
    if held is None:
        return BITS if dtype == torch.bool else None
    if isinstance(held, Endless):
        return held if dtype.is_floating_point else None
    if dtype == torch.bool:
        return frozenset(float(v != 0) for v in held)
    if not dtype.is_floating_point and any(v != int(v) or v < 0 for v in held):
        return None if dtype == torch.uint8 else frozenset(float(int(v)) for v in held)
    return held


def _clamp(values: Callable[[str], Values], call: Any) -> Values:
    low, high = call.arg("min"), call.arg("max")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    lower = -float("inf") if low is None else float(low)
    upper = float("inf") if high is None else float(high)
    if values("self") is Endless.WHOLE:
        bounds = [bound for bound in (lower, upper) if abs(bound) != float("inf")]
        return Endless.WHOLE if all(bound == int(bound) for bound in bounds) else None
    return _map(lambda a: min(max(a, lower), upper), values("self"))


def _rounded(values: Callable[[str], Values], call: Any) -> Values:
    return Endless.WHOLE if call.outputs[0].is_floating_point() and not call.arg("decimals", 0) else None


VALUE_RULES: dict[str, ValueRule] = {
    "mul": _mul,
    "add": _with_alpha(lambda a, b, alpha: a + alpha * b),
    "sub": _with_alpha(lambda a, b, alpha: a - alpha * b),
    "rsub": _with_alpha(lambda a, b, alpha: b - alpha * a),
    "div": _div,
    "maximum": _two(max),
    "minimum": _two(min),
    "neg": lambda values, call: _map(lambda a: -a, values("self")),
    "abs": lambda values, call: _map(abs, values("self")),
    "relu": lambda values, call: _map(lambda a: max(a, 0.0), values("self")),
    **dict.fromkeys(("sign", "sgn"), lambda values, call: _map(lambda a: (a > 0) - (a < 0), values("self")) or TERNARY),
    **dict.fromkeys(("round", "floor", "ceil", "trunc"), _rounded),
    "exp2": lambda values, call: Endless.POWERS if values("self") is Endless.WHOLE else None,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamp),
    **dict.fromkeys(("_to_copy", "to"), _cast),
    "copy": lambda values, call: _cast(lambda _: values("src"), call),
    "where": lambda values, call: _union([values("self"), values("other")]),
    "masked_fill": lambda values, call: _union([values("self"), values("value")]),
    "constant_pad_nd": lambda values, call: _union([values("self"), call.values(call.arg("value", 0))]),
    **dict.fromkeys(("cat", "stack"), lambda values, call: _union(call.values(x) for x in call.arg("tensors"))),
    **dict.fromkeys(("full", "full_like", "new_full"), _held_by("fill_value")),
    "fill": _held_by("value"),
    "scalar_tensor": _held_by("s"),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), _holding(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _holding(1.0)),
}


def output_values(call: Any) -> Values:
    """The values that every output of a call can hold."""
    if call.name in KEEPING:
        # view(dtype) reads the same bits as other numbers.
        x = call.arg("self")
        return call.values(x) if all(out.dtype == x.dtype for out in call.outputs) else None
    if call.name in COMPARING:
        return BITS
    rule = VALUE_RULES.get(call.name)
    held = rule(lambda name: call.values(call.arg(name)), call) if rule else None
    wraps = isinstance(held, frozenset) and min(held, default=0) < 0 and call.outputs[0].dtype == torch.uint8
    return None if wraps else held
