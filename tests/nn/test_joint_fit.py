"""All taught layers of a model fitted together to the original's logits."""

import copy
from dataclasses import asdict

import distilled_models
import pytest
import timm
import torch
import torch.nn.functional as F
from distilled_models import images

from ecoformer import InputError, convert, fit_hashes
from ecoformer.fit.contract import JointFitReport, joint_line
from ecoformer.fit.joint import original_of
from ecoformer.kinds import DistilledHashSpec, DistilledSpec

SPEC = DistilledHashSpec(num_bits=4, fit_steps=20, fit_batch_size=4, joint_steps=30, joint_batch_size=6, joint_lr=0.01)


def vit():
    return distilled_models.vit(depth=3, sharpness=30, num_classes=7)


def fitted(spec=SPEC, seed=0, source=None, x=None):
    model, joint, steps = copy.deepcopy(source or vit()), [], []
    convert(model, spec, img_size=16)
    x = images(12) if x is None else x
    reports = fit_hashes(model, x, seed, on_joint=joint.append, on_joint_step=lambda *at: steps.append(at))
    return model, reports, joint, steps


def divergence(original, model, x):
    with torch.no_grad():
        p, q = (F.softmax(m(x), dim=-1).double() for m in (original, model))
    return float((p * (p.log() - q.log())).sum(dim=-1).mean())


def test_it_lowers_the_divergence_from_the_original_and_says_so():
    source = vit()
    alone, *_ = fitted(DistilledHashSpec(num_bits=4, fit_steps=20, fit_batch_size=4))
    model, reports, (joint,), steps = fitted()
    assert len(reports) == 3
    assert steps == [(number, 30) for number in range(1, 31)]
    assert joint.accepted and joint.steps == 30 and joint.num_images == 12
    assert joint.divergence_before == pytest.approx(divergence(source, alone, images(12)), rel=1e-4)
    assert joint.divergence_after == pytest.approx(divergence(source, model, images(12)), rel=1e-4)
    assert joint.divergence_after < 0.8 * joint.divergence_before
    with torch.no_grad():
        same = (source(images(12)).argmax(-1) == model(images(12)).argmax(-1)).float().mean()
    assert joint.agreement_after == pytest.approx(float(same))
    line = joint_line(joint)
    assert "30 steps, 12 images" in line and f"{joint.divergence_after:.4f}" in line and "not kept" not in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_is_fitted_and_keeps_it(dtype):
    model, _, (joint,), _ = fitted(source=vit().to(dtype), x=images(12).to(dtype))
    assert joint.accepted and joint.divergence_after < 0.8 * joint.divergence_before
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("values", ["real", "shift"])
@pytest.mark.parametrize("lr", [0.01, 1e6], ids=["kept", "not kept"])
def test_what_runs_afterwards_are_the_codes_that_were_measured(lr, values):
    options = {"fit_steps": 20, "fit_batch_size": 4, "joint_steps": 15, "joint_batch_size": 6, "joint_lr": lr}
    source = vit()
    model, _, (joint,), _ = fitted(DistilledSpec(num_features=4, projection="ternary", values=values, **options))
    assert joint.accepted == (lr < 1)
    assert joint.divergence_after == pytest.approx(divergence(source, model, images(12)), rel=1e-4)
    codes = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("to_v.exponents" in name for name in codes) == (values == "shift")
    model.eval()  # takes over what the weights have become
    assert all(torch.equal(buffer, codes[name]) for name, buffer in model.named_buffers())
    # A joint fit changes values that are rounded, and no others.
    pairs = zip(model.blocks, source.blocks, strict=True)
    same = [torch.equal(block.attn.to_v.weight, old.attn.qkv.weight[48:]) for block, old in pairs]
    assert all(same) == (values == "real" or not joint.accepted)


def test_held_out_images_are_measured_and_change_nothing():
    source, plain = vit(), fitted()[0]
    model, joint = copy.deepcopy(source), []
    convert(model, SPEC, img_size=16)
    others = images(20)[12:]
    fit_hashes(model, images(12), 0, held_out=others, on_joint=joint.append)
    (report,) = joint
    assert report.held_out_images == 8
    assert report.held_out_divergence_after == pytest.approx(divergence(source, model, others), rel=1e-4)
    assert 0 <= report.held_out_agreement_before <= 1 and "on 8 held-out images" in joint_line(report)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-3, msg=name)


def test_only_what_the_kind_adds_changes_and_gradients_are_left_as_they_were():
    source = vit()
    model, *_ = fitted(source=source)
    added = ("codes", "log_weight", "log_floor")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and parameter.grad is None, name
        if not any(part in name for part in added) and ".attn." not in name:
            assert torch.equal(parameter, source.get_parameter(name)), name
    values = source.blocks[1].attn.qkv.weight[48:]
    assert torch.equal(model.blocks[1].attn.to_v.weight, values)
    assert torch.equal(model.blocks[1].attn.proj.weight, source.blocks[1].attn.proj.weight)


