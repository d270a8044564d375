"""What a compression did: ranks, parameters, errors, and what the ledger says before and after."""

from __future__ import annotations

from collections import Counter
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
    (see `ecoformer.run.compression`).
    """

    spec: LowRankSpec
    layers: list[LayerCompression] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    params_before: int = 0
    params_after: int = 0
    ledger: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """In one line."""
        errors = [layer.relative_error for layer in self.layers if layer.relative_error is not None]
        error = f", mean relative error {sum(errors) / len(errors):.3f}" if errors else ""
        return (
            f"low rank ({self.spec}): {len(self.layers)} layers, {self.params_before:,} -> {self.params_after:,} "
            f"parameters{error}"
        )

    def to_markdown(self) -> str:
        """Tables of the whole model, the layers, and the reasons for what was skipped."""
        lines = [self.summary, "", *self._whole(), "", *_row("layer", "weight", "rank", "parameters", "relative error")]
        lines[-1:] = [lines[-1], "| --- | ---: | ---: | ---: | ---: |"]
        for layer in self.layers:
            error = "-" if layer.relative_error is None else f"{layer.relative_error:.4f}"
            shrunk = f"{layer.params_before:,} -> {layer.params_after:,}"
            rank = f"{layer.rank} of {min(layer.rows, layer.columns)}"
            lines += _row(layer.name, f"{layer.rows} x {layer.columns}", rank, shrunk, error)
        if self.skipped:
            lines += ["", *_row("left as they are", "why"), "| --- | --- |"]
            firsts: dict[str, str] = {}
            for name, reason in self.skipped.items():
                firsts.setdefault(reason, name)
            for reason, number in Counter(self.skipped.values()).items():
                others = f" and {number - 1} more" if number > 1 else ""
                lines += _row(f"{firsts[reason]}{others}", reason)
        return "\n".join(lines)

    def _whole(self) -> list[str]:
        lines = [*_row("one image", "before", "after", "saves"), "| --- | ---: | ---: | ---: |"]
        lines += _figures("parameters", self.params_before, self.params_after)
        for convention, sides in self.ledger.items():
            for key, name in (("muls", "multiplications"), ("adds", "additions"), ("energy_pj", "energy, pJ")):
                lines += _figures(f"{name} ({convention})", sides["before"][key], sides["after"][key])
        return lines

    def __str__(self) -> str:
        return self.to_markdown()


def _figures(name: str, before: float, after: float) -> list[str]:
    return _row(name, f"{before:,.0f}", f"{after:,.0f}", f"{100 * (1 - after / before):.1f} %" if before else "-")


def _row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]
