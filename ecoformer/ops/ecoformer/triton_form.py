"""`kernel_hash_attention` through Triton kernels, forward and backward.

Tested under Triton's interpreter, and on an NVIDIA H200 (torch 2.11, triton 3.6). What another device or compiler
makes of them is not known, so the first call of a size on a device compares them with the torch path on a small case
and refuses to go on where they differ.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors; P parts of a sum.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from ecoformer.errors import InputError
from ecoformer.ops.ecoformer import triton_backward as backward_kernels
from ecoformer.ops.ecoformer import triton_forward as kernels
from ecoformer.ops.ecoformer.eager import with_graph

BLOCK_TOKENS = 64
LEAST_BLOCKS = 2  # of tokens a program, and as many as keep the programs of a head and sample to
MOST_PARTS = 16
WARPS = 4
PACKED_BITS = 32  # longest code that is one word
Attention = Callable[..., Tensor]


def attend(
    qk_BHNC: Tensor, v_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, mean_HM: Tensor, numerator: str
) -> Tensor:
    """Attention output (B, H, N, C) in v's dtype, laid out so that joining the heads copies nothing.

    Arguments as of `kernel_hash_attention`; qk and v may also be float16 or bfloat16, which the kernels read as they
    are. The hash functions are float32.
    """
    with torch.cuda.device_of(qk_BHNC):  # where Triton launches; autograd sees to it in the backward pass
        return _Attend.apply(qk_BHNC, v_BHNC, anchors_HMC, A_HKM, mean_HM, numerator)


@cache
def can_run(
    device: torch.device, dtype: torch.dtype, channels: int, bits: int, anchors: int, torch_path: Attention
) -> bool:
    """Whether tokens of this kind are for the kernels on a device: False where a block's shared memory is too small.

    Outputs and gradients are compared with the torch path on a small case; RuntimeError if they differ. Once a kind.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 2, 150, channels), (2, 2, 150, channels), (2, anchors, channels), (2, bits, anchors), (2, anchors)]
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        qk, v, points, A, mean = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
        state = torch.nn.functional.normalize(points, dim=-1), A / anchors**0.5, mean.abs()
        for numerator in ("own_token", "kernel"):
            found = []
            for attention, held in ((attend, dtype), (torch_path, torch.float32)):
                leaves = [x.to(dtype).to(held).clone().requires_grad_() for x in (qk, v)]
                try:
                    out = attention(leaves[0], leaves[1], *state, numerator)
                    out.float().square().sum().backward()
                except OutOfResources as error:
                    warnings.warn(f"EcoFormer's attention goes through torch on {device}: {error}", stacklevel=3)
                    return False
                found.append([out.detach(), *(x.grad for x in leaves)])
            for name, mine, expected in zip(("output", "gradient of qk", "gradient of v"), *found, strict=True):
                apart, size = float((mine.float() - expected).norm()), float(expected.norm())
                # A code near zero may flip; it moves the output far less than a wrong kernel does.
                if not apart <= 0.02 * size:
                    raise RuntimeError(
                        f"the Triton kernels disagree with torch on {device}: {name} differs by {apart:.2g} of "
                        f"{size:.2g} (L2): set ECOFORMER_TRITON=0 to use torch, and report it"
                    )
    return True


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, anchors: Tensor, A: Tensor, mean: Tensor, numerator: str) -> Tensor:
        qk, v = (_channels_last(x.transpose(0, 1)) for x in (qk, v))
        anchors, A, mean = (x.contiguous() for x in (anchors, A, mean))
        sizes = _Sizes(qk, A)
        unit_sum, nonzero = (sizes.parts_of(qk, *shape) for shape in ((sizes.channels,), ()))
        kernels.unit_sums[sizes.grid](qk, unit_sum, nonzero, *qk.stride()[:3], *sizes.numbers(), **sizes.padded())
        rate = torch.empty(qk.shape[:2], dtype=torch.float32, device=qk.device)
        code_shape = qk.shape[:3] if sizes.packed else (*qk.shape[:3], sizes.bits)
        code = torch.empty(code_shape, dtype=torch.int32 if sizes.packed else torch.int8, device=qk.device)
        sums = sizes.sums(qk)
        kernels.codes_and_context[sizes.grid](
            qk, v, anchors, A, mean, unit_sum, nonzero, rate, code, *sums, *qk.stride()[:3], *v.stride()[:3],
            *sizes.numbers(bits=True, anchors=True), PACKED=sizes.packed, **sizes.padded(bits=True, anchors=True),
        )  # fmt: skip
        out = _like_split_heads(v)
        kernels.output[sizes.grid](
            code, v, *sums, out, *v.stride()[:3], *out.stride()[:3], *sizes.numbers(bits=True),
            OWN_TOKEN=numerator == "own_token", PACKED=sizes.packed, **sizes.padded(bits=True),
        )  # fmt: skip
        ctx.save_for_backward(qk, v, anchors, A, mean, rate, code, *sums)
        ctx.own_token = numerator == "own_token"
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if with_graph():
            raise InputError("create_graph=True: the Triton kernels are differentiated once: set ECOFORMER_TRITON=0")
        qk, v, anchors, A, mean, rate, code, *sums = ctx.saved_tensors
        grad = _channels_last(grad_outputs[0].transpose(0, 1))
        sizes = _Sizes(qk, A)
        options = {"OWN_TOKEN": ctx.own_token, "PACKED": sizes.packed}
        grad_sums = sizes.sums(qk)
        backward_kernels.context_backward[sizes.grid](
            grad, v, code, *sums, *grad_sums, *grad.stride()[:3], *v.stride()[:3],
            *sizes.numbers(bits=True), **options, **sizes.padded(bits=True),
        )  # fmt: skip
        grad_qk, grad_v = _like_split_heads(qk), _like_split_heads(v)
        grad_product = torch.empty(qk.shape, dtype=torch.float32, device=qk.device)
        moved = sizes.parts_of(qk)
        backward_kernels.codes_backward[sizes.grid](
            grad, qk, v, rate, anchors, A, mean, code, *sums, *grad_sums, grad_v, grad_product, moved,
            *grad.stride()[:3], *qk.stride()[:3], *v.stride()[:3], *grad_v.stride()[:3],
            *sizes.numbers(bits=True, anchors=True), **options, **sizes.padded(bits=True, anchors=True),
        )  # fmt: skip
        backward_kernels.norm_backward[sizes.grid](
            qk, rate, anchors, grad_product, moved, grad_qk, *qk.stride()[:3], *grad_qk.stride()[:3],
            *sizes.numbers(anchors=True), **sizes.padded(anchors=True),
        )  # fmt: skip
        return grad_qk.transpose(0, 1), grad_v.transpose(0, 1), None, None, None, None


