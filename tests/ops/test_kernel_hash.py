"""Codes: golden cases of the published code, the naive forms, and the inputs that broke the published code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ecoformer.ops.ecoformer.codes import (
    hash_codes,
    kernel_features,
    normalize,
    sign,
    squared_distances,
    straight_through_sign,
)
from ecoformer.ops.ecoformer.naive import kernel_features_reference, pre_codes_reference

GOLDEN = Path(__file__).parent / "golden"
SHAPES = [(1, 1, 7, 5, 3, 4), (2, 2, 49, 32, 25, 16), (3, 5, 33, 13, 7, 9)]


def shape_id(shape):
    return "B{}-H{}-N{}-C{}-M{}-K{}".format(*shape)


def random_case(shape, dtype=torch.float32):
    B, H, N, C, M, K = shape
    x = normalize(torch.randn(B, H, N, C, dtype=dtype))
    anchors = x[0, :, torch.randperm(N)[:M]]
    return x, anchors, torch.randn(H, K, M, dtype=dtype), torch.rand(H, M, dtype=dtype)


@pytest.fixture(scope="module")
def golden():
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "hash_forward.npz").items()}


def test_matches_the_published_code(golden):
    x, anchors, mean = golden["X"].requires_grad_(), golden["anchor"][0], golden["mvec"][0, :, 0]
    torch.testing.assert_close(squared_distances(x, anchors), golden["sqdist"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernel_features(x, anchors), golden["K"], rtol=1e-5, atol=1e-5)
    codes = hash_codes(x, anchors, golden["A"], mean)
    assert torch.equal(codes, golden["y"])
    (codes * golden["w"]).sum().backward()
    torch.testing.assert_close(x.grad, golden["grad_X"], rtol=1e-5, atol=1e-5)


def test_reference_matches_the_published_code(golden):
    anchors, mean = golden["anchor"][0], golden["mvec"][0, :, 0]
    pre_codes = pre_codes_reference(golden["X"], anchors, golden["A"], mean)
    torch.testing.assert_close(pre_codes, golden["y_pre"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_features_and_their_gradients_equal_the_naive_form(shape):
    x, anchors, _, _ = random_case(shape, torch.float64)
    weight = torch.randn(*x.shape[:3], anchors.shape[1], dtype=torch.float64)
    results = []
    for function in (kernel_features, kernel_features_reference):
        leaf = x.clone().requires_grad_()
        features = function(leaf, anchors)
        (features * weight).sum().backward()
        results.append((features.detach(), leaf.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_codes_are_the_signs_of_the_naive_form(shape):
    x, anchors, A, mean = random_case(shape)
    expected = pre_codes_reference(x.double(), anchors.double(), A.double(), mean.double())
    clear = expected.abs() > 1e-4
    codes = hash_codes(x, anchors, A, mean)
    assert clear.float().mean() > 0.99
    assert torch.equal(codes[clear], torch.where(expected < 0, -1.0, 1.0)[clear])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sign_has_two_values_and_keeps_the_dtype(dtype):
    y = torch.tensor([-2.0, -0.0, 0.0, 3.0], dtype=dtype)
    assert sign(y).dtype == dtype
    assert sign(y).tolist() == [-1.0, 1.0, 1.0, 1.0]


def test_straight_through_gradient_stops_at_one():
    y = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    straight_through_sign(y).backward(torch.arange(1.0, 8.0))
    assert y.grad.tolist() == [0, 0, 3, 4, 5, 0, 0]


def test_zero_tokens_stay_finite():
    x = torch.randn(2, 1, 6, 4)
    x[0, 0, 2] = 0
    x.requires_grad_()
    unit = normalize(x)
    assert unit[0, 0, 2].tolist() == [0, 0, 0, 0]
    hash_codes(unit, unit[0, :, :3].detach(), torch.randn(1, 5, 3), torch.zeros(1, 3)).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[0, 0, 2].tolist() == [0, 0, 0, 0]


def test_a_constant_image_has_one_code():
    x = normalize(torch.ones(1, 2, 8, 4))
    codes = hash_codes(x, x[0, :, :3], torch.randn(2, 5, 3), torch.full((2, 3), 0.5))
    assert codes.isfinite().all()
    assert torch.equal(codes, codes[:, :, :1].expand_as(codes))
