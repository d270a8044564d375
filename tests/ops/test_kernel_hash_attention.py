"""The fused attention core equals the naive forms in turn: codes, outputs and gradients, at odd shapes."""

import pytest
import torch

from ecoformer.ops.ecoformer import eager, kernel_hash_attention
from ecoformer.ops.ecoformer.codes import hash_codes, normalize, straight_through_sign
from ecoformer.ops.ecoformer.naive import hash_attention_reference, pre_codes_reference

SHAPES = [(1, 1, 7, 5, 3, 4), (2, 2, 49, 32, 25, 16), (3, 5, 33, 13, 7, 9), (2, 3, 3, 2, 1, 1)]
NUMERATORS = ["own_token", "kernel"]


def shape_id(shape):
    return "B{}-H{}-N{}-C{}-M{}-K{}".format(*shape)


def reference(qk, v, anchors, A, mean, numerator):
    codes = straight_through_sign(pre_codes_reference(normalize(qk), anchors, A, mean))
    return hash_attention_reference(codes, codes, v, numerator)


def random_case(shape, dtype=torch.float64):
    B, H, N, C, M, K = shape
    tokens = torch.randn(B, N, 2, H, C, dtype=dtype)  # as a projection leaves them, heads not split
    qk, v = (tokens[:, :, i].transpose(1, 2) for i in (0, 1))
    anchors = normalize(qk)[0, :, torch.randperm(N)[:M]]
    return qk, v, (anchors, torch.randn(H, K, M, dtype=dtype) / M, torch.rand(H, M, dtype=dtype))


def output_and_gradients(function, qk, v, state, numerator):
    leaves = [qk.detach().clone().requires_grad_(), v.detach().clone().requires_grad_()]
    out = function(*leaves, *state, numerator)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    (out * weight).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("numerator", NUMERATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_equals_the_naive_forms(shape, numerator):
    case = (*random_case(shape), numerator)
    fast, naive = (output_and_gradients(function, *case) for function in (kernel_hash_attention, reference))
    for mine, expected in zip(fast, naive, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("numerator", NUMERATORS)
def test_gradients_are_those_of_finite_differences_in_v(numerator):
    qk, v, state = random_case((2, 2, 9, 3, 4, 5))
    assert torch.autograd.gradcheck(
        lambda v: kernel_hash_attention(qk, v, *state, numerator), v.contiguous().requires_grad_()
    )


@pytest.mark.parametrize("numerator", NUMERATORS)
def test_zero_tokens(numerator):
    qk, v, state = random_case((2, 2, 9, 4, 3, 5))
    qk = qk.clone()
    qk[0, 1, 3] = 0
    qk[1, 0] = 0
    fast, naive = (output_and_gradients(f, qk, v, state, numerator) for f in (kernel_hash_attention, reference))
    for mine, expected in zip(fast, naive, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)
    assert not fast[1][1, 0].any()
    assert not fast[1][0, 1, 3].any()


def pre_codes(qk, anchors, A, mean):
    """The values whose signs are the codes, as the core computes them."""
    qk = qk.transpose(0, 1)
    kernel = eager._kernel(qk, (anchors, A, mean), None)
    return eager._pre_code(eager._features(qk, kernel), kernel).transpose(0, 1)


def test_float32_codes_are_those_of_the_naive_form_in_float64():
    qk, _, state = random_case((2, 2, 784, 32, 25, 16))
    expected = pre_codes_reference(normalize(qk), *state)
    found = pre_codes(qk.float(), *(part.float() for part in state))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)


def test_codes_are_those_of_hash_codes():
    qk, _, state = random_case((2, 3, 50, 16, 25, 8))
    assert torch.equal(torch.sign(pre_codes(qk, *state)), hash_codes(normalize(qk), *state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_that_equal_every_anchor_stay_finite(dtype):
    qk, v, (_, A, mean) = random_case((2, 2, 50, 8, 5, 4), dtype)
    qk = qk[:, :, :1].expand_as(qk)
    anchors = normalize(qk)[0, :, :5]
    for mine in output_and_gradients(kernel_hash_attention, qk, v, (anchors, A, mean), "own_token"):
        assert mine.isfinite().all()


def test_keeps_only_its_inputs_for_the_backward_pass():
    qk, v, state = random_case((2, 2, 50, 8, 5, 4))
    qk.requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        kernel_hash_attention(qk, v, *state, "own_token")
    assert sum(sizes) == qk.numel() + v.numel() + sum(part.numel() for part in state)


def test_only_one_input_may_need_a_gradient():
    for needed in (0, 1):
        qk, v, state = random_case((1, 2, 9, 4, 3, 5))
        leaves = [qk, v]
        leaves[needed] = leaves[needed].clone().requires_grad_()
        kernel_hash_attention(*leaves, *state, "kernel").sum().backward()
        assert leaves[needed].grad is not None
        assert leaves[1 - needed].grad is None


def test_an_empty_batch_gives_an_empty_output():
    qk, v, state = random_case((2, 2, 9, 4, 3, 5))
    assert kernel_hash_attention(qk[:0], v[:0], *state, "kernel").shape == (0, 2, 9, 4)


def test_an_empty_sequence_gives_an_empty_output():
    qk, v, state = random_case((2, 2, 9, 4, 3, 5))
    assert kernel_hash_attention(qk[:, :, :0], v[:, :, :0], *state, "kernel").shape == (2, 2, 0, 4)


def test_tokens_whose_inverse_square_is_beyond_float32():
    qk, v, state = random_case((2, 2, 9, 4, 3, 5))
    qk = qk.clone()
    qk[0, 1, 3] *= 1e-21
    found, wide = (
        output_and_gradients(
            kernel_hash_attention, *(x.to(dtype) for x in (qk, v)), [s.to(dtype) for s in state], "kernel"
        )
        for dtype in (torch.float32, torch.float64)
    )
    for mine, expected in zip(found, wide, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_backward_pass_within_autocast_computes_as_outside():
    qk, v, state = random_case((2, 2, 33, 8, 5, 16), torch.float32)
    found = []
    for inside in (False, True):
        leaves = [x.clone().requires_grad_() for x in (qk, v)]
        loss = kernel_hash_attention(*leaves, *state, "kernel").square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss.backward()
        found.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
