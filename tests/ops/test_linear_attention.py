"""Linear attention by associativity, and FAVOR+, against their quadratic forms; what random features promise."""

import math

import pytest
import torch

from ecoformer.ops.linear.attention import linear_attention, linear_attention_weights
from ecoformer.ops.linear.favor import favor_attention, favor_features, key_exponents, orthogonal_projection
from ecoformer.ops.linear.naive import (
    favor_attention_reference,
    linear_attention_reference,
    projected_attention_reference,
    softmax_attention_reference,
)

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 7, 5, 4), (1, 2, 33, 3, 11), (3, 1, 16, 8, 8)]


def gradients(function, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    torch.manual_seed(3)
    return out, torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}H{}N{}C{}F{}".format(*s))
def test_associativity_equals_the_quadratic_form(shape):
    b, h, n, c, f = shape
    q, k = torch.rand(2, b, h, n, f, dtype=torch.float64)
    v = torch.randn(b, h, n, c, dtype=torch.float64)
    torch.testing.assert_close(gradients(linear_attention, q, k, v), gradients(linear_attention_reference, q, k, v))
    torch.testing.assert_close(linear_attention_weights(q, k) @ v, linear_attention(q, k, v))


def test_a_query_that_meets_no_key_gets_zero_and_no_gradient():
    q = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    k, v = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.randn(2, 3)
    out = linear_attention(q.relu()[None, None], k[None, None], v[None, None], eps=1e-15)[0, 0]
    assert torch.equal(out[0], torch.zeros(3))
    out.sum().backward()
    assert q.grad.isfinite().all() and torch.equal(q.grad[0], torch.zeros(2))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}H{}N{}C{}F{}".format(*s))
def test_favor_equals_its_definition(shape):
    b, h, n, c, f = shape
    q, k, v = torch.randn(3, b, h, n, c, dtype=torch.float64)
    projection = orthogonal_projection(f, c).double()
    torch.testing.assert_close(
        gradients(lambda *x: favor_attention(*x, projection), q, k, v),
        gradients(lambda *x: favor_attention_reference(*x, projection), q, k, v),
    )


def test_favor_is_exact_where_the_exponentials_of_the_definition_underflow():
    q, k, v = torch.randn(3, 1, 2, 9, 8)
    q, k = 8 * q, 8 * k
    projection = orthogonal_projection(16, 8)
    exact = favor_attention_reference(q.double(), k.double(), v.double(), projection.double())
    lost = (favor_attention_reference(q, k, v, projection) - exact).abs().amax()
    assert lost > 0.1
    torch.testing.assert_close(favor_attention(q, k, v, projection).double(), exact, rtol=1e-3, atol=1e-3)


def test_favor_stays_finite_at_scores_of_thousands():
    q, k, v = torch.randn(3, 1, 2, 9, 8)
    out, grads = gradients(lambda *x: favor_attention(*x, orthogonal_projection(16, 8)), 60 * q, 60 * k, v)
    assert out.isfinite().all() and all(grad.isfinite().all() for grad in grads)
    assert (out <= v.amax(dim=2, keepdim=True) + 1e-3).all() and (out >= v.amin(dim=2, keepdim=True) - 1e-3).all()


def test_favor_of_one_image_does_not_depend_on_the_others():
    q, k, v = torch.randn(3, 2, 2, 9, 8)
    q[1], k[1] = 40 * q[1], 40 * k[1]
    projection = orthogonal_projection(16, 8)
    alone = favor_attention(q[:1], k[:1], v[:1], projection)
    torch.testing.assert_close(favor_attention(q, k, v, projection)[:1], alone)


@pytest.mark.parametrize(("features", "channels"), [(8, 8), (20, 8), (5, 8), (3, 1)])
def test_blocks_are_orthogonal(features, channels):
    w = orthogonal_projection(features, channels, torch.Generator().manual_seed(0))
    assert w.shape == (features, channels) and w.dtype == torch.float32
    for start in range(0, features, channels):
        block = torch.nn.functional.normalize(w[start : start + channels], dim=1)
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)), atol=1e-5, rtol=0)
    assert torch.equal(w, orthogonal_projection(features, channels, torch.Generator().manual_seed(0)))


def estimates(draw, channels, features, trials):
    """Estimates of exp(q . k / sqrt(C)) by independent draws, and its value, for one pair of vectors."""
    torch.manual_seed(11)
    q, k = torch.randn(2, 1, 1, 1, channels, dtype=torch.float64)
    w = torch.stack([draw(features, channels) for _ in range(trials)]).double()
    rows = w.flatten(0, 1)
    exponents = key_exponents(q, rows) + key_exponents(k, rows)
    return exponents.exp().view(trials, features).mean(1), float(torch.exp((q * k).sum() / math.sqrt(channels)))


def test_features_are_unbiased_and_orthogonal_ones_vary_less():
    """FAVOR+ (Choromanski et al., 2021): Lemma 1 within four standard errors, Theorem 2 by a clear margin."""
    orthogonal, exact = estimates(orthogonal_projection, 8, 8, 4000)
    independent, _ = estimates(lambda f, c: torch.randn(f, c), 8, 8, 4000)
    for found in (orthogonal, independent):
        error = found.std() / math.sqrt(len(found))
        assert abs(found.mean() - exact) < 4 * error and error < 0.05 * exact
    assert orthogonal.var() < 0.9 * independent.var()


def test_many_features_come_close_to_softmax():
    q, k, v = torch.randn(3, 1, 2, 12, 6)
    q, k = q / 2, k / 2
    generator = torch.Generator().manual_seed(5)
    exact = softmax_attention_reference(q, k, v)
    few, many = (
        (favor_attention(q, k, v, orthogonal_projection(f, 6, generator)) - exact).norm() / exact.norm()
        for f in (12, 6000)
    )
    assert many < 0.06 < few


def test_every_feature_has_a_key_of_one_and_every_query_a_feature_of_one():
    q, k = 10 * torch.randn(2, 2, 3, 9, 4)
    feature_q, feature_k = favor_features(q, k, orthogonal_projection(7, 4))
    assert torch.equal(feature_q.amax(dim=-1), torch.ones(2, 3, 9))
    assert torch.equal(feature_k.amax(dim=-2), torch.ones(2, 3, 7))


def test_the_projected_reference_with_identities_is_softmax_attention():
    q, k, v = torch.randn(3, 2, 3, 7, 4)
    one = torch.eye(7)
    torch.testing.assert_close(projected_attention_reference(q, k, v, one, one), softmax_attention_reference(q, k, v))
