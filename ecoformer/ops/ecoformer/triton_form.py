"""`kernel_hash_attention` through Triton kernels, forward and backward.

Tested under Triton's interpreter, and on an NVIDIA H200 (torch 2.11, triton 3.6). What another device or compiler
makes of them is not known, so the first call on a device compares them with the torch path on a small case and refuses
to go on where they differ.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors; P token blocks.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from ecoformer.ops.ecoformer import triton_backward as backward_kernels
from ecoformer.ops.ecoformer import triton_forward as kernels

BLOCK_TOKENS = 64
PACKED_BITS = 32  # longest code that is one word
Attention = Callable[..., Tensor]


def attend(
    qk_BHNC: Tensor, v_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, mean_HM: Tensor, numerator: str
) -> Tensor:
    """Attention output (B, H, N, C) in v's dtype, laid out so that joining the heads copies nothing.

    Arguments as of `kernel_hash_attention`; qk and v may also be float16 or bfloat16, which the kernels read as they
    are. The hash functions are float32.
    """
    return _Attend.apply(qk_BHNC, v_BHNC, anchors_HMC, A_HKM, mean_HM, numerator)


@cache
def require_agreement(device: torch.device, torch_path: Attention) -> None:
    """Compare outputs and gradients with the torch path on a small case; RuntimeError if they differ. Once a device."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 2, 97, 32), (2, 2, 97, 32), (2, 25, 32), (2, 16, 25), (2, 25)]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        qk, v, anchors, A, mean = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
        state = torch.nn.functional.normalize(anchors, dim=-1), A / 5, mean.abs()
        for numerator in ("own_token", "kernel"):
            found = []
            for attention in (attend, torch_path):
                leaves = [x.clone().requires_grad_() for x in (qk, v)]
                out = attention(leaves[0], leaves[1], *state, numerator)
                out.square().sum().backward()
                found.append([out.detach(), *(x.grad for x in leaves)])
            for name, mine, expected in zip(("output", "gradient of qk", "gradient of v"), *found, strict=True):
                difference = float((mine - expected).norm() / expected.norm())
                # A code near zero may flip; it moves the output far less than a wrong kernel does.
                if not difference < 0.02:
                    raise RuntimeError(
                        f"the Triton kernels disagree with torch on {device}: {name} differs by {difference:.2g} "
                        "(relative L2): set ECOFORMER_TRITON=0 to use torch, and report it"
                    )


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, anchors: Tensor, A: Tensor, mean: Tensor, numerator: str) -> Tensor:
        qk, v = (_channels_last(x.transpose(0, 1)) for x in (qk, v))
        anchors, A = anchors.contiguous(), A.contiguous()
        threshold = torch.matmul(A, mean.unsqueeze(-1)).squeeze(-1)
        sizes = _Sizes(qk, A)
        sigma = _sigma(qk, anchors, sizes)
        rate = math.log2(math.e) / sigma.clamp_min(_sigma_floor())
        code, *sums = _codes_and_context(qk, v, rate, anchors, A, threshold, sizes)
        out = _like_split_heads(v)
        kernels.output[sizes.grid](
            code, v, *sums, out, *v.stride()[:3], *out.stride()[:3],
            sizes.batch, sizes.tokens, sizes.channels, sizes.bits,
            OWN_TOKEN=numerator == "own_token", PACKED=sizes.packed, **sizes.padded(bits=True),
        )  # fmt: skip
        ctx.save_for_backward(qk, v, anchors, A, threshold, sigma, rate, code, *sums)
        ctx.own_token = numerator == "own_token"
        return out.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        qk, v, anchors, A, threshold, sigma, rate, code, *sums = ctx.saved_tensors
        grad = _channels_last(grad_outputs[0].transpose(0, 1))
        sizes = _Sizes(qk, A)
        options = {"OWN_TOKEN": ctx.own_token, "PACKED": sizes.packed}
        grad_sums = _partial_sums(qk, sizes)
        backward_kernels.context_backward[sizes.grid](
            grad, v, code, *sums, *grad_sums, *grad.stride()[:3], *v.stride()[:3],
            sizes.batch, sizes.tokens, sizes.channels, sizes.bits, sizes.blocks,
            **options, **sizes.padded(bits=True),
        )  # fmt: skip
        grad_sums = [part.sum(dim=2) for part in grad_sums]
        grad_qk, grad_v = _like_split_heads(qk), _like_split_heads(v)
        grad_product = torch.empty(qk.shape, dtype=torch.float32, device=qk.device)
        moved_HBP = torch.empty((*qk.shape[:2], sizes.blocks), dtype=torch.float32, device=qk.device)
        backward_kernels.codes_backward[sizes.grid](
            grad, qk, v, rate, anchors, A, threshold, code, *sums, *grad_sums, grad_v, grad_product, moved_HBP,
            *grad.stride()[:3], *qk.stride()[:3], *v.stride()[:3], *grad_v.stride()[:3],
            sizes.batch, sizes.tokens, sizes.channels, sizes.bits, sizes.anchors, sizes.blocks,
            **options, **sizes.padded(bits=True, anchors=True),
        )  # fmt: skip
        # Sigma takes -2 / N of every product with the mean anchor; the exponents are to the base 2.
        moved_HB = moved_HBP.sum(dim=2) * (sigma > _sigma_floor()) * (2 * math.log(2) / sizes.tokens)
        shared_HBC = moved_HB.unsqueeze(-1) * anchors.mean(dim=1).unsqueeze(1)
        backward_kernels.norm_backward[sizes.grid](
            qk, rate, grad_product, shared_HBC, grad_qk, *qk.stride()[:3], *grad_qk.stride()[:3],
            sizes.batch, sizes.tokens, sizes.channels, math.log(2), **sizes.padded(),
        )  # fmt: skip
        return grad_qk.transpose(0, 1), grad_v.transpose(0, 1), None, None, None, None


