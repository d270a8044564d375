"""Low-rank compression: the best approximation of its rank, never larger, and everything else as it was."""

import copy
import json

import pytest
import timm
import torch
from tiny_models import few_blocks, tiny_vit
from torch import nn

from ecoformer import EcoFormerSpec, InputError, MSASpec, convert, fit_hashes
from ecoformer.energy import count
from ecoformer.kinds import EcoFormerTunedSpec
from ecoformer.model.low_rank import (
    LowRankConv2d,
    LowRankLinear,
    LowRankSpec,
    expand,
    factorize,
    low_rank_layers,
    ranks_in,
    take_ranks,
)
from ecoformer.report.tables import compression_markdown
from ecoformer.run.summary import factorize_and_count


@pytest.fixture(params=["pvt", "twins", "vit"])
def family(request):
    model = few_blocks(request.param)
    size = 32 if request.param == "vit" else 64
    return model, torch.randn(2, 3, size, size)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize(("rows", "columns"), [(12, 20), (33, 17)])
def test_error_is_that_of_eckart_and_young(rows, columns, rank):
    model = nn.Sequential(nn.Linear(columns, rows))
    model.requires_grad_(False)
    weight = model[0].weight.clone()
    tail = torch.linalg.svdvals(weight.double())[rank:].square().sum().sqrt()
    report = factorize(model, LowRankSpec(rank=rank))
    torch.testing.assert_close((weight - model[0].weight).double().norm(), tail, rtol=1e-5, atol=0)
    assert report.layers[0].relative_error == pytest.approx(float(tail / weight.double().norm()), rel=1e-5)
    torch.testing.assert_close(model[0].up.weight.norm(), model[0].down.weight.norm(), msg="not balanced")


def test_output_is_that_of_the_product():
    linear, conv = nn.Linear(20, 12), nn.Conv2d(3, 24, 4, stride=4, padding=2)
    model = nn.ModuleList([linear, conv])
    factorize(model, LowRankSpec(rank=4))
    low_linear, low_conv = model
    assert isinstance(low_linear, LowRankLinear) and isinstance(low_conv, LowRankConv2d)
    x, images = torch.randn(5, 20), torch.randn(2, 3, 18, 18)
    torch.testing.assert_close(low_linear(x), nn.functional.linear(x, low_linear.weight, linear.bias))
    expected = nn.functional.conv2d(images, low_conv.weight, conv.bias, stride=4, padding=2)
    torch.testing.assert_close(low_conv(images), expected)


def test_a_weight_of_low_rank_is_kept_exactly():
    model = nn.Sequential(nn.Linear(16, 3, bias=False), nn.Linear(3, 24))
    merged = nn.Linear(16, 24)
    merged.weight.data = model[1].weight.data @ model[0].weight.data
    merged.bias.data = model[1].bias.data
    compressed = nn.Sequential(merged)
    report = factorize(compressed, LowRankSpec(energy=0.999999))
    assert report.layers[0].rank == 3
    x = torch.randn(4, 16)
    torch.testing.assert_close(compressed(x), model(x))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_energy_is_the_smallest_rank_that_keeps_it(share):
    model = nn.Sequential(nn.Linear(40, 40))
    energies = torch.linalg.svdvals(model[0].weight.detach()).square()
    rank = factorize(model, LowRankSpec(energy=share)).layers[0].rank
    assert energies[:rank].sum() >= share * energies.sum() > energies[: rank - 1].sum()


def test_ratio_bounds_the_parameters_of_every_layer(family):
    model, images = family
    report = factorize(model, LowRankSpec(ratio=0.4))
    assert report.params_after == sum(p.numel() for p in model.parameters()) < report.params_before
    for layer in report.layers:
        assert layer.rank * (layer.rows + layer.columns) <= 0.4 * layer.rows * layer.columns or layer.rank == 1
        assert layer.params_after < layer.params_before
    assert model(images).isfinite().all()


def test_default_is_half_of_the_parameters():
    halves = [
        factorize(nn.Sequential(nn.Linear(40, 24)), spec).layers for spec in (LowRankSpec(), LowRankSpec(ratio=0.5))
    ]
    assert halves[0][0].rank == halves[1][0].rank == 7


