"""What a fit is worth on images that it did not see, beside its floors."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import distilled_models
import pytest
import torch
from distilled_models import pvt, vit

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.fit import hashes
from ecoformer.fit.contract import bit_statistics
from ecoformer.kinds import DistilledHashSpec, EcoFormerTunedSpec
from ecoformer.lab.closeness import quality

TUNED = EcoFormerTunedSpec(num_bits=8, num_anchors=5, fit_steps=30, fit_batch_size=4)
DISTILLED = DistilledHashSpec(num_bits=8, fit_steps=30, fit_batch_size=4)
OFFICIAL = EcoFormerSpec(num_bits=6, num_anchors=5, top_k=3, fit_lr=0.05, fit_steps=20)
KNOWN = ("attention_error", "random_error", "uniform_error", "recall", "random_recall", "chance_recall", "correlation")


@pytest.fixture
def images():
    return distilled_models.images(12)


@pytest.mark.parametrize("spec", [TUNED, DISTILLED], ids=["tuned", "distilled"])
def test_figures_are_those_of_the_comparison_with_the_original(spec, images):
    """A model of one block: its inputs are the original's, so `quality` must find the same."""
    model = vit(spec, depth=1)
    (report,) = fit_hashes(model, images[:8], seed=0, held_out=images[8:])
    (block,) = quality(vit(depth=1), model, images[8:], map_images=hashes.MAP_IMAGES)
    assert report.held_out_images == 4
    assert report.attention_error == pytest.approx(block["error"], rel=1e-4)
    assert report.uniform_error == pytest.approx(block["error_uniform"], rel=1e-4)
    assert report.recall == pytest.approx(block["recall"], rel=1e-4)
    assert report.chance_recall == block["recall_chance"]
    assert report.correlation == pytest.approx(block["correlation"], rel=1e-4)


@pytest.mark.parametrize("spec", [TUNED, DISTILLED], ids=["tuned", "distilled"])
def test_every_figure_is_known_beside_its_floors(spec, images):
    for report in fit_hashes(vit(spec), images[:8], seed=0, held_out=images[8:]):
        assert all(getattr(report, key) is not None for key in (*KNOWN, "random_correlation"))
        assert report.uniform_error > 0 and report.chance_recall == 8 / 17
        assert report.attention_error != report.random_error


def test_official_kind_no_longer_knows_what_it_replaced(images):
    for report in fit_hashes(vit(OFFICIAL), images[:8], seed=0, held_out=images[8:]):
        assert all(getattr(report, key) is None for key in KNOWN)
        assert report.held_out_images == 4 and 0 < report.bit_balance <= 1


@pytest.mark.parametrize("spec", [TUNED, OFFICIAL], ids=["tuned", "official"])
@torch.no_grad()
def test_bit_figures_are_those_of_the_held_out_images(spec, images):
    model = vit(spec, depth=1)
    caught = []
    layer = model.blocks[0].attn
    handle = layer.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    (first,) = fit_hashes(model, images[:8], seed=0, held_out=images[8:])
    handle.remove()
    x = caught[0][8:]
    old = layer.signed_codes(x)
    assert (first.bit_balance, first.bit_correlation) == pytest.approx(bit_statistics(old))
    (again,) = fit_hashes(model, images[:8], seed=5, held_out=images[8:])
    assert again.flipped_bits == pytest.approx(float((layer.signed_codes(x) != old).float().mean()))


@pytest.mark.parametrize(
    "spec", [replace(TUNED, fit_steps=0), replace(DISTILLED, fit_steps=0)], ids=["tuned", "distilled"]
)
def test_a_fit_that_changes_nothing_flips_nothing_and_equals_its_random_floor(spec, images):
    for report in fit_hashes(vit(spec), images[:8], seed=0, held_out=images[8:]):
        assert report.flipped_bits == 0 and report.attention_error == report.random_error


ALL = pytest.mark.parametrize("spec", [TUNED, OFFICIAL, DISTILLED], ids=["tuned", "official", "distilled"])


@ALL
def test_measuring_does_not_touch_the_fit(spec, images):
    """The same draws; only rounding may differ, because the pass sees more images at once."""
    plain, measured = vit(spec), vit(spec)
    parameters = [p.data_ptr() for p in measured.parameters()]
    fit_hashes(plain, images[:8], seed=0)
    fit_hashes(measured, images[:8], seed=0, held_out=images[8:])
    found = measured.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, found[name], rtol=1e-3, atol=1e-3, msg=name)
    assert [p.data_ptr() for p in measured.parameters()] == parameters
    assert not any(module._forward_pre_hooks for module in measured.modules())


def test_large_maps_are_not_formed(images, monkeypatch):
    monkeypatch.setattr(hashes, "MAP_ENTRIES", 3 * 17**2 - 1)
    report = fit_hashes(vit(TUNED), images[:8], seed=0, held_out=images[8:])[0]
    assert report.recall is None and report.correlation is None and report.attention_error is not None


@pytest.mark.parametrize("spec", [TUNED, OFFICIAL], ids=["tuned", "official"])
def test_without_a_finite_image_a_refit_keeps_the_functions_and_reports_failure(spec, images):
    model = vit(spec)
    broken = torch.full_like(images, float("nan"))
    with pytest.raises(InputError, match="all 8 images give NaN or infinite features"):
        fit_hashes(copy.deepcopy(model), broken[:8], seed=0, held_out=broken[8:])
    fit_hashes(model, images[:8], seed=0)
    before = copy.deepcopy(model.state_dict())
    for report in fit_hashes(model, broken[:8], seed=1, held_out=broken[8:]):
        assert report.failed_bits == report.num_bits == spec.num_bits and report.accepted_bits == 0
        assert report.skipped_images == 8 and asdict(report)["attention_error"] is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@ALL
def test_constant_images_give_finite_figures(spec):
    images = torch.ones(6, 3, 16, 16)
    model = vit(spec)
    for report in fit_hashes(model, images[:4], seed=0, held_out=images[4:]):
        known = [value for value in asdict(report).values() if isinstance(value, float)]
        assert all(value == value and abs(value) != float("inf") for value in known)
    assert model(images).isfinite().all()


def test_a_subsampled_source_has_errors_but_no_map(images):
    """Stock PVTv2: the target is SRA's output, whose map is not one of all tokens."""
    model = pvt()
    convert(model, DISTILLED, img_size=64)
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    for report in fit_hashes(model, images[:4], seed=0, held_out=images[4:]):
        assert report.held_out_images == 2
        assert report.attention_error is not None and report.uniform_error is not None
        assert report.recall is None and report.correlation is None
