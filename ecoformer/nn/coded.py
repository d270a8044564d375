"""A Linear that runs codes of its weight: trained by the straight-through estimator.

Shapes: F features (out), D channels (in).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.ops.codes.folded import Affine
from ecoformer.ops.ecoformer.codes import is_differentiated


class CodedLinear(nn.Linear, ABC):
    """x times the codes that are nearest to `weight`, plus the bias.

    `weight` is what training moves. Beside it stand, in the state dict, the codes, which are what runs in evaluation
    without gradients. They follow the weight whenever evaluation mode begins, a weight is loaded or the layer copied,
    and at `settle`. Where the weight has moved since (an optimizer, an average, torch.func.functional_call) codes of
    what it is now run instead. Of what is written into `weight.data` torch does not tell, and in a compiled graph of
    nothing: set evaluation mode again then.
    """

    _settled: "_Settled"

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **factory: Any) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.register_codes()

    def register_codes(self) -> None:
        for name, code in self.nearest(self.weight.detach()).items():
            self.register_buffer(name, code)
        self._note_settled()

    def _note_settled(self) -> None:
        self._settled = _Settled(self._trained(), next(self.buffers()))

    def _is_settled(self, weight: Tensor) -> bool:
        """Whether the codes are those of the weight, as far as torch tells."""
        if torch.compiler.is_compiling() or torch.compiler.is_exporting() or weight.is_meta:
            return True
        seen = self._settled
        # In a functional_call codes that come with another weight are its own.
        return _state_of(weight) == seen.state if weight is seen.weight else next(self.buffers()) is not seen.code

    @staticmethod
    @abstractmethod
    def nearest(weight_FD: Tensor) -> Mapping[str, Tensor]:
        """The codes of a weight, by the names of their buffers."""

    @staticmethod
    @abstractmethod
    def straight_through(weight_FD: Tensor) -> Tensor:
        """The weight that runs, with the gradient of the weight as it is."""

    @abstractmethod
    def coded(self) -> Any:
        """What runs without gradients, for `ops`."""

    def _trained(self) -> Tensor | None:
        """The weight; None where it was forgotten. Raises InputError where something else computes it."""
        if "weight" not in self._parameters:
            raise InputError(
                f"{self}: something else holds its weight, which has codes: make pruning or a parametrization "
                "permanent (prune.remove, remove_parametrizations), and wrap with DistributedDataParallel alone"
            )
        return self._parameters["weight"]

    @torch.no_grad()
    def settle(self) -> None:
        """Take over what the weight has become."""
        weight = self._trained()
        for name, code in self.nearest(weight).items() if weight is not None else ():
            self.get_buffer(name).copy_(code)
        self._note_settled()

    def _require_finite(self) -> None:
        """Raise InputError for NaN and infinity, of which a byte would make some number."""
        weight = self._trained()
        if weight is not None and not weight.is_meta and (bad := int((~weight.isfinite()).sum())):
            raise InputError(f"{bad} of {weight.numel()} weights of {self} are NaN or infinite: repair the model")

    def harden(self) -> None:
        """Forget the weight, for good: what is left are the codes, and cannot be trained."""
        self.settle()
        self.register_parameter("weight", None)
        self._note_settled()

    def train(self, mode: bool = True) -> Self:
        if not mode:
            self._require_finite()
            self.settle()
        return super().train(mode)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, *args)
        if f"{prefix}weight" in state:  # codes that were saved while it was trained are behind it
            self._require_finite()
            self.settle()

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        weight = self._parameters.get("weight")
        settled = weight is not None and self._is_settled(weight)
        super()._apply(*args, **kwargs)
        if settled:
            self._note_settled()
        else:
            self._settle_again()
        return self

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._settle_again()

    def _settle_again(self) -> None:
        if not self.training and "weight" in self._parameters:
            self.settle()

    def affine(self) -> Any:
        """What `forward` computes, for `ops`."""
        weight = self._trained()
        if weight is not None and (self.training or is_differentiated(weight) or not self._is_settled(weight)):
            return Affine(self.straight_through(weight), self.bias)
        return self.coded()

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., F)."""
        out: Tensor = self.affine().like(x)(x)
        return out


class _Settled:
    """The weight that codes are of, its state then, and a buffer of the codes. Copies and pickles know of none.

    It holds the objects and the memory: id() and address of what is gone are given to the next.
    """

    def __init__(self, weight: Tensor | None = None, code: Tensor | None = None) -> None:
        self.weight, self.code, self.state = weight, code, _state_of(weight)
        self._memory = None if weight is None else weight.detach()

    def __reduce__(self) -> Any:
        return _Settled, ()


def _state_of(weight: Tensor | None) -> tuple[int, int]:
    """What changes when a weight does: how often it was written to, and where it lies. Not of what `.data` wrote."""
    if weight is None or weight.is_inference() or type(weight) is not nn.Parameter:
        return 0, 0
    return weight._version, weight.data_ptr()
