"""Every kind on every family: conversion, what the report says, training and evaluation, the ledger, checkpoints."""

import copy

import pytest
import torch
from tiny_models import FAMILIES, few_blocks, tiny_pvt, tiny_vit

from ecoformer import InputError, MSASpec, attention_layers, convert, fit_hashes
from ecoformer.energy import count
from ecoformer.kinds import BUILDERS, SPECS, make_spec
from ecoformer.nn.projections import ROLES

OPTIONS = {
    "ecoformer": {"num_bits": 4, "num_anchors": 3, "top_k": 2, "fit_steps": 2},
    "ecoformer_tuned": {"num_bits": 4, "num_anchors": 3, "fit_steps": 2},
    "distilled": {"num_features": 4, "fit_steps": 2, "projection": "ternary"},
    "distilled_hash": {"num_bits": 4, "fit_steps": 2},
    "hedgehog": {"fit_steps": 2},
    "linformer": {"proj_dim": 6},
    "random_hash": {"num_bits": 4, "num_anchors": 3},
}
# What stays behind of timm's SRA (PVTv2), of LSA (Twins, ViT: one qkv), and of an MSA layer, by what a kind takes.
LEFT = {
    ("query", "key", "value", "proj"): {"pvt": ("sr", "norm"), "twins": (), "vit": (), "msa": ()},
    ("query", "value", "proj"): {
        "pvt": ("sr", "norm", "key rows"),
        **dict.fromkeys(("twins", "vit", "msa"), ("key rows",)),
    },
    ("value", "proj"): {
        "pvt": ("sr", "norm", "q", "key rows"),
        **dict.fromkeys(("twins", "vit", "msa"), ("query rows", "key rows")),
    },
}
NEW = {
    "random_hash": ("hash",),
    "ecoformer": ("hash",),
    "ecoformer_tuned": ("query_hash", "key_hash", "bit_weight", "floor"),
    "distilled": ("codes", "log_floor"),
    "distilled_hash": ("codes", "log_weight", "log_floor"),
    "hedgehog": ("feature_weight", "feature_bias"),
    "performer": ("projection",),
    "linformer": ("key_mix", "value_mix"),
}
KINDS = list(SPECS)


def spec_of(kind):
    return make_spec(kind, OPTIONS.get(kind, {}))


def image_size(family):
    """Odd token counts: 121 and 36 in the first stages of PVTv2 and Twins, 17 in a ViT, class token included."""
    return 44 if family != "vit" else FAMILIES[family][1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "msa"])
