"""The Triton kernels equal the naive forms, outputs and gradients, under Triton's interpreter (a process of its own:
Triton reads the setting when it is imported)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
SHAPES = [(1, 1, 7, 5, 3, 4), (2, 3, 65, 32, 25, 16), (1, 2, 130, 13, 7, 33), (2, 2, 3, 20, 2, 1)]


def check(shape, numerator):
    from ecoformer.ops.kernel_hash import normalize, straight_through_sign
    from ecoformer.ops.kernel_hash_attention import kernel_hash_attention, triton_kernels
    from ecoformer.ops.reference import hash_attention_reference, pre_codes_reference

    B, H, N, C, M, K = shape
    torch.manual_seed(sum(shape))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = torch.randn(B, N, 2, H, C, device=device)
    tokens[0, 1, 0] = 0
    anchors = normalize(tokens[0, :M, 0].transpose(0, 1))
    A, mean = torch.randn(H, K, M, device=device) / M, torch.rand(H, M, device=device)

    def reference(qk, v, *state):
        codes = straight_through_sign(pre_codes_reference(normalize(qk), *state))
        return hash_attention_reference(codes, codes, v, numerator)

    results = []
    for function in (lambda *args: kernel_hash_attention(*args, numerator), reference):
        leaf = tokens.clone().requires_grad_()
        qk, v = (leaf[:, :, i].transpose(1, 2) for i in (0, 1))
        with triton_kernels(True):
            out = function(qk, v, anchors, A, mean)
            (out * torch.linspace(-1, 2, out.numel(), device=device).view(out.shape)).sum().backward()
        results.append((out.detach(), leaf.grad))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_under_the_interpreter():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_triton as t\n"
        "for shape in t.SHAPES:\n"
        "    for numerator in ('own_token', 'kernel'):\n"
        "        t.check(shape, numerator); print(shape, numerator)\n"
        "assert 'ecoformer.ops.triton_kernel_hash_attention' in sys.modules"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2 * len(SHAPES)


@pytest.mark.gpu
@pytest.mark.parametrize("numerator", ["own_token", "kernel"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-H{}-N{}-C{}-M{}-K{}".format(*s))
def test_on_a_gpu(shape, numerator):
    check(shape, numerator)
