"""When a fast path may take a layer's weights and leave the modules that hold them uncalled."""

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ecoformer.errors import InputError
from ecoformer.nn.coded import CodedLinear
from ecoformer.ops.ecoformer.codes import in_a_graph

PLAIN = (Tensor, nn.Parameter)  # and no subclass: those answer for their own operations


def only_weights_matter(x: Tensor, *linears: nn.Module) -> bool:
    """Whether `linears` on `x` are no more than x W^T + b in eager float32 or float64 arithmetic on CPU.

    Not so under autocast and torch.func, for a graph that is traced, compiled or exported, for modules with hooks, of
    their own or for all modules (profilers, the energy ledger), with a forward of their own or of another class (low
    rank, quantised, parametrised), and for tensor subclasses.
    """
    if x.device.type != "cpu" or type(x) not in PLAIN or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or in_a_graph() or _has_any_global_hook():
        return False
    return all(_is_bare(linear, x.dtype) for linear in linears)


def _is_bare(linear: nn.Module, dtype: torch.dtype) -> bool:
    plain = type(linear) is nn.Linear and type(linear.weight) in PLAIN and linear.weight.dtype == dtype
    return plain and not does_more(linear)


def require_weights_alone(*linears: nn.Module) -> None:
    """Raise InputError for one of a layer's `linears`, of which it takes the weights and calls none, that does more.

    An adapter, or a weight that a hook makes (old weight norm, pruning), would do nothing and learn nothing in silence.
    """
    for linear in linears:
        # accelerate keeps the forward that it wraps to move tensors between devices.
        own = vars(linear).get("_old_forward", vars(linear).get("forward", getattr(type(linear), "forward", None)))
        if getattr(own, "__func__", own) not in (nn.Linear.forward, CodedLinear.forward) or any(
            name.startswith(("weight_", "bias_")) for name in linear._parameters
        ):
            raise InputError(
                f"a {type(linear).__name__} where weights alone are applied, to sums of tokens: merge what it adds "
                "into the weight (an adapter, pruning, weight norm), or put it into other layers"
            )


def does_more(module: nn.Module) -> bool:
    """Whether a module has hooks, or a forward that its class does not have."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return "forward" in vars(module) or any(hooks)
