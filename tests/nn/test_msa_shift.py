"""Softmax attention with power-of-two projections: conversions to and from it, and what the ledger makes of it."""

import copy
from collections import Counter

import pytest
import timm
import torch
from kind_cases import build
from tiny_models import tiny_vit
from torch import nn

from ecoformer.energy import count
from ecoformer.kinds import make_spec
from ecoformer.model.convert import convert
from ecoformer.nn.power_linear import PowerLinear
from ecoformer.ops.codes.powers import straight_through_powers

SHIFT = make_spec("msa_shift")


def rounded(model):
    """A copy whose attention has powers of two in place of its weights."""
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        for linear in (block.attn.qkv, block.attn.proj):
            linear.weight.data = straight_through_powers(linear.weight.detach())
    return twin


def test_conversion_rounds_the_rows_and_hands_on_what_it_runs():
    model, images = tiny_vit().eval(), torch.randn(2, 3, 32, 32)
    expected = rounded(model)(images)
    assert not torch.allclose(expected, model(images), atol=1e-3)
    weight = model.blocks[0].attn.qkv.weight.clone()
    report = convert(model, SHIFT)
    assert report.replaced[0].copied == ("qkv", "proj") and not report.replaced[0].new
    torch.testing.assert_close(model(images), expected)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected)
    assert torch.equal(model.blocks[0].attn.qkv.weight, weight)  # training goes on from what it was
    assert convert(model, SHIFT).kept
    convert(model, make_spec("msa"))
    assert not any(isinstance(module, PowerLinear) for module in model.modules())
    torch.testing.assert_close(model(images), expected)


def test_turned_queries_and_keys_stay_turned():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, qk_norm=True
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = rounded(model)(images)
    convert(model, SHIFT)
    for name in ("msa", None):
        torch.testing.assert_close(model(images), expected)
        with torch.no_grad():
            torch.testing.assert_close(copy.deepcopy(model)(images), expected)
        if name:
            convert(model, make_spec(name))


def test_trained_weights_come_back_from_a_state_dict():
    layer, x = build(SHIFT)[0], torch.randn(2, 7, 12)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    before = layer.qkv.exponents.clone()
    for _ in range(5):
        optimizer.zero_grad()
        (layer(x) - x).square().mean().backward()
        optimizer.step()
    trained = layer(x).detach()
    other = build(SHIFT)[0]
    other.load_state_dict(layer.eval().state_dict())
    assert not torch.equal(layer.qkv.exponents, before)
    with torch.no_grad():
        assert torch.equal(layer(x), other(x)) and torch.equal(other.eval()(x), layer(x))
    torch.testing.assert_close(layer(x), trained)


@pytest.mark.parametrize(("batch", "n", "d", "h", "bias"), [(1, 25, 12, 3, True), (2, 7, 10, 2, False)])
def test_the_ledger_by_hand(batch, n, d, h, bias):
    layer, x = build(SHIFT, d, h, bias)[0], torch.zeros(batch, n, d)
    products, weights, pairs = 4 * n * d * d, 4 * d * d, h * n * n
    paper = count(layer, x, convention="paper").counts
    assert paper["shift"] == batch * products
    assert paper["mul"] == batch * (2 * n * n * d + pairs)
    assert paper["add"] == batch * (products + 2 * n * n * d)
    audited = count(layer, x)
    found = sum((entry.counts for entry in audited.entries if entry.part == "Linear"), start=Counter())
    # Each weight is put together once a pass: an exponent and a sign.
    assert found["shift"] == batch * products + 2 * weights
    assert found["add"] == batch * (products + bias * 4 * n * d)
    assert not found["mul"] and not found["fma"]
    assert audited.counts["fma"] == batch * 2 * n * n * d and audited.counts["mul"] == batch * pairs


def test_the_ledger_takes_no_name_for_proof():
    class Doubled(PowerLinear):
        def coded(self):
            affine = super().coded()
            return type(affine)(3 * affine.weight, affine.bias)

    found = count(nn.Sequential(Doubled(6, 4)), torch.zeros(5, 6)).counts
    assert found["fma"] == 5 * 6 * 4
