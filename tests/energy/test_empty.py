"""Tensors without elements, and scalars."""

from collections.abc import Callable

import pytest
import torch
from test_rules import Apply, arithmetic
from torch import Tensor
from torch.nn import functional as F


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: F.layer_norm(x, (4,)), (0, 4)),
        (lambda x: F.rms_norm(x, (4,)), (0, 4)),
        (lambda x: x.softmax(0), (0, 4)),
        (lambda x: x.log_softmax(0), (0, 4)),
        (lambda x: x.var(0), (4, 0)),
    ],
)
def test_nothing_costs_nothing(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    assert arithmetic(Apply(function), torch.zeros(shape)) == {}


def test_of_a_norm_of_nothing_the_root_is_left_and_a_scalar_has_one_logarithm() -> None:
    assert arithmetic(Apply(lambda x: x.norm()), torch.zeros(0, 4)) == {"sqrt": 1}
    assert arithmetic(Apply(lambda x: x.log_softmax(0)), torch.tensor(1.0)) == {"add": 2, "exp": 2}
