"""All figures of a study, counted and measured, and the series that plots, tables and verdicts are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ecoformer.energy import count, load_profile
from ecoformer.errors import InputError
from ecoformer.lab.sequence.crossover import crossovers
from ecoformer.lab.sequence.encoder import Kind, Shape
from ecoformer.lab.sequence.measurement import FIGURES

BASELINE = "msa"
BYTES = 4  # of a float32
METRICS = {
    "paper_energy_mj": "energy, paper convention, mJ",
    "audited_energy_mj": "energy, audited convention, mJ",
    "forward_s": "forward pass, s",
    "train_s": "forward and backward, s",
    "forward_mib": "peak memory of a forward pass, MiB",
    "train_mib": "peak memory of forward and backward, MiB",
}


@dataclass
class Study:
    """Rows of the ledger with, where measured, FIGURES added; `settings` of the measurement, None without one.

    A row says in `unmeasured` why a measurement failed.
    """

    rows: list[dict[str, Any]]
    shape: Shape
    settings: dict[str, Any] | None = None

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(row["kind"] for row in self.rows))

    @property
    def tokens(self) -> list[int]:
        return sorted({row["tokens"] for row in self.rows})

    def series(self, kind: str, metric: str) -> dict[int, float]:
        """The metric by number of tokens; points that were refused or not measured are left out."""
        rows = [row for row in self.rows if row["kind"] == kind and row.get(metric) is not None]
        return {row["tokens"]: row[metric] for row in rows}

    def metrics(self) -> list[str]:
        """Those of METRICS that some row has."""
        return [key for key in METRICS if any(row.get(key) is not None for row in self.rows)]

    def crossovers(self) -> list[dict[str, Any]]:
        """Per metric and kind, where its cost equals that of softmax attention."""
        found = []
        for metric in self.metrics():
            base = self.series(BASELINE, metric)
            for kind in self.kinds:
                if kind != BASELINE:
                    points = crossovers(self.series(kind, metric), base)
                    found.append({"metric": metric, "kind": kind, "against": BASELINE, "tokens": points})
        return found


def merge(
    rows: Sequence[dict[str, Any]], measured: dict[tuple[str, int], dict[str, float]], refused: dict[str, str]
) -> list[dict[str, Any]]:
    """Ledger rows with the measured FIGURES, `rounds` and `unmeasured` added, None where there are none."""
    empty = dict.fromkeys((*FIGURES, "rounds"))
    found = [{**row, **empty, **measured.get((row["kind"], row["tokens"]), {})} for row in rows]
    return [
        row | {"unmeasured": None if row["rounds"] else refused.get(f"{row['kind']} {row['tokens']}")} for row in found
    ]


def ledger_row(kind: Kind, shape: Shape, tokens: int) -> dict[str, Any]:
    """Cost of one sequence. Where the kind does not work with the tokens, the row says why in `refused`.

    All blocks are alike, so one is counted, on meta tensors, and multiplied; nothing is allocated.

    Keys: kind, shape, tokens, params, weight_mib, written_mib (results of all operations of a pass, which bounds what
    training keeps), and per convention muls, adds and energy_mj; uncounted.
    """
    row: dict[str, Any] = {"kind": kind.label, "shape": shape.name, "tokens": tokens, "refused": None}
    prices = load_profile("45nm_fp32")
    try:
        block = kind.build(shape, tokens, layers=1)
        sequence = torch.empty(1, tokens, shape.width, device="meta")
        ledgers = {name: count(block, sequence, convention=name, strict=False) for name in ("paper", "audited")}
    except InputError as error:
        return row | {"refused": str(error)}
    params = shape.layers * ledgers["paper"].params
    row |= {"params": params, "weight_mib": params * BYTES / 2**20}
    row["written_mib"] = shape.layers * ledgers["audited"].counts["written_bytes"] / 2**20
    for name, ledger in ledgers.items():
        row[f"{name}_muls"], row[f"{name}_adds"] = shape.layers * ledger.muls, shape.layers * ledger.adds
        row[f"{name}_energy_mj"] = shape.layers * ledger.energy_pj(prices) / 1e9
    row["uncounted"] = ledgers["audited"].uncounted
    return row
