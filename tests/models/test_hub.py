"""Folders for timm and the hub: loaded back they compute the same, and a push that cannot be done says so."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import ecoformer.models
from ecoformer import fit_hashes
from ecoformer.cli import hub as script
from ecoformer.config.schema import CompressConfig, Config, DataConfig, ModelConfig
from ecoformer.model.checkpoint import save_checkpoint
from ecoformer.run.hub import _figures, model_card
from ecoformer.run.start import build_model, model_of_run, read_run

PVT = {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]}
TWINS = {"embed_dims": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}
HASH = {"num_bits": 4, "num_anchors": 4, "top_k": 2}
CASES = {
    "pvt_ecoformer": (ModelConfig("pvt_v2_b0", patch_stride=2, kwargs=PVT), {"name": "ecoformer", **HASH}, 32),
    "twins_msa": (ModelConfig("twins_svt_small", kwargs=TWINS), {"name": "msa"}, 64),
    "vit_some_layers": (
        ModelConfig("deit_tiny_patch16_224", kwargs={"embed_dim": 24, "depth": 3}),
        {"name": "ecoformer", **HASH, "layers": ["blocks.1.attn"]},
        64,
    ),
    "pvt_two_kinds": (
        ModelConfig("pvt_v2_b0", patch_stride=2, kwargs=PVT),
        {"name": "ecoformer", **HASH, "layers": [1, 2], "rest": "msa_shift"},
        32,
    ),
    "pvt_stock": (ModelConfig("pvt_v2_b0", kwargs=PVT), {"name": "stock"}, 64),
    "pvt_low_rank": (ModelConfig("pvt_v2_b0", patch_stride=2, kwargs=PVT), {"name": "msa"}, 32),
}


def checkpoint(folder: Path, case: str) -> Path:
    model, attention, size = CASES[case]
    config = Config(name=case, model=model, attention=attention, data=DataConfig(name="digits", img_size=size))
    if case == "pvt_low_rank":
        config.compress = CompressConfig(name="low_rank")
    net = build_model(config, 3).model
    fit_hashes(net, torch.randn(2, 3, size, size), seed=0)
    content = {
        "kind": "weights",
        "config": {"settings": asdict(config), "class_names": ["ant", "bee", "cat"]},
        "epoch": 7,
        "step": 70,
        "metrics": {"val_top1": 81.5},
        "model": dict(net.state_dict()),
    }
    save_checkpoint(folder / "best.pt", content)
    return folder / "best.pt"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, str]]:
    """written(case): a checkpoint, the folder made of it and what the command printed, once for all tests."""

    @cache
    def write(case: str) -> tuple[Path, Path, str]:
        folder, printed = tmp_path_factory.mktemp(case), io.StringIO()
        source, out = checkpoint(folder, case), folder / "hub"
        with redirect_stdout(printed):
            assert script.main([str(source), f"--out={out}", f"--name=Tiny {case}"]) == 0
        return source, out, printed.getvalue()

    return write


@pytest.mark.parametrize("case", CASES)
def test_timm_loads_it_back(written: Callable, case: str):
    source, out, printed = written(case)
    assert "largest difference of the logits 0.00e+00" in printed
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    ours = model_of_run(read_run(source)).eval()
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    size = CASES[case][2]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(theirs(images), ours(images))
    data = timm.data.resolve_model_data_config(theirs)
    assert (tuple(data["input_size"]), data["crop_pct"]) == ((3, size, size), 1.0)
    assert data["mean"] == pytest.approx((0.3056, 0.3056, 0.3056), abs=1e-3)  # digits'
    assert theirs.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    ("case", "reductions"),
    [
        ("pvt_ecoformer", [2, 4, 8, 16]),
        ("pvt_low_rank", [2, 4, 8, 16]),
        ("twins_msa", [4, 8, 16, 32]),
        ("vit_some_layers", [16, 16, 16]),
    ],
)
def test_a_folder_gives_feature_maps(written: Callable, case: str, reductions: list[int]):
    source, out, _ = written(case)
    ours = model_of_run(read_run(source)).eval()
    features = timm.create_model(f"local-dir:{out}", pretrained=True, features_only=True).eval()
    assert features.feature_info.reduction() == reductions
    size = CASES[case][2]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        maps, expected = features(images), ours.forward_intermediates(images, intermediates_only=True)
    assert [found.shape[-1] for found in maps] == [size // reduction for reduction in reductions]
    assert all(torch.equal(found, right) for found, right in zip(maps, expected, strict=True))


def test_another_head_and_no_weights(written: Callable):
    _, out, _ = written("twins_msa")
    model = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=5)
    assert model.head.weight.shape == (5, 128)
    weights = load_file(out / "model.safetensors")
    assert torch.equal(model.blocks[0][0].attn.qkv.weight, weights["blocks.0.0.attn.qkv.weight"])
    fresh = timm.create_model(f"local-dir:{out}")
    assert not torch.equal(fresh.head.weight, weights["head.weight"])
    assert ecoformer.models.ARCHITECTURE in timm.list_models()


def test_the_card_says_what_was_measured(written: Callable):
    _, out, _ = written("pvt_ecoformer")
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\npipeline_tag: image-classification\n")
    assert "# Tiny pvt_ecoformer\n" in card
    assert "- Accuracy: 81.50 % top-1 on the validation images of digits, 32 px, after 7 epochs." in card
    assert "pvt_v2_b0 with ecoformer attention (num_bits 4, num_anchors 4, top_k 2)" in card
    assert "mJ an image (paper convention, 45nm_fp32),\n  counted, not measured." in card
    config = json.loads((out / "config.json").read_text())
    assert (config["num_classes"], config["model_args"]["patch_stride"]) == (3, 2)


def test_the_card_of_a_run_stopped_within_an_epoch_states_no_accuracy(written: Callable):
    source, _, _ = written("pvt_ecoformer")
    run = read_run(source)
    run.content["training"] = {"position": {"steps": 3}}  # what was measured is of the epoch before
    card = model_card(run, "run", _figures(run, model_of_run(run)))
    assert "- Accuracy: not recorded in the checkpoint" in card


def test_a_push_without_a_connection_is_one_line(tmp_path: Path, capsys, monkeypatch):
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", offline)
    source, out = checkpoint(tmp_path, "pvt_stock"), tmp_path / "hub"
    assert script.main([str(source), f"--out={out}", "--push=me/tiny"]) == 2
    assert capsys.readouterr().err == (
        f"error: cannot push to me/tiny (no route to host): {out} is complete; log in with `hf auth login` and push it "
        f"later with `hf upload me/tiny {out}`\n"
    )
    uploads: list[Any] = []

    def upload(self: Any, **options: Any) -> str:
        uploads.append(options)
        return "url"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, **options: uploads.append(options))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert script.main([str(source), f"--out={tmp_path / 'two'}", "--push=me/tiny", "--private"]) == 0
    assert capsys.readouterr().out.endswith("url\n")
    assert uploads[0] == {"private": True, "exist_ok": True}
    assert (uploads[1]["repo_id"], uploads[1]["folder_path"]) == ("me/tiny", str(tmp_path / "two"))


def test_refusals(tmp_path: Path, one_line: Callable[..., str]):
    source = checkpoint(tmp_path, "pvt_stock")

    def refusal(*arguments: object) -> str:
        return one_line(script.main, *arguments).removeprefix("error: ").strip()

    assert refusal(source, "--out", tmp_path) == (
        f"--out {tmp_path} already exists and is not an empty folder: choose another one"
    )
    assert refusal(source, f"--out={tmp_path / 'x'}", "--private") == (
        "--private says how to push: add --push USER/NAME"
    )
    assert refusal(tmp_path / "no.pt", "--out=x").startswith(f"checkpoint {tmp_path}/no.pt does not exist")
