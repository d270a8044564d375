"""One model in one row: the figures that runs, tables and the demo report."""

from typing import Any

from torch import nn

from ecoformer.energy.counting import count
from ecoformer.energy.ledger import Ledger
from ecoformer.energy.profile import Profile
from ecoformer.energy.profile_files import load_profile
from ecoformer.files.table import energy_text
from ecoformer.nn.inputs import Input


def figures(ledger: Ledger, profile: Profile) -> dict[str, Any]:
    """Whole-model and attention-only figures of a ledger under a profile, for its whole batch.

    Attention-only means the attention cores: products, softmax or hashing, without projections and norms; None where
    no attention was recognised.
    """
    attention = ledger.attention() if ledger.has_attention else None
    return {
        "params": ledger.params,
        "muls": ledger.muls,
        "adds": ledger.adds,
        "energy_pj": ledger.energy_pj(profile),
        "area_um2": ledger.area_um2(profile),
        "attention_muls": None if attention is None else attention.muls,
        "attention_adds": None if attention is None else attention.adds,
        "attention_energy_pj": None if attention is None else attention.energy_pj(profile),
        "uncounted": ledger.uncounted,
    }


def summarize(model: nn.Module, input: Input, convention: str = "paper", profile: str = "45nm_fp32") -> dict[str, Any]:
    """Figures of one image or sequence: params, muls, adds, energy_pj, area_um2, attention_muls, attention_adds,
    attention_energy_pj, uncounted, energy_convention, energy_profile.

    `input` is that of `count`. Operations without a rule are listed in `uncounted`, not refused. Raises InputError as
    `count` and `load_profile` do.
    """
    prices = load_profile(profile)
    ledger = count(model, input, convention=convention, strict=False)
    return {**figures(ledger, prices), "energy_convention": convention, "energy_profile": prices.name}


def in_attention(energy_pj: float | None) -> str:
    """The attention cores' energy in words, with what was not recognised said."""
    return "no attention recognised" if energy_pj is None else f"{energy_text(energy_pj)} in attention"
