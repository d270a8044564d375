"""Hash functions as state: fitted on request only, in layer order, in place, and checkpointed."""

import copy

import pytest
import timm
import torch
from distilled_models import SHIFT, SMALL, vit

from ecoformer import EcoFormerSpec, InputError, fit_hashes
from ecoformer.kinds import EcoFormerAttention, EcoFormerTunedSpec, KernelHash, has_hashes, hash_layers

SPEC = EcoFormerSpec(num_bits=6, num_anchors=5, top_k=3, fit_lr=0.05, fit_steps=20)


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16)


def test_unfitted_hashes_refuse_to_run(images):
    with pytest.raises(InputError, match=r"never fitted: train with callbacks\.hash_update\.enabled=true"):
        vit(SPEC).train()(images)


def test_forward_never_fits(images):
    model = vit(SPEC).train()
    fit_hashes(model, images, seed=0)
    before = copy.deepcopy(dict(model.named_buffers()))
    model.train()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_fit_reports_each_layer_in_forward_order_and_restores_the_mode(images):
    model = vit(SPEC).train().train()
    model.blocks[0].eval()
    reports = fit_hashes(model, images, seed=0)
    assert [report.block for report in reports] == ["blocks.0.attn", "blocks.1.attn"]
    assert model.training and model.blocks[1].training and not model.blocks[0].training
    for report in reports:
        assert report.objective_after <= report.objective_before
        assert 0 <= report.accepted_bits <= report.num_bits == 6
        assert 0 <= report.bit_balance <= 1 and 0 <= report.bit_correlation <= 1 and 0 <= report.flipped_bits <= 1


@pytest.mark.parametrize(
    "spec", [SPEC, EcoFormerTunedSpec(num_bits=6, num_anchors=5, fit_steps=5), SMALL, SHIFT], ids=lambda spec: spec.name
)
def test_a_fit_is_a_function_of_weights_images_and_seed_and_changes_in_place(spec, images):
    models = [vit(spec) for _ in range(3)]
    pointers = [value.data_ptr() for value in models[0].state_dict().values()]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        torch.randn(5)
        fit_hashes(model, images, seed=seed)
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
    assert [value.data_ptr() for value in first.values()] == pointers
    assert spec is not SPEC or models[0].blocks[0].attn.hash.fit_count == 1


def test_anchors_are_the_same_tokens_of_the_first_image_for_every_head():
    module = KernelHash(num_heads=2, head_dim=3, num_bits=4, num_anchors=5)
    x = torch.nn.functional.normalize(torch.randn(3, 2, 11, 3), dim=-1)
    module.fit(x, torch.Generator().manual_seed(0), top_k=2, lr=0.01, momentum=0.9, steps=5)
    positions = [[(x[0, h] == a).all(-1).nonzero().item() for a in module.anchors[h]] for h in range(2)]
    assert positions[0] == positions[1]


def test_too_few_tokens_are_refused_at_the_fit():
    module = KernelHash(num_heads=1, head_dim=3, num_bits=4, num_anchors=25)
    with pytest.raises(InputError, match="16 tokens < num_anchors=25"):
        module.fit(torch.randn(2, 1, 16, 3), torch.Generator(), top_k=2, lr=0.01, momentum=0.9, steps=5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_do_not_depend_on_autocast(dtype, monkeypatch):
    attention = EcoFormerAttention(8, 2, SPEC).eval()
    x = torch.randn(2, 12, 8)
    attention.fit_hash(x, torch.Generator().manual_seed(0))
    seen = []
    state = attention.hash.state
    monkeypatch.setattr(attention.hash, "state", lambda dtype: seen.append(dtype) or state(dtype))
    with torch.autocast("cpu", dtype=dtype):
        out = attention(x)
    assert seen == [torch.float32]
    assert out.dtype == dtype


def test_models_without_hashes_have_nothing_to_fit(images):
    model = timm.create_model("resnet18", num_classes=4)
    assert not has_hashes(model)
    assert fit_hashes(model, images, seed=0) == []


def test_hash_layers_are_named():
    assert list(hash_layers(vit(SPEC).train())) == ["blocks.0.attn", "blocks.1.attn"]
