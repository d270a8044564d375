"""What stands in a stock layer's place where it is not called as ours are: (B, N, D) to (B, N, D).

Shapes: B batch, N tokens, D model channels, Y and X height and width of a map.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.base import one_node
from ecoformer.nn.msa import MSASpec, MultiHeadSelfAttention
from ecoformer.nn.projections import Projections
from ecoformer.nn.turned import Rotation


class Seat(nn.Module):
    """Calls `attn`, a layer of ours, as the layer was called that it replaces."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn, self.training = attn, attn.training


class OfSets(Seat):
    """For attention within each of many sets: (B, ..., N, D), as in NesT's blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x.flatten(0, -3)).view_as(x)


class OfMap(Seat):
    """For attention over a map, (B, Y, X, D)."""

    def forward(self, x_BYXD: Tensor) -> Tensor:
        return self.attn(x_BYXD.flatten(1, 2), x_BYXD.shape[1:3]).view_as(x_BYXD)


class OfChannelsFirst(Seat):
    """For attention over a map, (B, D, Y, X)."""

    def forward(self, x_BDYX: Tensor) -> Tensor:
        size = x_BDYX.shape[2:]
        return self.attn(x_BDYX.flatten(2).transpose(1, 2), size).transpose(1, 2).unflatten(2, size)


class OfSegformer(Seat):
    """For Hugging Face's SegformerAttention: tokens, height and width; no attention weights come back."""

    def forward(self, hidden_states: Tensor, height: int, width: int, **unused: Any) -> tuple[Tensor, None]:
        return self.attn(hidden_states, (height, width)), None


class OfMixTransformer(Seat):
    """For segmentation_models_pytorch's Attention: tokens, height and width."""

    def forward(self, x_BND: Tensor, height: int, width: int) -> Tensor:
        return self.attn(x_BND, (height, width))


class OfTorch(Seat):
    """For nn.MultiheadAttention with batch_first=True over one sequence, called without masks."""

    batch_first = False  # at which nn.TransformerEncoder leaves its fast path, which reads weights of the stock layer

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, None]:
        """Raises InputError for other keys than queries, and for masks."""
        if key is not query or value is not query:
            raise InputError("queries, keys and values are not the same tokens: keep the stock attention there")
        masks = [name for name in ("attn_mask", "key_padding_mask") if options.get(name) is not None]
        if masks or options.get("is_causal"):
            raise InputError(f"{masks[0] if masks else 'is_causal'}: keep the stock attention where there are masks")
        return self.attn(query), None


class Rotary(Seat):
    """For timm's attention with rotary positions: they are handed on to the turns of queries and keys."""

    def __init__(self, attn: nn.Module, rotation: Rotation) -> None:
        super().__init__(attn)
        self.rotation = rotation

    @one_node  # a rotation is told where tokens stand, which is no edge of a graph
    def forward(self, x_BND: Tensor, rope: Tensor | None = None, **masks: Any) -> Tensor:
        self.rotation.embedding = rope
        return self.attn(x_BND, **masks)


def softmax_of(source: Projections, seat: Callable[[nn.Module], nn.Module] | None = None) -> Projections:
    """The source of a stock layer that is softmax attention over all tokens of its input, called as `seat` says."""
    return replace(source, seat=seat, layer=MultiHeadSelfAttention.from_projections(source, MSASpec()))
