"""The energy ledger: count every operation of a model, price it, compare it. See docs/energy.md."""

# The rule modules register their rules when they are imported.
from ecoformer.energy import rules_pointwise, rules_products, rules_reductions  # noqa: F401
from ecoformer.energy.calibration import Calibration, calibrate
from ecoformer.energy.counting import UncountedOperationError, count
from ecoformer.energy.ledger import Entry, Ledger
from ecoformer.energy.profile import Profile
from ecoformer.energy.profile_files import load_profile, profile_names
from ecoformer.energy.rules import rule
from ecoformer.energy.shares import at_measured_shares
from ecoformer.energy.summary import summarize

__all__ = [
    "Calibration",
    "Entry",
    "Ledger",
    "Profile",
    "UncountedOperationError",
    "at_measured_shares",
    "calibrate",
    "count",
    "load_profile",
    "profile_names",
    "rule",
    "summarize",
]
