"""A small stand-in for segmentation_models_pytorch's MiT encoder: its class names, parts and calls."""

import torch.nn.functional as F
from torch import Tensor, nn

DIMS, HEADS = (16, 32, 32, 48), (1, 2, 2, 3)


class Attention(nn.Module):
    """Keys and values from a map reduced by `sr_ratio`."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.dim, self.num_heads, self.sr_ratio = dim, num_heads, sr_ratio
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio) if sr_ratio > 1 else nn.Identity()
        self.norm = nn.LayerNorm(dim) if sr_ratio > 1 else nn.Identity()

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        reduced = x
        if self.sr_ratio > 1:
            map_BDYX = x.transpose(1, 2).unflatten(2, (height, width))
            reduced = self.norm(self.sr(map_BDYX).flatten(2).transpose(1, 2))
        parts = (self.q(x), *self.kv(reduced).chunk(2, dim=-1))
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads, sr_ratio)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(self.norm1(tokens), height, width)
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class MixVisionTransformerEncoder(nn.Module):
    """The maps of all stages."""

    def __init__(self, ratios: tuple[int, ...]) -> None:
        super().__init__()
        before = 3
        for number, (dim, heads, ratio) in enumerate(zip(DIMS, HEADS, ratios, strict=True), start=1):
            stride = 4 if number == 1 else 2
            self.add_module(f"patch_embed{number}", nn.Conv2d(before, dim, stride, stride))
            self.add_module(f"block{number}", nn.Sequential(Block(dim, heads, ratio)))
            before = dim

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for number in range(1, 5):
            maps.append(self.get_submodule(f"block{number}")(self.get_submodule(f"patch_embed{number}")(maps[-1])))
        return maps


for cls in (Attention, Block, MixVisionTransformerEncoder):  # readers know them by these names
    cls.__module__ = "segmentation_models_pytorch.encoders.mix_transformer"


class MixTransformer(nn.Module):
    """A classifier on the encoder's last map."""

    def __init__(self, ratios: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.head = MixVisionTransformerEncoder(ratios), nn.Linear(DIMS[-1], 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images)[-1].mean((2, 3)))
