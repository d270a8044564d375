"""One timm entrypoint for every converted model, so that what was exported loads back by timm's own means.

import ecoformer.models
timm.create_model("local-dir:DIR", pretrained=True)
"""

from typing import Any

from timm.models import load_pretrained, register_model, resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import nn

from ecoformer.kinds import make_spec
from ecoformer.model.convert import convert
from ecoformer.model.create import create
from ecoformer.model.low_rank import take_ranks
from ecoformer.nn.inputs import input_size
from ecoformer.nn.specs import split_setting

ARCHITECTURE = "converted_backbone"


@register_model
def converted_backbone(
    pretrained: bool = False,
    *,
    backbone: str = "pvt_v2_b0",
    attention: dict[str, Any] | None = None,
    layers: list[str] | None = None,
    rest: str | None = None,
    ranks: dict[str, int] | None = None,
    patch_stride: int | None = None,
    img_size: int | None = None,
    pretrained_cfg: dict[str, Any] | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    features_only: bool = False,
    out_indices: int | tuple[int, ...] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A timm backbone with another attention. `pretrained` loads the weights that `pretrained_cfg` points to.

    Args:
        attention: `name` and options of an attention kind, as in a config; None: the stock one.
        layers: names of the layers to convert; None: those that `convert` takes by default.
        rest: what the others become, "KIND:key=value,..."; None: they stay stock.
        ranks: of the layers with low-rank weights, by name.
        features_only, out_indices: as in timm; by default the maps of the last four stages, or of the last four blocks
            of a plain ViT.
        pretrained_model_args: what timm passes with a source; the same as the other arguments here.
        img_size: pixels; sets the size of models with a fixed one, and checks the attention's token counts.
        kwargs: further arguments of timm.create_model.
    """
    cfg = resolve_pretrained_cfg(ARCHITECTURE, pretrained_cfg or {"architecture": ARCHITECTURE}, pretrained_cfg_overlay)
    kwargs.setdefault("num_classes", cfg.num_classes)
    model = create(backbone, key="backbone", img_size=img_size, patch_stride=patch_stride, options=kwargs)
    options = dict(attention or {"name": "stock"})
    spec = make_spec(options.pop("name"), options)
    if spec is not None:
        chosen = None if layers is None else lambda module, name: name in layers
        others = None if rest is None else make_spec(*split_setting(rest))
        convert(model, spec, chosen, input_size(model, img_size), rest=others)
    take_ranks(model, ranks or {})
    model.pretrained_cfg = model.default_cfg = cfg.to_dict()
    if pretrained:
        load_pretrained(model, cfg.to_dict(), kwargs["num_classes"], kwargs.get("in_chans", 3), cache_dir=cache_dir)
    if features_only:
        # It asks the model for its maps, so the weights keep their names, and a stride that was set is known to it.
        info: Any = model.feature_info
        net = FeatureGetterNet(model, min(4, len(info)) if out_indices is None else out_indices)
        net.pretrained_cfg = net.default_cfg = cfg.to_dict()
        return net
    return model
