"""Every attention kind in small settings, for tests of what all of them must hold."""

import torch

from ecoformer.fit.contract import FittableAttention
from ecoformer.kinds import BUILDERS, EcoFormerSpec, EcoFormerTunedSpec, make_spec
from ecoformer.nn.projections import Projections
from ecoformer.nn.specs import SPECS as KINDS
from ecoformer.ops.codes.powers import straight_through_powers

TOKENS = 25  # odd, and a square for kinds that pool a map
SMALL = {
    "ecoformer": {"num_bits": 6, "num_anchors": 5, "top_k": 3, "fit_steps": 5},
    "ecoformer_tuned": {"num_bits": 6, "num_anchors": 5, "fit_steps": 5},
    "distilled": {"num_features": 6, "fit_steps": 5},
    "distilled_hash": {"num_bits": 6, "fit_steps": 5},
    "hedgehog": {"fit_steps": 5},
    "linformer": {"proj_dim": 8},
    "linear_sra": {"pool_size": 3},
    "performer": {"num_features": 7},
    "random_hash": {"num_bits": 6, "num_anchors": 5},
}
SPECS = [
    *(make_spec(name, SMALL.get(name, {})).fit_to_tokens(TOKENS, name) for name in KINDS),
    EcoFormerSpec(num_bits=6, num_anchors=5, top_k=3, fit_steps=5, numerator="kernel"),
    EcoFormerTunedSpec(num_bits=6, num_anchors=0, qk="shared", code="sign", fit_steps=5),
    make_spec("distilled", {"num_features": 6, "fit_steps": 5, "projection": "ternary"}),
    make_spec("distilled", {"num_features": 6, "fit_steps": 5, "codes": "bits"}),
    make_spec("distilled", {"num_features": 6, "fit_steps": 5, "projection": "ternary", "values": "shift"}),
    make_spec("distilled", {"num_features": 6, "fit_steps": 5, "projection": "shift", "values": "shift"}),
    make_spec("binary_qk", {"form": "scaled"}),
    make_spec("binary_qk", {"form": "grid", "num_tokens": TOKENS}),
    make_spec("binary_qk", {"form": "line", "num_tokens": TOKENS}),
    make_spec("linformer", {"proj_dim": 8, "share_kv": True, "num_tokens": TOKENS}),
    make_spec("performer"),
    make_spec("random_hash", {"num_bits": 6, "num_anchors": 5, "numerator": "kernel"}),
]


def build(spec, dim=12, num_heads=3, bias=True, fitted=True):
    """A layer of the kind, and the projections that it was built from."""
    linears = {name: torch.nn.Linear(dim, dim, bias=bias) for name in ("query", "key", "value", "proj")}
    if (
        spec.name == "msa_shift" or getattr(spec, "values", "") == "shift"
    ):  # powers are their own nearest: the layer computes what the Linears do
        for linear in linears.values():
            linear.weight.data = straight_through_powers(linear.weight.detach())
    source = Projections(where="layer", dim=dim, num_heads=num_heads, proj_drop=0.0, parts={}, **linears)
    module = BUILDERS[type(spec)].from_projections(source, spec)
    if fitted and isinstance(module, FittableAttention):
        module.fit_hash(torch.randn(4, TOKENS, dim), torch.Generator().manual_seed(0))
    return module, linears
