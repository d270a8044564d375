"""Whether hash functions were fitted: a flag that is checkpointed, and known without looking at the device."""

from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError

NEVER_FITTED = (
    "the hash functions were never fitted: train with callbacks.hash_update.enabled=true, load a fitted checkpoint, or "
    "call ecoformer.fit_hashes(model, images, seed)"
)


class FittedState(nn.Module):
    """Mixin of modules that hold fitted hash functions. Call `register_fitted` once, when the module is built."""

    fitted: Tensor
    fit_count: Tensor

    def register_fitted(self, device: Any = None) -> None:
        """Add the buffers: not fitted, zero times."""
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("fit_count", torch.zeros((), dtype=torch.int64, device=device))
        self._known_fitted = False

    @property
    def is_fitted(self) -> bool:
        """Whether functions were fitted; meta tensors, which have no value to read, count as fitted."""
        # Fits and loads say so. Others write into the buffer itself (an EMA, a broadcast): only where nothing is known
        # yet is it looked at, never in a graph that is exported, where it has no value.
        if not (self._known_fitted or self.fitted.is_meta or torch.compiler.is_exporting()):
            self._known_fitted = bool(self.fitted)
        return self._known_fitted or self.fitted.is_meta

    def require_fitted(self) -> None:
        """Raise InputError if the functions were never fitted."""
        if not self.is_fitted:
            raise InputError(NEVER_FITTED)

    def mark_fitted(self) -> None:
        self.fitted.fill_(True)
        self.fit_count.add_(1)
        self._known_fitted = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_fitted = not self.fitted.is_meta and bool(self.fitted)
