"""Models that share, lack or have lost parts: what is asked of them leaves them whole, or is refused by name."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
from distilled_models import POWERS, SHIFT, images, pvt, vit
from timm.utils import ModelEmaV3
from torch import nn

from ecoformer import InputError, MSASpec, convert, fit_hashes, set_patch_stride
from ecoformer.kinds.ecoformer import KernelHashSpec
from ecoformer.model.low_rank import LowRankSpec, expand, factorize
from ecoformer.nn.coded import CodedLinear
from ecoformer.nn.specs import make_spec

IMAGES = images(4)


@pytest.mark.parametrize("part", ["mlp", "norm1", "attn"])
@pytest.mark.parametrize("change", [lambda m: convert(m, make_spec("msa_shift"), img_size=16), None])
def test_weights_of_modules_that_stand_in_two_places_stay(part, change):
    model = vit()
    setattr(model.blocks[1], part, getattr(model.blocks[0], part))
    if change is None:
        factorize(model, LowRankSpec(ratio=0.5), img_size=16)
    else:
        change(model)
    held = [p for module in model.modules() for p in module._parameters.values() if p is not None]
    assert not any(p.is_meta for p in held)
    assert all(isinstance(p, nn.Parameter) for p in held)
    assert model(IMAGES).isfinite().all()


def test_the_stride_of_a_patch_embedding_goes_back():
    model = pvt()
    reductions = [info["reduction"] for info in model.feature_info]
    for stride in (2, 2, 3, 4):
        set_patch_stride(model, stride)
    assert [info["reduction"] for info in model.feature_info] == reductions


def test_codes_alone_are_no_source():
    model = vit(make_spec("msa_shift"))
    for module in model.modules():
        if isinstance(module, CodedLinear):
            module.harden()
    with pytest.raises(InputError, match="keeps the codes alone"):
        convert(model, MSASpec())


def test_a_spec_of_no_kind_and_inference_mode_are_refused_by_name():
    with pytest.raises(InputError, match="KernelHashSpec is no kind of its own"):
        convert(vit(), KernelHashSpec())
    with torch.inference_mode(), pytest.raises(InputError, match="inference mode"):
        fit_hashes(vit(SHIFT), IMAGES, seed=0)


@pytest.mark.parametrize("kind", ["msa_shift", "linear_sra", "linformer", "performer", "ecoformer", "uniform", None])
def test_what_is_built_in_inference_mode_is_trained_afterwards(kind):
    model, options = vit(), {"num_bits": 4, "num_anchors": 4, "top_k": 2, "fit_steps": 2} if kind == "ecoformer" else {}
    with torch.inference_mode():
        if kind is not None:
            convert(model, make_spec(kind, options), img_size=16)
        factorize(model, LowRankSpec(ratio=0.5), img_size=16)
        if kind is None:
            assert expand(model)
    if kind == "ecoformer":
        fit_hashes(model, IMAGES, seed=0)
    model(IMAGES).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("spec", [make_spec("linear_sra"), make_spec("binary_qk", {"form": "grid", "num_tokens": 17})])
def test_sixteen_patches_of_an_oblong_image_are_no_square(spec):
    model = timm.models.VisionTransformer(
        img_size=(8, 32), patch_size=4, embed_dim=24, num_heads=3, depth=1, num_classes=2
    )
    with pytest.raises(InputError, match="square"):
        convert(model, spec)


def trained(spec, lr=0.5):
    """A fitted model, some steps of training later, in training mode."""
    model = vit(spec)
    if spec.name != "msa_shift":
        fit_hashes(model, IMAGES, seed=0)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), torch.arange(4)).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("projection", ["shift", "ternary"])
def test_codes_are_those_of_the_weights_wherever_they_run(projection):
    spec = make_spec("distilled", {**vars(POWERS), "projection": projection, "fit_steps": 0})
    model, other = trained(spec), vit(spec)
    other.load_state_dict(model.state_dict())
    with_gradients = model(IMAGES)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), with_gradients), "in training, as a reentrant checkpoint runs"
        assert torch.allclose(other(IMAGES), model.eval()(IMAGES), atol=1e-6), "loaded into a model that evaluates"


def averaged(model, other):
    average = ModelEmaV3(model, decay=0.5)
    average.update(other)
    return average.module


def stepped(model, other):
    model(IMAGES).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    return model


def copied(model, other):
    with torch.no_grad():
        for mine, new in zip(model.parameters(), other.parameters(), strict=True):
            mine.copy_(new)
    return model


def swapped(model, other):
    for mine, new in zip(model.parameters(), other.parameters(), strict=True):
        mine.data = new.data
    return model


def swapped_again_and_again(model, other):
    """Memory that was given back is given to the next."""
    for _ in range(9):
        for mine, new in zip(model.parameters(), other.parameters(), strict=True):
            mine.data = new.data.clone()
    return model


def replaced(model, other):
    return lambda images: torch.func.functional_call(model, dict(other.named_parameters()), images)


@pytest.mark.parametrize("prepared", [lambda model: model, copy.deepcopy, lambda model: model.double().float()])
@pytest.mark.parametrize("change", [averaged, stepped, copied, swapped, swapped_again_and_again, replaced])
@pytest.mark.parametrize("kind", ["msa_shift", "shift", "ternary"])
def test_weights_that_move_while_a_model_evaluates_have_their_codes(kind, change, prepared):
    """As with gradients, where codes are made anew: what optimizers, averages and functional calls change in eval."""
    spec = make_spec(kind) if kind == "msa_shift" else replace(POWERS, projection=kind, fit_steps=0)
    model, other = prepared(trained(spec).eval()), trained(spec, lr=5).eval()
    with torch.no_grad():
        before = model(IMAGES)
    changed = change(model, other)
    with_gradients = changed(IMAGES).detach()
    assert not torch.allclose(with_gradients, before, atol=1e-2)
    with torch.no_grad():
        torch.testing.assert_close(changed(IMAGES), with_gradients)


def test_what_turns_keys_is_not_lost():
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, num_heads=3, depth=1, qk_norm=True, num_classes=2
    )
    with pytest.raises(InputError, match=r"attn: what turns the keys .* set attention.qk=separate"):
        convert(model, make_spec("ecoformer_tuned", {"qk": "shared", "num_bits": 4, "num_anchors": 4}))
    eva = timm.models.Eva(img_size=32, patch_size=4, embed_dim=24, depth=1, num_heads=3, use_rot_pos_emb=True)
    with pytest.raises(InputError, match=r"attn: a rotation of keys"):
        convert(eva, make_spec("linear_sra"))


@pytest.mark.parametrize("projection", ["shift", "ternary"])
def test_a_weight_that_is_no_number_has_no_codes(projection):
    model = vit(make_spec("distilled", {**vars(POWERS), "projection": projection, "fit_steps": 0}))
    fit_hashes(model, IMAGES, seed=0)
    state = model.state_dict()
    state["blocks.0.attn.codes.weight"] = state["blocks.0.attn.codes.weight"].clone()
    state["blocks.0.attn.codes.weight"][0, 0] = float("nan")
    with pytest.raises(InputError, match=r"1 of 1152 weights of .* are NaN or infinite"):
        model.load_state_dict(state)
