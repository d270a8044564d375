"""A fit that changes parameters: the EMA model gets them too."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from fakes import NUM_CLASSES, FakeData, make_trainer

from ecoformer import convert
from ecoformer.config.schema import HashUpdateConfig
from ecoformer.kinds import DistilledHashSpec


def test_the_averaged_model_starts_from_what_was_fitted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = FakeData.img_size
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=size // 2, embed_dim=8, num_heads=2, depth=1, num_classes=NUM_CLASSES
    )
    convert(model, DistilledHashSpec(num_bits=2, fit_steps=2))
    before = model.blocks[0].attn.codes.weight.clone()
    trainer = make_trainer(tmp_path, model=model, epochs=0, hash_update=HashUpdateConfig(num_images=8))
    trainer.fit()
    own, averaged = trainer.model.blocks[0].attn, trainer.state.ema.module.blocks[0].attn
    assert not torch.equal(before, own.codes.weight) and own.is_fitted and averaged.is_fitted
    for mine, theirs in zip(own.state_dict().values(), averaged.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
