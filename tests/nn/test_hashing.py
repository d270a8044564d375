"""Hash functions as state: fitted on request only, in layer order, in place, and checkpointed."""

import copy

import pytest
import timm
import torch

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.kinds import EcoFormerAttention, KernelHash, has_hashes, hash_layers, make_spec

SPEC = EcoFormerSpec(num_bits=6, num_anchors=5, top_k=3, fit_lr=0.05, fit_steps=20)


def tiny_model():
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, num_heads=3, depth=2, num_classes=4
    )
    convert(model, SPEC)
    return model


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16)


def test_unfitted_hashes_refuse_to_run(images):
    with pytest.raises(InputError, match=r"never fitted: train with callbacks\.hash_update\.enabled=true"):
        tiny_model()(images)


def test_forward_never_fits(images):
    model = tiny_model()
    fit_hashes(model, images, seed=0)
    before = copy.deepcopy(dict(model.named_buffers()))
    model.train()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_fit_reports_each_layer_in_forward_order_and_restores_the_mode(images):
    model = tiny_model().train()
    model.blocks[0].eval()
    reports = fit_hashes(model, images, seed=0)
    assert [report.block for report in reports] == ["blocks.0.attn", "blocks.1.attn"]
    assert model.training and model.blocks[1].training and not model.blocks[0].training
    for report in reports:
        assert report.objective_after <= report.objective_before
        assert 0 <= report.accepted_bits <= report.num_bits == 6
        assert 0 <= report.bit_balance <= 1 and 0 <= report.bit_correlation <= 1 and 0 <= report.flipped_bits <= 1


def test_fit_is_a_function_of_weights_images_and_seed(images):
    model = tiny_model()
    twin = copy.deepcopy(model)
    other = copy.deepcopy(model)
    fit_hashes(model, images, seed=3)
    torch.randn(5)
    fit_hashes(twin, images, seed=3)
    fit_hashes(other, images, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert not torch.equal(model.blocks[0].attn.hash.anchors, other.blocks[0].attn.hash.anchors)


def test_buffers_change_in_place(images):
    model = tiny_model()
    pointers = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    fit_hashes(model, images, seed=0)
    fit_hashes(model, images, seed=1)
    assert {name: buffer.data_ptr() for name, buffer in model.named_buffers()} == pointers
    assert model.blocks[0].attn.hash.fit_count == 2


def test_anchors_are_the_same_tokens_of_the_first_image_for_every_head():
    module = KernelHash(num_heads=2, head_dim=3, num_bits=4, num_anchors=5)
    x = torch.nn.functional.normalize(torch.randn(3, 2, 11, 3), dim=-1)
    module.fit(x, torch.Generator().manual_seed(0), top_k=2, lr=0.01, momentum=0.9, steps=5)
    positions = [[(x[0, h] == a).all(-1).nonzero().item() for a in module.anchors[h]] for h in range(2)]
    assert positions[0] == positions[1]


def test_fitted_state_survives_a_checkpoint(images, tmp_path):
    model = tiny_model().eval()
    fit_hashes(model, images, seed=0)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = tiny_model().eval()
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(fresh(images), model(images))


def test_too_few_tokens_are_refused_at_the_fit():
    module = KernelHash(num_heads=1, head_dim=3, num_bits=4, num_anchors=25)
    with pytest.raises(InputError, match="16 tokens < num_anchors=25"):
        module.fit(torch.randn(2, 1, 16, 3), torch.Generator(), top_k=2, lr=0.01, momentum=0.9, steps=5)


def test_broken_images_are_left_out_and_reported():
    module = KernelHash(num_heads=2, head_dim=3, num_bits=4, num_anchors=5)
    x = torch.nn.functional.normalize(torch.randn(4, 2, 11, 3), dim=-1)
    clean = copy.deepcopy(module)
    settings = dict(top_k=2, lr=0.01, momentum=0.9, steps=5)
    clean_report = clean.fit(x[1:], torch.Generator().manual_seed(0), **settings)
    x[0, 1, 3] = float("nan")
    report = module.fit(x, torch.Generator().manual_seed(0), **settings)
    assert (clean_report.skipped_images, report.skipped_images, report.failed_bits) == (0, 1, 0)
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), clean.buffers(), strict=True))


def test_without_a_finite_image_nothing_is_fitted():
    module = KernelHash(num_heads=2, head_dim=3, num_bits=4, num_anchors=5)
    before = copy.deepcopy(dict(module.named_buffers()))
    with pytest.raises(InputError, match="all 4 images give NaN or infinite features"):
        module.fit(torch.full((4, 2, 11, 3), float("inf")), torch.Generator(), top_k=2, lr=0.01, momentum=0.9, steps=5)
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())


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


def test_a_model_in_bfloat16_keeps_hash_arithmetic_in_float32(images):
    model = tiny_model().eval()
    fit_hashes(model, images, seed=0)
    model.to(torch.bfloat16)
    assert model(images.to(torch.bfloat16)).isfinite().all()


def test_models_without_hashes_have_nothing_to_fit(images):
    model = timm.create_model("resnet18", num_classes=4)
    assert not has_hashes(model)
    assert fit_hashes(model, images, seed=0) == []


def test_hash_layers_are_named():
    assert list(hash_layers(tiny_model())) == ["blocks.0.attn", "blocks.1.attn"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, "attention=nonsense does not exist; choose one of stock, "),
        ("ecoformer", {"num_bit": 8}, "attention.num_bit is not an option of attention=ecoformer; did you mean"),
        ("ecoformer", {"num_bits": 0}, "attention.num_bits=0 must be a whole number of at least 1"),
        ("ecoformer", {"numerator": "token"}, "must be own_token or kernel"),
        ("ecoformer", {"fit_lr": 0}, "attention.fit_lr=0 must be a finite number above 0"),
        ("stock", {"num_bits": 8}, "attention=stock takes no options, got num_bits"),
    ],
)
def test_specs_refuse_what_they_cannot_be(name, options, message):
    with pytest.raises(InputError) as error:
        make_spec(name, options)
    assert message in str(error.value)
