"""Hash functions of queries or of keys as model state. Shapes: H heads, C head channels, K code bits, M anchors."""

from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.ops.codes.attention import TokenHash


class TokenHashFunctions(nn.Module):
    """Hash functions of the queries or keys of one layer, as buffers that only change in place."""

    A: Tensor
    threshold: Tensor
    anchors: Tensor | None
    bandwidth: Tensor | None

    def __init__(self, num_heads: int, head_dim: int, num_bits: int, num_anchors: int, device: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": torch.float32}
        self.register_buffer("A", torch.zeros(num_heads, num_bits, num_anchors or head_dim, **factory))
        self.register_buffer("threshold", torch.zeros(num_heads, num_bits, **factory))
        has_kernel = num_anchors > 0
        self.register_buffer(
            "anchors", torch.zeros(num_heads, num_anchors, head_dim, **factory) if has_kernel else None
        )
        self.register_buffer("bandwidth", torch.ones(num_heads, **factory) if has_kernel else None)

    def state(self, dtype: torch.dtype) -> TokenHash:
        """The functions in the dtype of the tokens: model.half() converts buffers too, codes are not computed in it."""
        kernel = (None if x is None else x.to(dtype) for x in (self.anchors, self.bandwidth))
        return TokenHash(self.A.to(dtype), self.threshold.to(dtype), *kernel)

    def buffers_to_fit(self) -> list[Tensor]:
        """What a fit changes, in the order of `BinaryHash.tensors`."""
        return [x for x in (self.A, self.threshold, self.anchors, self.bandwidth) if x is not None]
