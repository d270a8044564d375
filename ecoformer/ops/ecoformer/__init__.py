"""EcoFormer's attention core in one function, one file a form; here is decided which of them runs.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec

import torch
from torch import Tensor

from ecoformer.ops.ecoformer import eager
from ecoformer.ops.ecoformer.codes import in_a_graph
from ecoformer.ops.precision import full_precision

_USE_TRITON = ContextVar("use_triton", default=os.environ.get("ECOFORMER_TRITON") != "0")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def triton_kernels(enabled: bool) -> Iterator[None]:
    """Use the Triton kernels on CUDA, or do not; at first as ECOFORMER_TRITON=0 in the environment says, or with it
    unset, do."""
    token = _USE_TRITON.set(enabled)
    try:
        yield
    finally:
        _USE_TRITON.reset(token)


def kernel_hash_attention(
    qk_BHNC: Tensor,
    v_BHNC: Tensor,
    anchors_HMC: Tensor,
    A_HKM: Tensor,
    mean_HM: Tensor,
    numerator: str,
    mask_BN: Tensor | None = None,
) -> Tensor:
    """Attention output (B, H, N, C) of shared queries and keys, normalised here, under EcoFormer's hash functions.

    Codes are the signs of (k(x, anchors) - mean) A^T with k = exp(-d2 / (2 sigma)), weights are h_i . h_j + K + 1;
    see `EcoFormerSpec` for the two numerators. Differentiable with respect to qk and v: straight through the sign where
    its argument lies within (-1, 1), and through sigma, as in the published code. A zero token has the distance |a| to
    an anchor a, and gets no gradient.

    On CUDA the Triton kernels do it, except under a mask, and in compiled graphs, where the compiler fuses the torch
    path. They are differentiated once: under create_graph=True their backward pass raises an InputError.

    Args:
        qk_BHNC, v_BHNC: float32 or float64, or in half precision, which is taken to float32: half precision flips codes
            and cannot count above 2048.
        anchors_HMC, A_HKM, mean_HM: the hash functions, float32, or float64 for float64 tokens; they get no gradient.
        numerator: "own_token" or "kernel".
        mask_BN: True where a token takes part: as a key, and in sigma. At least one a sample; None: all do.
    """
    state = anchors_HMC, A_HKM, mean_HM
    if mask_BN is None and _on_triton(qk_BHNC):
        from ecoformer.ops.ecoformer.triton_form import attend, can_run  # not on every platform

        if can_run(qk_BHNC.device, qk_BHNC.dtype, qk_BHNC.shape[-1], *A_HKM.shape[1:], eager.attend):
            return attend(qk_BHNC, v_BHNC, *state, numerator)
    return eager.attend(full_precision(qk_BHNC), full_precision(v_BHNC), *state, numerator, mask_BN)


def _on_triton(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or in_a_graph() or not _USE_TRITON.get():
        return False
    if x.dtype not in TRITON_DTYPES or x.is_meta or x.numel() == 0:
        return False
    return (x.is_cuda and find_spec("triton") is not None) or (INTERPRETED and x.device.type == "cpu")
