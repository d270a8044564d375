"""What the first calls of somebody new meet: names that the pages use, arguments of another kind, a forgotten fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import ecoformer
from ecoformer import EcoFormerSpec, InputError, MSASpec, convert
from ecoformer.nn.specs import make_spec

DOCS = Path(__file__).parents[2] / "docs"


def test_what_the_pages_import_is_there() -> None:
    """Every name of `from ecoformer import ...`, and every spec that a block with one calls."""
    blocks = [
        block for page in DOCS.glob("*.md") for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    ]
    used = set()
    for block in blocks:
        if imported := re.findall(r"^from ecoformer import (.+)$", block, re.M):
            used |= {*", ".join(imported).split(", "), *re.findall(r"\b(\w+Spec)\(", block)}
    assert {"DistilledSpec", "EcoFormerSpec", "MSASpec", "convert", "fit_hashes"} <= used
    assert [name for name in sorted(used) if not hasattr(ecoformer, name)] == []


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        ("pvt_v2_b0", MSASpec(), "convert: 'pvt_v2_b0' is no Module: create the model first"),
        (nn.Linear(2, 2), "ecoformer", "convert: 'ecoformer' is no AttentionSpec: give one, as EcoFormerSpec()"),
        (nn.Linear(2, 2), EcoFormerSpec, "EcoFormerSpec'> is no AttentionSpec"),
        (nn.Linear(2, 2), None, "convert: None is no AttentionSpec"),
    ],
    ids=["name", "kind", "class", "none"],
)
def test_what_is_no_model_and_no_spec_is_one_line(model: Any, spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        convert(model, spec)


def test_a_forgotten_fit_names_a_function_that_is_there() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=1, num_heads=2).eval()
    convert(model, EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2))
    with pytest.raises(InputError, match="never fitted") as caught, torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    package, _, name = re.findall(r"call ([\w.]+)\(", str(caught.value))[0].rpartition(".")
    assert package == "ecoformer" and callable(getattr(ecoformer, name))


def small_vit() -> nn.Module:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=5
    )
    return model.eval()


SPEC = EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"images": IMAGES.numpy()},
            r"images=array.* is no tensor: give a batch as one, as next",
        ),
        ({"images": [(IMAGES, None)]}, r"^fit_hashes: images=\[.* is no tensor: "),
        (
            {"images": IMAGES[0]},
            r"does not accept an input of shape \(3, 32, 32\): .*; give images \(B, C, H, W\), norm",
        ),
        ({"images": IMAGES.byte()}, r"does not accept 32x32 images: .*unsigned char.*; give images \(B, C, H, W\)"),
        (
            {"images": {"x": IMAGES}},
            r"is no tensor: .*, for a model of other inputs a module around it",
        ),
        ({"images": IMAGES[:, :, :8]}, r"does not accept 8x32 images: .*doesn't match model \(32\); give images"),
        ({"images": IMAGES[:0]}, r"images is float32 \(0, 3, 32, 32\) on cpu: give an image or more"),
        ({"held_out": IMAGES[..., :8]}, r"held_out is float32 \(2, 3, 32, 8\) on cpu: give .*, held_out ones alike$"),
        ({"images": IMAGES.to("meta")}, r"images is float32 \(2, 3, 32, 32\) on meta: .* not on meta"),
        ({"held_out": IMAGES.numpy()}, r"^fit_hashes: held_out=array"),
        ({"seed": 1.5}, r"^fit_hashes: seed=1\.5 is no whole number"),
        ({"model": "vit_tiny"}, r"^fit_hashes: 'vit_tiny' is no Module"),
        ({"model": nn.Linear(2, 2, device="meta")}, r"^fit_hashes: weight is on meta, without values: load weights f"),
    ],
    ids=[
        "numpy",
        "loader",
        "one",
        "uint8",
        "dict",
        "size",
        "none",
        "held-out-size",
        "meta",
        "held-out-numpy",
        "seed",
        "name",
        "model-on-meta",
    ],
)
def test_what_a_fit_cannot_take_is_one_line(settings: dict[str, Any], message: str) -> None:
    model = small_vit()
    convert(model, SPEC)
    with pytest.raises(InputError, match=message) as caught:
        ecoformer.fit_hashes(**{"model": model, "images": IMAGES, "seed": 0, **settings})
    assert "\n" not in str(caught.value)
    assert not model.get_submodule("blocks.0.attn").is_fitted


def test_a_defect_of_a_fit_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_vit()
    convert(model, SPEC)
    attention = model.get_submodule("blocks.0.attn")
    monkeypatch.setattr(type(attention), "fit_hash", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ecoformer.fit_hashes(model, IMAGES, 0)


def test_numbers_of_numpy_are_numbers() -> None:
    spec = EcoFormerSpec(num_bits=np.int64(4), num_anchors=np.int32(4), top_k=np.uint8(2), fit_lr=np.float32(0.5))  # type: ignore[arg-type]
    assert repr(spec) == repr(EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2, fit_lr=spec.fit_lr))
    model = small_vit()
    assert convert(model, SPEC, img_size=np.int64(32)).replaced[0].num_tokens == 17  # type: ignore[arg-type]
    ecoformer.fit_hashes(model, IMAGES, np.int64(0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"attention\.num_features=True must be .* at least 1, or null"):
        make_spec("performer", {"num_features": True})


@pytest.mark.parametrize("stride", [2.0, True, "2", 0])
def test_a_stride_that_is_no_whole_number_is_one_line(stride: Any) -> None:
    with pytest.raises(InputError, match=rf"^model\.patch_stride={stride!r} is not possible: PVTv2 takes 1 to 6$"):
        ecoformer.set_patch_stride(timm.create_model("pvt_v2_b0"), stride)


def test_what_has_no_attention_layers_because_it_is_no_model_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^'pvt_v2_b0' is no Module: give a model$"):
        ecoformer.attention_layers("pvt_v2_b0")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["blocks.0", ["blocks.0"], 3])
def test_a_filter_that_is_no_function_is_one_line(given: Any) -> None:
    with pytest.raises(InputError, match=r"^filter_fn=.* is no function of \(module, name\)"):
        convert(small_vit(), SPEC, given)