def test_layers_that_would_not_shrink_are_named_with_the_reason():
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 8), nn.Conv2d(4, 4, 3), nn.Conv2d(8, 8, 1, groups=2))
    report = factorize(model, LowRankSpec(rank=8))
    assert [layer.name for layer in report.layers] == ["0"]
    assert report.skipped["1"] == "rank 8 of 8 x 40 would hold no fewer parameters"
    assert "whose patches overlap" in report.skipped["2"]
    assert report.skipped["3"] == "a convolution in 2 groups"
    assert type(model[1]) is nn.Linear


def test_classifier_is_left_alone_unless_chosen():
    model = tiny_vit()
    report = factorize(model, LowRankSpec(rank=2))
    assert type(model.head) is nn.Linear and "head" not in report.skipped
    assert isinstance(model.patch_embed.proj, LowRankConv2d)
    chosen = tiny_vit()
    factorize(chosen, LowRankSpec(rank=2), lambda module, name: name == "head")
    assert list(low_rank_layers(chosen)) == ["head"]


def test_everything_else_stays():
    model = nn.ModuleDict({"a": nn.Linear(20, 20), "b": nn.Linear(20, 20, bias=False)}).to(torch.bfloat16)
    model["a"].weight.requires_grad_(False)
    model["b"].eval()
    bias = model["a"].bias
    factorize(model, LowRankSpec(rank=3))
    a, b = model["a"], model["b"]
    assert not a.down.weight.requires_grad and not a.up.weight.requires_grad and a.bias is bias and bias.requires_grad
    assert b.bias is None and b.up.weight.requires_grad
    assert a.training and a.down.training and not b.training and not b.up.training
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_shared_layers_and_tied_weights():
    shared, tied = nn.Linear(20, 20), nn.Linear(20, 20)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": tied, "d": nn.Linear(20, 20)})
    model["d"].weight = tied.weight
    report = factorize(model, LowRankSpec(rank=3))
    assert model["a"] is model["b"] and isinstance(model["a"], LowRankLinear)
    assert report.skipped == {"c": "shares its weight with d", "d": "shares its weight with c"}


def test_gradients_reach_both_factors():
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    factorize(model, LowRankSpec(ratio=0.5))
    model(images).sum().backward()
    for name, layer in low_rank_layers(model).items():
        assert layer.down.weight.grad is not None and layer.up.weight.grad is not None, name


@pytest.mark.parametrize(
    "spec",
    [EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2, fit_steps=1), EcoFormerTunedSpec(num_bits=4, fit_steps=1)],
    ids=["ecoformer", "ecoformer_tuned"],
)
def test_converted_attention_is_compressed_and_fitted(spec):
    model, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    convert(model, spec)
    factorize(model, LowRankSpec(ratio=0.5))
    projections = [name for name in low_rank_layers(model) if "attn" in name]
    assert len(projections) >= 6, projections
    fit_hashes(model, images, seed=0)
    assert model(images).isfinite().all()


def test_compressed_attention_converts_as_its_product_would(family):
    model, images = family
    factorize(model, LowRankSpec(ratio=0.5))
    expanded = copy.deepcopy(model)
    expand(expanded)
    convert(model, MSASpec())
    convert(expanded, MSASpec())
    torch.testing.assert_close(model(images), expanded(images))


def test_expand_computes_the_same(family):
    model, images = family
    factorize(model, LowRankSpec(ratio=0.5))
    before = model(images)
    names = expand(model)
    assert names and not low_rank_layers(model)
    torch.testing.assert_close(model(images), before)


def test_ranks_are_read_from_a_state_dict(family):
    model, images = family
    fresh = copy.deepcopy(model)
    factorize(model, LowRankSpec(energy=0.4))
    take_ranks(fresh, ranks_in(model.state_dict()))
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(images), model(images))


