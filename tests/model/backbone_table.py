"""Which backbones convert and which are refused, found by trying: the table of docs/backbones.md.

`python tests/model/backbone_table.py` prints it.
"""

from torch import nn

from ecoformer.errors import InputError, counted
from ecoformer.kinds import EcoFormerSpec
from ecoformer.model.convert import convert
from ecoformer.model.create import create
from ecoformer.model.layers import attention_layers
from ecoformer.nn.no_reader import no_reader

REPRESENTATIVES = (
    "beit_base_patch16_224 botnet26t_256 cait_xxs24_224 caformer_s18 coat_tiny coatnet_0_rw_224 convit_tiny "
    "cpubone_b0_bfrobust crossvit_tiny_240 csatv2 davit_tiny deepseek_vit_412m deit3_small_patch16_224 "
    "edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 "
    "fastvit_sa12 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m hiera_tiny_224 iformer_t levit_128s lowformer_b0 "
    "maxvit_tiny_tf_224 mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap nest_tiny nextvit_small "
    "pit_ti_224 pvt_v2_b0 qwen3_vit_306m samvit_base_patch16 shvit_s1 swiftformer_xs swin_tiny_patch4_window7_224 "
    "swinv2_cr_tiny_224 swinv2_tiny_window8_256 tiny_vit_5m_224 tnt_s_legacy_patch16_224 twins_pcpvt_small "
    "twins_svt_small visformer_tiny vit_little_patch16_reg4_gap_256 vit_relpos_small_patch16_224 "
    "vit_small_patch14_dinov2 vit_small_patch16_dinov3 vit_small_patch16_rope_mixed_224 vit_tiny_patch16_224 "
    "volo_d1_224 xcit_nano_12_p16_224"
)
"""One model of timm for each kind of attention that its models have."""


def verdict(name: str) -> str:
    """What `convert` does with timm's model of that name, in a few words; nothing is downloaded or allocated."""
    model: nn.Module = create(name, device="meta")
    layers, left = attention_layers(model), no_reader(model).removesuffix("; ")
    try:
        convert(model, EcoFormerSpec())
    except InputError as error:
        reason = str(error).removeprefix(f"{layers[0].where}: ") if layers else left
        return f"refused: {reason or 'no attention that is known here'}"
    stages = sorted({layer.stage for layer in layers}) if layers[0].num_stages > 1 else []
    where = f" in stages {', '.join(map(str, stages))} of {layers[0].num_stages}" if stages else ""
    return f"converts: {counted(len(layers), 'layer')}{where}" + (f"; stays: {left}" if left else "")


def table(names: str = REPRESENTATIVES) -> str:
    """The verdict on each, as Markdown."""
    rows = [f"| `{name}` | {verdict(name)} |" for name in names.split()]
    return "\n".join(["| timm's model | |", "| --- | --- |", *rows])


if __name__ == "__main__":
    print(table())
