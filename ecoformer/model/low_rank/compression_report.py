"""What a compression did: ranks, parameters, errors, and what the ledger says before and after.

`ecoformer.report.tables` writes it as tables.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from ecoformer.model.low_rank.spec import LowRankSpec


@dataclass(frozen=True)
class LayerCompression:
    """One layer. `relative_error` is the Frobenius norm of the change over that of the weight; None on meta tensors."""

    name: str
    rows: int
    columns: int
    rank: int
    params_before: int
    params_after: int
    relative_error: float | None


@dataclass
class CompressionReport:
    """Compressed layers, skipped layers with the reason, and parameters of the whole model.

    `ledger` holds, per convention, the figures of one image `before` and `after`; empty unless someone counted them
    (see `ecoformer.run.summary`).
    """

    spec: LowRankSpec
    layers: list[LayerCompression] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    params_before: int = 0
    params_after: int = 0
    ledger: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def summary(self) -> str:
        errors = [layer.relative_error for layer in self.layers if layer.relative_error is not None]
        error = f", mean relative error {sum(errors) / len(errors):.3f}" if errors else ""
        return (
            f"low rank ({self.spec}): {len(self.layers)} layers, {self.params_before:,} -> {self.params_after:,} "
            f"parameters{error}"
        )