def test_ledger_before_and_after(family):
    model, images = family
    size = images.shape[-1]
    before = {name: count(model, size, convention=name) for name in ("paper", "audited")}
    report = factorize_and_count(model, LowRankSpec(ratio=0.5), img_size=size)
    for name, ledger in before.items():
        after = count(model, size, convention=name)
        assert report.ledger[name]["before"]["muls"] == ledger.muls
        assert report.ledger[name]["after"]["muls"] == after.muls < ledger.muls
        assert not after.uncounted
        saved = sum(
            entry.counts["fma"] + entry.counts["mul"] for entry in ledger.entries if entry.part in ("Linear", "Conv2d")
        ) - sum(
            entry.counts["fma"] + entry.counts["mul"] for entry in after.entries if entry.part in ("Linear", "Conv2d")
        )
        assert ledger.muls - after.muls == saved, "compression changed the count of something else"
    json.dumps(report.to_dict())
    text = compression_markdown(report)
    assert "| energy, pJ (audited) |" in text and text.count(" -> ") == len(report.layers) + 1


def test_linear_count_by_hand():
    model = nn.Sequential(nn.Linear(20, 30))
    factorize(model, LowRankSpec(rank=5))
    assert count(model, torch.randn(7, 20), convention="paper").muls == 7 * (20 * 5 + 5 * 30)


def test_meta_weights_get_meta_factors():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(40, 40))
    report = factorize(model, LowRankSpec(rank=4))
    assert model[0].down.weight.is_meta and report.layers[0].relative_error is None
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(40, 40))
    with pytest.raises(InputError, match=r"compress\.energy=0\.9 needs weights"):
        factorize(model, LowRankSpec(energy=0.9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=0), "compress.rank=0 must be a whole number of at least 1"),
        (dict(rank=2.5), "compress.rank=2.5 must be a whole number"),
        (dict(ratio=1.0), "compress.ratio=1.0 must be above 0 and below 1"),
        (dict(energy=-0.1), "compress.energy=-0.1 must be above 0"),
        (dict(rank=4, energy=0.9), "compress.rank=4 and compress.energy=0.9 exclude each other"),
    ],
)
def test_bad_specs(options, message):
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        LowRankSpec(**options)


def test_refusals_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    layers = list(model)
    with pytest.raises(InputError, match=r"compress\.rank=30 compresses none of 2 layers \(0: rank 30 of 40 x 40"):
        factorize(model, LowRankSpec(rank=30))
    model[1].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="1: the weight holds NaN"):
        factorize(model, LowRankSpec(rank=3))
    with pytest.raises(InputError, match="no Linear layer or convolution was chosen"):
        factorize(model, LowRankSpec(rank=3), lambda module, name: False)
    assert list(model) == layers
    model[1].weight.data.zero_()
    assert factorize(model, LowRankSpec(rank=3)).layers[1].relative_error == 0
    with pytest.raises(InputError, match=r"2 layers are low rank already \(0, \.\.\.\): expand\(model\) first"):
        factorize(model, LowRankSpec(rank=2))


def test_layers_whose_owner_reads_the_weight_are_left_alone():
    model = timm.create_model("beit_base_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    before = model.blocks[0].attn.qkv
    report = factorize(model, LowRankSpec(rank=4))
    assert model.blocks[0].attn.qkv is before
    assert report.skipped["blocks.0.attn.qkv"] == "is not called as a layer: its owner reads the weight"
    assert {layer.name for layer in report.layers} >= {"blocks.0.attn.proj", "blocks.0.mlp.fc1"}
    # A module that takes no images has no such pass: everything counts as called.
    assert factorize(nn.Sequential(nn.Linear(40, 24)), LowRankSpec(rank=4)).layers[0].name == "0"


def test_a_layer_with_a_hook_or_a_forward_of_its_own_is_left_alone():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].register_forward_hook(lambda module, args, out: 2 * out)
    model[1].forward = lambda x: x
    report = factorize(model, LowRankSpec(rank=2))
    assert [layer.name for layer in report.layers] == ["2"]
    assert set(report.skipped.values()) == {"has hooks or a forward of its own, which its factors would not have"}


@pytest.mark.parametrize("change", [lambda model: factorize(model, LowRankSpec(rank=2)), expand])
def test_wrapped_models_are_refused(change):
    inside = few_blocks("vit")
    inside.blocks[0].mlp.fc1 = torch.compile(inside.blocks[0].mlp.fc1)  # it would go on with the weight that it had
    for wrapped in (nn.DataParallel(few_blocks("vit")), torch.compile(few_blocks("vit")), inside):
        with pytest.raises(InputError, match=r" wraps .*: (compress|expand) the model that it was made from, and wrap"):
            change(wrapped)
        assert not low_rank_layers(wrapped)
