"""Precision under autocast. What makes codes is in full: a code is a sign near zero, and sums of codes are exact."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off for x's device. Meta tensors, which only carry shapes, know no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def as_linears_take(x: Tensor) -> Tensor:
    """x as autocast, where it is on, would cast it in every Linear that takes it: done once.

    The gradients of these Linears then add up in its precision, as those of one fused Linear do.
    """
    if x.is_meta or x.dtype != torch.float32 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
