"""Published weights of another image size, window or patch are resized as timm does, and a note says so."""

from __future__ import annotations

import pytest
import torch

from ecoformer.cli import import_weights as importer
from ecoformer.config.schema import Config, DataConfig, InitConfig, ModelConfig
from ecoformer.model.create import create
from ecoformer.run.start import build_model, read_run

VIT = ("deit_tiny_patch16_224", {"embed_dim": 24, "depth": 1, "num_heads": 3})
BEIT = ("beit_base_patch16_224", {"embed_dim": 24, "depth": 1, "num_heads": 3})
SWIN = ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)})


def configured(model, size, path=None, **kwargs):
    name, given = model
    return Config(
        model=ModelConfig(name=name, kwargs={**given, **kwargs}),
        data=DataConfig(name="folder", img_size=size),
        init=InitConfig(checkpoint=path),
    )


@pytest.mark.parametrize(
    ("model", "then", "now", "said"),
    [
        (VIT, 32, 64, "position embedding resized for 64 px images, the weights were trained on 32 px"),
        (BEIT, 32, 64, "blocks.0.attn.relative_position_bias_table, 12 x 3 -> 52 x 3"),
        (SWIN, 56, 112, "2 position or patch embeddings resized as timm does (layers.0.blocks.0.attn.relative"),
    ],
    ids=["vit", "beit", "swin"],
)
def test_other_image_sizes_are_resized_as_timm_does(tmp_path, model, then, now, said):
    name, kwargs = model
    old = {"window_size": 4} if model is SWIN else {}
    state = create(name, img_size=then, options={"num_classes": 3, **kwargs, **old}).state_dict()
    torch.save(state, tmp_path / "w.pth")
    built = build_model(configured(model, now, str(tmp_path / "w.pth")), 3)
    assert any(said in note for note in built.notes), built.notes
    expected = create(name, img_size=now, options={"num_classes": 3, **kwargs})
    filter_fn = vars(__import__(type(expected).__module__, fromlist=["_"]))["checkpoint_filter_fn"]
    expected.load_state_dict(filter_fn(dict(state), expected))
    for key, value in expected.state_dict().items():
        assert torch.equal(built.model.state_dict()[key], value), key


def test_another_patch_is_resized_with_the_positions(tmp_path):
    name, kwargs = VIT
    state = create(name, img_size=32, options={"num_classes": 3, "patch_size": 8, **kwargs}).state_dict()
    torch.save(state, tmp_path / "w.pth")
    built = build_model(configured(VIT, 32, str(tmp_path / "w.pth")), 3)
    assert any("2 position or patch embeddings resized as timm does (pos_embed" in note for note in built.notes)
    assert built.model.pos_embed.shape == (1, 5, 24) and built.model.patch_embed.proj.weight.shape[-1] == 16
    assert torch.equal(built.model.head.weight, state["head.weight"])


def test_timms_file_brings_timms_settings_of_the_data(tmp_path):
    name = "vit_tiny_patch16_224"  # trained with mean = std = 0.5, crop 0.9
    torch.save(create(name, options={"num_classes": 3}).state_dict(), tmp_path / "w.pth")
    assert build_model(configured((name, {}), 224, str(tmp_path / "w.pth")), 3).from_timm
    assert importer.main([str(tmp_path / "w.pth"), f"--model={name}", f"--out={tmp_path / 'out.pt'}"]) == 0
    data = read_run(tmp_path / "out.pt").config.data
    assert (data.mean, data.std, data.crop_pct) == ([0.5] * 3, [0.5] * 3, 0.9)
