"""Where the anchors of kernelised hash functions come from: one image, the batch, or k-means over the batch.

Shapes: B batch, H heads, N tokens, C head channels, M anchors, T = B N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecoformer.ops.ecoformer.codes import squared_distances

ANCHORS = ("image", "batch", "kmeans")
KMEANS_STEPS = 20
KMEANS_TOKENS = 16384  # per head: more hardly move the centres


def draw_anchors(x_BHNC: Tensor, num_anchors: int, how: str, generator: torch.Generator) -> Tensor:
    """Anchors (H, M, C) for the tokens of a batch.

    "image": tokens of the first image, the same positions for every head, as EcoFormer's published code draws them;
    "batch": tokens of all images, the same positions for every head; "kmeans": the centres that Lloyd's algorithm
    reaches from those. Whatever the device, the same draw: `generator` is a CPU generator. There must be at least
    M tokens to draw from.
    """
    assert how in ANCHORS
    if how == "image":
        chosen = torch.randperm(x_BHNC.shape[2], generator=generator)[:num_anchors]
        return x_BHNC[0].index_select(1, chosen.to(x_BHNC.device))
    x_HTC = x_BHNC.transpose(0, 1).flatten(1, 2)
    order = torch.randperm(x_HTC.shape[1], generator=generator)
    start_HMC = x_HTC.index_select(1, order[:num_anchors].to(x_HTC.device))
    if how == "batch":
        return start_HMC
    return kmeans(x_HTC.index_select(1, order[:KMEANS_TOKENS].to(x_HTC.device)), start_HMC, KMEANS_STEPS)


def kmeans(x_HTC: Tensor, centres_HMC: Tensor, steps: int) -> Tensor:
    """The centres (H, M, C) after `steps` of Lloyd's algorithm, head by head; a centre without tokens stays.

    S. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28 (1982). No step waits for the device.
    """
    for _ in range(steps):
        nearest_HT = squared_distances(x_HTC.unsqueeze(0), centres_HMC)[0].argmin(dim=-1)
        # A product with one-hot rows: unlike scatter_add it adds in the same order every time, also on a GPU.
        member_HMT = torch.nn.functional.one_hot(nearest_HT, centres_HMC.shape[1]).to(x_HTC.dtype).transpose(1, 2)
        size_HM1 = member_HMT.sum(dim=-1, keepdim=True)
        centres_HMC = torch.where(size_HM1 > 0, member_HMT @ x_HTC / size_HM1.clamp_min(1), centres_HMC)
    return centres_HMC
