"""Stock attention that no other attention can be built from, by class, and why. Nothing is imported for it."""

from torch import nn

from ecoformer.nn.layout import full_name

_BIAS = "a bias for relative positions is added to its scores, and there is no place for it in codes of single tokens"
_CHANNELS = "it mixes channels, not tokens"
_LINEAR = "it is linear in the tokens already"
_POOLED = "its queries are pooled or strided, so it has fewer outputs than inputs"
_CLASS = "only the class token, or a query of its own, attends"
_DIFFERENCE = "it is the difference of two softmax attentions"
_CONVOLVED = "queries, keys or values come out of convolutions or other blocks, not of one Linear each"

_REASONS = {
    _BIAS: (
        "beit.Attention efficientformer.Attention gcvit.WindowAttentionGlobal levit.Attention "
        "levit.AttentionDownsample maxxvit.Attention2d maxxvit.AttentionCl swin_transformer.WindowAttention "
        "swin_transformer_v2.WindowAttention swin_transformer_v2_cr.WindowMultiHeadAttention tiny_vit.Attention "
        "vision_transformer_relpos.RelPosAttention vision_transformer_sam.Attention byobnet.SelfAttnBlock"
    ),
    "its heads are mixed with each other (talking heads), and a bias for relative positions is added": (
        "efficientformer_v2.Attention2d efficientformer_v2.Attention2dDownsample"
    ),
    "its heads are mixed with each other before and after the softmax (talking heads)": "cait.TalkingHeadAttn",
    "a learned gate mixes its weights with weights by position": "convit.GPSA",
    _CHANNELS: "davit.ChannelAttention davit.ChannelAttentionV2 edgenext.CrossCovarianceAttn xcit.XCA",
    _LINEAR: (
        "coat.FactorAttnConvRelPosEnc efficientvit_mit.LiteMLA mobilevit.LinearSelfAttention "
        "swiftformer.EfficientAdditiveAttention"
    ),
    _POOLED: "hiera.MaskUnitAttention hieradet_sam2.MultiScaleAttention mvitv2.MultiScaleAttention",
    _CLASS: "cait.ClassAttn crossvit.CrossAttention volo.ClassAttention",
    _CONVOLVED: (
        "_efficientnet_blocks.MobileAttention cpubone.ConvAttention csatv2.SpatialAttention iformer.SHMA shvit.SHSA "
        "efficientvit_msra.CascadedGroupAttention lowformer.ConvAttention nextvit.EfficientAttention"
    ),
    "its weights come from the token itself, without keys": "volo.OutlookAttention",
    _DIFFERENCE: "vision_transformer.DiffParallelScalingBlock",
    "its queries, keys, values and MLP come out of one Linear": "vision_transformer.ParallelScalingBlock",
    "two sets of tokens attend in one block, and what a fit learns from is one": "tnt.Attention",
    "its positions turn queries and keys in a way of its own": "gemma4_vit.Gemma4Attention",
    "it has no attention: focal modulation is a gated convolution": "focalnet.FocalModulation",
}
NO_READER = {f"timm.models.{name}": reason for reason, names in _REASONS.items() for name in names.split()}
NO_READER["timm.layers.diff_attention.DiffAttention"] = _DIFFERENCE
NO_READER |= {
    f"torchvision.models.swin_transformer.{name}": _BIAS
    for name in ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
}


def no_reader(model: nn.Module) -> str:
    """The attention of a model that cannot be read, and why, as clauses of a message; "" if there is none."""
    found = dict.fromkeys(type(module) for module in model.modules() if full_name(type(module)) in NO_READER)
    return "".join(f"{cls.__name__}: {NO_READER[full_name(cls)]}; " for cls in found)
