"""`distilled` with codes=bits, by its earlier name: checkpoints and configs have it. Shape: K code length."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ecoformer.fit.taught import TaughtSpec
from ecoformer.kinds.distilled import DistilledAttention, DistilledSpec
from ecoformer.nn.base import attention_kind
from ecoformer.nn.specs import MOST_CODES, one_of
from ecoformer.ops.codes.forms import BITS, CodeForm


@dataclass(frozen=True)
class DistilledHashSpec(TaughtSpec):
    """`distilled` with codes=bits, by its earlier name and options.

    Args:
        num_bits: code length K per head.
        relaxation: see `DistilledSpec`.
    """

    name = "distilled_hash"
    codes: ClassVar[str] = "bits"
    levels: ClassVar[int] = 2
    projection: ClassVar[str] = "real"
    values: ClassVar[str] = "real"
    form: ClassVar[CodeForm] = BITS

    num_bits: int = 16
    relaxation: Literal["sigmoid", "straight_through"] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_whole(1, "num_bits", most=MOST_CODES)
        one_of("relaxation", self.relaxation, ("sigmoid", "straight_through"))

    @property
    def num_features(self) -> int:
        return self.num_bits

    shape = DistilledSpec.shape
    is_met_by = DistilledSpec.is_met_by


@attention_kind(DistilledHashSpec)
class DistilledHashAttention(DistilledAttention):
    """Distilled attention on bits, by its earlier name."""
