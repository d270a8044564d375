"""timm models of each family that we convert, small enough to run in milliseconds, and the run of one of them."""

from dataclasses import asdict

import timm
import torch

from ecoformer import EcoFormerSpec, convert, fit_hashes
from ecoformer.config.schema import Config
from ecoformer.model.checkpoint import load_checkpoint, save_checkpoint

DIGITS_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 2}


def tiny_pvt(**kwargs):
    options = dict(
        embed_dims=(16, 32, 40, 64), num_heads=(1, 2, 5, 8), depths=(1, 2, 1, 1), mlp_ratios=(2, 2, 2, 2), num_classes=7
    )
    return timm.models.pvt_v2.PyramidVisionTransformerV2(**(options | kwargs)).eval()


def tiny_twins(**kwargs):
    options = dict(
        embed_dims=(16, 32, 64, 64),
        num_heads=(2, 2, 4, 4),
        depths=(2, 2, 2, 2),
        mlp_ratios=(2, 2, 2, 2),
        wss=(7, 7, 7, 7),
        num_classes=7,
    )
    return timm.models.twins.Twins(**(options | kwargs)).eval()


def tiny_vit(**kwargs):
    options = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=2, num_classes=7)
    return timm.models.vision_transformer.VisionTransformer(**(options | kwargs)).eval()


FAMILIES = {"pvt": (tiny_pvt, 96), "twins": (tiny_twins, 96), "vit": (tiny_vit, 32)}


def few_blocks(family):
    """The model of a family with no more blocks than it takes."""
    depths = {"pvt": {"depths": (1, 1, 1, 1)}, "twins": {"depths": (2, 1, 1, 1)}, "vit": {}}
    return FAMILIES[family][0](**depths[family])


def sharp_vit():
    """For digits; its attention is far from uniform, as it would be at initialisation."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **DIGITS_VIT)
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(30)
    return model.eval()


def digits_run(path, attention="msa", seed=0):
    """The checkpoint of a run on digits that was never trained."""
    config = Config()
    config.model.name, config.model.kwargs = "vit_tiny_patch16_224", dict(DIGITS_VIT)
    config.data.name, config.data.img_size = "digits", 16
    config.attention, config.seed = {"name": attention}, seed
    content = {"settings": asdict(config), "class_names": [str(digit) for digit in range(10)]}
    state = {"kind": "weights", "config": content, "epoch": 3, "step": 9, "metrics": None}
    save_checkpoint(path, {**state, "model": dict(sharp_vit().state_dict())})
    return path


def hashed_run(path):
    """The checkpoint of the same run with hash functions of other settings than the usual, fitted to noise."""
    content = load_checkpoint(digits_run(path))
    model, spec = sharp_vit(), EcoFormerSpec(num_bits=8, num_anchors=4, top_k=3)
    convert(model, spec)
    fit_hashes(model, torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), seed=0)
    content["config"]["settings"]["attention"] = {"name": spec.name, **asdict(spec)}
    kept = {key: value for key, value in content.items() if key not in ("format", "version")}
    save_checkpoint(path, {**kept, "model": dict(model.state_dict())})
    return path
