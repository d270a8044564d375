"""Linear attention on codes: golden cases of the published code and the quadratic form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ecoformer.ops.ecoformer.codes import sign
from ecoformer.ops.ecoformer.linear_form import hash_attention
from ecoformer.ops.ecoformer.naive import hash_attention_reference

GOLDEN = Path(__file__).parent / "golden"
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 17, 5, 7), (2, 2, 49, 32, 16), (1, 5, 101, 13, 33)]


@pytest.fixture(scope="module")
def golden():
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "attention_forward.npz").items()}


def assert_golden(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_own_token_matches_the_published_code(golden):
    q, v = golden["q"], golden["v"]
    assert_golden(hash_attention(q, q, v, "own_token"), golden["out"])
    assert_golden(hash_attention(q, golden["k2"], v, "own_token"), golden["out_qk2"])


def test_gradients_match_the_published_code(golden):
    q, k, v = (golden[name].clone().requires_grad_() for name in ("q", "q", "v"))
    (hash_attention(q, k, v, "own_token") * golden["w"]).sum().backward()
    for leaf, name in ((q, "grad_q"), (k, "grad_k"), (v, "grad_v")):
        assert_golden(leaf.grad, golden[name])


def test_kernel_numerator_is_the_dense_normalised_form(golden):
    out = hash_attention(golden["q"], golden["q"], golden["v"], "kernel")
    assert_golden(out, golden["dense_with_sum_bias"])


@pytest.mark.parametrize("numerator", ["own_token", "kernel"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-H{}-N{}-C{}-K{}".format(*s))
def test_linear_form_equals_quadratic_form(shape, numerator):
    B, H, N, C, K = shape
    code_q, code_k = (sign(torch.randn(B, H, N, K, dtype=torch.float64)) for _ in range(2))
    v, weight = (torch.randn(B, H, N, C, dtype=torch.float64) for _ in range(2))
    results = []
    for function in (hash_attention, hash_attention_reference):
        leaves = [t.clone().requires_grad_() for t in (code_q, code_k, v)]
        out = function(*leaves, numerator)
        (out * weight).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for fast, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast, naive)


def test_kernel_weights_sum_to_one():
    code = sign(torch.randn(1, 2, 40, 8))
    ones = torch.ones(1, 2, 40, 3)
    torch.testing.assert_close(hash_attention(code, code, ones, "kernel"), ones)


def test_sums_of_codes_are_exact_above_2048_tokens():
    code = torch.ones(1, 1, 4001, 4)
    out = hash_attention(code, code, torch.ones(1, 1, 4001, 1), "kernel")
    assert torch.equal(out, torch.ones_like(out))
