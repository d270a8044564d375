"""Linear layers and convolutions whose weight is a product of two thin factors.

They offer what readers of the dense layer use (`weight`, `bias`, `in_features`, ...); `weight` is the product of the
factors, computed when asked for, so a compressed attention converts into another kind like any other.

Shapes: O outputs, I inputs (of a convolution: channels x kernel height x kernel width), R rank.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn


class _Factors(nn.Module):
    """What both have in common: x to up(down(x)), the bias on the second factor."""

    down: Any
    up: Any

    @property
    def weight(self) -> Tensor:
        """The product, in the dense layer's shape."""
        return (self.up.weight.flatten(1) @ self.down.weight.flatten(1)).unflatten(1, self.down.weight.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    def filled(self, dense: nn.Linear | nn.Conv2d, up: Tensor, down: Tensor) -> Self:
        """Itself with these factors and the bias of `dense`, trainable and in the mode as that is."""
        trainable, dtype = dense.weight.requires_grad, dense.weight.dtype
        self.down.weight = nn.Parameter(down.to(dtype).contiguous(), requires_grad=trainable)
        self.up.weight = nn.Parameter(up.to(dtype).contiguous(), requires_grad=trainable)
        self.up.bias = dense.bias
        return self.train(dense.training)


class LowRankLinear(_Factors):
    """x -> up(down(x)): a Linear of rank at most R, the bias on the second factor (LED in Winata et al., 2020)."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, **factory)
        self.up = nn.Linear(rank, out_features, bias=bias, **factory)

    @classmethod
    def from_factors(cls, dense: nn.Linear, up_OR: Tensor, down_RI: Tensor) -> LowRankLinear:
        """The layer that takes the place of `dense` and keeps its bias; trainable as it was."""
        module = cls(dense.in_features, dense.out_features, len(down_RI), dense.bias is not None, device="meta")
        return module.filled(dense, up_OR, down_RI)

    def dense(self) -> nn.Linear:
        """A Linear that computes the same with one weight."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = _product(self), self.up.bias
        return linear

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv2d(_Factors):
    """The same for a convolution without groups: a convolution to R channels, then a 1x1 one."""

    def __init__(self, in_channels: int, out_channels: int, rank: int, bias: bool = True, **geometry: Any) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        self.down = nn.Conv2d(in_channels, rank, bias=False, **geometry)
        self.up = nn.Conv2d(rank, out_channels, 1, bias=bias, device=self.down.weight.device)

    @classmethod
    def from_factors(cls, dense: nn.Conv2d, up_OR: Tensor, down_RI: Tensor) -> LowRankConv2d:
        """The layer that takes the place of `dense` and keeps its bias; trainable as it was."""
        geometry = _geometry(dense)
        module = cls(dense.in_channels, dense.out_channels, len(down_RI), dense.bias is not None, **geometry)
        return module.filled(dense, up_OR[:, :, None, None], down_RI.unflatten(1, dense.weight.shape[1:]))

    def dense(self) -> nn.Conv2d:
        """A convolution that computes the same with one weight."""
        conv = nn.Conv2d(self.in_channels, self.out_channels, bias=self.bias is not None, **_geometry(self.down))
        conv.weight, conv.bias = _product(self), self.up.bias
        return conv

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.down.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        return self.down.stride

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"


LowRank = LowRankLinear | LowRankConv2d


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    shared = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {key: getattr(conv, key) for key in shared} | {"device": "meta"}


def _product(module: LowRank) -> nn.Parameter:
    return nn.Parameter(module.weight.detach().clone(), requires_grad=module.up.weight.requires_grad)
