"""Conversion: weights carry over, everything else stays, settings that do not fit are refused."""

import copy

import pytest
import timm
import torch
from tiny_models import FAMILIES, tiny_pvt, tiny_twins, tiny_vit

from ecoformer import EcoFormerSpec, InputError, MSASpec, attention_layers, convert, fit_hashes, set_patch_stride
from ecoformer.kinds import SPECS, EcoFormerAttention, MultiHeadSelfAttention, make_spec
from ecoformer.model.layers import token_counts
from ecoformer.ops.linear.naive import softmax_attention_reference

IMG_SIZE = 128
SMALL = EcoFormerSpec(num_bits=6, num_anchors=5, top_k=3)


@pytest.fixture(params=FAMILIES)
def family(request):
    build, img_size = FAMILIES[request.param]
    return request.param, build(), torch.randn(2, 3, img_size, img_size)


def kinds(model):
    return [type(layer.module).__name__ for layer in attention_layers(model)]


def test_msa_is_softmax_attention():
    module = MultiHeadSelfAttention(12, 3)
    x = torch.randn(2, 11, 12)
    q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in module.qkv(x).chunk(3, dim=-1))
    expected = module.proj(softmax_attention_reference(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x), expected)


def test_vit_and_sr_free_layers_equal_msa():
    for model, img_size in ((tiny_pvt(sr_ratios=(1, 1, 1, 1)), 32), (tiny_twins(wss=None, sr_ratios=(1, 1, 1, 1)), 32)):
        images = torch.randn(2, 3, img_size, img_size)
        before = model(images)
        convert(model, MSASpec())
        torch.testing.assert_close(model(images), before)


def test_default_layers(family):
    name, model, images = family
    convert(model, SMALL)
    fit_hashes(model, images, seed=0)
    assert model(images).shape == (2, 7)
    expected = {
        "pvt": ["EcoFormerAttention"] * 4 + ["Attention"],
        "twins": ["EcoFormerAttention"] * 6 + ["MultiHeadSelfAttention"] * 2,
        "vit": ["EcoFormerAttention"] * 2,
    }
    assert kinds(model) == expected[name]


def test_stock_to_msa_to_ecoformer_equals_stock_to_ecoformer(family):
    _, model, _ = family
    direct, staged = copy.deepcopy(model), model
    torch.manual_seed(1)
    convert(direct, SMALL)
    convert(staged, MSASpec())
    torch.manual_seed(1)
    convert(staged, SMALL)
    direct_state, staged_state = direct.state_dict(), staged.state_dict()
    shared = [key for key in direct_state if key in staged_state]
    assert any("to_qk" in key for key in shared)
    assert all(torch.equal(direct_state[key], staged_state[key]) for key in shared)


def test_query_rows_become_the_shared_projection():
    model = tiny_pvt()
    stock = copy.deepcopy(model.stages[0].blocks[0].attn)
    convert(model, SMALL)
    eco = model.stages[0].blocks[0].attn
    assert torch.equal(eco.to_qk.weight, stock.q.weight)
    assert torch.equal(eco.to_v.weight, stock.kv.weight[16:])
    assert torch.equal(eco.to_v.bias, stock.kv.bias[16:])
    assert torch.equal(eco.proj.weight, stock.proj.weight)


def test_report_names_what_was_copied_dropped_and_new():
    report = convert(tiny_pvt(), SMALL)
    first = report.replaced[0]
    assert (first.copied, first.dropped, first.new) == (("q", "kv", "proj"), ("sr", "norm", "key rows"), ("hash",))
    assert report.kept == ["stages.3.blocks.0.attn"]
    assert "stages.0.blocks.0.attn: Attention -> EcoFormerAttention" in str(report)


@pytest.mark.parametrize("spec", [MSASpec(), SMALL], ids=["msa", "ecoformer"])
def test_converting_twice_changes_nothing(family, spec):
    _, model, images = family
    convert(model, spec)
    fit_hashes(model, images, seed=0)
    before, modules = model(images), [layer.module for layer in attention_layers(model)]
    report = convert(model, spec)
    assert not report.replaced
    assert [layer.module for layer in attention_layers(model)] == modules
    assert torch.equal(model(images), before)


def test_another_spec_refits_from_the_same_projection():
    model = tiny_vit()
    convert(model, SMALL)
    weight = model.blocks[0].attn.to_qk.weight.clone()
    convert(model, EcoFormerSpec(num_bits=4, num_anchors=5, top_k=3))
    assert model.blocks[0].attn.hash.A.shape == (3, 4, 5)
    assert torch.equal(model.blocks[0].attn.to_qk.weight, weight)
    assert not model.blocks[0].attn.hash.fitted


def test_mode_dtype_and_gradients_carry_over():
    model = tiny_vit().to(torch.float64)
    model.train()
    for parameter in model.blocks[0].parameters():
        parameter.requires_grad_(False)
    convert(model, SMALL)
    assert model.blocks[0].attn.training
    assert model.blocks[0].attn.to_qk.weight.dtype == torch.float64
    assert not model.blocks[0].attn.to_qk.weight.requires_grad
    assert model.blocks[1].attn.to_qk.weight.requires_grad


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_only_what_was_trained_is_trained_afterwards(kind):
    model = tiny_pvt()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    convert(model, make_spec(kind), img_size=IMG_SIZE)
    for layer in attention_layers(model):
        module = layer.module
        for part in {"to_qk", "to_v", "query", "key", "value", "qkv", "q", "kv", "proj"} & dict(
            module.named_children()
        ).keys():
            linear = module.get_submodule(part)
            assert not linear.weight.requires_grad and linear.bias.requires_grad, (layer.name, part)
    frozen = tiny_pvt().requires_grad_(False)
    convert(frozen, make_spec(kind), img_size=IMG_SIZE)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_layers_that_share_a_projection_are_told_that_they_no_longer_do():
    model = tiny_vit()
    model.blocks[1].attn.qkv = model.blocks[0].attn.qkv
    report = convert(model, SMALL)
    assert report.notes == ["blocks.1.attn shared weights with blocks.0.attn: each has its own now"]


