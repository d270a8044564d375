"""Fits that sharpen soft codes, and how many images a layer's own fit takes."""

import copy
from dataclasses import replace

import pytest
import torch
from distilled_models import images, vit

from ecoformer import fit_hashes
from ecoformer.kinds import DistilledHashSpec
from ecoformer.ops.codes.distilled import END_SLOPE, START_SLOPE, annealed_slope

SPEC = DistilledHashSpec(num_bits=8, fit_steps=60, fit_batch_size=4)


def slopes_seen(monkeypatch):
    """The slope of every soft code that is computed, in order."""
    seen = []
    place = "ecoformer.ops.codes.forms.soft_step"
    monkeypatch.setattr(place, lambda y, slope: (seen.append(slope), torch.sigmoid(slope * y))[1])
    return seen


def test_the_slope_rises_from_blurred_to_hard():
    slopes = [annealed_slope(done / 10) for done in range(11)]
    assert slopes == sorted(slopes)
    assert (slopes[0], slopes[-1]) == (START_SLOPE, pytest.approx(END_SLOPE))


def test_every_layer_sharpens_its_codes_and_ends_with_hard_ones(monkeypatch):
    seen, x = slopes_seen(monkeypatch), images(8)
    model = vit(SPEC)
    reports = fit_hashes(model, x, 0)
    assert seen == [annealed_slope(step / 60) for step in range(60)] * 2
    assert all(report.attention_error < 0.9 * report.random_error for report in reports)
    seen.clear()
    with torch.no_grad():
        model(x)
    model(x).sum().backward()  # training goes on with hard codes and straight-through gradients
    assert not seen
    assert model.blocks[0].attn.codes.weight.grad.abs().sum() > 0


def test_the_straight_through_estimator_can_be_had_instead(monkeypatch):
    seen = slopes_seen(monkeypatch)
    model = vit(replace(SPEC, relaxation="straight_through", joint_steps=2))
    reports = fit_hashes(model, images(8), 0)
    assert not seen
    assert all(report.attention_error < 0.9 * report.random_error for report in reports)


def test_both_start_alike():
    start, other = (vit(replace(SPEC, fit_steps=0, relaxation=kind)) for kind in ("sigmoid", "straight_through"))
    for model in (start, other):
        fit_hashes(model, images(8), 0)
    for name, value in start.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_joint_fit_sharpens_all_layers_together(monkeypatch):
    model = vit(replace(SPEC, fit_steps=0, joint_steps=5, joint_batch_size=4))
    seen = slopes_seen(monkeypatch)
    (joint,) = run(model, images(8))
    assert seen == [annealed_slope(step / 5) for step in range(5) for _ in range(2)]
    with torch.no_grad():
        hard = model(images(8))
    assert torch.equal(hard, copy.deepcopy(model)(images(8)).detach())
    assert len(seen) == 10 and joint.steps == 5


def test_a_joint_fit_that_is_cut_short_leaves_hard_codes():
    model = vit(replace(SPEC, fit_steps=1, joint_steps=5, joint_batch_size=4))

    def stop(step, steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_hashes(model, images(8), 0, on_joint_step=stop)
    codes = model.blocks[0].attn.signed_codes(torch.randn(1, 17, 24))
    assert codes.abs().eq(1).all()
    assert model.blocks[0].attn._slope is None


def test_layers_take_at_most_so_many_images_and_a_joint_fit_all():
    spec = replace(SPEC, fit_steps=10, fit_images=5, joint_steps=0)
    few, many = vit(spec), vit(spec)
    fit_hashes(few, images(9)[:5], 0)
    fit_hashes(many, images(9), 0)
    for name, value in few.state_dict().items():
        assert torch.equal(value, many.state_dict()[name]), name
    (joint,) = run(vit(replace(spec, joint_steps=2, joint_batch_size=4)), images(9))
    assert joint.num_images == 9


def test_held_out_images_stay_out_of_a_layer_s_fit():
    spec = replace(SPEC, fit_steps=10, fit_images=5)
    few, many = vit(spec), vit(spec)
    fit_hashes(few, images(9)[:5], 0)
    reports = fit_hashes(many, images(9), 0, held_out=images(12)[9:])
    assert [report.held_out_images for report in reports] == [3, 3]
    # Another batch size rounds features otherwise; nothing else differs.
    torch.testing.assert_close(few(images(4)), many(images(4)), rtol=1e-3, atol=1e-3)


def run(model, x):
    joint = []
    fit_hashes(model, x, 0, on_joint=joint.append)
    return joint
