"""Additions are claimed only where a factor provably is a code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ecoformer.energy import count

N, K, C = 6, 4, 5
TERMS = N * K * C


class Product(nn.Module):
    """make(x) @ v: (N, K) codes or not, times (K, C) numbers."""

    def __init__(self, make: Callable[[Tensor], Tensor], make_right: Callable[[Tensor], Tensor] = lambda v: v) -> None:
        super().__init__()
        self.make, self.make_right = make, make_right

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        return self.make(x) @ self.make_right(v)


def kind_of_product(make: Callable[[Tensor], Tensor], make_right: Callable[[Tensor], Tensor] = lambda v: v) -> str:
    """How the products were counted. The left operand costs at most N * K of anything, which is below TERMS."""
    entries = count(Product(make, make_right), (torch.zeros(N, K), torch.zeros(K, C))).by_op()["aten.mm.default"]
    found = {kind: n for kind, n in entries.counts.items() if not kind.endswith("bytes")}
    assert set(found.values()) == {TERMS}
    return "+".join(sorted(found))


def codes(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0)


CODES = {
    "where": codes,
    "where, cast": lambda x: torch.where(x < 0, -1, 1).to(x.dtype),
    "comparison cast to float": lambda x: (x > 0).float(),
    "twice a bit minus one": lambda x: 2 * (x > 0).float() - 1,
    "in place": lambda x: x.ge(0).to(x.dtype).mul_(2).sub_(1),
    "three codes of sign": torch.sign,
    "full of ones": torch.ones_like,
    "views": lambda x: codes(x).t().unsqueeze(0).expand(2, K, N)[0].reshape(K, N).transpose(0, 1),
    "copies": lambda x: codes(x.repeat(2, 1))[:N].contiguous().clone(),
    "joined": lambda x: torch.cat([codes(x[:3]), torch.ones_like(x[3:])]),
    "split and stacked": lambda x: torch.stack([part.squeeze(1) for part in codes(x).split(1, dim=1)], dim=1),
    "product of codes": lambda x: codes(x) * codes(-x),
    "masked fill": lambda x: codes(x).masked_fill(x > 3, -1.0),
    "copied into": lambda x: torch.empty_like(x).copy_(codes(x)),
    "half precision": lambda x: codes(x).half().float(),
}
NUMBERS = {
    "the input": lambda x: x,
    "scaled codes": lambda x: 0.5 * codes(x),
    "codes plus numbers": lambda x: codes(x) + x,
    "straight-through sum": lambda x: x + (codes(x) - x).detach(),
    "numbers of either sign": lambda x: torch.where(x < 0, -x, 1.0),
    "joined with numbers": lambda x: torch.cat([codes(x[:3]), x[3:]]),
    "overwritten": lambda x: codes(x).copy_(x),
    "written through a view": lambda x: _written_through_a_view(x),
    "view of something overwritten": lambda x: _view_of_overwritten(x),
    "powers of two": lambda x: torch.where(x < 0, 2.0, 4.0),
    "padded with two": lambda x: nn.functional.pad(codes(x), (0, 0, 0, 1), value=2.0)[:N],
    "filled with a half": lambda x: codes(x).masked_fill(x > 3, 0.5),
}


def _written_through_a_view(x: Tensor) -> Tensor:
    code = codes(x)
    code[0].mul_(x[0])
    return code


def _view_of_overwritten(x: Tensor) -> Tensor:
    code = codes(x)
    view = code.view(N, K)
    code.add_(x)
    return view


@pytest.mark.parametrize("make", CODES.values(), ids=CODES)
def test_codes_times_numbers_are_additions(make: Callable[[Tensor], Tensor]) -> None:
    assert kind_of_product(make) == "add"


def test_codes_on_the_right_are_additions_too() -> None:
    assert kind_of_product(lambda x: x, codes) == "add"


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_everything_else_is_multiplied(make: Callable[[Tensor], Tensor]) -> None:
    assert kind_of_product(make) == "fma"


@pytest.mark.parametrize("left", [codes, lambda x: (x > 0).float()], ids=["signs", "bits"])
def test_two_codes_are_xnor_and_popcount(left: Callable[[Tensor], Tensor]) -> None:
    assert kind_of_product(left, codes) == "binary_mul+popcount"


SHIFTS = {
    "rounded and clamped": lambda x: x.round().clamp(-3, 4).exp2(),
    "in place": lambda x: x.clone().round_().clamp_(-3, 4).exp2_(),
    "floor": lambda x: torch.exp2(torch.floor(x)),
    "views and copies": lambda x: torch.cat([x.ceil().exp2().t().contiguous().t()] * 2)[:N],
    "in double precision": lambda x: x.round().double().exp2().float(),
    "of whole numbers": lambda x: x.to(torch.int8).float().exp2(),
    "signed": lambda x: x.sign() * x.round().exp2(),
    "signed by whole numbers": lambda x: x.to(torch.int8).sign() * x.floor().exp2(),
    "signed twice": lambda x: codes(x) * (x.floor().exp2() * codes(-x)),
    "multiplied by another": lambda x: x.floor().exp2() * x.ceil().exp2(),
}
NO_SHIFTS = {
    "not rounded": torch.exp2,
    "clamped by a half": lambda x: x.round().clamp(-2.5, 4).exp2(),
    "halves": lambda x: (0.5 * x.round()).exp2(),
    "another base": lambda x: x.round().exp(),
    "rounded to a tenth": lambda x: x.round(decimals=1).exp2(),
    "overwritten": lambda x: x.round().copy_(x).exp2(),
    "added to": lambda x: x.round().exp2() + 1,
    "times three": lambda x: 3 * x.round().exp2(),
    "times a number": lambda x: x * x.round().exp2(),
    "times whole numbers": lambda x: x.round() * x.round().exp2(),
    "whole numbers halved": lambda x: (x.to(torch.int8) / 2).exp2(),
    "whole numbers": lambda x: x.to(torch.int8).float(),
    "bits read as other numbers": lambda x: x.round().to(torch.int32).view(torch.float32).exp2(),
    "padded": lambda x: nn.functional.pad(x.round().exp2(), (0, 0, 0, 1))[:N],
}


def test_bits_that_wrap_around_are_no_signs() -> None:
    assert kind_of_product(lambda x: ((x > 0).to(torch.uint8) * 2 - 1).float()) == "fma"


@pytest.mark.parametrize("make", SHIFTS.values(), ids=SHIFTS)
def test_a_power_of_two_is_a_shift(make: Callable[[Tensor], Tensor]) -> None:
    assert kind_of_product(make) == "add+shift"
    assert kind_of_product(lambda x: x, lambda v: v.round().exp2()) == "add+shift"


@pytest.mark.parametrize("make", NO_SHIFTS.values(), ids=NO_SHIFTS)
def test_what_may_be_no_power_of_two_is_multiplied(make: Callable[[Tensor], Tensor]) -> None:
    assert kind_of_product(make) == "fma"


def test_shifts_one_by_one() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.round().clamp(-3, 4).exp2()

    found = count(Scaled(), torch.zeros(N, K)).counts
    # An exponent is put into place and added; rounding is one comparison, each bound another.
    assert {kind: n for kind, n in found.items() if not kind.endswith("bytes")} == {"shift": 2 * 24, "compare": 3 * 24}


def test_a_code_picks_the_shifted() -> None:
    assert kind_of_product(codes, lambda v: v.round().exp2()) == "add"


def test_three_codes_need_more_than_a_bit() -> None:
    assert kind_of_product(torch.sign, codes) == "add"


def test_a_code_in_a_parameter_is_not_assumed() -> None:
    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(K, C))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    assert count(Signed(), torch.zeros(N, K)).counts["fma"] == TERMS


def test_zero_padding_of_signs_is_a_third_code() -> None:
    class Padded(nn.Module):
        def __init__(self, padding: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=padding, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(codes(x), codes(self.conv.weight), padding=self.conv.padding)

    inside, padded = (count(Padded(padding), (2, 5, 5)).counts for padding in (0, 1))
    assert (inside["popcount"], inside["add"]) == (27 * 18, 0)
    assert (padded["popcount"], padded["add"]) == (0, 75 * 18)


def test_zero_padding_of_powers_stays_a_shift() -> None:
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x.round().exp2(), torch.zeros_like(x) + x[:1], padding=1)

    found = count(Padded(), torch.zeros(2, 3, 5, 5)).counts
    terms = 2 * 2 * 3 * 5 * 5 * 3 * 3
    assert found["fma"] == 0 and found["shift"] == terms + 150


def test_binary_convolution_and_counting() -> None:
    class Binary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 2, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            code = codes(x)
            return nn.functional.conv2d(code, codes(self.weight)).sum() + code.sum()

    found = count(Binary(), (2, 5, 5)).counts
    terms = 3 * 3 * 3 * 2 * 9
    assert found["binary_mul"] == terms
    assert found["popcount"] == terms + (50 - 1)
    assert found["add"] == 27 - 1 + 1
