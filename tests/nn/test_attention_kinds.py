"""What every attention kind must hold, for each registered spec."""

import pytest
import torch

from ecoformer.nn import DistilledHashSpec, EcoFormerSpec, EcoFormerTunedSpec, MSASpec
from ecoformer.nn.hashing import FittableAttention
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.nn.projections import Projections
from ecoformer.nn.specs import BUILDERS

SPECS = [
    MSASpec(),
    EcoFormerSpec(num_bits=6, num_anchors=5, top_k=3),
    EcoFormerSpec(num_bits=6, num_anchors=5, top_k=3, numerator="kernel"),
    EcoFormerTunedSpec(num_bits=6, num_anchors=5, fit_steps=5),
    EcoFormerTunedSpec(num_bits=6, num_anchors=0, qk="shared", code="sign", fit_steps=5),
    DistilledHashSpec(num_bits=6, fit_steps=5),
]


def build(spec, dim=12, num_heads=3, bias=True):
    linears = {name: torch.nn.Linear(dim, dim, bias=bias) for name in ("query", "key", "value", "proj")}
    source = Projections(where="layer", dim=dim, num_heads=num_heads, proj_drop=0.0, copied=(), **linears)
    module = BUILDERS[type(spec)].from_projections(source, spec)
    if isinstance(module, FittableAttention):
        module.fit_hash(torch.randn(4, 21, dim), torch.Generator().manual_seed(0))
    return module, linears


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_the_weighted_sum_of_values(spec, bias):
    module, linears = build(spec, bias=bias)
    x = torch.randn(2, 21, 12)
    v = split_heads(linears["value"](x), 3)
    expected = linears["proj"](join_heads(module.attention_weights(x) @ v))
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS[:1] + SPECS[2:], ids=str)
def test_normalised_kinds_have_weights_that_sum_to_one(spec):
    module, _ = build(spec)
    weights = module.attention_weights(torch.randn(2, 21, 12))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 21))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_parameter_gets_a_gradient(spec):
    module, _ = build(spec)
    module(torch.randn(2, 21, 12)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_paper_accounting_of_one_block_by_hand():
    tokens, heads, channels, bits, anchors = 7, 3, 4, 6, 5
    msa, _ = build(SPECS[0])
    assert msa.paper_core_ops(tokens) == (2 * 49 * 12 + 3 * 49, 2 * 49 * 12)
    eco, _ = build(SPECS[1])
    per_head_muls = 2 * tokens * anchors + tokens * anchors * bits + tokens * bits + tokens + tokens * channels
    per_head_adds = (
        2 * tokens * anchors * channels
        + tokens * anchors * bits
        + 2 * tokens * bits
        + 2 * tokens * bits * channels
        + tokens * channels
    )
    assert eco.paper_core_ops(tokens) == (heads * per_head_muls, heads * per_head_adds)
