"""Prices of operations from measured joules: least squares over what the ledger counted, no price below zero.

Each sample gives one equation, joules = the sum over kinds of count times price. The prices that are fitted have names;
all other kinds are made of them as in any profile of a mac and an add, so that the sum is what the profile that comes
out charges. Residuals are relative, because measured energies span decades and err in proportion.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from ecoformer.energy.kinds import KINDS, MEMORY, Entry, counts
from ecoformer.energy.ledger import Ledger
from ecoformer.energy.profile import Profile
from ecoformer.energy.profile_files import load_profile
from ecoformer.errors import InputError, require
from ecoformer.files.table import Column, Table, energy_unit, render, share

PRICES = ("mac", "add", "bytes")
POOR, SINGULAR = 30.0, 1e6  # condition numbers: above, prices are told apart poorly, or not at all
Measured = tuple[str, Ledger | Mapping[str, int], float]  # a name, what was done, joules


@dataclass(frozen=True)
class Calibration:
    """What a fit found.

    Attributes:
        prices, errors: picojoules by name, and their standard errors; None where a price is zero because it would be
            negative, or where there are no more samples than prices.
        labels, joules, modelled: the samples, as measured and as the prices make them.
        left_out: the joules of a sample that the prices of all others make it; None where those are too few.
        r2: share of the samples' spread that is explained, in the relative measure of the fit; None without spread.
        condition: of the equations, with columns of one length; 1 is best.
    """

    prices: dict[str, float]
    errors: dict[str, float | None]
    labels: tuple[str, ...]
    joules: tuple[float, ...]
    modelled: tuple[float, ...]
    left_out: tuple[float | None, ...]
    r2: float | None
    condition: float
    bits: int

    @property
    def summary(self) -> str:
        worst = max((model / joule - 1 for model, joule in zip(self.modelled, self.joules, strict=True)), key=abs)
        r2 = "none" if self.r2 is None else f"{self.r2:.4f}"
        return f"{len(self.joules)} samples, R2 {r2}, condition {self.condition:.3g}, worst residual {worst:+.1%}"

    @property
    def profile(self) -> Profile:
        return load_profile(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """A profile as its file holds it, with the fit under the key `calibration`."""
        figures = {kind: {"pj": pj, "source": "measured"} for name, pj in self.prices.items() for kind in _kinds(name)}
        keys = ("label", "joules", "modelled_joules", "left_out_joules")
        samples = zip(self.labels, self.joules, self.modelled, self.left_out, strict=True)
        fit = {"r2": self.r2, "condition": self.condition, "standard_errors_pj": self.errors}
        return {
            "summary": f"Calibrated: {self.summary}",
            "sources": {"measured": f"Measured joules, non-negative relative least squares: {self.summary}."},
            "precisions": {"measured": {"bits": self.bits, **figures}},
            "calibration": {**fit, "samples": [dict(zip(keys, sample, strict=True)) for sample in samples]},
        }

    def to_yaml(self) -> str:
        """The file of a profile, which `load_profile` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def table(self, format: str = "table") -> str:
        """The prices, and the samples with their residuals, as text."""
        scale, unit = energy_unit([1e12 * joule for joule in self.joules])
        prices = [
            Column("price", 0, left=True),
            Column("pJ", 1, "{:.4g}"),
            Column("standard error", lambda row: self.errors[row[0]], "{:.2g}"),
        ]
        samples = [
            Column("sample", 0, left=True),
            Column(f"measured {unit}", 1, "{:.4g}", scale / 1e12),
            Column(f"modelled {unit}", 2, "{:.4g}", scale / 1e12),
            share("residual", lambda row: row[2] / row[1] - 1),
            share("left out", lambda row: None if row[3] is None else row[3] / row[1] - 1),
        ]
        rows = list(zip(self.labels, self.joules, self.modelled, self.left_out, strict=True))
        first = render(Table(prices, list(self.prices.items())), format, f"Calibrated prices: {self.summary}")
        last = render(Table(samples, rows), format, notes=[LEFT_OUT, *self.notes()])
        return f"{first}\n\n{last}"

    def notes(self) -> list[str]:
        """What a reader of the prices must know."""
        notes = []
        if self.condition > POOR:
            notes.append(
                f"condition {self.condition:.3g} is above {POOR:g}: the samples hardly tell these prices apart; read "
                "what they make of a model like the samples, not each by itself"
            )
        if len(self.joules) == len(self.prices):
            notes.append("as many samples as prices: residuals of zero say nothing; measure more models")
        if zero := [name for name, pj in self.prices.items() if pj == 0]:
            notes.append(f"zero because it would be negative: {', '.join(zero)}")
        return notes


LEFT_OUT = "residual: modelled less measured, of measured; left out: under the prices that all other samples give"


