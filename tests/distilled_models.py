"""Small models whose attention is far from uniform, what they look at, and settings of the distilled kinds."""

from dataclasses import replace

import timm
import torch

from ecoformer import convert
from ecoformer.kinds import DistilledHashSpec, DistilledSpec
from ecoformer.model.layers import attention_layers

SMALL = DistilledHashSpec(num_bits=8, fit_steps=25, fit_batch_size=4)
SHIFT = DistilledSpec(num_features=8, fit_steps=25, fit_batch_size=4, fit_lr=0.03)
TERNARY = replace(SHIFT, projection="ternary")
SHIFTED = replace(TERNARY, values="shift")
POWERS = replace(SHIFTED, projection="shift")


def images(count=8):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def vit(spec=None, depth=2, sharpness=12, num_classes=4):
    """Its attention is sharper than at initialisation, where it is almost uniform."""
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, num_heads=3, depth=depth, num_classes=num_classes
    )
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(sharpness)
    if spec is not None:
        convert(model, spec)
    return model.eval()


def pvt():
    torch.manual_seed(0)
    return timm.models.PyramidVisionTransformerV2(
        num_classes=3, depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2), mlp_ratios=(1, 1, 1, 1)
    ).eval()


def twins():
    torch.manual_seed(0)
    return timm.models.Twins(
        img_size=64,
        num_classes=3,
        embed_dims=(8, 16, 16, 16),
        num_heads=(1, 2, 2, 2),
        depths=(2, 1, 1, 1),
        mlp_ratios=(1, 1, 1, 1),
        sr_ratios=(4, 2, 1, 1),
        wss=(7, 7, 7, 7),
        block_cls=timm.models.twins.Block,
    ).eval()


def inputs_of(model, images):
    """What every attention layer is called with, by name."""
    caught = {}
    hooks = [
        layer.module.register_forward_pre_hook(lambda module, args, name=layer.name: caught.update({name: args}))
        for layer in attention_layers(model)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return caught
