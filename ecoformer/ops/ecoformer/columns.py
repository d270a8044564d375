"""A whole EcoFormer layer on CPU, projections included: the fast form of `kernel_hash_attention` between linear layers.

`token_columns` says how. Shapes: B batch, N tokens, D model channels, H heads, C head channels, K code bits, M anchors.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ecoformer.ops.ecoformer.codes import is_differentiated
from ecoformer.ops.ecoformer.columns_backward import layer_backward
from ecoformer.ops.ecoformer.columns_forward import ColumnLayer, Linear, State, layer_forward
from ecoformer.ops.ecoformer.eager import gradients_with_graph, recorded, with_graph
from ecoformer.ops.precision import without_autocast


def kernel_hash_layer(
    x_BND: Tensor,
    to_qk: Linear,
    to_v: Linear,
    proj: Linear,
    state: State,
    numerator: str,
    mask_BN: Tensor | None = None,
) -> Tensor:
    """proj(kernel_hash_attention(to_qk(x), to_v(x))) as (B, N, D), for plain tensors on CPU.

    See `kernel_hash_attention` for the attention, its gradients and the two numerators. Differentiable with
    respect to x and the three linear layers.

    Args:
        x_BND: float32 or float64.
        to_qk, to_v, proj: weight (D, D) and bias (D) or None, in the same dtype.
        state: anchors_HMC, A_HKM and mean_HM of the hash functions, in the same dtype; they get no gradient.
        numerator: "own_token" or "kernel".
        mask_BN: True where a token takes part: as a key, and in sigma. At least one a sample; None: all do.
    """
    tensors = (x_BND, *to_qk, *to_v, *proj)
    if is_differentiated(*tensors):
        return _Recomputed.apply(*tensors, *state, mask_BN, numerator)
    return layer_forward(x_BND, ColumnLayer.of((to_qk, to_v, proj), state, numerator), mask_BN)


class _Recomputed(torch.autograd.Function):
    """The layer with its backward pass written out, keeping x alone."""

    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, *tensors: Any) -> Tensor:
        *parts, mask_BN, numerator = tensors
        ctx.save_for_backward(x_BND, *parts, mask_BN)
        ctx.numerator = numerator
        return layer_forward(x_BND, _layer(parts, numerator), mask_BN)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_BND, *parts, mask_BN = ctx.saved_tensors
        if with_graph():
            state = parts[6], parts[7], parts[8]

            def layer(x: Tensor, *linears: Tensor) -> Tensor:
                rows = (F.linear(x, *linears[at : at + 2]).unflatten(-1, (len(state[0]), -1)) for at in (0, 2))
                qk_BHNC, v_BHNC = (row.transpose(1, 2) for row in rows)
                out_BHNC = recorded(qk_BHNC, v_BHNC, state, mask_BN, ctx.numerator)
                return F.linear(out_BHNC.transpose(1, 2).flatten(2), *linears[4:])

            again = gradients_with_graph(layer, (x_BND, *parts[:6]), grad_outputs[0])
            return *again, None, None, None, None, None
        with without_autocast(x_BND):  # a loop may call backward() within its own
            grads = layer_backward(grad_outputs[0], x_BND, _layer(parts, ctx.numerator), mask_BN)
        wanted = (grad if part is not None else None for grad, part in zip(grads, (x_BND, *parts[:6]), strict=True))
        return *wanted, None, None, None, None, None


def _layer(parts: list[Any], numerator: str) -> ColumnLayer:
    linears = (parts[0], parts[1]), (parts[2], parts[3]), (parts[4], parts[5])
    return ColumnLayer.of(linears, (parts[6], parts[7], parts[8]), numerator)
