"""Attention on 0/1 codes: the quadratic form, codes by hand, gradients of the step."""

import pytest
import torch

from ecoformer.ops.codes.attention import (
    TokenHash,
    binary_attention,
    binary_codes,
    binary_weights,
    straight_through_step,
)
from ecoformer.ops.codes.naive import binary_attention_reference

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 17, 5, 7), (2, 2, 49, 32, 16), (1, 5, 37, 13, 33)]


@pytest.mark.parametrize("code", ["binary", "sign"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-H{}-N{}-C{}-K{}".format(*s))
def test_linear_form_equals_quadratic_form(shape, code):
    B, H, N, C, K = shape
    options = {"dtype": torch.float64}
    code_q, code_k = (torch.randint(0, 2, (B, H, N, K)).to(**options) for _ in range(2))
    weight, floor = torch.rand(H, K, **options), torch.rand(H, **options) + 0.1
    if code == "sign":
        code_q, code_k, floor = 2 * code_q - 1, 2 * code_k - 1, floor + weight.sum(-1)
    v, direction = (torch.randn(B, H, N, C, **options) for _ in range(2))
    results = []
    for function in (binary_attention, binary_attention_reference):
        leaves = [t.clone().requires_grad_() for t in (code_q, code_k, v, weight, floor)]
        out = function(*leaves)
        (out * direction).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for fast, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast, naive)
    weights = binary_weights(code_q, code_k, weight, floor)
    assert (weights > 0).all()
    torch.testing.assert_close(weights @ v, results[0][0])
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, N, **options))


def test_a_token_that_meets_no_key_takes_the_mean_of_all_values():
    code_q, code_k = torch.zeros(1, 1, 4, 3), torch.ones(1, 1, 4, 3)
    v = torch.randn(1, 1, 4, 5)
    out = binary_attention(code_q, code_k, v, torch.ones(1, 3), torch.tensor([1e-6]))
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(v))


def test_codes_by_hand():
    x = torch.tensor([[[[0.0], [1.0], [3.0]]]])
    # Anchor 1, sigma 0.5: features exp(-(x - 1)^2) = 0.37, 1, 0.02; against 0.3 and, negated, against -0.3.
    kernel = TokenHash(
        A_HKF=torch.tensor([[[1.0], [-1.0]]]),
        threshold_HK=torch.tensor([[0.3, -0.3]]),
        anchors_HMC=torch.ones(1, 1, 1),
        bandwidth_H=torch.tensor([0.5]),
    )
    assert binary_codes(x, kernel)[0, 0].tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    linear = TokenHash(A_HKF=torch.tensor([[[1.0]]]), threshold_HK=torch.tensor([[1.0]]))
    assert binary_codes(x, linear)[0, 0].tolist() == [[0.0], [1.0], [1.0]]


def test_a_token_has_the_same_code_in_any_company():
    hashing = TokenHash(torch.randn(2, 8, 5), torch.randn(2, 8) * 0.1, torch.randn(2, 5, 3), torch.rand(2) + 0.5)
    x = torch.randn(4, 2, 9, 3)
    alone = torch.cat([binary_codes(x[:, :, i : i + 1], hashing) for i in range(9)], dim=2)
    assert torch.equal(alone, binary_codes(x, hashing))


def test_straight_through_gradient_is_half_inside_and_zero_outside():
    y = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    code = straight_through_step(y)
    assert code.tolist() == [0, 0, 0, 1, 1, 1, 1]
    code.sum().backward()
    assert y.grad.tolist() == [0, 0, 0.5, 0.5, 0.5, 0, 0]
    assert straight_through_step(y.detach()).tolist() == code.tolist()
