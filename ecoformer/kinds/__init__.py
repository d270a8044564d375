"""The attention kinds, one file each.

Importing this package imports every module in it, so a file that registers a spec is known without being listed here.
"""

import importlib
import pkgutil

from ecoformer.fit.hashes import HashFitReport, fit_hashes, has_hashes, hash_layers
from ecoformer.kinds.distilled import DistilledAttention, DistilledSpec
from ecoformer.kinds.distilled_hash import DistilledHashAttention, DistilledHashSpec
from ecoformer.kinds.ecoformer import EcoFormerAttention, EcoFormerSpec
from ecoformer.kinds.ecoformer_tuned import EcoFormerTunedAttention, EcoFormerTunedSpec
from ecoformer.kinds.kernel_hash import KernelHash
from ecoformer.nn.base import BUILDERS, ReplacementAttention, attention_kind
from ecoformer.nn.msa import MSASpec, MultiHeadSelfAttention
from ecoformer.nn.plugins import load_installed
from ecoformer.nn.specs import SPECS, AttentionSpec, make_spec

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
load_installed()  # kinds of other packages

__all__ = [
    "BUILDERS",
    "SPECS",
    "AttentionSpec",
    "DistilledAttention",
    "DistilledHashAttention",
    "DistilledHashSpec",
    "DistilledSpec",
    "EcoFormerAttention",
    "EcoFormerSpec",
    "EcoFormerTunedAttention",
    "EcoFormerTunedSpec",
    "HashFitReport",
    "KernelHash",
    "MSASpec",
    "MultiHeadSelfAttention",
    "ReplacementAttention",
    "attention_kind",
    "fit_hashes",
    "has_hashes",
    "hash_layers",
    "make_spec",
]
