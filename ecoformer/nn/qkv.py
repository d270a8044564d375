"""What the attention kinds with queries, keys and values of their own share: projections before, projection after.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.heads import join_heads, refuse_mask, split_heads
from ecoformer.nn.projections import Projections, linear_from, read_fused_qkv
from ecoformer.nn.specs import AttentionSpec


class QKVAttention(ReplacementAttention):
    """proj(attend(q, k, v)) with one fused projection `qkv`, as in a ViT; a kind says what `attend` does.

    Args:
        dim: model channels D; divisible by num_heads.
        num_heads: heads H.
        spec: of the kind.
        qkv, proj: the projections, D to 3 D and D to D.
        proj_drop: dropout after the output projection.
    """

    def __init__(
        self, dim: int, num_heads: int, spec: AttentionSpec, qkv: nn.Linear, proj: nn.Linear, proj_drop: float
    ) -> None:
        super().__init__(dim, num_heads, spec)
        self.qkv = qkv
        self.proj = proj
        self.proj_drop = nn.Dropout(proj_drop)

    @classmethod
    def from_projections(cls, source: Projections, spec: Any) -> Self:
        """Query, key and value rows stacked into one projection. Raises InputError if the source has no keys."""
        keys = source.own_keys(f"to build {spec.name} attention from")
        qkv = linear_from(source.query, keys, source.value)
        return cls(source.dim, source.num_heads, spec, qkv, linear_from(source.proj), source.proj_drop)

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor) -> Tensor:
        """The attention output (B, H, N, C)."""
        raise TypeError(f"{type(self).__name__} does not say how it attends")

    def split_qkv(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, each (B, H, N, C)."""
        q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, dim=-1)
        return tuple(split_heads(part, self.num_heads) for part in (q_BND, k_BND, v_BND))  # type: ignore[return-value]

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D). `feat_size` is what timm's blocks pass; masks are refused."""
        refuse_mask(self, attn_mask, is_causal)
        return self.proj_drop(self.proj(join_heads(self.attend(*self.split_qkv(x_BND)))))


def read_qkv(module: QKVAttention, where: str) -> Projections:
    """The reader of every kind that adds nothing trained to `QKVAttention`."""
    return read_fused_qkv(module, module.dim, where)
