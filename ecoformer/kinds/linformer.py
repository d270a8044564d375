"""Linformer: softmax attention over a fixed number of learned mixtures of the tokens.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, M projected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import without_padding
from ecoformer.nn.projections import Projections
from ecoformer.nn.specs import AttentionSpec


@dataclass(frozen=True)
class LinformerSpec(AttentionSpec):
    """softmax(q (E k)^T / sqrt(C)) F v (Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, eq. 7).

    Args:
        proj_dim: projected tokens M (the paper's k); a layer with fewer tokens keeps as many as it has, and the
            conversion says so.
        share_kv: E = F, the paper's key-value sharing. The heads of a layer always share both.
        num_tokens: tokens N that E and F are made for; None: taken from the layer, which needs the image size.
    """

    name = "linformer"

    proj_dim: int = 64
    share_kv: bool = False
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        self.require_whole(1, "proj_dim", "num_tokens")
        self.require_flags("share_kv")

    def fit_to_tokens(self, num_tokens: int, where: str) -> LinformerSpec:
        if self.num_tokens not in (None, num_tokens):
            raise InputError(
                f"{where} has {num_tokens} tokens, attention.num_tokens={self.num_tokens}: leave it out, and the image "
                "size decides"
            )
        return replace(self, num_tokens=num_tokens, proj_dim=min(self.proj_dim, num_tokens))

    def is_met_by(self, module: nn.Module) -> bool:
        if not isinstance(module, LinformerAttention):
            return False
        num_tokens = module.spec.num_tokens if self.num_tokens is None else self.num_tokens
        assert num_tokens is not None
        return module.spec == replace(self, num_tokens=num_tokens, proj_dim=min(self.proj_dim, num_tokens))


@attention_kind(LinformerSpec)
class LinformerAttention(ReplacementAttention):
    """Softmax attention on keys and values that E and F mix over the tokens.

    Under a mask keys and values that take no part enter the mixtures as zeros. What stands in them changes nothing
    then, but it is not exact: a mixture of padding alone is still a key, of score 0, and takes its share of weight.

    E and F start as means of N / M neighbouring tokens each, so a converted model attends to a coarser copy of its keys
    from the first step, and equals MSA where M = N. They are made for N tokens; any other number is refused.
    """

    takes_mask = True
    spec: LinformerSpec
    value_mix: nn.Parameter | None

    def add_parts(self, source: Projections | None) -> None:
        """Raises InputError without a token count."""
        spec = self.spec
        if spec.num_tokens is None:
            where = "" if source is None else f"{source.where}: "
            raise InputError(
                f"{where}linformer needs the number of tokens: call convert(model, spec, img_size=...) or set "
                "attention.num_tokens"
            )
        means_MN = segment_means(spec.num_tokens, spec.proj_dim).to(self.proj.weight)
        self.key_mix = nn.Parameter(means_MN)
        self.value_mix = None if spec.share_kv else nn.Parameter(means_MN.clone())
        self.new_parts = ("key_mix",) if spec.share_kv else ("key_mix", "value_mix")

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        self._require_tokens(k_BHNC.shape[-2])
        k_BHNC, v_BHNC = without_padding(k_BHNC, mask_BN), without_padding(v_BHNC, mask_BN)
        value_mix = self.key_mix if self.value_mix is None else self.value_mix
        return F.scaled_dot_product_attention(q_BHNC, self.key_mix @ k_BHNC, value_mix @ v_BHNC)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        """softmax(...) F: what each token takes of each value; F is learned, so weights need not be positive."""
        q_BHNC, k_BHNC, _ = self.heads(x_BND)
        self._require_tokens(x_BND.shape[1])
        scores_BHNM = q_BHNC @ (self.key_mix @ k_BHNC).transpose(-2, -1) * self.head_dim**-0.5
        return scores_BHNM.softmax(dim=-1) @ (self.key_mix if self.value_mix is None else self.value_mix)

    def _require_tokens(self, num_tokens: int) -> None:
        if num_tokens != self.spec.num_tokens:
            raise InputError(
                f"linformer attention was made for {self.spec.num_tokens} tokens and got {num_tokens}: keep the image "
                "size it was converted for, or convert anew for another"
            )

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """E k and F v, N M D each; then MSA with M keys: 2 N M D products, H N M for the softmax."""
        products = 4 * num_tokens * self.spec.proj_dim * self.dim
        return products + self.num_heads * num_tokens * self.spec.proj_dim, products


def segment_means(num_tokens: int, num_segments: int) -> Tensor:
    """Rows (M, N) that average M neighbouring stretches of N tokens, each floor(i N / M) to ceil((i + 1) N / M)."""
    segment_M1 = torch.arange(num_segments)[:, None]
    start_M1 = segment_M1 * num_tokens // num_segments
    stop_M1 = ((segment_M1 + 1) * num_tokens + num_segments - 1) // num_segments
    token_N = torch.arange(num_tokens)
    inside_MN = ((token_N >= start_M1) & (token_N < stop_M1)).float()
    return inside_MN / inside_MN.sum(dim=1, keepdim=True)
