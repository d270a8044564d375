"""Exported files compute what eager computes, and say so."""

import importlib.util
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.models import register_model

from ecoformer import EcoFormerSpec, convert
from ecoformer.cli import export as script
from ecoformer.run import export

SCRIPT = Path(__file__).parents[2] / "scripts" / "export.py"


def difference(text):
    return float(re.search(r"largest difference to eager (\S+)", text)[1])


@register_model
def pvt_v2_tiny(pretrained=False, **options):
    """A block in the second stage and in the last, so that a test of its export takes seconds."""
    return timm.create_model("pvt_v2_b0", depths=(0, 1, 0, 1), embed_dims=(8, 16, 40, 64))


@register_model
def pvt_v2_tiny_hashed(pretrained=False, **options):
    model = pvt_v2_tiny()
    convert(model, EcoFormerSpec())
    return model


SLOW = [
    pytest.param(name, extra, marks=pytest.mark.slow)
    for name, extra in (("pvt_v2_b0_ecoformer", []), ("pvt_v2_b0_ecoformer", ["--dynamic-size"]))
]


@pytest.mark.parametrize(("name", "extra"), [*SLOW, ("pvt_v2_tiny_hashed", ["--dynamic-size"])])
def test_torch_export(capsys, tmp_path, name, extra):
    out = tmp_path / "model.pt2"
    assert script.main([name, "--format=torch_export", f"--out={out}", "--img-size=96", *extra]) == 0
    captured = capsys.readouterr()
    assert difference(captured.out) < 1e-5
    assert "1x3x96x96, 3x3x96x96" in captured.out
    assert "not trained" in captured.err
    with torch.device("meta"):
        weights = timm.create_model(name).parameters()
    assert out.stat().st_size > 4 * sum(weight.numel() for weight in weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pvt_v2_b0_ecoformer", "pvt_v2_b0_distilled_hash"])
@pytest.mark.parametrize("extra", [[], ["--dynamic-size"]], ids=["fixed", "dynamic"])
def test_onnx(capsys, tmp_path, name, extra):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    out = tmp_path / "model.onnx"
    assert script.main([name, "--format=onnx", f"--out={out}", "--img-size=96", *extra]) == 0
    assert difference(capsys.readouterr().out) < 1e-4


def test_a_difference_above_the_tolerance_is_an_error(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "reopen", lambda path, kind: lambda batch: torch.full((), 9.0))
    arguments = ["pvt_v2_tiny", "--format=torch_export", f"--out={tmp_path / 'm.pt2'}", "--img-size=64"]
    assert script.main([*arguments, "--tolerance=1"]) == 1
    assert "do not use this file" in capsys.readouterr().err
    monkeypatch.setattr(
        export, "reopen", lambda path, kind: lambda batch: torch.full((), 0.0 if len(batch) == 1 else torch.nan)
    )
    assert script.main([*arguments, "--tolerance=9"]) == 1  # NaN of one batch is not lost among the others


def test_a_model_with_batch_norm_of_one_place(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export", lambda model, size, args: size)
    assert script.main(["resnet18", "--format=torch_export", f"--out={tmp_path / 'm.pt2'}", "--img-size=16"]) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope", "--format=torch_export", "--out=x"], "neither a file nor a timm model"),
        (["pvt_v2_b0_ecoformer", "--format=torch_export", "--out=x", "--img-size=64"], "16 tokens < num_anchors=25"),
        (["pvt_v2_b0", "--format=torch_export", "--out=x", "--img-size=16"], "does not accept 16x16 images"),
        (["pvt_v2_b0", "--out=x"], "--format"),
        (["pvt_v2_b0", "--img-size=0"], "'0' must be a whole number of at least 1"),
        (["pvt_v2_b0", "--tolerance=nan"], "'nan' must be a number of at least 0"),
        (["pvt_v2_b0", "--tolerance=-1"], "'-1' must be a number of at least 0"),
        (["pvt_v2_b0", "--seed=4294967296"], "must be a whole number between 0 and 4294967295"),
        (
            ["vit_tiny_patch16_224", "--format=torch_export", "--out=x", "--dynamic-size"],
            "--dynamic-size: VisionTransformer is not the same program at every size (You marked 32*height_by_32 as "
            "dynamic but your code specialized it to be a constant (224)): leave it out and export each size with",
        ),
        ([str(SCRIPT), "--format=torch_export", "--out=x"], "export.py"),
    ],
)
def test_refusals(one_line, arguments, message):
    assert message in one_line(script.main, *arguments)


def test_missing_packages_are_named(one_line, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'ecoformer[export]'" in one_line(script.main, "pvt_v2_b0", "--format=onnx", "--out=x")
