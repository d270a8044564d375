"""Attention with folded projections against the quadratic form: values, gradients, odd shapes, a case by hand."""

import pytest
import torch

from ecoformer.ops.codes.folded import Affine, distilled_attention
from ecoformer.ops.codes.naive import distilled_attention_reference

SHAPES = [(2, 21, 12, 3, 6), (1, 1, 8, 1, 4), (3, 50, 10, 5, 1), (2, 7, 16, 2, 16)]


def case(B, N, D, H, K, bias=True, dtype=torch.float64):
    def affine(rows):
        return Affine(torch.randn(rows, D, dtype=dtype) / D**0.5, torch.randn(rows, dtype=dtype) if bias else None)

    positive = [torch.rand(*shape, dtype=dtype) + 0.1 for shape in ((H, K), (H,))]
    return torch.randn(B, N, D, dtype=dtype), affine(2 * H * K), affine(D), affine(D), *positive


def leaves(x, *rest):
    tensors = [x]
    for item in rest:
        tensors += [t for t in (item.weight, item.bias) if t is not None] if isinstance(item, Affine) else [item]
    return tensors


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}N{}D{}H{}K{}".format(*s))
def test_equals_the_quadratic_form(shape, bias):
    given = case(*shape, bias=bias)
    expected = distilled_attention_reference(*given)
    torch.testing.assert_close(distilled_attention(*given), expected)
    for tensor in leaves(*given):
        tensor.requires_grad_()
    torch.testing.assert_close(distilled_attention(*given).detach(), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}N{}D{}H{}K{}".format(*s))
def test_gradients_beside_the_codes_are_those_of_the_quadratic_form(shape):
    # Thresholds far away keep the estimator of the step silent: what remains is an ordinary derivative.
    x, codes, *rest = case(*shape)
    codes = Affine(1e-3 * codes.weight, codes.bias.sign() * 2)
    found = []
    for function in (distilled_attention, distilled_attention_reference):
        for tensor in leaves(x, *rest):
            tensor.requires_grad_().grad = None
        function(x, codes, *rest).square().sum().backward()
        found.append([tensor.grad.clone() for tensor in leaves(x, *rest)])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}N{}D{}H{}K{}".format(*s))
def test_soft_codes_give_the_quadratic_form_and_its_gradients(shape):
    given = case(*shape)
    found = []
    for function in (distilled_attention, distilled_attention_reference):
        for tensor in leaves(*given):
            tensor.requires_grad_().grad = None
        out = function(*given, slope=3.0)
        out.square().sum().backward()
        found.append([out.detach(), *(tensor.grad.clone() for tensor in leaves(*given))])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)
    with torch.no_grad():
        torch.testing.assert_close(distilled_attention(*given, slope=3.0), found[0][0])
        # Thresholds are met nowhere, so a steep slope is the step.
        torch.testing.assert_close(distilled_attention(*given, slope=1e9), distilled_attention(*given))


def test_gradients_of_the_codes_pass_straight_through():
    x, codes, value, proj, weight, floor = case(1, 9, 4, 1, 2)
    codes.bias.requires_grad_()
    distilled_attention(x, codes, value, proj, weight, floor).sum().backward()

    # The quadratic form for codes of any real value, whose derivative the estimator takes, halved, where |y| < 1.
    y = codes(x)[0].detach()
    bits = (y >= 0).double().requires_grad_()
    weights = (bits[:, :2] * weight) @ bits[:, 2:].T + floor
    proj((weights / weights.sum(1, keepdim=True)) @ value(x[0])).sum().backward()
    expected = (0.5 * (y.abs() < 1) * bits.grad).sum(0)
    assert (expected != 0).all() and (y.abs() >= 1).any()
    torch.testing.assert_close(codes.bias.grad, expected)


def test_case_by_hand():
    # Three tokens, one head, two bits. q = [x0 >= 1, x1 >= 1], k = [x0 >= 0, x1 >= 0], s = (2, 1), floor 1.
    x = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [-1.0, 1.0]]])
    eye = torch.eye(2)
    codes = Affine(torch.cat([eye, eye]), torch.tensor([-1.0, -1.0, 0.0, 0.0]))
    value, proj = Affine(eye, torch.zeros(2)), Affine(2 * eye, torch.tensor([1.0, 0.0]))
    out = distilled_attention(x, codes, value, proj, torch.tensor([[2.0, 1.0]]), torch.tensor([1.0]))
    # q: 11, 10, 01; k: 11, 10, 01. Weights: 4 3 2; 3 3 1; 2 1 2.
    means = [[(4 + 9 - 2) / 9, (8 - 3 + 2) / 9], [(3 + 9 - 1) / 7, (6 - 3 + 1) / 7], [(2 + 3 - 2) / 5, (4 - 1 + 2) / 5]]
    expected = torch.tensor([[[2 * a + 1, 2 * b] for a, b in means]])
    torch.testing.assert_close(out, expected)


def test_without_gradients_inputs_stay_as_they_are():
    given = case(*SHAPES[0])
    before = [tensor.clone() for tensor in leaves(*given)]
    with torch.no_grad():
        distilled_attention(*given)
    assert all(torch.equal(a, b) for a, b in zip(leaves(*given), before, strict=True))


def test_queries_that_meet_no_key_take_the_mean():
    x, codes, value, proj, weight, floor = case(2, 9, 12, 3, 4)
    codes = Affine(torch.zeros_like(codes.weight), torch.tensor([-1.0] * 12 + [1.0] * 12, dtype=x.dtype))
    out = distilled_attention(x, codes, value, proj, weight, floor)
    torch.testing.assert_close(out, proj(value(x).mean(1, keepdim=True)).expand_as(out))
