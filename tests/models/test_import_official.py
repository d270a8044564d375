"""Published checkpoints give the published logits, and every key of theirs is accounted for."""

from __future__ import annotations

import argparse
import json
import os

import numpy as np
import pytest
import timm
import torch

from ecoformer import EcoFormerSpec, convert, fit_hashes
from ecoformer.cli import import_weights as importer
from ecoformer.kinds import hash_layers
from ecoformer.models.dims import mlp_ratio
from ecoformer.run.start import model_of_run, read_run

BACKBONES = {"pvt": "pvt_v2_b0", "twins": "twins_svt_small"}
TINY_PVT = {"embed_dims": [16, 32, 40, 64], "depths": [1, 2, 1, 1], "mlp_ratios": [2, 2, 2, 2]}


def tiny_pvt(**options):
    return timm.create_model("pvt_v2_b0", num_classes=10, **TINY_PVT, **options)


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("kind", ["ecoformer", "msa"])
def test_logits_equal_the_published_code(golden, capsys, tmp_path, family, kind):
    path, state, images, logits = golden(f"{family}_tiny_{kind}")
    out = tmp_path / "imported.pt"
    assert importer.main([str(path), f"--model={BACKBONES[family]}_{kind}", f"--out={out}", "--format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    keys = found["keys"]
    assert found["complete"] and not keys["missing"] and not keys["unknown"]
    assert {*keys["used"], *keys["renamed"], *keys["dropped"]} == state.keys()
    assert all("projection_matrix" in key for key in keys["dropped"])
    assert len(keys["dropped"]) == sum("projection_matrix" in key for key in state)
    run = read_run(out)
    assert run.config.attention["name"] == kind and run.config.data.img_size == 64
    model = model_of_run(run).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, rtol=0, atol=1e-5)
    for layer in hash_layers(model).values():
        assert bool(layer.hash.fitted) and int(layer.hash.fit_count) == 1
        assert (layer.spec.num_bits, layer.spec.num_anchors, layer.spec.numerator) == (8, 8, "own_token")


def test_the_report_lists_every_key(golden, capsys):
    path, state, *_ = golden("pvt_tiny_ecoformer")
    assert importer.main([str(path), "--model=pvt_v2_b0_ecoformer"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "renamed  block4.0.attn.qkv.bias -> stages.3.blocks.0.attn.q.bias, stages.3.blocks.0.attn.kv.bias" in lines
    assert "renamed  block1.0.attn.fast_attention.ksh.mvec -> stages.0.blocks.0.attn.hash.mean" in lines
    dropped = "block1.0.attn.fast_attention.projection_matrix (the published code never uses it)"
    assert f"dropped  {dropped}" in lines
    assert "keys: 2 used as they are, 114 renamed, 4 dropped, 8 added, 0 unknown, 0 missing" in lines
    assert sum(line.split()[1] in state for line in lines if line.startswith(("used", "renamed", "dropped"))) == 120


WRAPPED = {
    "namespace": lambda sd: {
        "model": sd,
        "epoch": 29,
        "args": argparse.Namespace(lr=5e-5, output_dir="out", eval=False),
    },
    "state_dict": lambda sd: {"state_dict": sd, "best_acc": 70.4},
    "ddp": lambda sd: {"model": {f"module.{key}": value for key, value in sd.items()}},
    "bare": dict,
}


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files_in_every_wrapping(golden, tmp_path, wrapping, zipped):
    _, state, images, logits = golden("pvt_tiny_ecoformer")
    # Heads of the last stage, image size and top_k are in no shape; here they are the named model's and the default.
    path, out = tmp_path / "official.pth", tmp_path / "imported.pt"
    torch.save(WRAPPED[wrapping](state), path, _use_new_zipfile_serialization=zipped)
    assert importer.main([str(path), "--model=pvt_v2_b0_ecoformer", "--out", str(out)]) == 0
    run = read_run(out)
    assert run.config.data.img_size == 224 and run.config.attention["num_bits"] == 8
    if wrapping == "namespace" and zipped:
        with torch.no_grad():
            torch.testing.assert_close(model_of_run(run).eval()(images), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("extra", [[], ["--plain"]], ids=["averaged", "plain"])
def test_of_both_kinds_of_weights_an_option_chooses(golden, capsys, tmp_path, extra):
    _, state, *_ = golden("pvt_tiny_msa")
    averages = {key: value + 1 for key, value in state.items()}
    path, out = tmp_path / "both.pth", tmp_path / "out.pt"
    torch.save({"model": state, "model_ema": averages}, path)
    assert importer.main([str(path), "--model=pvt_v2_b0_msa", f"--out={out}", *extra]) == 0
    taken = state if extra else averages
    assert torch.equal(read_run(out).content["model"]["head.bias"], taken["head.bias"])
    said = "plain weights (model) were taken, averaged ones (model_ema) left aside"
    if not extra:
        said = "averaged weights (model_ema) were taken; init.use_ema=false takes model"
    assert said in capsys.readouterr().out.splitlines()


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["args", "model"])
def test_a_file_that_would_run_code_is_refused(refused, golden, tmp_path, where):
    _, state, *_ = golden("pvt_tiny_msa")
    proof, path = tmp_path / "it ran", tmp_path / "bad.pth"
    torch.save({"model": state, "args": argparse.Namespace(), where: Malicious(f"touch '{proof}'")}, path)
    message = refused(path, "--model=pvt_v2_b0_msa", "--out", tmp_path / "out.pt")
    assert message.startswith(f"{path} asks for objects other than tensors, plain containers and argparse.Namespace")
    assert not proof.exists()
    assert not (tmp_path / "out.pt").exists()
    # The one class that is let through is let through for one load only.
    torch.save(argparse.Namespace(), tmp_path / "namespace.pt")
    with pytest.raises(Exception, match="Namespace"):
        torch.load(tmp_path / "namespace.pt", weights_only=True)


def test_missing_and_unknown_keys_exit_with_1_and_write_nothing(golden, capsys, tmp_path):
    _, state, *_ = golden("twins_tiny_msa")
    path, out = tmp_path / "cut.pth", tmp_path / "out.pt"
    torch.save({key: value for key, value in state.items() if key != "blocks.1.0.attn.proj.bias"}, path)
    arguments = [str(path), "--model=twins_svt_small_msa", f"--out={out}", "--heads=2,2,4,4"]
    assert importer.main(arguments) == 1
    captured = capsys.readouterr()
    assert "missing  blocks.1.0.attn.proj.bias" in captured.out
    assert captured.err == f"error: {path} does not fill twins_svt_small_msa: nothing was written\n"
    torch.save({**state, "extra.weight": torch.zeros(1)}, path)
    assert importer.main(arguments) == 1
    assert "unknown  extra.weight (the model has no such part)" in capsys.readouterr().out
    assert not out.exists()


def test_a_plain_vits_dimensions_follow_from_its_weights_and_heads_from_the_option(refused, tmp_path, capsys):
    path, out = tmp_path / "vit.pth", tmp_path / "vit.pt"
    kwargs = {"embed_dim": 24, "depth": 2, "mlp_ratio": 2, "patch_size": 8}
    model = timm.create_model("vit_tiny_patch16_224", num_heads=4, img_size=32, num_classes=5, **kwargs)
    torch.save(model.state_dict(), path)
    assert importer.main([str(path), "--model=vit_tiny_patch16_224", "--heads=4", f"--out={out}"]) == 0
    assert "resized" not in capsys.readouterr().out
    told = read_run(out).config
    assert told.model.kwargs == {**kwargs, "num_heads": 4} and told.data.img_size == 32
    assert importer.main([str(path), "--model=vit_tiny_patch16_224"]) == 0
    assert "the weights do not show the number of heads: 3 taken from the named" in capsys.readouterr().out
    assert refused(path, "--model=vit_tiny_patch16_224", "--heads=5").startswith(
        "24 channels do not divide into 5 heads"
    )
    assert refused(path, "--model=vit_tiny_patch16_224", "--heads=1,2").endswith("a plain ViT has one: give one number")


@pytest.mark.parametrize(("hidden", "width"), [(246, 240), (123, 240), (480, 240), (100, 48)])
def test_a_ratio_gives_its_hidden_width_back(hidden, width):
    assert int(width * mlp_ratio(hidden, width)) == hidden


def test_weights_of_another_family_are_told_before_anything_else(refused, golden):
    path, *_ = golden("twins_tiny_msa")
    for name in ("pvt_v2_b0_msa", "vit_tiny_patch16_224_msa", "resnet18_msa", "xcit_nano_12_p8_224_msa"):
        assert refused(path, f"--model={name}") == (
            f"{path} holds weights in the layout of Twins, --model {name} has another: name the model that they are of"
        )


def test_what_files_say_wrongly_is_one_line(refused, golden, capsys, tmp_path):
    source, *_ = golden("pvt_tiny_msa")
    arrays, path = dict(np.load(source)), tmp_path / "told.npz"
    for meta, message in (
        ("[1]", "meta [1] is no mapping"),
        ('{"num_heads": "x"}', "meta has num_heads='x': give whole"),
    ):
        np.savez(path, **{**arrays, "meta": np.array(meta)})
        assert message in refused(path, "--model=pvt_v2_b0_msa")
    state, path = timm.create_model("pvt_v2_b0").state_dict(), tmp_path / "b0.pth"
    for key, value in (("head.weight", torch.zeros(())), ("stages.0.blocks.0.norm1.weight", torch.zeros(0))):
        torch.save({**state, key: value}, path)
        assert f"{key} has the shape {list(value.shape)}, where " in refused(path, "--model=pvt_v2_b0")
    torch.save({key: value for key, value in state.items() if ".mlp.fc1." not in key}, path)
    assert importer.main([str(path), "--model=pvt_v2_b0"]) == 1
    assert "missing  stages.0.blocks.0.mlp.fc1.weight" in capsys.readouterr().out


def test_weights_without_a_classifier_say_so(capsys, tmp_path):
    path = tmp_path / "b0.pth"
    torch.save(timm.create_model("pvt_v2_b0", num_classes=0).state_dict(), path)
    assert importer.main([str(path), "--model=pvt_v2_b0"]) == 0
    assert "no classifier: nothing to evaluate, init.reset_head=true adds one" in capsys.readouterr().out


def test_refusals(refused, golden, tmp_path):
    path, state, *_ = golden("pvt_tiny_msa")
    assert refused(path, "--model=pvt_v2_b0_ecoformer") == (
        f"{path} holds msa attention, --model pvt_v2_b0_ecoformer asks for ecoformer: import it as --model "
        "pvt_v2_b0_msa and convert it with init.checkpoint"
    )
    assert refused(path, "--model=pvt_v2_b9") == ("--model pvt_v2_b9 does not exist: see timm.list_models() for names")
    assert refused(path, "--model=pvt_v2_b0_msa", "--heads=1,2") == ("[1, 2] are heads of 2 stages, the weights have 4")
    assert "must be whole numbers of at least 1" in refused(path, "--model=pvt_v2_b0_msa", "--heads=1,x")
    assert refused(tmp_path / "no.pth", "--model=pvt_v2_b0").startswith(f"{tmp_path}/no.pth does not exist: give")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\n")
    assert refused(path, "--model=pvt_v2_b0_msa", f"--classes={names}") == (
        f"--classes {names} lists 2 names, {path} has 10 classes"
    )
    other = tmp_path / "weights.h5"
    other.write_bytes(b"x")
    assert refused(other, "--model=pvt_v2_b0").startswith(f"{other} is no known kind of weight file: give one of .pth")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(path.read_bytes()[:5000])
    assert refused(cut, "--model=pvt_v2_b0") == f"{cut} is truncated or damaged: download it again"
    for suffix in ("pth", "safetensors"):
        bad = tmp_path / f"bad.{suffix}"
        bad.write_bytes(b"<html>404</html>")
        assert str(bad) in refused(bad, "--model=pvt_v2_b0")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    assert "holds no state dict" in refused(tmp_path / "empty.pth", "--model=pvt_v2_b0")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    assert "holds none of the known layouts (its first key is conv1.weight)" in refused(
        tmp_path / "resnet.pth", "--model=pvt_v2_b0"
    )
    wrong = dict(state, **{"block1.0.attn.proj.bias": torch.zeros(3)})
    torch.save(wrong, tmp_path / "wrong.pth")
    assert "1 key of another shape (first stages.0.blocks.0.attn.proj.bias)" in refused(
        tmp_path / "wrong.pth", "--model=pvt_v2_b0_msa"
    )


def official_pvt_keys(state):
    """The keys of github.com/whai362/PVT for a timm state dict."""
    out = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "patch_embed":
            parts[0] = "patch_embed1"
        elif parts[0] == "stages" and parts[2] == "downsample":
            parts = [f"patch_embed{int(parts[1]) + 1}", *parts[3:]]
        elif parts[0] == "stages" and parts[2] == "blocks":
            parts = [f"block{int(parts[1]) + 1}", *parts[3:]]
        elif parts[0] == "stages":
            parts = [f"norm{int(parts[1]) + 1}", *parts[3:]]
        out[".".join(parts).replace("dwconv.", "dwconv.dwconv.")] = value
    return out


def test_official_pvt_weights_with_subsampled_attention(tmp_path):
    stock = tiny_pvt(sr_ratios=[8, 4, 4, 1]).eval()
    state = official_pvt_keys(stock.state_dict())
    assert "block3.0.attn.sr.weight" in state and "block1.0.mlp.dwconv.dwconv.bias" in state
    path, out = tmp_path / "pvt.pth", tmp_path / "imported.pt"
    torch.save(state, path)
    assert importer.main([str(path), "--model=pvt_v2_b0", "--out", str(out)]) == 0
    run = read_run(out)
    assert run.config.attention == {"name": "stock"}
    assert run.config.model.kwargs == {**TINY_PVT, "sr_ratios": [8, 4, 4, 1]}
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model_of_run(run).eval()(images), stock(images))


def test_our_own_layout_from_safetensors(tmp_path):
    import safetensors.torch

    model = tiny_pvt()
    convert(model, EcoFormerSpec(num_bits=4, num_anchors=6))
    fit_hashes(model, torch.randn(2, 3, 96, 96), seed=0)
    path, out = tmp_path / "model.safetensors", tmp_path / "imported.pt"
    safetensors.torch.save_file(model.state_dict(), path)
    assert importer.main([str(path), "--model=pvt_v2_b0_ecoformer", "--out", str(out)]) == 0
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(model_of_run(read_run(out)).eval()(images), model.eval()(images))


def test_thousand_classes_are_imagenets(tmp_path):
    path, out = tmp_path / "b0.bin", tmp_path / "imported.pt"
    torch.save(timm.create_model("pvt_v2_b0").state_dict(), path)
    assert importer.main([str(path), "--model=pvt_v2_b0", "--out", str(out)]) == 0
    run = read_run(out)
    assert (run.class_names[0], run.class_names[999]) == ("n01440764", "n15075141")
    assert (run.config.model.kwargs, run.config.data.name, run.config.data.crop_pct) == ({}, "imagenet", 0.9)
