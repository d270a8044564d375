"""timm models of each family that we convert, small enough to run in milliseconds."""

import timm


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
