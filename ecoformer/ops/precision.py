"""Full precision inside autocast: a code is a sign near zero, and sums of codes must be exact integers."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off for x's device. Meta tensors, which only carry shapes, know no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