class _Sizes:
    """Sizes of a call, as the kernels take them."""

    def __init__(self, qk_HBNC: Tensor, A_HKM: Tensor) -> None:
        self.heads, self.batch, self.tokens, self.channels = qk_HBNC.shape
        self.bits, self.anchors = A_HKM.shape[1:]
        self.blocks = triton.cdiv(self.tokens, BLOCK_TOKENS)
        self.grid = (self.heads * self.batch, self.blocks)
        self.packed = self.bits <= PACKED_BITS

    def padded(self, bits: bool = False, anchors: bool = False) -> dict[str, int]:
        found = {"TOKENS": BLOCK_TOKENS, "CHANNELS": _padded(self.channels)}
        found |= {"BITS": _padded(self.bits)} if bits else {}
        return found | ({"ANCHORS": _padded(self.anchors)} if anchors else {})


def _sigma(qk: Tensor, anchors_HMC: Tensor, sizes: _Sizes) -> Tensor:
    """Mean squared distance over tokens and anchors (H, B): the means of tokens and of anchors will do."""
    unit_sum_HBPC = torch.empty((*qk.shape[:2], sizes.blocks, sizes.channels), dtype=torch.float32, device=qk.device)
    nonzero_HBP = torch.empty(unit_sum_HBPC.shape[:3], dtype=torch.float32, device=qk.device)
    kernels.unit_sums[sizes.grid](
        qk, unit_sum_HBPC, nonzero_HBP, *qk.stride()[:3],
        sizes.batch, sizes.tokens, sizes.channels, sizes.blocks, **sizes.padded(),
    )  # fmt: skip
    products_HB = torch.matmul(unit_sum_HBPC.sum(dim=2), anchors_HMC.mean(dim=1).unsqueeze(-1)).squeeze(-1)
    anchor_square_H1 = anchors_HMC.square().sum(dim=-1).mean(dim=1, keepdim=True)
    return (nonzero_HBP.sum(dim=2) - 2 * products_HB) / sizes.tokens + anchor_square_H1


def _codes_and_context(
    qk: Tensor, v: Tensor, rate: Tensor, anchors: Tensor, A: Tensor, threshold: Tensor, sizes: _Sizes
) -> list[Tensor]:
    """Codes, context_HBKC, and the sums of codes and of v."""
    shape = qk.shape[:3] if sizes.packed else (*qk.shape[:3], sizes.bits)
    code = torch.empty(shape, dtype=torch.int32 if sizes.packed else torch.int8, device=qk.device)
    parts = _partial_sums(qk, sizes)
    kernels.codes_and_context[sizes.grid](
        qk, v, rate, anchors, A, threshold, code, *parts, *qk.stride()[:3], *v.stride()[:3],
        sizes.batch, sizes.tokens, sizes.channels, sizes.bits, sizes.anchors, sizes.blocks,
        PACKED=sizes.packed, **sizes.padded(bits=True, anchors=True),
    )  # fmt: skip
    context, code_sum, v_sum = (part.sum(dim=2) for part in parts)
    # No comparison holds for NaN, so a code cannot carry it; the denominator does.
    return [code, context, code_sum + 0 * rate.unsqueeze(-1), v_sum]


def _partial_sums(qk: Tensor, sizes: _Sizes) -> list[Tensor]:
    """Room for what every block adds to the context, to the sum of codes and to the sum of v."""
    lead = (*qk.shape[:2], sizes.blocks)
    shapes = (*lead, sizes.bits, sizes.channels), (*lead, sizes.bits), (*lead, sizes.channels)
    return [torch.empty(shape, dtype=torch.float32, device=qk.device) for shape in shapes]


def _like_split_heads(x_HBNC: Tensor) -> Tensor:
    heads, batch, tokens, channels = x_HBNC.shape
    return x_HBNC.new_empty(batch, tokens, heads, channels).permute(2, 0, 1, 3)


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _sigma_floor() -> float:
    return 16 * torch.finfo(torch.float32).eps


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))
