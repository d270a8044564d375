"""Converted models go where timm's go: compiled, traced, cast, checkpointed, copied, pickled, as feature backbones."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from kind_cases import SPECS, TOKENS, build
from timm.models import VisionTransformer
from timm.models._features_fx import create_feature_extractor as extractor_of_timm
from tiny_models import FAMILIES
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.feature_extraction import create_feature_extractor

from ecoformer import EcoFormerSpec, convert, fit_hashes
from ecoformer.kinds import DistilledHashSpec, EcoFormerAttention, make_spec

SPEC = EcoFormerSpec(num_bits=8, num_anchors=5, top_k=2, fit_steps=2)
DISTILLED = DistilledHashSpec(num_bits=8, fit_steps=2)


def converted(name="pvt_v2_b0", size=64, spec=SPEC, **options):
    model = timm.create_model(name, **options)
    convert(model, spec, img_size=size)
    images = torch.randn(2, 3, size, size)
    fit_hashes(model, images, seed=0)
    return model.eval(), images


@pytest.fixture(scope="module", params=[SPEC, DISTILLED], ids=lambda spec: spec.name)
def fitted(request):
    torch.manual_seed(0)
    return converted(num_classes=7, spec=request.param, depths=(1, 0, 0, 1))


@pytest.fixture
def layer():
    attention = EcoFormerAttention(24, 3, SPEC).eval()
    x = torch.randn(2, 35, 24)
    attention.fit_hash(x, torch.Generator().manual_seed(0))
    return attention, x


def gradients(layer, function, x):
    layer.zero_grad()
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    (out.float() ** 2).sum().backward()
    return [out.detach(), leaf.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("spec", [SPEC, DISTILLED], ids=lambda spec: spec.name)
def test_compiles_in_one_graph_with_the_same_gradients(spec):
    attention, x = build(spec)[0].eval(), torch.randn(2, 35, 12)
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(gradients(attention, compiled, x), gradients(attention, attention, x), strict=True):
        torch.testing.assert_close(mine, eager)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), attention(x))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ecoformer", {"num_anchors": 5, "top_k": 4}),
        ("ecoformer", {"num_anchors": 5, "top_k": 4, "numerator": "kernel"}),
        ("binary_qk", {}),
        ("distilled", {"codes": "bits"}),
    ],
)
def test_an_exported_graph_trains_with_the_same_gradients(kind, options):
    model, _ = converted("vit_tiny_patch16_224", 32, make_spec(kind, options), img_size=32, patch_size=8, depth=1)
    attention, x = model.blocks[0].attn, torch.randn(2, 17, 192)
    exported = torch.export.export(attention, (x,), strict=False).module()
    for mine, eager in zip(gradients(exported, exported, x), gradients(attention, attention, x), strict=True):
        torch.testing.assert_close(mine, eager)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_kind_compiles_in_one_graph_that_evaluates(spec):
    attention, x = build(spec)[0].eval(), torch.randn(2, TOKENS, 12)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(attention, fullgraph=True, backend="eager")(x), attention(x))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_transforms_of_torch_func_give_the_same_gradients(spec):
    """torch.func.grad, alone and per sample, and vmap; forward mode where softmax attention has it."""
    torch.manual_seed(0)
    attention, x = build(spec)[0].eval(), torch.randn(3, TOKENS, 12)
    parameters = dict(attention.named_parameters())

    def loss(parameters, x):
        return (torch.func.functional_call(attention, parameters, (x,)) ** 2).sum()

    out, of_x, *expected = gradients(attention, attention, x)
    found, found_of_x = torch.func.grad(loss, argnums=(0, 1))(parameters, x)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x.unsqueeze(1))
    for name, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(per_sample[name].sum(0), value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found_of_x, of_x, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(attention)(x.unsqueeze(1)).squeeze(1), out)
    with sdpa_kernel(SDPBackend.MATH):
        step, (_, along) = torch.randn_like(x), torch.func.jvp(attention, (x,), (torch.ones_like(x),))
        leaf = x.clone().requires_grad_()
        (back,) = torch.autograd.grad(attention(leaf), leaf, step)
        torch.testing.assert_close((along * step).sum(), back.sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_compiles_to_machine_code(fitted):
    model, images = fitted
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "spec", [SPEC, DISTILLED, replace(DISTILLED, joint_steps=2)], ids=["eco", "distilled", "joint"]
)
def test_a_compiled_model_is_fitted_as_it_is_without(spec):
    outs, images = [], torch.randn(2, 3, 32, 32)
    for wrap in (nn.Sequential, partial(torch.compile, backend="eager")):
        torch.manual_seed(0)
        model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=2)
        convert(model, spec)
        wrapped = wrap(model)
        fit_hashes(wrapped, images, seed=0)
        outs.append(wrapped.eval()(images))
    torch.testing.assert_close(*outs)


def test_whole_model_is_one_graph(fitted):
    model, images = fitted
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), model(images))


def test_jit_trace_serves_other_batch_sizes(fitted):
    model, images = fitted
    with torch.no_grad():
        traced = torch.jit.trace(model, images)
        torch.testing.assert_close(traced(images), model(images))
        one = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(traced(one), model(one))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_close_and_trains(layer, dtype):
    attention, x = layer
    with torch.autocast("cpu", dtype=dtype):
        half = gradients(attention, attention, x)
    assert half[0].dtype == dtype
    for mine in half:
        assert mine.isfinite().all()
    v = attention.to_v(x)
    spread = (half[0].float() - attention(x)).abs().max() / v.abs().max()
    assert spread < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_codes_are_exact_under_autocast(dtype):
    """Weights of the kernel numerator sum to one, so equal values come out as they went in, also for many tokens."""
    attention = EcoFormerAttention(8, 2, replace(SPEC, numerator="kernel")).eval()
    x = torch.randn(1, 5001, 8)
    attention.fit_hash(x[:, :50], torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        attention.to_v.weight.zero_()
        attention.to_v.bias.copy_(torch.arange(8))
        attention.proj.weight.copy_(torch.eye(8))
        attention.proj.bias.zero_()
        assert torch.equal(attention(x).float(), torch.arange(8.0).expand(1, 5001, 8))


@pytest.mark.parametrize("extractor", [create_feature_extractor, extractor_of_timm], ids=["torchvision", "timm"])
@pytest.mark.parametrize("spec", [SPEC, DISTILLED], ids=lambda spec: spec.name)
@pytest.mark.parametrize("family", ["VisionTransformer", "Eva"])  # rotary positions go beside the tokens
def test_feature_extractors_trace(family, spec, extractor):
    model = getattr(timm.models, family)(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=2)
    images = torch.randn(2, 3, 32, 32)
    convert(model.eval(), spec)
    fit_hashes(model, images, seed=0)
    caught = []
    model.blocks[0].register_forward_hook(lambda module, args, out: caught.append(out))
    with torch.no_grad():
        model(images)
        torch.testing.assert_close(extractor(model, {"blocks.0": "first"})(images)["first"], caught[0])


def test_channels_last(fitted):
    model, images = fitted
    with torch.no_grad():
        expected = model(images)
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(other(images.contiguous(memory_format=torch.channels_last)), expected)


def test_gradient_checkpointing_changes_no_gradient():
    model, images = converted(num_classes=3)
    plain = gradients(model, model, images)
    model.set_grad_checkpointing()
    for mine, expected in zip(gradients(model, model, images), plain, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", [SPEC, DISTILLED], ids=lambda spec: spec.name)
def test_copies_and_pickles_compute_the_same(family, spec):
    make, size = FAMILIES[family]
    model, images = make(), torch.randn(2, 3, size, size)
    convert(model, spec, img_size=size)
    fit_hashes(model, images, seed=0)
    with torch.no_grad():  # a pickle of what was made here, as spawned processes get it; none is read from a file
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(images), model(images))
