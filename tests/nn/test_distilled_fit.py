"""The distilled kind: what it learns from, when that goes, and what the layer keeps."""

import copy
from dataclasses import replace

import distilled_models
import pytest
import timm
import torch
import torch.nn.functional as F
from distilled_models import POWERS, SHIFT, SHIFTED, SMALL, TERNARY, inputs_of, pvt, twins, vit

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.fit.teacher import affine
from ecoformer.kinds import DistilledHashSpec, MSASpec
from ecoformer.model.layers import attention_layers
from ecoformer.nn.base import before_projection
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.ops.closeness import relative_error
from ecoformer.ops.codes.powers import straight_through_powers

FORMS = {"bits": SMALL, "shift": SHIFT, "ternary": TERNARY, "values": SHIFTED, "powers": POWERS}


@pytest.fixture
def images():
    return distilled_models.images()


@pytest.mark.parametrize("spec", FORMS.values(), ids=FORMS)
def test_fit_follows_the_layer_that_it_replaces(spec, images):
    source = vit()
    model = copy.deepcopy(source)
    convert(model, spec)
    reports = fit_hashes(model, images, seed=0)
    layer = source.blocks[0].attn
    (x,) = inputs_of(source, images)["blocks.0.attn"]
    q, k, v = (split_heads(part, 3) for part in layer.qkv(x).chunk(3, dim=-1))
    target = join_heads(F.scaled_dot_product_attention(q, k, v))
    ours = model.blocks[0].attn.attention_output(x)
    assert reports[0].attention_error == pytest.approx(relative_error(ours, target), rel=1e-3)
    uniform = join_heads(v.mean(2, keepdim=True).expand_as(v))
    assert reports[0].uniform_error == pytest.approx(relative_error(uniform, target), rel=1e-3)
    for report in reports:
        assert report.attention_error < 0.9 * min(report.random_error, report.uniform_error)
        assert report.objective_after < report.objective_before and report.accepted_bits == report.num_bits == 8


@pytest.mark.parametrize("spec", [SMALL, TERNARY, SHIFTED, POWERS], ids=["bits", "ternary", "values", "powers"])
@pytest.mark.parametrize("build", [pvt, twins])
def test_stock_layers_are_teachers_and_their_values_are_fitted(build, spec):
    source = build()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(source)
    report = convert(model, spec, img_size=64)
    first = report.replaced[0].name
    values = model.get_submodule(first).to_v.weight.clone()
    fits = {fit.block: fit for fit in fit_hashes(model, images, seed=0)}
    x, size = inputs_of(source, images)[first]
    target = before_projection(source.get_submodule(first), x, size)
    ours = model.get_submodule(first).attention_output(x)
    assert fits[first].attention_error == pytest.approx(relative_error(ours, target), rel=1e-3)
    assert all(fit.attention_error < fit.random_error for fit in fits.values())
    assert not torch.equal(values, model.get_submodule(first).to_v.weight)
    assert model(images).isfinite().all()


@pytest.mark.parametrize(
    ("fit_values", "build", "moves"),
    [("auto", vit, False), ("true", vit, True), (True, vit, True), ("auto", pvt, True), ("false", pvt, False)],
)
def test_values_move_where_asked(fit_values, build, moves, images):
    model = build()
    convert(model, DistilledHashSpec(num_bits=2, fit_steps=1, fit_values=fit_values))
    layer = next(layer.module for layer in attention_layers(model))
    before = layer.to_v.weight.clone()
    fit_hashes(model, images if build is vit else torch.randn(2, 3, 32, 32), seed=0)
    assert torch.equal(before, layer.to_v.weight) != moves


@pytest.mark.parametrize("fit_values", ["true", "false"])
def test_shifted_values_run_signed_powers_of_two_of_what_was_there(fit_values, images):
    source = vit()
    model = copy.deepcopy(source)
    convert(model, replace(SHIFTED, fit_values=fit_values))
    (report, _) = fit_hashes(model, images, seed=0)
    layer, old = model.blocks[0].attn, source.blocks[0].attn
    (x,) = inputs_of(source, images)["blocks.0.attn"]
    for linear, weight in ((layer.to_v, old.qkv.weight[48:]), (layer.proj, old.proj.weight)):
        ran = affine(linear).weight
        assert torch.equal(ran, straight_through_powers(linear.weight))
        assert torch.equal(ran.abs().log2(), ran.abs().log2().round())
        assert torch.equal(linear.weight, weight) == (linear is layer.proj or fit_values == "false")
    # What the fit reports is the error of the layer as it is left.
    ours, target = layer.attention_output(x), before_projection(old, x)
    assert report.attention_error == pytest.approx(relative_error(ours, target), rel=1e-3)


def test_the_replaced_layer_is_no_part_of_the_model_and_goes_after_the_fit(images):
    model = vit(SMALL)
    assert not any("teacher" in key or "qkv" in key for key in model.state_dict())
    assert sum(p.numel() for p in model.blocks[0].attn.parameters()) == 2 * 24 * 25 + 48 * 25 + 24 + 3
    twin = copy.deepcopy(model)  # takes its teacher along
    fit_hashes(model, images, seed=0)
    fit_hashes(twin, images, seed=0)
    assert torch.equal(model(images), twin(images))
    assert model.blocks[0].attn._teacher is None


def test_a_fitted_layer_is_not_fitted_again(images):
    model = vit(SMALL)
    fit_hashes(model, images, seed=0)
    with pytest.raises(InputError, match=r"blocks\.0\.attn: it is fitted once.* convert the original"):
        fit_hashes(model, images, seed=1)
    with pytest.raises(InputError, match="fitted once"):
        model.blocks[0].attn.fit_hash(torch.randn(2, 17, 24), torch.Generator())


def test_weights_loaded_into_an_unfitted_model_are_not_the_teachers(images):
    model = vit(SMALL)
    model.load_state_dict(vit(SMALL).state_dict())
    with pytest.raises(InputError, match="convert the original model again"):
        fit_hashes(model, images, seed=0)


def test_converting_again_keeps_what_is_fitted(images):
    model = vit(SMALL)
    report = convert(model, DistilledHashSpec(num_bits=8, fit_steps=3))  # not fitted yet: other settings count
    assert len(report.replaced) == 2 and model.blocks[0].attn.spec.fit_steps == 3
    fit_hashes(model, images, seed=0)
    assert len(convert(model, SMALL).kept) == 2
    with pytest.raises(InputError, match=r"was fitted and holds no queries and keys to convert: keep these"):
        convert(model, DistilledHashSpec(num_bits=4))


def test_an_unfitted_layer_turns_back_into_msa(images):
    model = vit()
    expected = model(images)
    convert(model, SMALL)
    convert(model, MSASpec())
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_a_shared_projection_is_no_attention_to_learn_from():
    model = vit(EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2))
    with pytest.raises(InputError, match=r"no attention to fit distilled_hash to: start from the MSA or the stock"):
        convert(model, SMALL)


def test_values_without_a_bias_are_not_fitted():
    model = timm.models.PyramidVisionTransformerV2(
        depths=(1, 1, 1, 1), embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1), qkv_bias=False
    )
    with pytest.raises(InputError, match=r"values without a bias: set attention\.fit_values=false"):
        convert(model, SMALL)
