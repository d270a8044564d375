"""Linear layers and convolutions whose weight is a product of two thin factors.

They offer what readers of the dense layer use (`weight`, `bias`, `in_features`, ...); `weight` is the product of the
factors, computed when asked for, so a compressed attention converts into another kind like any other.

Shapes: O outputs, I inputs (of a convolution: channels x kernel height x kernel width), R rank.
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class LowRank(nn.Module, ABC):
    """What both have in common: x to up(down(x)), the bias on the second factor."""

    down: Any
    up: Any

    def fill(self, dense: nn.Linear | nn.Conv2d, up: Tensor, down: Tensor) -> None:
        """Take over the factors, and the bias, precision, mode and `requires_grad` of `dense`."""
        trainable, dtype = dense.weight.requires_grad, dense.weight.dtype
        self.down.weight = nn.Parameter(down.to(dtype).contiguous(), requires_grad=trainable)
        self.up.weight = nn.Parameter(up.to(dtype).contiguous(), requires_grad=trainable)
        self.up.bias = dense.bias
        self.train(dense.training)

    @property
    def weight(self) -> Tensor:
        """The product, in the dense layer's shape."""
        return (self.up.weight.flatten(1) @ self.down.weight.flatten(1)).unflatten(1, self.down.weight.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    @abstractmethod
    def empty_dense(self) -> nn.Linear | nn.Conv2d:
        """The layer with one weight, whose values it does not have yet."""

    def dense(self) -> nn.Linear | nn.Conv2d:
        """A layer that computes the same with one weight."""
        dense = self.empty_dense()
        dense.weight = nn.Parameter(self.weight.detach().clone(), requires_grad=self.up.weight.requires_grad)
        dense.bias = self.up.bias
        return dense.train(self.training)


class LowRankLinear(LowRank):
    """x -> up(down(x)): a Linear of rank at most R, the bias on the second factor (LED in Winata et al., 2020)."""

    def __init__(self, dense: nn.Linear, up_OR: Tensor, down_RI: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = dense.in_features, dense.out_features, len(down_RI)
        self.down = nn.Linear(self.in_features, self.rank, bias=False, device="meta")
        self.up = nn.Linear(self.rank, self.out_features, dense.bias is not None, device="meta")
        self.fill(dense, up_OR, down_RI)

    def empty_dense(self) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv2d(LowRank):
    """The same for a convolution without groups: a convolution to R channels, then a 1x1 one."""

    def __init__(self, dense: nn.Conv2d, up_OR: Tensor, down_RI: Tensor) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.rank = dense.in_channels, dense.out_channels, len(down_RI)
        self.down = nn.Conv2d(self.in_channels, self.rank, bias=False, **_geometry(dense))
        self.up = nn.Conv2d(self.rank, self.out_channels, 1, bias=dense.bias is not None, device="meta")
        self.fill(dense, up_OR[:, :, None, None], down_RI.unflatten(1, dense.weight.shape[1:]))

    def empty_dense(self) -> nn.Conv2d:
        return nn.Conv2d(self.in_channels, self.out_channels, bias=self.bias is not None, **_geometry(self.down))

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.down.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        return self.down.stride

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    shared = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {key: getattr(conv, key) for key in shared} | {"device": "meta"}
