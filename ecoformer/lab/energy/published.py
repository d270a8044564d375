"""The published EcoFormer rows beside ours. Nothing is adjusted: a row that rounds differently is a failure."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from ecoformer.energy.profile_files import load_profile
from ecoformer.lab.energy.cases import Case

BILLION = 10**9
TITLE = "EcoFormer, 224 px, 16 bits, 25 anchors, paper convention, 45nm_fp32: published and ours"
# As printed, in billions: multiplications, additions, picojoules (224 px, 16 bits, 25 anchors, 45 nm FP32).
PUBLISHED = {
    "pvt_v2_b0": ("0.54", "0.56", "2.5"),
    "pvt_v2_b1": ("2.03", "2.09", "9.4"),
    "pvt_v2_b2": ("3.85", "3.97", "17.8"),
    "pvt_v2_b3": ("6.54", "6.75", "30.25"),
    "pvt_v2_b4": ("9.57", "9.82", "44.25"),
    "twins_svt_small": ("2.72", "2.81", "12.6"),
}
QUANTITIES = ("muls", "adds", "energy_pj")
MISPRINT = "6.75 is a misprint: the published formula gives 6.715, and only that fits the printed energy"
MISPRINTS = {("pvt_v2_b3", "adds"): MISPRINT}


@dataclass(frozen=True)
class Comparison:
    """One printed figure and ours, both in billions."""

    model: str
    quantity: str
    printed: str
    ours: float

    @property
    def rounded(self) -> str:
        """Ours at the precision that was printed."""
        exact = Decimal(repr(self.ours))
        return str(exact.quantize(Decimal(self.printed), rounding=ROUND_HALF_UP))

    @property
    def difference(self) -> float:
        return self.ours - float(self.printed)

    @property
    def agrees(self) -> bool:
        return self.rounded == self.printed

    @property
    def note(self) -> str:
        return MISPRINTS.get((self.model, self.quantity), "")


def compare_published() -> list[Comparison]:
    """Every published figure beside ours, under the paper convention."""
    profile = load_profile("45nm_fp32")
    comparisons = []
    for model, printed in PUBLISHED.items():
        row: dict[str, Any] = Case(model, "ecoformer", num_bits=16, num_anchors=25).row("paper", profile)
        for quantity, text in zip(QUANTITIES, printed, strict=True):
            comparisons.append(Comparison(model, quantity, text, row[quantity] / BILLION))
    return comparisons


def faults(comparisons: list[Comparison]) -> list[Comparison]:
    """Figures that differ from their printed rounding and are no known misprint."""
    return [c for c in comparisons if not c.agrees and not c.note]
