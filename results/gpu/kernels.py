"""Microseconds of EcoFormer's attention core on a GPU, without projections, beside torch's fused attention.

    python results/gpu/kernels.py > OUT.json         # needs CUDA and Triton; at an older commit, that commit's kernels
    python results/gpu/kernels.py PRECISION=ieee     # or BLOCK_TOKENS=32 LEAST_BLOCKS=4 MOST_PARTS=16 WARPS=2

Shapes are (batch, heads, tokens) of 32 channels, 16 bits and 25 anchors, in bfloat16, laid out as split heads are. A
pass is recorded as a CUDA graph and replayed, so the host's time to launch it is not in: the median of three times 20
replays.
"""

import json
import statistics
import sys

import torch
import torch.nn.functional as F
import triton.language as tl

from ecoformer.lab.speed.cases import cuda_graph
from ecoformer.ops.ecoformer import triton_form, triton_forward

SHAPES = [(32, 1, 3136), (32, 1, 16384), (32, 2, 784), (32, 5, 196), (32, 8, 49), (512, 3, 65), (1, 1, 3136)]


def microseconds(run, replays=20):
    replay = cuda_graph(run)
    replay()
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end) / replays)
    return round(statistics.median(times), 1)


def row(batch, heads, tokens, channels=32, bits=16, anchors=25):
    draw = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, device="cuda", generator=draw)

    both = normal(batch, tokens, 2, heads, channels).to(torch.bfloat16)
    state = F.normalize(normal(heads, anchors, channels), dim=-1), normal(heads, bits, anchors) / 5
    state += (torch.rand(heads, anchors, device="cuda", generator=draw),)
    qk, v = (both[:, :, index].transpose(1, 2) for index in (0, 1))
    with torch.inference_mode():
        forward = microseconds(lambda: triton_form.attend(qk, v, *state, "own_token"))
        fused = microseconds(lambda: F.scaled_dot_product_attention(qk, qk, v))
    leaves = [x.clone().requires_grad_() for x in (qk, v)]

    def forward_backward():
        out = triton_form.attend(*leaves, *state, "own_token")
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    found = {"batch": batch, "heads": heads, "tokens": tokens, "forward_us": forward, "fused_msa_forward_us": fused}
    return found | {"forward_backward_us": microseconds(forward_backward)}


def settle(settings):
    """Other constants of the kernels, before they are compiled."""
    for setting in settings:
        name, value = setting.split("=")
        if name == "PRECISION":
            triton_forward.PRECISION = tl.constexpr(value)
        else:
            setattr(triton_form, name, int(value))


if __name__ == "__main__":
    settle(sys.argv[1:])
    torch.cuda.set_device(0)
    machine = {"machine": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(json.dumps([row(*shape) | machine for shape in SHAPES], indent=2))
