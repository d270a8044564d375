"""Options of EcoFormer's fit beside the published ones: other anchors, targets and starts."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.energy import count, load_profile
from ecoformer.kinds import MSASpec, make_spec

BASE = {"num_bits": 6, "num_anchors": 5, "top_k": 3, "fit_lr": 0.05, "fit_steps": 20, "numerator": "kernel"}
OPTIONS = [{"anchors": "batch"}, {"anchors": "kmeans"}, {"target": "attention"}, {"start": "spectral"}]
IDS = ["batch", "kmeans", "attention", "spectral"]


def vit(spec=None, **kwargs):
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, num_heads=kwargs.pop("num_heads", 3), depth=1, num_classes=4, **kwargs
    )
    model.blocks[0].attn.qkv.weight.data.mul_(12)
    if spec is not None:
        convert(model, spec, img_size=16)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_heads", [1, 12])
@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_each_fits_by_itself_repeats_and_is_checkpointed(option, num_heads, images):
    model, twin, plain = (vit(EcoFormerSpec(**BASE | changes), num_heads=num_heads) for changes in (option, option, {}))
    for each in (model, twin, plain):
        fit_hashes(each, images, seed=3)
    assert torch.equal(model(images), twin(images)) and model(images).isfinite().all()
    state, other = model.blocks[0].attn.hash, plain.blocks[0].attn.hash
    assert not (torch.equal(state.A, other.A) and torch.equal(state.anchors, other.anchors))
    fresh = vit(EcoFormerSpec(**BASE | option), num_heads=num_heads)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images), model(images))


def test_attention_targets_keep_the_keys_for_fits_alone(images):
    source = vit(MSASpec())
    expected = source(images)
    model = copy.deepcopy(source)
    report = convert(model, EcoFormerSpec(**BASE, target="attention"))
    assert "key rows" not in report.replaced[0].dropped
    layer = model.blocks[0].attn
    qkv = source.blocks[0].attn.qkv
    assert torch.equal(layer.key_weight, qkv.weight[24:48]) and torch.equal(layer.key_bias, qkv.bias[24:48])
    assert not {"key_weight", "key_bias"} & {name for name, _ in layer.named_parameters()}
    x = torch.randn(2, 17, 24)
    target = layer.target(x)
    torch.testing.assert_close(layer.proj(target.output()), source.blocks[0].attn(x), rtol=1e-4, atol=1e-5)
    convert(model, MSASpec())
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_a_shared_projection_has_no_attention_to_aim_at():
    model = vit(EcoFormerSpec(**BASE))
    with pytest.raises(InputError, match=r"holds no keys for attention\.target=attention: start from the MSA"):
        convert(model, EcoFormerSpec(**BASE, target="attention"))


@pytest.mark.parametrize("convention", ["paper", "audited"])
@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_options_of_the_fit_cost_nothing_at_inference(option, convention):
    counts = [
        count(vit(EcoFormerSpec(**BASE | changes)), 16, convention=convention, strict=True) for changes in ({}, option)
    ]
    plain, changed = (ledger.attention(projections=True).energy_pj(load_profile("45nm_fp32")) for ledger in counts)
    assert plain == changed > 0 and counts[1].uncounted == []


@pytest.mark.parametrize("anchors", ["batch", "kmeans"])
def test_batches_give_more_anchors_than_an_image_has_tokens(anchors, images):
    spec = EcoFormerSpec(**BASE | {"num_anchors": 40, "anchors": anchors})
    assert spec.fit_to_tokens(17, "here") == spec
    model = vit(spec)
    fit_hashes(model, images, seed=0)
    with pytest.raises(InputError, match=r"34 tokens of all images < num_anchors=40: raise .*num_images"):
        fit_hashes(model, images[:2], seed=0)


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_half_precision_weights_are_fitted_in_float32(option, images):
    model = vit(EcoFormerSpec(**BASE | option)).to(torch.bfloat16)
    fit_hashes(model, images.bfloat16(), seed=0)
    assert model(images.bfloat16()).isfinite().all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"anchors": "mean"}, r"attention\.anchors='mean' must be image, batch or kmeans"),
        ({"target": "map"}, r"attention\.target='map' must be cosine or attention"),
        ({"start": "zero"}, r"attention\.start='zero' must be random or spectral"),
    ],
)
def test_unknown_options_are_refused(option, message):
    with pytest.raises(InputError, match=message):
        make_spec("ecoformer", option)