@torch.no_grad()
def test_the_share_of_ones_is_that_of_the_codes_as_they_are_now():
    model, *_ = fitted()
    caught = []
    layer = model.blocks[2].attn
    layer.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    model(images(12)[: SPEC.joint_batch_size])
    codes = layer.signed_codes(caught[0]).chunk(2)
    assert layer.ones.tolist() == pytest.approx([float((code > 0).float().mean()) for code in codes])


def test_the_original_is_the_model_before_its_conversion():
    source = vit()
    model = copy.deepcopy(source)
    assert original_of(model) is None  # nothing converted
    convert(model, SPEC, img_size=16)
    original = original_of(model)
    assert original is not None and not original.training
    with torch.no_grad():
        assert torch.equal(original(images(12)), source(images(12)))
    before = copy.deepcopy(model.state_dict())
    fit_hashes(model, images(12), 0)
    assert original_of(model) is None  # its teachers are gone
    assert before.keys() == model.state_dict().keys()


def test_the_same_seed_gives_the_same_fit():
    first, second, other = (fitted(seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_a_fit_that_does_not_help_leaves_everything_as_it_was():
    wild = DistilledHashSpec(num_bits=4, fit_steps=20, fit_batch_size=4, joint_steps=3, joint_lr=1e6)
    alone, *_ = fitted(DistilledHashSpec(num_bits=4, fit_steps=20, fit_batch_size=4))
    model, _, (joint,), _ = fitted(wild)
    assert not joint.accepted
    assert joint.divergence_after == joint.divergence_before
    assert "not kept" in joint_line(joint)
    expected = alone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_stock_pyramids_are_fitted_jointly_too():
    torch.manual_seed(0)
    source = timm.create_model("pvt_v2_b0", num_classes=5).eval()
    model, joint = copy.deepcopy(source), []
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    convert(model, DistilledHashSpec(num_bits=4, fit_steps=3, joint_steps=2, joint_batch_size=2), img_size=64)
    original = original_of(model)
    with torch.no_grad():
        assert torch.equal(original(x), source(x))
    fit_hashes(model, x, 0, on_joint=joint.append)
    assert joint[0].steps == 2


def test_a_model_that_is_frozen_or_training_comes_back_so():
    model = copy.deepcopy(vit())
    convert(model, SPEC, img_size=16)
    model.requires_grad_(False).train()
    fit_hashes(model, images(12), 0)
    assert model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_the_report_is_ready_for_json():
    report = JointFitReport(1, 2, 3.0, 0.4, 0.3, 0.5, 0.6, True)
    assert asdict(report)["divergence_after"] == 0.3 and report.held_out_agreement_after is None
    assert "held-out" not in joint_line(report)


class MapOfClasses(torch.nn.Module):
    """(B, K, Y, X): the class of every place, from the features of a pyramid."""

    def __init__(self):
        super().__init__()
        options = dict(embed_dims=(16, 32, 40, 64), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
        self.backbone = timm.create_model("pvt_v2_b0", features_only=True, **options)
        self.head = torch.nn.Conv2d(32, 5, 1)

    def forward(self, x):
        return self.head(self.backbone(x)[1])


def test_a_map_of_classes_is_followed_place_by_place():
    source, x, joint = MapOfClasses().eval(), torch.randn(6, 3, 64, 96), []
    for block in (source.backbone.stages_0.blocks[0], source.backbone.stages_1.blocks[0]):
        block.attn.q.weight.data.mul_(100)
        block.attn.proj.weight.data.mul_(30)
    model = copy.deepcopy(source)
    convert(model, DistilledSpec(num_features=4, fit_steps=5, joint_steps=8, joint_batch_size=4), img_size=(64, 96))
    fit_hashes(model, x, 0, on_joint=joint.append)
    with torch.no_grad():
        p, q = (F.softmax(m(x), dim=1).double().movedim(1, -1).flatten(0, 2) for m in (source, model))
    assert len(p) == 6 * 8 * 12
    assert joint[0].divergence_after == pytest.approx(float((p * (p / q).log()).sum(dim=1).mean()), rel=1e-4)
    assert joint[0].divergence_after < joint[0].divergence_before
    assert joint[0].agreement_after == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))


def test_features_without_a_head_are_refused_before_anything_is_fitted():
    backbone = MapOfClasses().backbone
    convert(backbone, DistilledSpec(num_features=4, fit_steps=5, joint_steps=8))
    with pytest.raises(InputError, match="FeatureListNet gives none: fit the model together with its head"):
        fit_hashes(backbone, torch.randn(2, 3, 64, 64), 0)
    assert not backbone.stages_0.blocks[0].attn.is_fitted
