"""Attention modules with state, their specs, and the fitting of hash functions.

Importing this package imports every module in it, so a file that registers a spec is known without being listed here.
"""

import importlib
import pkgutil

from ecoformer.nn.distilled_hash import DistilledHashAttention, DistilledHashSpec
from ecoformer.nn.ecoformer import EcoFormerAttention, EcoFormerSpec
from ecoformer.nn.ecoformer_tuned import EcoFormerTunedAttention, EcoFormerTunedSpec
from ecoformer.nn.hashing import HashFitReport, fit_hashes, has_hashes, hash_layers
from ecoformer.nn.kernel_hash import KernelHash
from ecoformer.nn.msa import MSASpec, MultiHeadSelfAttention
from ecoformer.nn.specs import AttentionSpec, make_spec

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "AttentionSpec",
    "DistilledHashAttention",
    "DistilledHashSpec",
    "EcoFormerAttention",
    "EcoFormerSpec",
    "EcoFormerTunedAttention",
    "EcoFormerTunedSpec",
    "HashFitReport",
    "KernelHash",
    "MSASpec",
    "MultiHeadSelfAttention",
    "fit_hashes",
    "has_hashes",
    "hash_layers",
    "make_spec",
]
