"""What every attention that replaces a stock one has in common."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ecoformer.nn.projections import Projections
from ecoformer.nn.specs import AttentionSpec


class ReplacementAttention(nn.Module):
    """Base of the attention kinds: (B, N, D) to (B, N, D), called by timm's PVTv2, Twins and ViT blocks alike.

    Attributes:
        carries: which of query, key, value and proj are taken over from the layer that is replaced, and which of its
            other submodules, by name.
        new_parts: what the kind adds without trained weights.
            Both are of the class, or of a layer where its source or its spec decides.
        shows_weights: whether the output is a weighted sum of the tokens' values, so that there are weights to show.
    """

    carries: tuple[str, ...] = ("query", "key", "value", "proj")
    new_parts: tuple[str, ...] = ()
    shows_weights: ClassVar[bool] = True
    spec: AttentionSpec

    def __init__(self, dim: int, num_heads: int, spec: AttentionSpec) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"{dim} channels do not divide into {num_heads} heads"
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.spec = spec

    @classmethod
    def from_projections(cls, source: Projections, spec: Any) -> Self:
        """A layer of this kind with the weights of `source`, on its device and in its dtype."""
        raise TypeError(f"{cls.__name__} does not say how it is built from another attention")

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """`feat_size` is what timm's hierarchical blocks pass; a mask is refused (see `heads.refuse_mask`)."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        """The weights (B, H, N, N) with which a token sums the values: for pictures and tests, never for `forward`."""
        raise TypeError(f"{type(self).__name__} has no attention weights to show")

    def attention_output(self, x_BND: Tensor) -> Tensor:
        """What is summed with those weights, before the output projection: (B, N, D), heads joined."""
        return before_projection(self, x_BND)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention core in the paper's accounting.

        The core is what lies between the projections; the Linears are counted by the ledger like any other.
        """
        raise TypeError(f"{type(self).__name__} has no accounting in the paper's convention")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, {self.spec}"


def before_projection(layer: nn.Module, x_BND: Tensor, *args: Any) -> Tensor:
    """What a layer, ours or timm's, hands to its output projection `proj`, called with x and `args`: (B, N, D)."""
    caught: list[Tensor] = []
    proj = layer.get_submodule("proj")
    handle = proj.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    try:
        layer(x_BND, *args)
    finally:
        handle.remove()
    assert len(caught) == 1, "an attention layer projects its output once"
    return caught[0]
