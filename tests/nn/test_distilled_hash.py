"""The distilled kind: what it learns from, when that goes, and what the layer keeps."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.energy import count, load_profile
from ecoformer.fit.teacher import affine
from ecoformer.kinds import DistilledHashSpec, DistilledSpec, MSASpec, make_spec
from ecoformer.model.layers import attention_layers
from ecoformer.nn.base import before_projection
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.ops.closeness import relative_error
from ecoformer.ops.codes.naive import distilled_attention_reference

SMALL = DistilledHashSpec(num_bits=8, fit_steps=25, fit_batch_size=4)
SHIFT = DistilledSpec(num_features=8, fit_steps=25, fit_batch_size=4, fit_lr=0.03)
TERNARY = replace(SHIFT, projection="ternary")


def vit(spec=None):
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, num_heads=3, depth=2, num_classes=4
    )
    for block in model.blocks:  # sharper than at initialisation, where attention is almost uniform
        block.attn.qkv.weight.data.mul_(12)
    if spec is not None:
        convert(model, spec)
    return model.eval()


def pvt():
    torch.manual_seed(0)
    return timm.models.PyramidVisionTransformerV2(
        num_classes=3, depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2), mlp_ratios=(1, 1, 1, 1)
    ).eval()


def twins():
    torch.manual_seed(0)
    return timm.models.Twins(
        img_size=64,
        num_classes=3,
        embed_dims=(8, 16, 16, 16),
        num_heads=(1, 2, 2, 2),
        depths=(2, 1, 1, 1),
        mlp_ratios=(1, 1, 1, 1),
        sr_ratios=(4, 2, 1, 1),
        wss=(7, 7, 7, 7),
        block_cls=timm.models.twins.Block,
    ).eval()


@pytest.fixture
def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def inputs_of(model, images):
    """What every attention layer is called with, by name."""
    caught = {}
    hooks = [
        layer.module.register_forward_pre_hook(lambda module, args, name=layer.name: caught.update({name: args}))
        for layer in attention_layers(model)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return caught


def test_forward_is_the_quadratic_form_of_its_parts(images):
    model = vit(SMALL)
    fit_hashes(model, images, seed=0)
    layer, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    parts = (affine(linear) for linear in (layer.codes, layer.to_v, layer.proj))
    expected = distilled_attention_reference(x, *parts, layer.log_weight.exp().view(3, 8), layer.log_floor.exp())
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    v = split_heads(layer.to_v(x), 3)
    torch.testing.assert_close(layer.attention_output(x), join_heads(layer.attention_weights(x) @ v))


@pytest.mark.parametrize("spec", [SHIFT, TERNARY], ids=["real", "ternary"])
def test_shift_codes_are_the_quadratic_form_of_their_parts(spec, images):
    model = vit(spec)
    fit_hashes(model, images, seed=0)
    layer, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    to_codes, value, proj = (affine(linear) for linear in (layer.codes, layer.to_v, layer.proj))
    parts = x, to_codes, value, proj, None, layer.log_floor.exp()
    expected = distilled_attention_reference(*parts, exponents=(-8, 7)).detach()
    weight = layer.codes.weight
    assert (spec is TERNARY) == all(len(row[row != 0].abs().unique()) == 1 for row in weight.round(decimals=4))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        low = copy.deepcopy(layer).bfloat16()
        assert low(x.bfloat16()).dtype == torch.bfloat16
        v = split_heads(layer.to_v(x), 3)
        torch.testing.assert_close(layer.attention_output(x), join_heads(layer.attention_weights(x) @ v))
    assert set(layer.new_parts) == {"codes", "log_floor"}


def test_settings_that_a_shift_cannot_have():
    for options, message in (
        ({"levels": 1}, "levels=1 must be a whole number of at least 2"),
        ({"levels": 64}, "levels=64 must be at most 48"),
        ({"codes": "bits", "levels": 8}, "levels=8 is of codes=shift, bits have two"),
        ({"codes": "tables"}, "codes='tables' must be shift or bits"),
        ({"projection": "binary"}, "projection='binary' must be real or ternary"),
    ):
        with pytest.raises(InputError, match=message):
            make_spec("distilled", options)


@pytest.mark.parametrize("spec", [SMALL, SHIFT, TERNARY], ids=["bits", "shift", "ternary"])
def test_fit_follows_the_layer_that_it_replaces(spec, images):
    source = vit()
    model = copy.deepcopy(source)
    convert(model, spec)
    reports = fit_hashes(model, images, seed=0)
    layer = source.blocks[0].attn
    (x,) = inputs_of(source, images)["blocks.0.attn"]
    q, k, v = (split_heads(part, 3) for part in layer.qkv(x).chunk(3, dim=-1))
    target = join_heads(F.scaled_dot_product_attention(q, k, v))
    ours = model.blocks[0].attn.attention_output(x)
    assert reports[0].attention_error == pytest.approx(relative_error(ours, target), rel=1e-3)
    uniform = join_heads(v.mean(2, keepdim=True).expand_as(v))
    assert reports[0].uniform_error == pytest.approx(relative_error(uniform, target), rel=1e-3)
    for report in reports:
        assert report.attention_error < 0.9 * min(report.random_error, report.uniform_error)
        assert report.objective_after < report.objective_before and report.accepted_bits == report.num_bits == 8


@pytest.mark.parametrize("spec", [SMALL, TERNARY], ids=["bits", "ternary"])
@pytest.mark.parametrize("build", [pvt, twins])
def test_stock_layers_are_teachers_and_their_values_are_fitted(build, spec):
    source = build()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(source)
    report = convert(model, spec, img_size=64)
    first = report.replaced[0].name
    values = model.get_submodule(first).to_v.weight.clone()
    fits = {fit.block: fit for fit in fit_hashes(model, images, seed=0)}
    x, size = inputs_of(source, images)[first]
    target = before_projection(source.get_submodule(first), x, size)
    ours = model.get_submodule(first).attention_output(x)
    assert fits[first].attention_error == pytest.approx(relative_error(ours, target), rel=1e-3)
    assert all(fit.attention_error < fit.random_error for fit in fits.values())
    assert not torch.equal(values, model.get_submodule(first).to_v.weight)
    assert model(images).isfinite().all()


@pytest.mark.parametrize(
    ("fit_values", "build", "moves"),
    [("auto", vit, False), ("true", vit, True), (True, vit, True), ("auto", pvt, True), ("false", pvt, False)],
)
def test_values_move_where_asked(fit_values, build, moves, images):
    model = build()
    convert(model, DistilledHashSpec(num_bits=2, fit_steps=1, fit_values=fit_values))
    layer = next(layer.module for layer in attention_layers(model))
    before = layer.to_v.weight.clone()
    fit_hashes(model, images if build is vit else torch.randn(2, 3, 32, 32), seed=0)
    assert torch.equal(before, layer.to_v.weight) != moves


def test_the_replaced_layer_is_no_part_of_the_model_and_goes_after_the_fit(images):
    model = vit(SMALL)
    assert not any("teacher" in key or "qkv" in key for key in model.state_dict())
    assert sum(p.numel() for p in model.blocks[0].attn.parameters()) == 2 * 24 * 25 + 48 * 25 + 24 + 3
    twin = copy.deepcopy(model)  # takes its teacher along
    fit_hashes(model, images, seed=0)
    fit_hashes(twin, images, seed=0)
    assert torch.equal(model(images), twin(images))
    assert model.blocks[0].attn._teacher is None


def test_equal_seeds_give_equal_fits_and_other_seeds_others(images):
    models = [vit(SMALL) for _ in range(3)]
    pointers = [p.data_ptr() for p in models[0].parameters()]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        fit_hashes(model, images, seed=seed)
    first, again, other = (model.blocks[0].attn.codes.weight for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert [p.data_ptr() for p in models[0].parameters()] == pointers


def test_a_fitted_layer_is_not_fitted_again(images):
    model = vit(SMALL)
    fit_hashes(model, images, seed=0)
    with pytest.raises(InputError, match=r"blocks\.0\.attn: it is fitted once.* convert the original"):
        fit_hashes(model, images, seed=1)
    with pytest.raises(InputError, match="fitted once"):
        model.blocks[0].attn.fit_hash(torch.randn(2, 17, 24), torch.Generator())


def test_checkpoints_carry_the_fit(images):
    model = vit(SMALL)
    fit_hashes(model, images, seed=0)
    twin = vit(SMALL)
    with pytest.raises(InputError, match="never fitted"):
        twin(images)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(images), model(images))
    assert twin.blocks[0].attn.refit_refusal()


def test_weights_loaded_into_an_unfitted_model_are_not_the_teachers(images):
    model = vit(SMALL)
    model.load_state_dict(vit(SMALL).state_dict())
    with pytest.raises(InputError, match="convert the original model again"):
        fit_hashes(model, images, seed=0)


def test_converting_again_keeps_what_is_fitted(images):
    model = vit(SMALL)
    report = convert(model, DistilledHashSpec(num_bits=8, fit_steps=3))  # not fitted yet: other settings count
    assert len(report.replaced) == 2 and model.blocks[0].attn.spec.fit_steps == 3
    fit_hashes(model, images, seed=0)
    assert len(convert(model, SMALL).kept) == 2
    with pytest.raises(InputError, match=r"fitted distilled hash of 8 bits holds no queries and keys to convert"):
        convert(model, DistilledHashSpec(num_bits=4))


def test_an_unfitted_layer_turns_back_into_msa(images):
    model = vit()
    expected = model(images)
    convert(model, SMALL)
    convert(model, MSASpec())
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_a_shared_projection_is_no_attention_to_learn_from():
    model = vit(EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2))
    with pytest.raises(InputError, match=r"no attention to fit distilled_hash to: start from the MSA or the stock"):
        convert(model, SMALL)


def test_values_without_a_bias_are_not_fitted():
    model = timm.models.PyramidVisionTransformerV2(
        depths=(1, 1, 1, 1), embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1), qkv_bias=False
    )
    with pytest.raises(InputError, match=r"values without a bias: set attention\.fit_values=false"):
        convert(model, SMALL)


@pytest.mark.parametrize("broken", [1, 8])
def test_images_with_nan_are_left_out(broken):
    layer = vit(SMALL).blocks[0].attn
    x = torch.randn(8, 17, 24)
    x[:broken, 3] = float("nan")
    if broken == 8:
        with pytest.raises(InputError, match="all 8 images give NaN"):
            layer.fit_hash(x, torch.Generator().manual_seed(0))
        return
    assert layer.fit_hash(x, torch.Generator().manual_seed(0)).skipped_images == 1
    assert all(p.isfinite().all() for p in layer.parameters())


def test_codes_are_full_precision_under_autocast_and_in_half_models(images):
    model = vit(SMALL)
    fit_hashes(model, images, seed=0)
    layer, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer(x.clone()))
        torch.testing.assert_close(layer(x), layer(x.float()))
        inside = layer(x)
    torch.testing.assert_close(inside, layer(x))
    assert model.to(torch.bfloat16)(images.bfloat16()).isfinite().all()


def test_the_share_of_ones_is_that_of_the_fitting_images(images):
    model = vit(SMALL)
    (x,) = inputs_of(vit(), images)["blocks.0.attn"]
    fit_hashes(model, images, seed=0)
    layer = model.blocks[0].attn
    codes = (layer.codes(x) >= 0).float()
    torch.testing.assert_close(layer.ones, torch.stack([codes[..., :24].mean(), codes[..., 24:].mean()]))


def test_paper_accounting_of_one_block_by_hand():
    layer = vit(SMALL).blocks[0].attn
    tokens, dim, channels, bits = 7, 24, 8, 24
    projections = tokens * 2 * bits * dim
    per_image = 2 * bits * dim * channels + 2 * dim * dim
    assert layer.paper_core_ops(tokens) == (
        projections + per_image + tokens * 3 * (dim + 1) + bits * (channels + 1),
        projections + per_image + tokens * (2 * bits * dim + 2 * bits + dim),
    )


@pytest.mark.parametrize("convention", ["paper", "audited"])
def test_ledger_counts_every_operation(convention):
    ledger = count(vit(SMALL), 16, convention=convention, strict=True)
    core = ledger.attention()
    assert ledger.uncounted == [] and core.energy_pj(load_profile("45nm_fp32")) > 0
    if convention == "paper":
        # All of a layer is its core: no projection is applied to tokens.
        assert ledger.attention(projections=True).counts == core.counts


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_bits": 0}, r"attention\.num_bits=0 must be a whole number of at least 1"),
        ({"fit_steps": True}, r"attention\.fit_steps=True must be a whole number of at least 0"),
        ({"fit_values": "maybe"}, r"attention\.fit_values='maybe' must be auto, true or false"),
        ({"fit_lr": 0}, r"attention\.fit_lr=0 must be a finite number above 0"),
        ({"num_bit": 8}, r"attention\.num_bit is not an option .* did you mean attention\.num_bits\?"),
    ],
)
def test_settings_out_of_range_are_refused(option, message):
    with pytest.raises(InputError, match=message):
        make_spec("distilled_hash", option)


@pytest.fixture
def fitted_layer():
    layer = vit(SMALL).blocks[0].attn
    layer.fit_hash(torch.randn(4, 17, 24), torch.Generator().manual_seed(0))
    return layer, torch.randn(2, 35, 24)


def test_compiles_in_one_graph_with_the_same_gradients(fitted_layer):
    layer, x = fitted_layer
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = []
    for function in (layer, compiled):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        function(leaf).square().sum().backward()
        found.append([leaf.grad, *(p.grad.clone() for p in layer.parameters())])
    for eager, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, eager)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


def test_exports_and_traces_for_other_batch_sizes(fitted_layer):
    layer, x = fitted_layer
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).module()
        traced = torch.jit.trace(layer, x)
        for other in (x, torch.randn(5, 35, 24)):
            torch.testing.assert_close(exported(other), layer(other))
            torch.testing.assert_close(traced(other), layer(other))
