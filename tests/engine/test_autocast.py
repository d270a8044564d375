"""Mixed precision: what runs in which dtype, and that gradients are those of the float32 form."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecoformer.engine.autocast import autocast

CPU = torch.device("cpu")


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, value=v)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_attention_to_be_differentiated_runs_in_float32_on_a_cpu(tokens: int) -> None:
    halves = [torch.randn(2, 3, tokens, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    floats = [half.detach().float().requires_grad_() for half in halves]
    with autocast(CPU, torch.bfloat16):
        out = _attend(*halves)
    expected = _attend(*floats)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.to(torch.bfloat16))  # rounded once, at the end
    weight = torch.randn_like(expected).to(torch.bfloat16)
    got = torch.autograd.grad(out, halves, weight)
    wanted = torch.autograd.grad(expected, floats, weight.float())
    for half, full in zip(got, wanted, strict=True):
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, full.to(torch.bfloat16))


def test_attention_without_gradients_and_all_else_run_in_bfloat16() -> None:
    x = torch.randn(1, 2, 5, 8)
    with autocast(CPU, torch.bfloat16), torch.no_grad():
        assert _attend(x, x, x).dtype == torch.bfloat16
    with autocast(CPU, torch.bfloat16):
        assert F.linear(x, torch.randn(3, 8, requires_grad=True)).dtype == torch.bfloat16


def test_off_leaves_everything_in_float32() -> None:
    x = torch.randn(1, 2, 5, 8, requires_grad=True)
    with autocast(CPU, None):
        assert _attend(x, x, x).dtype == torch.float32
        assert F.linear(x, x[0, 0]).dtype == torch.float32


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_trains_under_it(compiled: bool) -> None:
    linear = torch.nn.Linear(8, 8)

    def model(x: Tensor) -> Tensor:
        y = linear(x)
        return F.scaled_dot_product_attention(y, y, y)

    run = torch.compile(model, backend="eager") if compiled else model
    with autocast(CPU, torch.bfloat16):
        out = run(torch.randn(2, 1, 5, 8))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.isfinite().all()