def test_from_stock_and_from_msa(kind, family):
    size = image_size(family)
    model, images = few_blocks(family), torch.randn(2, 3, size, size)
    wanted = BUILDERS[type(spec_of(kind))]
    through_msa = copy.deepcopy(model)
    convert(through_msa, MSASpec())
    reports = [convert(m, spec_of(kind), img_size=size) for m in (model, through_msa)]
    for report, source in zip(reports, (family, "msa" if family != "vit" else "vit"), strict=True):
        change = report.replaced[0]
        assert change.target == wanted.__name__
        if kind == "linear_sra":  # the one kind that has a place for what subsampled attention has beside
            assert (change.new, change.dropped) == ((), ()) if source == "pvt" else (("sr", "norm"), ())
        else:
            assert (change.new, change.dropped) == (
                NEW.get(kind, ()),
                LEFT[tuple(role for role in ROLES if role in wanted.parts)][source],
            )
    own = dict(model.named_parameters())
    untrained = {part for report in reports for part in report.replaced[0].new}
    carried = {
        name: parameter
        for name, parameter in through_msa.named_parameters()
        if ".attn." in name and name.partition(".attn.")[2].partition(".")[0] not in untrained
    }
    assert all(torch.equal(own[name], parameter) for name, parameter in carried.items() if name in own)

    fit_hashes(model, images, seed=0)
    model.train()(images).square().mean().backward()
    changed = [layer.module for layer in attention_layers(model) if isinstance(layer.module, wanted)]
    assert changed and all(p.grad is not None and p.grad.isfinite().all() for m in changed for p in m.parameters())

    expected = model.eval()(images)
    assert not convert(model, spec_of(kind), img_size=size).replaced
    assert not convert(model, spec_of(kind)).replaced
    assert torch.equal(model(images), expected)

    fresh = few_blocks(family)
    convert(fresh, spec_of(kind), img_size=size)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).isfinite().all()

    for convention in ("paper", "audited"):
        ledger = count(model.to("meta"), size, convention=convention, strict=False)
        assert ledger.uncounted == []
        assert {e.attention for e in ledger.entries} >= {layer.name for layer in attention_layers(model)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_values_converts_and_is_counted(kind):
    with torch.device("meta"):
        model = tiny_pvt()
    convert(model, spec_of(kind), img_size=64)
    assert all(x.is_meta for x in (*model.parameters(), *model.buffers()))
    assert count(model, 64, convention="audited").uncounted == []


def test_a_kind_without_queries_is_the_end_of_the_road():
    model = tiny_vit()
    convert(model, make_spec("uniform"))
    with pytest.raises(InputError, match=r"blocks.0.attn: UniformAttention keeps too little .*: start from the MSA"):
        convert(model, make_spec("none"))


@pytest.mark.parametrize(
    "kind", ["msa", "performer", "linformer", "relu_linear", "binary_qk", "hedgehog", "ecoformer_tuned"]
)
def test_a_shared_projection_has_no_keys(kind):
    model = tiny_vit()
    convert(model, make_spec("msa_shared_qk"))
    with pytest.raises(InputError, match=r"blocks.0.attn: a shared query and key projection holds no keys to "):
        convert(model, spec_of(kind), img_size=32)
    convert(model, spec_of("ecoformer"))


def test_uniform_is_softmax_attention_with_equal_scores():
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    flat = copy.deepcopy(model)
    for block in flat.blocks:
        with torch.no_grad():
            block.attn.qkv.weight[:24] = 0
            block.attn.qkv.bias[:24] = 0
    convert(model, make_spec("uniform"))
    torch.testing.assert_close(model(images), flat(images))


def test_shared_qk_is_msa_with_query_rows_for_keys():
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        with torch.no_grad():
            block.attn.qkv.weight[24:48] = block.attn.qkv.weight[:24]
            block.attn.qkv.bias[24:48] = block.attn.qkv.bias[:24]
    convert(model, make_spec("msa_shared_qk"))
    torch.testing.assert_close(model(images), twin(images))


def test_linformer_with_as_many_projected_tokens_equals_msa():
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    before = model(images)
    report = convert(model, make_spec("linformer", {"proj_dim": 20}), img_size=32)
    assert report.notes == [f"blocks.{i}.attn has 17 tokens: proj_dim lowered from 20 to 17" for i in (0, 1)]
    assert torch.equal(model.blocks[0].attn.key_mix, torch.eye(17))
    torch.testing.assert_close(model(images), before)


class TestLinformerAndTheNumberOfTokens:
    def test_needs_the_image_size(self):
        with pytest.raises(InputError, match=r"blocks.0.attn: linformer needs the number of tokens: call convert"):
            convert(tiny_vit(), make_spec("linformer"))

    def test_takes_a_number_for_all_layers(self):
        model = tiny_vit()
        convert(model, make_spec("linformer", {"proj_dim": 5, "num_tokens": 17}))
        assert model.blocks[0].attn.key_mix.shape == (5, 17)
        with pytest.raises(InputError, match=r"stage 1 .* has 256 tokens, attention.num_tokens=17: leave it out"):
            convert(tiny_pvt(), make_spec("linformer", {"num_tokens": 17}), img_size=64)

    def test_refuses_another_image_size_at_run_time(self):
        model = tiny_pvt()
        convert(model, make_spec("linformer", {"proj_dim": 9}), img_size=64)
        with pytest.raises(InputError, match="made for 256 tokens and got 576: keep the image size"):
            model(torch.randn(1, 3, 96, 96))

    def test_another_size_makes_new_projections(self):
        model = tiny_pvt()
        convert(model, make_spec("linformer", {"proj_dim": 9}), img_size=64)
        report = convert(model, make_spec("linformer", {"proj_dim": 9}), img_size=96)
        assert report.replaced[0].dropped == ("key_mix", "value_mix")
        assert model(torch.randn(1, 3, 96, 96)).shape == (1, 7)

    @pytest.mark.parametrize(("num_tokens", "num_segments"), [(7, 3), (10, 5), (5, 5), (9, 1)])
    def test_starts_as_means_of_neighbours(self, num_tokens, num_segments):
        from ecoformer.kinds.linformer import segment_means

        expected = torch.nn.functional.adaptive_avg_pool1d(torch.eye(num_tokens), num_segments).T
        torch.testing.assert_close(segment_means(num_tokens, num_segments), expected)


@pytest.mark.parametrize(
    ("kind", "key", "default", "other"),
    [
        ("ecoformer", "anchors", "image", "kmeans"),
        ("ecoformer", "target", "cosine", "attention"),
        ("ecoformer", "start", "random", "spectral"),
        ("ecoformer_tuned", "anchors", "batch", "kmeans"),
    ],
)
def test_options_that_are_gone_load_with_the_value_nobody_chose(kind, key, default, other):
    assert make_spec(kind, {key: default, "num_bits": 8}) == make_spec(kind, {"num_bits": 8})
    with pytest.raises(InputError, match=rf"attention.{key} is not an option of attention={kind}"):
        make_spec(kind, {key: other})
