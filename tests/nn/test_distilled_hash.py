"""The distilled kind as a layer: its form, its settings, precision, accounting and export."""

import copy
from dataclasses import replace

import distilled_models
import pytest
import torch
from distilled_models import POWERS, SHIFT, SHIFTED, SMALL, TERNARY, inputs_of, vit
from torch.nn.utils import parametrize, prune

from ecoformer import InputError, fit_hashes
from ecoformer.energy import count
from ecoformer.fit.teacher import affine
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.ops.codes.naive import distilled_attention_reference
from ecoformer.ops.codes.powers import straight_through_powers


@pytest.fixture
def images():
    return distilled_models.images()


def test_forward_is_the_quadratic_form_of_its_parts(images):
    model = vit(SMALL)
    fit_hashes(model, images, seed=0)
    layer, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    parts = (affine(linear) for linear in (layer.codes, layer.to_v, layer.proj))
    expected = distilled_attention_reference(x, *parts, layer.log_weight.exp().view(3, 8), layer.log_floor.exp())
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    v = split_heads(layer.to_v(x), 3)
    torch.testing.assert_close(layer.attention_output(x), join_heads(layer.attention_weights(x) @ v))


class Adapter(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_would_do_nothing_in_silence_is_refused(images):
    """Adapters, and weights that hooks make, of Linears that are never called; parametrizations are taken."""
    model = vit(SMALL)
    fit_hashes(model, images, seed=0)
    layer, before = model.blocks[0].attn, model(images)
    for name in ("codes", "to_v", "proj"):
        plain = layer.get_submodule(name)
        adapted, pruned, biased = Adapter(*plain.weight.shape[::-1]), copy.deepcopy(plain), copy.deepcopy(plain)
        prune.identity(pruned, "weight")
        prune.identity(biased, "bias")
        for other in (adapted, torch.nn.Sequential(plain), pruned, biased):
            setattr(layer, name, other)
            with pytest.raises(InputError, match=f"a {type(other).__name__} where weights alone are applied"):
                model(images)
        setattr(layer, name, parametrize.register_parametrization(plain, "weight", torch.nn.Identity()))
        assert torch.equal(model(images), before)
    layer.proj._old_forward, layer.proj.forward = layer.proj.forward, lambda x: x  # as accelerate's hooks leave them
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("spec", [SHIFT, TERNARY, SHIFTED, POWERS], ids=["real", "ternary", "values", "powers"])
def test_shift_codes_are_the_quadratic_form_of_their_parts(spec, images):
    model = vit(spec)
    fit_hashes(model, images, seed=0)
    layer, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    to_codes, value, proj = (affine(linear) for linear in (layer.codes, layer.to_v, layer.proj))
    parts = x, to_codes, value, proj, None, layer.log_floor.exp()
    expected = distilled_attention_reference(*parts, exponents=(-8, 7)).detach()
    weight = layer.codes.weight
    is_ternary = all(len(row[row != 0].abs().unique()) == 1 for row in weight.round(decimals=4))
    assert is_ternary == (spec in (TERNARY, SHIFTED))
    assert torch.equal(weight, straight_through_powers(weight)) == (spec is POWERS)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        low = copy.deepcopy(layer).bfloat16()
        assert low(x.bfloat16()).dtype == torch.bfloat16
        v = split_heads(layer.to_v(x), 3)
        torch.testing.assert_close(layer.attention_output(x), join_heads(layer.attention_weights(x) @ v))
    assert set(layer.new_parts) == {"codes", "log_floor"}


def test_codes_are_full_precision_under_autocast_and_in_half_models(images):
    model = vit(SMALL)
    fit_hashes(model, images, seed=0)
    layer, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer(x.clone()))
        torch.testing.assert_close(layer(x), layer(x.float()))
        inside = layer(x)
    torch.testing.assert_close(inside, layer(x))
    assert model.to(torch.bfloat16)(images.bfloat16()).isfinite().all()


def test_the_share_of_ones_is_that_of_the_fitting_images(images):
    model = vit(SMALL)
    (x,) = inputs_of(vit(), images)["blocks.0.attn"]
    fit_hashes(model, images, seed=0)
    layer = model.blocks[0].attn
    codes = (layer.codes(x) >= 0).float()
    torch.testing.assert_close(layer.ones, torch.stack([codes[..., :24].mean(), codes[..., 24:].mean()]))


def test_all_of_a_layer_is_its_core():
    """No projection is applied to tokens."""
    ledger = count(vit(SMALL), 16, convention="paper", strict=True)
    assert ledger.attention(projections=True).counts == ledger.attention().counts


def test_shifted_values_trade_the_products_of_an_image_for_shifts():
    real, shifted = (vit(spec).blocks[0].attn.paper_core_ops(7) for spec in (TERNARY, SHIFTED))
    per_image = 2 * 24 * 24 * 8 + 2 * 24 * 24
    assert shifted == (real[0] - per_image, real[1], real[2] + per_image)
    ledgers = [count(vit(spec), 16, convention="audited", strict=True).attention() for spec in (TERNARY, SHIFTED)]
    saved = ledgers[0].counts["fma"] - ledgers[1].counts["fma"]
    assert saved == 2 * per_image  # two layers
    together = 2 * 2 * (24 * 24) * 2  # 2^exponent, and its sign, of two matrices
    assert ledgers[1].counts["shift"] - ledgers[0].counts["shift"] == saved + together


def test_a_projection_by_shifts_has_no_products():
    def core(projection, convention):
        spec = replace(POWERS, projection=projection)
        return count(vit(spec), 16, convention=convention, strict=True).attention().counts

    products = 2 * 17 * 48 * 24  # two layers
    both = 2 * (48 * 24 + 48 * 24)  # 2^exponent, and its sign
    for convention, kind, together in (("paper", "mul", 0), ("audited", "fma", both)):
        real, shifted = (core(projection, convention) for projection in ("real", "shift"))
        assert real[kind] - shifted[kind] == products, convention
        assert shifted["shift"] - real["shift"] == products + together, convention
