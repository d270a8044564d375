"""Fits of models that are fitted in parts, of low rank, in half precision, or asked for different things."""

import copy
from dataclasses import replace

import pytest
import torch
from distilled_models import SHIFT, images, pvt, vit

from ecoformer import InputError, convert, fit_hashes
from ecoformer.fit.teacher import Teacher
from ecoformer.kinds import DistilledSpec
from ecoformer.model.low_rank import LowRankSpec, expand, factorize
from ecoformer.nn.projections import read_projections
from ecoformer.nn.specs import make_spec

IMAGES = images(4)
MAPS = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(2))


def first_block(module, name):
    return name.startswith("blocks.0")


@pytest.mark.parametrize("joint_steps", [0, 4])
def test_the_rest_of_a_model_is_fitted_after_a_part_of_it(joint_steps):
    spec, joint = replace(SHIFT, joint_steps=joint_steps), []
    model = vit()
    convert(model, SHIFT, first_block)
    fit_hashes(model, IMAGES, seed=0)
    kept = copy.deepcopy(model.blocks[0].attn.state_dict())
    convert(model, spec, lambda module, name: not first_block(module, name))
    reports = fit_hashes(model, IMAGES, seed=0, on_joint=joint.append)
    assert [report.block for report in reports] == ["blocks.1.attn"]
    assert all(torch.equal(value, kept[key]) for key, value in model.blocks[0].attn.state_dict().items())
    assert [report.steps for report in joint] == [joint_steps] * (joint_steps > 0)
    with pytest.raises(InputError, match=r"blocks\.0\.attn: it is fitted once"):
        fit_hashes(model, IMAGES, seed=0)


def test_a_joint_fit_takes_the_steps_of_the_layer_that_asks_for_some():
    model, joint = vit(), []
    convert(model, SHIFT, first_block)
    convert(model, replace(SHIFT, joint_steps=3), lambda module, name: not first_block(module, name))
    fit_hashes(model, IMAGES, seed=0, on_joint=joint.append)
    assert [report.steps for report in joint] == [3]


def test_weights_of_another_part_leave_the_teacher():
    model = vit(SHIFT)
    model.load_state_dict({"head.weight": torch.zeros(4, 24), "head.bias": torch.zeros(4)}, strict=False)
    assert len(fit_hashes(model, IMAGES, seed=0)) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hedgehog_is_fitted_in_half_precision(dtype):
    model = vit().to(dtype)
    convert(model, make_spec("hedgehog", {"fit_steps": 3}))
    reports = fit_hashes(model, IMAGES.to(dtype), seed=0)
    assert all(report.attention_error < 1 for report in reports)


def test_low_rank_sources_teach_what_their_expanded_weights_do():
    low, spec = pvt(), DistilledSpec(num_features=4, fit_steps=5, fit_batch_size=4)
    factorize(low, LowRankSpec(ratio=0.6), img_size=(64, 32))
    dense = copy.deepcopy(low)
    expand(dense)
    convert(low, spec)
    convert(dense, spec)
    copy.deepcopy(low)
    found, wanted = fit_hashes(low, MAPS, seed=0), fit_hashes(dense, MAPS, seed=0)
    for one, other in zip(found, wanted, strict=True):
        assert one.uniform_error == pytest.approx(other.uniform_error, rel=1e-3)


def test_values_that_cannot_be_stored_are_not_fitted():
    model = pvt()
    convert(model, DistilledSpec(num_features=4, fit_steps=2))
    factorize(model, LowRankSpec(ratio=0.9))
    with pytest.raises(InputError, match="of low rank: fit the model first"):
        fit_hashes(model, MAPS, seed=0)


def test_values_are_kept_where_the_source_sums_all_tokens():
    model = vit(make_spec("msa_shift"))
    assert not Teacher.of(read_projections(model.blocks[0].attn, "attn"), "distilled", "auto").fits_values
