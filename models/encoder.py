"""The encoder of the usual Long Range Arena comparison, on timm's blocks: `timm.create_model("lra_encoder")`.

Tay et al., "Long Range Arena" (2021), in the small setting of Xiong et al., "Nystroemformer" (2021): two layers of
width 64 with two heads and an MLP of 128, learned positions, the mean over tokens before the head.

Shapes: B batch, N tokens, D model channels.
"""

from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, load_pretrained, register_model, resolve_pretrained_cfg
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ecoformer.errors import InputError

PADDING = 0  # the id that fills a sequence up at its end
# One number where images have (channels, height, width): a model of sequences, and its tokens.
default_cfgs = generate_default_cfgs(
    {"lra_encoder": {"input_size": (512,), "num_classes": 2, "first_conv": None, "classifier": "head"}}
)


class LraEncoder(nn.Module):
    """A transformer encoder on sequences of ids (B, N), int64, 0 = padding; logits (B, num_classes).

    Padding changes nothing: blocks get it as `attn_mask`, a bool (B, 1, 1, N) that is True where a key takes part, and
    the mean before the head is over real tokens. A sequence has at least one of them.

    Args:
        vocab_size: ids are 0 to vocab_size - 1.
        seq_len: most tokens of a sequence; shorter ones use the first positions.
        mlp_ratio: MLP width over embed_dim.
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate, drop_path_rate: dropout before the head, after the
            embedding, in the blocks, of attention weights, and stochastic depth, as in timm's ViT.
    """

    def __init__(
        self,
        vocab_size: int = 257,
        seq_len: int = 512,
        num_classes: int = 2,
        embed_dim: int = 64,
        depth: int = 2,
        num_heads: int = 2,
        mlp_ratio: float = 2.0,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.num_features = self.head_hidden_size = embed_dim
        self.grad_checkpointing = False
        self.token_embed = nn.Embedding(vocab_size, embed_dim, padding_idx=PADDING)
        self.pos_embed = nn.Parameter(torch.zeros(1, seq_len, embed_dim))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=True,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rate * index / max(1, depth - 1),
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        trunc_normal_(self.pos_embed, std=0.02)
        with torch.no_grad():
            trunc_normal_(self.token_embed.weight, std=0.02)[PADDING].zero_()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # the 0.02 of wide models is little at width 64
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "token_embed.weight"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As in timm: which parameters are of which layer."""
        return {"stem": r"^token_embed|^pos_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head; `global_pool` is refused, since the mean is all there is."""
        if global_pool not in (None, "avg"):
            raise InputError(f"global_pool={global_pool!r}: {type(self).__name__} pools by the mean alone")
        weight = self.pos_embed
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.head.to(weight.device, weight.dtype)

    def forward_features(self, ids_BN: Tensor) -> Tensor:
        """Features of all tokens (B, N, D), after the norm; those of padding mean nothing.

        Raises InputError for sequences that are longer than `seq_len`.
        """
        num_tokens = ids_BN.shape[1]
        if num_tokens > self.seq_len:
            raise InputError(
                f"sequences of {num_tokens} tokens > seq_len={self.seq_len}: lower data.seq_len, or create the model "
                f"with seq_len={num_tokens}"
            )
        mask_B11N = (ids_BN != PADDING)[:, None, None, :]
        x_BND = self.pos_drop(self.token_embed(ids_BN) + self.pos_embed[:, :num_tokens])
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x_BND = checkpoint(block, x_BND, attn_mask=mask_B11N)
            else:
                x_BND = block(x_BND, attn_mask=mask_B11N)
        return self.norm(x_BND)

    def forward_head(self, x_BND: Tensor, pre_logits: bool = False, *, real_BN: Tensor | None = None) -> Tensor:
        """The head on the mean over tokens, or with `real_BN` (bool) over those that are True there."""
        if real_BN is None:
            x_BD = x_BND.mean(dim=1)
        else:
            x_BND = x_BND.masked_fill(~real_BN[:, :, None], 0.0)
            x_BD = x_BND.sum(dim=1) / real_BN.sum(dim=1, keepdim=True)
        x_BD = self.head_drop(x_BD)
        return x_BD if pre_logits else self.head(x_BD)

    def forward(self, ids_BN: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(ids_BN), real_BN=ids_BN != PADDING)


@register_model
def lra_encoder(
    pretrained: bool = False,
    *,
    pretrained_cfg: dict[str, Any] | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`LraEncoder`; nobody publishes weights of it, so `pretrained` needs a `pretrained_cfg` that names some."""
    # timm's own builder knows images alone.
    cfg = resolve_pretrained_cfg("lra_encoder", pretrained_cfg, pretrained_cfg_overlay).to_dict()
    model = LraEncoder(**kwargs)
    model.pretrained_cfg = model.default_cfg = cfg
    if pretrained:
        load_pretrained(model, cfg, model.num_classes, cache_dir=cache_dir)
    return model
