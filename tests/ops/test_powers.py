"""Weights that are signed powers of two, and the Linear that runs them, against powers of Python's floats."""

import copy
import math

import pytest
import torch

from ecoformer.nn.power_linear import PowerLinear, with_powers, without_powers
from ecoformer.ops.codes.powers import EXPONENTS, HIGHEST, LOWEST, nearest_powers, powers, straight_through_powers

SHAPES = [(3, 5), (16, 7), (1, 1), (9, 31)]


def reference(weight):
    """sign(w) 2^e, weight by weight, with e of so many exponents from the largest down."""
    exponents = {w: round(math.log2(abs(w))) for w in weight.flatten().tolist() if w}
    low = max(exponents.values()) - EXPONENTS + 1
    rows = [[math.copysign(2.0 ** max(exponents[w], low), w) if w else 0.0 for w in row] for row in weight.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def wide(shape, dtype=torch.float32):
    """Weights over more exponents than a matrix may have."""
    return (torch.randn(*shape, dtype=torch.float64) * torch.exp2(-24 * torch.rand(*shape).double())).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_powers_are_those_found_one_by_one(shape, dtype):
    weight = wide(shape, dtype)
    weight.view(-1)[1:2] = 0
    expected = reference(weight)
    assert torch.equal(powers(*nearest_powers(weight)).double(), expected)
    assert torch.equal(straight_through_powers(weight).double(), expected)
    assert torch.equal(reference(expected), expected)
    assert torch.equal(powers(*nearest_powers(expected)).double(), expected)


def test_powers_by_hand():
    # sqrt(2) lies between 1 and 2 by the logarithm; 2^-20 is too small by five exponents.
    weight = torch.tensor([[1.0, -1.41, 1.42, 0.0], [-0.7, 0.72, 3 * 2.0**-14, -(2.0**-20)]])
    expected = torch.tensor([[1.0, -1.0, 2.0, 0.0], [-0.5, 1.0, 2.0**-12, -(2.0**-14)]])
    assert torch.equal(powers(*nearest_powers(weight)), expected)


def test_the_ends_of_the_range():
    exponents = torch.arange(LOWEST, HIGHEST + 1)
    found = powers(torch.ones(len(exponents), dtype=torch.int8), exponents.to(torch.int8))
    assert found.tolist() == [2.0**e for e in exponents.tolist()]
    assert not powers(*nearest_powers(torch.zeros(2, 3))).any()
    tiny, huge = torch.tensor([[1e-44]]), torch.tensor([[3e38]])
    assert (powers(*nearest_powers(tiny)), powers(*nearest_powers(huge))) == (2.0**LOWEST, 2.0**127)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_rounded_weight(shape, bias):
    out_features, in_features = shape
    layer = PowerLinear(in_features, out_features, bias=bias).double()
    layer.weight.data = wide(shape, torch.float64)
    x = torch.randn(2, 9, in_features, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 9, out_features, dtype=torch.float64)
    rounded = reference(layer.weight).requires_grad_()
    leaves = [x, layer.weight, *[layer.bias] * bias]
    out = layer(x)
    expected = x @ rounded.T + (layer.bias if bias else 0)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad((out * target).sum(), leaves)
    wanted = torch.autograd.grad((expected * target).sum(), [x, rounded, *[layer.bias] * bias])
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), out)


@pytest.mark.parametrize("autocast", [True, False])
def test_powers_stay_exact_in_half_precision(autocast):
    layer, x = PowerLinear(31, 9), torch.randn(5, 31)
    layer.weight.data = wide((9, 31))
    rounded, bias = reference(layer.weight).bfloat16(), layer.bias.detach().bfloat16()
    assert torch.equal(rounded.double(), reference(layer.weight))
    expected = torch.nn.functional.linear(x.bfloat16(), rounded, bias)
    if not autocast:
        layer.eval().to(torch.bfloat16)  # weights near a half of an exponent are on its other side now
        layer.weight.data = rounded
        x = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert torch.equal(layer(x), expected)
        with torch.no_grad():
            assert torch.equal(layer.eval()(x), expected)


def test_a_power_linear_runs_what_it_trained_wherever_it_is_taken():
    layer, x = PowerLinear(6, 4), torch.randn(5, 6)
    start = layer(x).detach()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer.train()(x).square().mean().backward()
        optimizer.step()
    trained, buffers = layer(x).detach(), dict(layer.named_buffers())
    assert not torch.allclose(trained, start)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), trained)
    assert all(buffer is buffers[name] and buffer.dtype == torch.int8 for name, buffer in layer.named_buffers())
    other = PowerLinear(6, 4)
    other.load_state_dict(layer.state_dict())
    twin = copy.deepcopy(layer).double().float()
    exported = torch.export.export(layer.requires_grad_(False), (x,)).module()
    for taken in (other, other.eval(), twin, twin.eval(), exported, without_powers(layer)):
        assert torch.equal(taken(x), trained)
    assert type(without_powers(layer)) is torch.nn.Linear and without_powers(other) is not other
    layer.harden()
    assert torch.equal(layer(x), trained) and sorted(layer.state_dict()) == ["bias", "exponents", "signs"]


def test_a_linear_keeps_its_parameters():
    linear = torch.nn.Linear(6, 4).eval()
    linear.weight.requires_grad_(False)
    before = torch.get_rng_state()
    layer = with_powers(linear)
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.weight is linear.weight and layer.bias is linear.bias and not layer.training
    plain = without_powers(layer)
    assert not plain.weight.requires_grad and plain.bias.requires_grad
    assert torch.equal(plain.weight.double(), reference(linear.weight))
