"""Codes that are powers of two, and ternary projections: the quadratic form, gradients, cases by hand."""

import copy

import pytest
import torch
from torch.nn.utils import prune

from ecoformer.errors import InputError
from ecoformer.nn.ternary import TernaryLinear
from ecoformer.ops.codes.folded import Affine, distilled_attention
from ecoformer.ops.codes.forms import Shifts
from ecoformer.ops.codes.naive import distilled_attention_reference
from ecoformer.ops.codes.ternary import TernaryAffine, straight_through_ternary, ternary

SHAPES = [(2, 21, 12, 3, 6), (1, 1, 8, 1, 4), (3, 50, 10, 5, 1), (2, 7, 16, 2, 16)]
RANGE = (-5, 4)


def case(B, N, D, H, K, dtype=torch.float64):
    def affine(rows, size=1.0):
        return Affine(size * torch.randn(rows, D, dtype=dtype) / D**0.5, torch.randn(rows, dtype=dtype))

    # Exponents that reach beyond both ends of the range.
    return torch.randn(B, N, D, dtype=dtype), affine(2 * H * K, 4.0), affine(D), affine(D), torch.rand(H, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}N{}D{}H{}K{}".format(*s))
def test_equals_the_quadratic_form(shape, dtype):
    x, codes, value, proj, floor = case(*shape, dtype=dtype)
    expected = distilled_attention_reference(x, codes, value, proj, None, floor, exponents=RANGE)
    found = distilled_attention(x, codes, value, proj, None, floor, form=Shifts(*RANGE))
    torch.testing.assert_close(found, expected)
    x.requires_grad_()
    with_gradient = distilled_attention(x, codes, value, proj, None, floor, form=Shifts(*RANGE))
    torch.testing.assert_close(with_gradient.detach(), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}N{}D{}H{}K{}".format(*s))
def test_gradients_pass_straight_through_the_rounding_within_the_range(shape):
    x, codes, value, proj, floor = case(*shape)
    leaves = [codes.weight, codes.bias, value.weight, value.bias, proj.weight, proj.bias, floor]
    for leaf in leaves:
        leaf.requires_grad_()
    distilled_attention(x, codes, value, proj, None, floor, form=Shifts(*RANGE)).square().sum().backward()
    found = [leaf.grad.clone() for leaf in leaves]

    # The quadratic form, whose exponents move with y by 1 within the range and not at all outside of it.
    y = codes(x)
    inside = ((y >= RANGE[0]) & (y <= RANGE[1])).double()
    exponents = y.detach().round().clip(*RANGE) + inside * (y - y.detach())
    q, k = (2**exponents).unflatten(-1, (2, len(floor), -1)).permute(2, 0, 3, 1, 4)
    weights = q @ k.mT + floor[:, None, None]
    v = value(x).unflatten(-1, (len(floor), -1)).transpose(1, 2)
    out = proj((weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))
    for leaf in leaves:
        leaf.grad = None
    out.square().sum().backward()
    assert 0 < inside.mean() < 1
    for mine, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad)


def test_codes_by_hand():
    y = torch.tensor([-9.0, -2.2, -0.4, 0.0, 0.6, 1.0, 7.0])
    expected = torch.tensor([1 / 8, 1 / 4, 1.0, 1.0, 2.0, 2.0, 4.0])
    assert torch.equal(Shifts(-3, 2)(y.clone()), expected)
    assert Shifts.of(16) == Shifts(-8, 7) and Shifts.of(3) == Shifts(-1, 1) and Shifts.of(2) == Shifts(-1, 0)


def test_sums_fit_into_their_bits():
    # 65 terms of -128 to 127, each times 1 to 2^15 once the smallest power is counted as 1.
    bits = Shifts.of(16).sum_bits(65)
    assert bits == 8 + 15 + 7
    assert 2 ** (bits - 1) > 65 * 127 * 2**15 and -(2 ** (bits - 1)) <= -65 * 128 * 2**15
    assert Shifts.of(2).sum_bits(1) == 9


def test_ternary_weights_by_hand():
    weight = torch.tensor([[4.0, -2.0, 0.5, -0.1], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, -1.0, 1.0]])
    signs, scale = ternary(weight)  # 0.7 of the means: 1.155, 0, 0.7
    assert torch.equal(signs, torch.tensor([[1.0, -1, 0, 0], [0, 0, 0, 0], [1, 1, -1, 1]]))
    assert torch.equal(scale, torch.tensor([[3.0], [0.0], [1.0]]))
    again = ternary(signs * scale)
    assert torch.equal(again[0], signs) and torch.equal(again[1], scale)


@pytest.mark.parametrize("shape", [(3, 5), (16, 7), (1, 1)])
def test_a_ternary_projection_is_that_of_its_weights(shape):
    weight, bias, x = torch.randn(*shape), torch.randn(shape[0]), torch.randn(2, 9, shape[1])
    signs, scale = ternary(weight)
    found = TernaryAffine(signs.to(torch.int8), scale.squeeze(1), bias)(x)
    torch.testing.assert_close(found, x @ (signs * scale).T + bias)
    weight.requires_grad_()
    straight_through_ternary(weight).square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * signs * scale)


def test_a_ternary_linear_runs_what_it_trained():
    layer, x = TernaryLinear(6, 4), torch.randn(5, 6)
    start = layer(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), start)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer.train()(x).square().sum().backward()
        optimizer.step()
    trained = layer(x).detach()
    assert not torch.allclose(trained, start)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), trained)
    assert layer.signs.unique().tolist() in ([-1, 0, 1], [-1, 1])
    averaged = copy.deepcopy(layer)
    averaged.weight.data.neg_()
    averaged.eval()  # whoever changes a weight evaluates afterwards
    assert torch.equal(averaged.signs, -layer.signs)
    assert layer.share == pytest.approx(float((layer.signs != 0).float().mean()))
    layer.harden()
    torch.testing.assert_close(layer.eval()(x), trained)
    assert sorted(layer.state_dict()) == ["bias", "scale", "signs"]


def test_what_stands_in_the_place_of_a_coded_weight_is_told_and_may_be_made_permanent():
    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight", 5),
        lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
    ):
        layer, x = TernaryLinear(6, 4), torch.randn(5, 6)
        change(layer)
        for use in (layer.eval, lambda layer=layer, x=x: layer(x)):
            with pytest.raises(InputError, match=r"permanent \(prune\.remove, remove_parametrizations\)"):
                use()
    layer = prune.remove(prune.l1_unstructured(TernaryLinear(6, 4), "weight", 5), "weight")
    assert torch.equal(layer.eval().signs, TernaryLinear.nearest(layer.weight)["signs"])
