"""The attention kinds, one file each.

Importing this package imports every module in it, so a file that registers a spec is known without being listed here.
"""

import importlib
import pkgutil

from ecoformer.fit.hashes import HashFitReport as HashFitReport
from ecoformer.fit.hashes import fit_hashes as fit_hashes
from ecoformer.fit.hashes import has_hashes as has_hashes
from ecoformer.fit.hashes import hash_layers as hash_layers
from ecoformer.kinds.distilled import DistilledAttention as DistilledAttention
from ecoformer.kinds.distilled import DistilledSpec as DistilledSpec
from ecoformer.kinds.distilled_hash import DistilledHashAttention as DistilledHashAttention
from ecoformer.kinds.distilled_hash import DistilledHashSpec as DistilledHashSpec
from ecoformer.kinds.ecoformer import EcoFormerAttention as EcoFormerAttention
from ecoformer.kinds.ecoformer import EcoFormerSpec as EcoFormerSpec
from ecoformer.kinds.ecoformer_tuned import EcoFormerTunedAttention as EcoFormerTunedAttention
from ecoformer.kinds.ecoformer_tuned import EcoFormerTunedSpec as EcoFormerTunedSpec
from ecoformer.kinds.kernel_hash import KernelHash as KernelHash
from ecoformer.nn.base import BUILDERS as BUILDERS
from ecoformer.nn.base import ReplacementAttention as ReplacementAttention
from ecoformer.nn.base import attention_kind as attention_kind
from ecoformer.nn.msa import MSASpec as MSASpec
from ecoformer.nn.msa import MultiHeadSelfAttention as MultiHeadSelfAttention
from ecoformer.nn.plugins import load_installed
from ecoformer.nn.specs import SPECS as SPECS
from ecoformer.nn.specs import AttentionSpec as AttentionSpec
from ecoformer.nn.specs import make_spec as make_spec

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
load_installed()  # kinds of other packages
