"""Random hash: EcoFormer with its hash functions as they are drawn."""

import copy

import pytest
import torch
from tiny_models import tiny_vit

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.kinds import make_spec

OPTIONS = {"num_bits": 6, "num_anchors": 5}


def test_equals_ecoformer_that_is_drawn_and_not_fitted():
    model, images = tiny_vit(), torch.randn(3, 3, 32, 32)
    unfitted, fitted = copy.deepcopy(model), copy.deepcopy(model)
    for target, spec in (
        (model, make_spec("random_hash", OPTIONS)),
        (unfitted, EcoFormerSpec(**OPTIONS, top_k=4, fit_steps=0)),
        (fitted, EcoFormerSpec(**OPTIONS, top_k=4, fit_lr=10.0, fit_steps=20)),
    ):
        torch.manual_seed(4)
        convert(target, spec, img_size=32)
        drawn = [block.attn.hash.A.clone() for block in target.blocks]
        reports = fit_hashes(target, images, seed=2)
        kept = all(torch.equal(block.attn.hash.A, A) for block, A in zip(target.blocks, drawn, strict=True))
        assert kept == (target is not fitted)
        if target is model:
            assert all(r.accepted_bits == 0 and r.flipped_bits == 0 for r in reports)
            assert all(r.objective_before == r.objective_after for r in reports)
    assert torch.equal(model(images), unfitted(images))
    assert not torch.allclose(model(images), fitted(images))


def test_anchors_come_from_the_images_and_an_unfitted_layer_says_so():
    model, images = tiny_vit(), torch.randn(3, 3, 32, 32)
    convert(model, make_spec("random_hash", OPTIONS))
    with pytest.raises(InputError, match="the hash functions were never fitted"):
        model(images)
    fit_hashes(model, images, seed=0)
    first = model.blocks[0].attn.hash.anchors.clone()
    assert first.norm(dim=-1).allclose(torch.ones(3, 5))
    fit_hashes(model, images, seed=1)
    assert not torch.equal(model.blocks[0].attn.hash.anchors, first)


def test_too_few_tokens_are_refused_or_clamped():
    with pytest.raises(InputError) as error:
        convert(tiny_vit(), make_spec("random_hash"), img_size=32)
    assert str(error.value) == (
        "blocks.0.attn has 17 tokens: num_anchors=25 > 17 tokens; raise data.img_size, lower attention.num_anchors to "
        "at most 17, or set attention.clamp=true"
    )
    model = tiny_vit()
    report = convert(model, make_spec("random_hash", {"clamp": True}), img_size=32)
    assert report.notes[0] == "blocks.0.attn has 17 tokens: num_anchors lowered from 25 to 17"
    fit_hashes(model, torch.randn(1, 3, 32, 32), seed=0)