class _Sizes:
    """Sizes of a call, as the kernels take them: `parts` programs a head and sample, of `blocks` blocks of tokens."""

    def __init__(self, qk_HBNC: Tensor, A_HKM: Tensor) -> None:
        self.heads, self.batch, self.tokens, self.channels = qk_HBNC.shape
        self.bits, self.anchors = A_HKM.shape[1:]
        all_blocks = triton.cdiv(self.tokens, BLOCK_TOKENS)
        self.blocks = max(LEAST_BLOCKS, triton.cdiv(all_blocks, MOST_PARTS))
        self.parts = triton.cdiv(all_blocks, self.blocks)
        self.grid = (self.heads * self.batch, self.parts)
        self.packed = self.bits <= PACKED_BITS

    def numbers(self, bits: bool = False, anchors: bool = False) -> list[int]:
        found = [self.batch, self.tokens, self.channels, *([self.bits] if bits else [])]
        return [*found, *([self.anchors] if anchors else []), self.parts, self.blocks]

    def padded(self, bits: bool = False, anchors: bool = False) -> dict[str, int]:
        found = {"TOKENS": BLOCK_TOKENS, "CHANNELS": _padded(self.channels), "num_warps": WARPS}
        found |= {"BITS": _padded(self.bits)} if bits else {}
        return found | ({"ANCHORS": _padded(self.anchors)} if anchors else {})

    def parts_of(self, like: Tensor, *shape: int) -> Tensor:
        """Room for the parts (H, B, P, *shape) of a sum over all tokens."""
        lead = self.heads, self.batch, self.parts
        return torch.empty((*lead, *shape), dtype=torch.float32, device=like.device)

    def sums(self, like: Tensor) -> list[Tensor]:
        """Room for the parts of the context, of the sum of codes and of the sum of v, or of their gradients."""
        shapes = (self.bits, self.channels), (self.bits,), (self.channels,)
        return [self.parts_of(like, *shape) for shape in shapes]


def _like_split_heads(x_HBNC: Tensor) -> Tensor:
    heads, batch, tokens, channels = x_HBNC.shape
    return x_HBNC.new_empty(batch, tokens, heads, channels).permute(2, 0, 1, 3)


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))
