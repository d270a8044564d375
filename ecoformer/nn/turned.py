"""Linears to queries and keys that a norm per head (qk-norm) or a rotation by position (RoPE) follows.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn

from ecoformer.nn.heads import join_heads, split_heads


class Rotation:
    """Where the tokens of the call under way stand: timm's rotary embedding, which its blocks hand to each layer.

    One object of a layer's seat and all its turns. It is no part of the model's state: every call brings its own.
    """

    def __init__(self, num_prefix: int, half: bool) -> None:
        self.num_prefix, self.half = num_prefix, half
        self.embedding: Tensor | None = None

    def __call__(self, x_BHNC: Tensor) -> Tensor:
        """x with all but the prefix tokens rotated, as timm rotates queries and keys."""
        if self.embedding is None:
            return x_BHNC
        prefix, image = x_BHNC[:, :, : self.num_prefix], x_BHNC[:, :, self.num_prefix :]
        return torch.cat([prefix, apply_rot_embed_cat(image, self.embedding, half=self.half)], dim=2)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self)(self.num_prefix, self.half)
        new.embedding = None if self.embedding is None else self.embedding.detach()  # learned frequencies have a graph
        memo[id(self)] = new
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "embedding": None}


class Turn(nn.Module):
    """(B, N, D) to (B, N, D): `norm` over the channels of each head, then the rotation, where there is one."""

    def __init__(self, norm: nn.Module, num_heads: int, rotation: Rotation | None = None) -> None:
        super().__init__()
        self.norm, self.num_heads, self.rotation = norm, num_heads, rotation

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BHNC = self.norm(split_heads(x_BND, self.num_heads))
        return join_heads(x_BHNC if self.rotation is None else self.rotation(x_BHNC)).to(x_BND.dtype)

    def copy(self) -> Turn:
        """One with a norm of its own and the same rotation, which the seat tells where tokens stand."""
        return Turn(copy.deepcopy(self.norm), self.num_heads, self.rotation)


class TurnedLinear(nn.Linear):
    """A Linear whose outputs, in as many equal parts as there are `turns`, go through them.

    Every kind whose queries or keys are those of the layer that it replaces gets them turned as they were, and fast
    paths that take weights for all that a Linear does leave it alone (`only_weights_matter`).
    """

    def __init__(self, linear: nn.Linear, turns: Sequence[nn.Module]) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.turns = nn.ModuleList(turns)

    def forward(self, x_BND: Tensor) -> Tensor:
        parts = super().forward(x_BND).chunk(len(self.turns), dim=-1)
        return torch.cat([turn(part) for turn, part in zip(self.turns, parts, strict=True)], dim=-1)


def turns_of(*linears: nn.Linear) -> list[nn.Module]:
    """Copies of what turns the outputs of Linears of the same width, one after the other; empty: nothing does."""
    if not any(isinstance(linear, TurnedLinear) for linear in linears):
        return []
    turns = [linear.turns if isinstance(linear, TurnedLinear) else [nn.Identity()] for linear in linears]
    return [turn.copy() if isinstance(turn, Turn) else turn for part in turns for turn in part]
