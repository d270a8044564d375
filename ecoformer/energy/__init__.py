"""The energy ledger: count every operation of a model, price it, compare it. See docs/energy.md."""

# The rule modules register their rules when they are imported.
from ecoformer.energy import rules_pointwise, rules_products, rules_reductions  # noqa: F401
from ecoformer.energy.calibration import Calibration as Calibration
from ecoformer.energy.calibration import calibrate as calibrate
from ecoformer.energy.counting import UncountedOperationError as UncountedOperationError
from ecoformer.energy.counting import count as count
from ecoformer.energy.ledger import Entry as Entry
from ecoformer.energy.ledger import Ledger as Ledger
from ecoformer.energy.profile import Profile as Profile
from ecoformer.energy.profile_files import load_profile as load_profile
from ecoformer.energy.profile_files import profile_names as profile_names
from ecoformer.energy.rules import rule as rule
from ecoformer.energy.shares import at_measured_shares as at_measured_shares
from ecoformer.energy.summary import summarize as summarize
