"""The fit of binary codes to an attention output: it lowers the error, keeps what it cannot better, repeats."""

import pytest
import torch
import torch.nn.functional as F

from ecoformer.fit.output_fit import fit_to_output
from ecoformer.ops.codes.tuned import BinaryHash, random_hash


def attention_case(B=6, H=2, N=24, C=8, seed=0):
    """Queries and keys of three clusters each, so that attention is sharp but has structure to learn."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(H, 3, C, generator=generator)
    members = [torch.randint(3, (B, H, N), generator=generator) for _ in range(2)]
    q, k = (
        torch.stack([centres[h][member[:, h]] for h in range(H)], 1)
        + 0.5 * torch.randn(B, H, N, C, generator=generator)
        for member in members
    )
    return q, k, torch.randn(B, H, N, C, generator=generator)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fit_to_attention(start, q, k, v, draw, steps):
    target = F.scaled_dot_product_attention(q, k, v)
    return fit_to_output(start, (q, k, v), target, draw, lr=0.05, steps=steps, batch_size=4)


def fitted(q, k, v, seed=0, steps=60, **options):
    draw = generator(seed)
    start = random_hash(q, k, draw, num_bits=8, num_anchors=options.pop("num_anchors", 6), **options)
    return start, fit_to_attention(start, q, k, v, draw, steps)


def errors(hashing, q, k, v):
    out, target = hashing.attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    return (out - target).square().sum((0, 2, 3)).double() / target.square().sum((0, 2, 3)).double()


@pytest.mark.parametrize("num_anchors", [6, 0], ids=["kernel", "linear"])
@pytest.mark.parametrize(("signed", "share"), [(False, 0.8), (True, 0.9)], ids=["binary", "sign"])
def test_fit_follows_attention_better_than_its_start_and_than_the_mean(num_anchors, signed, share):
    q, k, v = attention_case()
    start, fit = fitted(q, k, v, num_anchors=num_anchors, signed=signed)
    torch.testing.assert_close(fit.error_before_H, errors(start, q, k, v), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fit.error_after_H, errors(fit.hashing, q, k, v), rtol=1e-4, atol=1e-6)
    assert fit.accepted_H.all() and (fit.error_after_H < fit.error_before_H).all()
    target = F.scaled_dot_product_attention(q, k, v)
    uniform = (v.mean(2, keepdim=True) - target).square().sum((0, 2, 3)) / target.square().sum((0, 2, 3))
    assert (fit.error_after_H < share * uniform).all()
    assert (fit.hashing.weight_HK >= 0).all() and (fit.hashing.floor_H > 0).all()


def test_shared_codes_hash_the_queries_for_keys():
    q, k, v = attention_case()
    _, fit = fitted(q, k, v, shared=True)
    code_q, code_k = fit.hashing.codes(q, k)
    assert fit.hashing.key is None and torch.equal(code_q, code_k)
    assert (fit.error_after_H < fit.error_before_H).all()


def test_equal_seeds_give_equal_fits_and_other_seeds_others():
    q, k, v = attention_case()
    first, again, other = (fitted(q, k, v, seed=seed, steps=5)[1].hashing for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert not torch.equal(first.query.A_HKF, other.query.A_HKF)


def test_no_steps_only_measure():
    q, k, v = attention_case()
    start, fit = fitted(q, k, v, steps=0)
    assert not fit.accepted_H.any()
    assert all(torch.equal(a, b) for a, b in zip(start.tensors(), fit.hashing.tensors(), strict=True))
    torch.testing.assert_close(fit.error_before_H, fit.error_after_H)


def test_a_head_that_meets_nan_keeps_its_functions_and_the_other_is_fitted():
    q, k, v = attention_case()
    start = random_hash(q, k, generator(), num_bits=8, num_anchors=6)
    q[:, 1, 0] = float("nan")
    fit = fit_to_attention(start, q, k, v, generator(), steps=20)
    assert fit.accepted_H.tolist() == fit.finite_H.tolist() == [True, False]
    for old, new in zip(start.tensors(), fit.hashing.tensors(), strict=True):
        assert torch.equal(old[1], new[1]) and new.isfinite().all()


@pytest.mark.parametrize("case", ["zero", "constant"])
def test_tokens_that_are_all_alike_stay_finite(case):
    q, k, v = attention_case()
    if case == "zero":
        q, k, v = (torch.zeros_like(x) for x in (q, k, v))
    else:
        q, k = torch.ones_like(q), torch.ones_like(k)
    _, fit = fitted(q, k, v, steps=5)
    assert all(t.isfinite().all() for t in fit.hashing.tensors())
    assert fit.hashing.attend(q, k, v).isfinite().all()


def test_random_bits_split_the_tokens_and_draw_anchors_from_both_sides():
    q, k, _ = attention_case(B=8, N=64)
    hashing = random_hash(q + 5, k - 5, generator(), num_bits=12, num_anchors=10)
    for code in hashing.codes(q + 5, k - 5):
        share = code.mean((0, 2))
        assert (share > 0.05).all() and (share < 0.95).all()
    # Anchors sit about the mean of their own side.
    assert (hashing.query.anchors_HMC.mean() > 3) and (hashing.key.anchors_HMC.mean() < -3)


def test_tensors_and_with_tensors_are_inverse():
    q, k, _ = attention_case()
    hashing = random_hash(q, k, generator(), num_bits=3, num_anchors=4, signed=True)
    rebuilt = hashing.with_tensors(t + 1 for t in hashing.tensors())
    assert isinstance(rebuilt, BinaryHash) and rebuilt.signed
    for old, new in zip(hashing.tensors(), rebuilt.tensors(), strict=True):
        torch.testing.assert_close(old + 1, new)
