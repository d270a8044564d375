"""Every kind gives on a GPU what it gives on a CPU, and runs there in every precision."""

import copy

import pytest
import torch
from kind_cases import SPECS, TOKENS, build

from ecoformer.engine.autocast import autocast
from ecoformer.fit.contract import FittableAttention

pytestmark = pytest.mark.gpu
EACH_KIND = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}-{SPECS.index(spec)}")


def outputs_and_gradients(module, x_BND, amp=None):
    x_BND = x_BND.detach().clone().requires_grad_()
    with autocast(x_BND.device, amp):
        out_BND = module(x_BND)
    out_BND.float().square().sum().backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [x.detach().double().cpu() for x in (out_BND, x_BND.grad, *gradients)]


@EACH_KIND
def test_a_gpu_computes_what_a_cpu_does(spec):
    # In double precision: in single precision a code whose pre-code is almost 0 may flip.
    module = build(spec)[0].double().eval()
    x_BND = torch.randn(3, TOKENS, 12, dtype=torch.float64)
    expected = outputs_and_gradients(copy.deepcopy(module), x_BND)
    found = outputs_and_gradients(module.cuda(), x_BND.cuda())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


@EACH_KIND
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16], ids=str)
def test_every_precision_is_near_it(spec, amp):
    module, x_BND = build(spec)[0].eval(), torch.randn(16, TOKENS, 12)
    expected = outputs_and_gradients(copy.deepcopy(module).double(), x_BND.double())
    found = outputs_and_gradients(module.cuda(), x_BND.cuda(), amp)
    assert all(torch.isfinite(x).all() for x in found)
    output, reference = found[0], expected[0]
    # Rounded queries flip codes, and exponents of shift codes move by whole steps.
    assert float((output - reference).norm() / reference.norm()) < (0.02 if amp is None else 0.1)


@EACH_KIND
def test_it_is_fitted_there(spec):
    module = build(spec, fitted=False)[0].cuda()
    if not isinstance(module, FittableAttention):
        pytest.skip(f"{spec.name} is not fitted")
    module.fit_hash(torch.randn(4, TOKENS, 12, device="cuda"), torch.Generator().manual_seed(0))
    assert torch.isfinite(module(torch.randn(2, TOKENS, 12, device="cuda"))).all()


@EACH_KIND
def test_a_forward_pass_waits_for_nothing(spec):
    """What reads a value on the host cannot be recorded as a graph, and stops the GPU at every layer."""
    module, x_BND = build(spec)[0].cuda().eval(), torch.randn(3, TOKENS, 12, device="cuda")
    with torch.inference_mode():
        expected = module(x_BND)  # what happens once: self-checks, compilation
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = module(x_BND)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found, expected)
