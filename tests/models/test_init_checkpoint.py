"""init.checkpoint with files that others published: their attention, converted to the one asked for, and notes."""

from __future__ import annotations

import argparse

import pytest
import safetensors.torch
import timm
import torch

from ecoformer.config.schema import Config, DataConfig, InitConfig, ModelConfig
from ecoformer.errors import InputError
from ecoformer.kinds import EcoFormerAttention, MultiHeadSelfAttention
from ecoformer.run.start import build_model

TINY = {"embed_dims": [16, 32, 40, 64], "depths": [1, 2, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
ECOFORMER = {"name": "ecoformer", "num_bits": 8, "num_anchors": 8, "top_k": 4}


def start(path, attention, num_classes=10, *, name="pvt_v2_b0", kwargs=TINY, reset_head=False, img_size=64):
    config = Config(
        model=ModelConfig(name=name, kwargs=dict(kwargs)),
        attention=attention,
        data=DataConfig(name="digits", img_size=img_size),
        init=InitConfig(checkpoint=str(path), reset_head=reset_head),
    )
    return build_model(config, num_classes)


@pytest.fixture
def official(golden, tmp_path):
    """A fake of a published EcoFormer checkpoint."""
    _, state, *_ = golden("pvt_tiny_ecoformer")
    path = tmp_path / "pvt_v2_b0_ecoformer.pth"
    torch.save({"model": state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1.0)}, path)
    return path


def test_published_ecoformer_weights_go_on_as_they_are(golden, official):
    path, _, images, logits = golden("pvt_tiny_ecoformer")
    built = start(path, ECOFORMER)
    with torch.no_grad():
        torch.testing.assert_close(built.model.eval()(images), logits, rtol=0, atol=1e-5)
    assert built.origin == f"{path} (ecoformer -> ecoformer), epoch 0"
    assert built.notes == [
        f"{path}: official PVTv2 weights; "
        "keys: 2 used as they are, 114 renamed, 4 dropped, 8 added, 0 unknown, 0 missing"
    ]
    assert str(official) in start(official, {**ECOFORMER, "top_k": 10}, img_size=96).origin


def test_published_msa_weights_are_converted(golden):
    path, state, *_ = golden("twins_tiny_msa")
    kwargs = {"embed_dims": [16, 32, 64, 64], "depths": [2, 2, 2, 2], "mlp_ratios": [2] * 4, "num_heads": [2, 2, 4, 4]}
    model = start(path, ECOFORMER, name="twins_svt_small", kwargs=kwargs).model
    assert isinstance(model.blocks[2][1].attn, EcoFormerAttention)
    assert torch.equal(model.blocks[2][1].attn.to_qk.weight, state["blocks.2.1.attn.qkv.weight"][:64])
    assert isinstance(model.blocks[3][0].attn, MultiHeadSelfAttention)


def test_a_new_head_for_other_classes(golden, official):
    with pytest.raises(InputError, match=r"has 10 classes, the data have 3: set init.reset_head=true"):
        start(official, ECOFORMER, 3)
    built = start(golden("pvt_tiny_ecoformer")[0], ECOFORMER, 3, reset_head=True)
    assert built.model.head.weight.shape == (3, 64)
    assert "new classifier head: 10 -> 3 classes" in built.notes


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
def test_timms_weights(tmp_path, suffix):
    stock = timm.create_model("deit_tiny_patch16_224", num_classes=4, embed_dim=24, depth=2, img_size=64).eval()
    path = tmp_path / f"deit.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(stock.state_dict(), path)
    else:
        torch.save(stock.state_dict(), path)
    built = start(path, {"name": "msa"}, 4, name="deit_tiny_patch16_224", kwargs={"embed_dim": 24, "depth": 2})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(built.model.eval()(images), stock(images))
    assert "timm's ViT weights" in built.notes[0]


def test_weights_of_another_model_are_refused(official, golden, tmp_path):
    with pytest.raises(InputError) as caught:
        start(official, ECOFORMER, kwargs={})
    assert str(caught.value) == (
        f"{official} has embed_dims=[16, 32, 40, 64], model.name=pvt_v2_b0 has [32, 64, 160, 256]: "
        "name the model that the weights are for"
    )
    with pytest.raises(InputError, match="cannot be turned back into stock attention"):
        start(golden("pvt_tiny_msa")[0], {"name": "stock"})
    _, state, *_ = golden("pvt_tiny_msa")
    torch.save({k: v for k, v in state.items() if not k.startswith("norm4")}, tmp_path / "cut.pth")
    with pytest.raises(InputError) as caught:
        start(tmp_path / "cut.pth", {"name": "msa"})
    assert str(caught.value) == (
        f"{tmp_path}/cut.pth misses 2 keys (first stages.3.norm.weight): "
        "python scripts/import_official.py lists what becomes of every key"
    )


def test_a_damaged_checkpoint_of_ours_is_still_described_as_one(tmp_path):
    path = tmp_path / "best.pt"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="truncated or damaged: use another one, or train again"):
        start(path, ECOFORMER)