def calibrate(samples: Iterable[Measured], prices: Sequence[str] = PRICES, bits: int = 32) -> Calibration:
    """Fit prices to measured joules.

    Args:
        samples: names, audited ledgers or counts per kind, and the joules that this work took, idle power subtracted.
        prices: what is fitted: "mac", "add", "bytes" (read and written) or a kind by its name; "add" and "mac" (or
            "mul") must be among them. Memory that is not among them is not priced.
        bits: the width of the numbers that were measured.
    Raises:
        InputError: fewer samples than prices, samples that cannot tell the prices apart, a figure that is none.
    """
    names = list(dict.fromkeys(prices))
    try:
        measured = [(label, work, joule) for label, work, joule in samples]
    except (TypeError, ValueError) as error:
        raise InputError("calibrate: samples must be a list of (name, ledger or counts, joules)") from error
    _require(names, measured)
    joules = np.array([joule for *_, joule in measured])
    shares = _equations([_entries(work) for _, work, _ in measured], names, bits) / joules[:, None]
    if absent := [name for name, column in zip(names, shares.T, strict=True) if not column.any()]:
        raise InputError(f"prices: no sample has any {absent[0]}: leave it out")
    condition = _condition(shares)
    if condition > SINGULAR:
        raise InputError(
            f"{len(measured)} samples cannot tell {', '.join(names)} apart, their work is proportional (condition "
            f"{condition:.2g}): measure models of other proportions, or fit fewer prices"
        )
    found = _nonnegative(shares)
    misses = shares @ found - 1
    constant = (1 / joules).sum() / (1 / joules**2).sum()  # the one figure that comes nearest to all samples
    spread = constant / joules - 1
    left_out: list[float | None] = []
    for index in range(len(measured)):
        others = np.delete(shares, index, axis=0)
        known = len(others) >= len(names) and _condition(others) <= SINGULAR
        left_out.append(float(shares[index] @ _nonnegative(others) * joules[index]) if known else None)
    return Calibration(
        prices=dict(zip(names, map(float, found), strict=True)),
        errors=dict(zip(names, _standard_errors(shares, found), strict=True)),
        labels=tuple(label for label, _, _ in measured),
        joules=tuple(map(float, joules)),
        modelled=tuple(map(float, shares @ found * joules)),
        left_out=tuple(left_out),
        r2=float(1 - misses @ misses / (spread @ spread)) if spread @ spread > 0 else None,
        condition=condition,
        bits=bits,
    )


def _require(names: Sequence[str], measured: Sequence[Measured]) -> None:
    if unknown := [name for name in names if name not in (*PRICES, *KINDS)]:
        raise InputError(f"prices: {unknown[0]} does not exist: choose some of {', '.join((*PRICES, *KINDS))}")
    if "add" not in names or not {"mac", "fma", "mul"} & set(names):
        raise InputError(f"prices={','.join(names)}: add and mac (or mul) must be among them, others are made of these")
    for label, work, joule in measured:
        if isinstance(work, Ledger) and work.convention != "audited":
            raise InputError(f"sample {label}: convention={work.convention} leaves work out: count with audited")
        require(work, Ledger | Mapping, "ledger and no counts per kind", f"sample {label}: ")
        if isinstance(joule, bool) or not isinstance(joule, int | float) or not 0 < joule < float("inf"):
            raise InputError(f"sample {label}: joules={joule!r} must be a number above 0")
    if len(measured) < len(names):
        raise InputError(
            f"{len(measured)} samples cannot tell {len(names)} prices apart ({', '.join(names)}): measure at least "
            f"{len(names)} different models, better twice as many, or fit fewer prices"
        )


def _kinds(name: str) -> tuple[str, ...]:
    return MEMORY if name == "bytes" else ("fma",) if name == "mac" else (name,)


def _entries(work: Ledger | Mapping[str, int]) -> list[Entry]:
    return work.entries if isinstance(work, Ledger) else [Entry("", "", "", "", "", "", 0, 1, counts(work))]


def _equations(samples: Sequence[list[Entry]], names: Sequence[str], bits: int) -> np.ndarray:
    """(samples, prices): the joules of a sample if one price were a picojoule and the others nothing."""
    fitted = [kind for name in names for kind in _kinds(name)]
    units = [load_profile({"bits": bits, **{kind: float(kind in _kinds(name)) for kind in fitted}}) for name in names]
    return np.array([[unit.energy_pj(entries) * 1e-12 for unit in units] for entries in samples])


def _condition(shares: np.ndarray) -> float:
    lengths = np.linalg.norm(shares, axis=0)
    return float(np.linalg.cond(shares / lengths)) if lengths.all() else float("inf")


def _nonnegative(shares: np.ndarray) -> np.ndarray:
    """The x of at least 0 for which shares @ x comes nearest to 1."""
    from scipy.optimize import nnls  # half a second, for a calibration alone

    found: np.ndarray = nnls(shares, np.ones(len(shares)))[0]
    return found


def _standard_errors(shares: np.ndarray, found: np.ndarray) -> list[float | None]:
    free = np.flatnonzero(found)
    spare = len(shares) - len(free)
    errors: list[float | None] = [None] * len(found)
    if spare > 0:
        misses, used = shares @ found - 1, shares[:, free]
        variances = np.diag(np.linalg.inv(used.T @ used)) * (misses @ misses) / spare
        for place, variance in zip(free, variances, strict=True):
            errors[place] = float(np.sqrt(variance))
    return errors
