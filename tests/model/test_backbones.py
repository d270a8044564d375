"""Backbones beyond PVTv2, Twins and ViT: what carries over is exact, fits, is counted and is the same in the table."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from backbone_table import table, verdict
from mix_transformer import MixTransformer
from timm.models import davit, fastvit, metaformer, nest, visformer, volo
from torchvision.models import vision_transformer
from transformers import SegformerConfig, SegformerForImageClassification

from ecoformer import EcoFormerSpec, InputError, MSASpec, attention_layers, convert, fit_hashes
from ecoformer.energy import count
from ecoformer.fit.joint import original_of
from ecoformer.kinds import DistilledSpec
from ecoformer.kinds.linear_sra import LinearSRASpec

ECOFORMER = EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2, fit_steps=2)
PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
DISTILLED = DistilledSpec(num_features=4, fit_steps=5, joint_steps=2)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 2, "depth": 2, "num_classes": 5}
MIXERS = (metaformer.SepConv, metaformer.SepConv, metaformer.Attention, metaformer.Attention)
NORMS = (*[metaformer.LayerNorm2dNoBias] * 2, *[metaformer.LayerNormNoBias] * 2)


def segformer(*ratios):
    sizes = {"hidden_sizes": [16, 32, 32, 48], "depths": [1] * 4, "num_attention_heads": [1, 2, 2, 3], "num_labels": 5}
    model = SegformerForImageClassification(
        SegformerConfig(**sizes, sr_ratios=ratios, attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0)
    )
    return Logits(model)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


# name: how to build it, image size, stage of every attention layer, prefix tokens
BACKBONES = {
    "eva02": (lambda: timm.create_model("eva02_tiny_patch14_224", **VIT), 32, [1, 1], 1),
    "dinov3": (lambda: timm.create_model("vit_small_patch16_dinov3", **VIT), 32, [1, 1], 5),
    "rope_mixed": (lambda: timm.create_model("vit_small_patch16_rope_mixed_224", **VIT), 32, [1, 1], 1),
    "qk_norm": (lambda: timm.create_model("vit_tiny_patch16_224", qk_norm=True, reg_tokens=2, **VIT), 32, [1, 1], 3),
    "nest": (
        lambda: nest.Nest(32, patch_size=2, embed_dims=(16, 32, 32), num_heads=(2,) * 3, depths=(1, 1, 2)),
        32,
        [1, 2, 3, 3],
        0,
    ),
    "davit": (lambda: davit.DaVit(depths=(1,) * 4, embed_dims=(16,) * 4, num_heads=(2,) * 4), 32, [1, 2, 3, 4], 0),
    "caformer": (
        lambda: metaformer.MetaFormer(depths=(1,) * 4, dims=(16, 16, 32, 32), token_mixers=MIXERS, norm_layers=NORMS),
        64,
        [3, 4],
        0,
    ),
    "volo": (lambda: volo.VOLO((1,) * 4, 64, embed_dims=(32,) * 4, num_heads=(2,) * 4), 64, [1, 1, 1], 0),
    "fastvit": (
        lambda: fastvit.FastVit(
            layers=(1,) * 4,
            embed_dims=(32,) * 4,
            token_mixers=("repmixer",) * 3 + ("attention",),
            pos_embs=(None,) * 4,
        ),
        128,
        [4],
        0,
    ),
    "visformer": (
        lambda: visformer.Visformer(64, depth=(1, 1, 1), embed_dim=32, num_heads=2, attn_stage="011"),
        64,
        [2, 3],
        0,
    ),
    "torchvision": (lambda: vision_transformer.VisionTransformer(32, 8, 2, 2, 48, 96, num_classes=5), 32, [1, 1], 1),
    "segformer_without_sra": (lambda: segformer(1, 1, 1, 1), 64, [1, 2, 3, 4], 0),
    "mix_transformer_without_sra": (lambda: MixTransformer((1, 1, 1, 1)), 64, [1, 2, 3, 4], 0),
    "mix_transformer": (lambda: MixTransformer((4, 2, 1, 1)), 64, [1, 2, 3, 4], 0),
    "segformer": (lambda: segformer(4, 2, 1, 1), 64, [1, 2, 3, 4], 0),
}


def every_layer(module, name):
    return True


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request):
    """A model whose attention and everything else matter, as they do not at initialisation; images; what is known."""
    build, size, stages, num_prefix = BACKBONES[request.param]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5)
            elif "bias" in name:
                parameter.normal_(0, 0.3)
            elif "gamma" in name or "scale" in name:
                parameter.fill_(1.0)
    return request.param, model, torch.randn(4, 3, size, size), stages, num_prefix


@torch.no_grad()
def test_msa_carries_everything_over(backbone):
    name, model, images, stages, num_prefix = backbone
    layers = attention_layers(model)
    assert [layer.stage for layer in layers] == stages
    assert {layer.num_prefix for layer in layers} == {num_prefix}
    expected = model(images)
    msa, control = copy.deepcopy(model), copy.deepcopy(model)
    convert(msa, MSASpec(), every_layer, img_size=images.shape[-1])
    convert(control, ECOFORMER, every_layer, img_size=images.shape[-1])
    fit_hashes(control, images, seed=0)
    scale = expected.abs().max()
    assert (control(images) - expected).abs().max() > 1e-2 * scale, "attention does not matter here"
    if name in ("segformer", "mix_transformer"):  # keys of all tokens, not of the reduced map
        assert (msa(images) - expected).abs().max() > 1e-4 * scale
    else:
        torch.testing.assert_close(msa(images), expected, rtol=1e-5, atol=1e-5 * float(scale))
    assert [layer.stage for layer in attention_layers(msa)] == stages
    again = convert(msa, MSASpec(), every_layer)
    assert not again.replaced


@pytest.mark.parametrize("spec", [MSASpec(), ECOFORMER], ids=str)
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_what_trains_is_what_trained(backbone, part, spec):
    model = copy.deepcopy(backbone[1])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name)
    with torch.no_grad():
        convert(model, spec, every_layer)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad != (part in name)] == []


def test_fits_learn_from_the_stock_layers_and_the_ledger_counts_them(backbone):
    _, model, images, stages, _ = backbone
    taught = copy.deepcopy(model)
    convert(taught, DISTILLED, every_layer, img_size=images.shape[-1])
    with torch.no_grad():
        torch.testing.assert_close(original_of(taught)(images), model(images), rtol=1e-4, atol=1e-4)
    assert len(fit_hashes(taught, images, seed=0)) == len(stages)
    taught.train()(images).sum().backward()
    copy.deepcopy(taught)
    for convention in ("audited", "paper"):
        assert not count(taught, images, convention=convention).uncounted


def test_linear_sra_takes_over_the_reduction_of_a_mix_transformer():
    model = MixTransformer((4, 2, 1, 1)).eval()
    stock = model.encoder.block1[0].attn
    weight, norm = stock.sr.weight.sum((2, 3)), stock.norm.weight
    report = convert(model, LinearSRASpec(pool_size=2), every_layer, img_size=64)
    layer = model.encoder.block1[0].attn.attn
    assert torch.equal(layer.sr.weight.flatten(1), weight) and torch.equal(layer.norm.weight, norm)
    assert len(report.replaced) == 4 and model(torch.randn(2, 3, 64, 96)).shape == (2, 5)


def test_features_of_a_converted_eva_are_those_of_the_stock_one():
    torch.manual_seed(0)
    model = timm.create_model("eva02_tiny_patch14_224", features_only=True, out_indices=(0, 1), **VIT).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        assert len(convert(model, MSASpec()).replaced) == 2
        torch.testing.assert_close(model(images), expected)


def test_torch_attention_is_refused_where_it_is_not_over_one_sequence():
    layer = torch.nn.TransformerDecoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    convert(layer, MSASpec(), every_layer)
    with pytest.raises(InputError, match="not the same tokens"):
        layer(torch.randn(1, 3, 8), torch.randn(1, 4, 8))
    encoder = torch.nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True).eval()
    convert(encoder, MSASpec(), every_layer)
    with pytest.raises(InputError, match="key_padding_mask"):
        encoder(torch.randn(1, 3, 8), src_key_padding_mask=torch.zeros(1, 3, dtype=torch.bool))


def test_what_stays_is_named():
    report = convert(davit.DaVit(depths=(1,) * 4, embed_dims=(16,) * 4, num_heads=(2,) * 4), MSASpec())
    assert report.notes == ["other attention stays as it is: ChannelAttention: it mixes channels, not tokens"]
    with pytest.raises(InputError, match="WindowAttention: a bias for relative positions"):
        convert(timm.create_model("swin_tiny_patch4_window7_224"), MSASpec())


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_the_page_says_what_happens(name):
    assert f"| `{name}` | {verdict(name)} |" in PAGE.read_text()


@pytest.mark.slow
def test_the_page_has_the_table():
    assert table() in PAGE.read_text()
