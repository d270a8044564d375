"""Key rows that outlive a conversion which drops the keys: a fit may ask what attention they gave.

Shapes: B batch, N tokens, D model channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class KeptKeys(nn.Module):
    """Mixin of layers that hash queries in place of keys. The key projection becomes two buffers.

    `forward` never uses them, so they are neither trained nor counted; checkpoints and conversions carry them.
    """

    key_weight: Tensor
    key_bias: Tensor | None

    def keep_keys(self, key: nn.Linear) -> None:
        """Take over a copy of a key projection; call it once, when the layer is built."""
        self.register_buffer("key_weight", key.weight.detach().clone())
        self.register_buffer("key_bias", None if key.bias is None else key.bias.detach().clone())

    def kept_keys(self, x_BND: Tensor) -> Tensor:
        """The keys (B, N, D) of these inputs."""
        return F.linear(x_BND, self.key_weight, self.key_bias)

    def key_linear(self) -> nn.Linear:
        """The key projection as a Linear again, for conversions."""
        out_features, in_features = self.key_weight.shape
        linear = nn.Linear(in_features, out_features, bias=self.key_bias is not None, device="meta")
        linear.weight = nn.Parameter(self.key_weight.detach().clone())
        if self.key_bias is not None:
            linear.bias = nn.Parameter(self.key_bias.detach().clone())
        return linear