def test_a_layer_of_one_token_is_told_what_helps():
    model = timm.create_model("vit_tiny_patch16_224", img_size=4, patch_size=4, class_token=False, global_pool="avg")
    with pytest.raises(InputError, match=r"has 1 token: .*; raise data\.img_size, or leave this layer out$"):
        convert(model, EcoFormerSpec(clamp=True), img_size=4)


def test_a_layer_that_blocks_share_is_replaced_in_all_of_them():
    model = tiny_pvt()
    blocks = model.stages[1].blocks
    blocks[1].attn = blocks[0].attn
    convert(model, SMALL)
    assert type(blocks[0].attn).__name__ == "EcoFormerAttention" and blocks[1].attn is blocks[0].attn
    with pytest.raises(InputError, match="attn runs twice in one forward pass, and can be fitted to one place alone"):
        fit_hashes(model, torch.randn(2, 3, IMG_SIZE, IMG_SIZE), seed=0)


def test_the_rest_of_a_filter_becomes_another_kind():
    model = tiny_pvt()
    convert(model, SMALL, filter_fn=lambda module, name: name.startswith("stages.1"), rest=make_spec("uniform"))
    uniform, hashed = "UniformAttention", "EcoFormerAttention"
    assert kinds(model) == [uniform, hashed, hashed, uniform, uniform]
    for options, message in (
        ({"rest": SMALL}, "rest is of the layers that filter_fn leaves out: give filter_fn too"),
        ({"rest": "msa", "filter_fn": lambda module, name: True}, "convert: rest="),
    ):
        with pytest.raises(InputError, match=message):
            convert(tiny_pvt(), SMALL, **options)


def test_filter_chooses_layers():
    model = tiny_pvt()
    convert(model, SMALL, filter_fn=lambda module, name: name.startswith("stages.1"))
    assert kinds(model) == ["Attention", "EcoFormerAttention", "EcoFormerAttention", "Attention", "Attention"]
    with pytest.raises(InputError, match="filter matches none of 5 attention layers"):
        convert(model, SMALL, filter_fn=lambda module, name: False)


def test_attention_that_is_in_the_last_stage_alone_is_chosen_by_name():
    model = timm.create_model("fastvit_sa12")
    with pytest.raises(InputError, match=r"no attention layer gets ecoformer:.*: all 2 are in the last .* filter_fn"):
        convert(model, SMALL)
    assert len(convert(model, MSASpec()).replaced) == 2


def test_settings_that_do_not_fit_are_refused_and_leave_the_model_alone():
    model = tiny_pvt()
    with pytest.raises(InputError) as error:
        convert(model, EcoFormerSpec(), img_size=64)
    assert str(error.value) == (
        "stage 3 (stages.2.blocks.0.attn) has 16 tokens: num_anchors=25 > 16 tokens and top_k=10 > half of 16 tokens; "
        "raise data.img_size, lower attention.num_anchors to at most 16 and attention.top_k to at most 8, or set "
        "attention.clamp=true"
    )
    assert set(kinds(model)) == {"Attention"}


def test_clamp_lowers_and_says_so():
    model = tiny_pvt()
    report = convert(model, EcoFormerSpec(clamp=True), img_size=64)
    assert report.notes == [
        "stage 3 (stages.2.blocks.0.attn) has 16 tokens: num_anchors lowered from 25 to 16, top_k lowered from 10 to 8"
    ]
    assert model.stages[2].blocks[0].attn.hash.A.shape == (5, 16, 16)
    assert convert(model, EcoFormerSpec(clamp=True), img_size=64).replaced == []


def test_masks_of_pairs_are_refused():
    model = tiny_vit()
    convert(model, SMALL)
    with pytest.raises(InputError, match="takes which keys take part alone"):
        model.blocks[0].attn(torch.randn(1, 5, 24), attn_mask=torch.ones(5, 5))


@pytest.mark.parametrize(("build", "img_size"), [(tiny_pvt, 64), (tiny_twins, 64)], ids=["pvt", "twins"])
def test_patch_stride_keeps_tokens_of_small_images(build, img_size):
    model = build()
    assert set(token_counts(model, img_size).values()) == {256, 64, 16, 4}
    set_patch_stride(model, 2)
    assert set(token_counts(model, img_size).values()) == {1024, 256, 64, 16}
    assert model(torch.randn(1, 3, img_size, img_size)).shape == (1, 7)
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("build", "stride"), [(tiny_pvt, 7), (tiny_twins, 1), (tiny_vit, 2)], ids=["pvt", "twins", "vit"]
)
def test_impossible_patch_strides_are_refused(build, stride):
    with pytest.raises(InputError, match=f"model.patch_stride={stride}"):
        set_patch_stride(build(), stride)


def test_token_counts_name_an_image_size_that_the_model_refuses():
    with pytest.raises(InputError, match="VisionTransformer does not accept 40x40 images"):
        token_counts(tiny_vit(), 40)


def test_token_counts_leave_parameters_and_mode_alone():
    model = tiny_pvt().train()
    convert(model, SMALL)
    counts = token_counts(model, (64, 96))
    assert counts["stages.0.blocks.0.attn"] == 16 * 24
    assert model.training and not any(p.is_meta for p in model.parameters())
    assert isinstance(model.stages[0].blocks[0].attn, EcoFormerAttention)
