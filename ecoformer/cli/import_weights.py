"""Turn published weights into a checkpoint of this project, and say what became of every key.

    python scripts/import_official.py pvt_v2_b0.pth --model pvt_v2_b0_ecoformer --out b0.pt
    python eval.py checkpoint=b0.pt data.root=DIR

Takes timm's weights, the official PVTv2, Twins and EcoFormer checkpoints (.pth, .pt, .bin, .safetensors), and .npz
files with keys "sd/...". Depths, widths, classes, code length and anchors follow from the weights. Exits with 0 only
when the file fills the whole model, with 1 when keys are missing or without a place (nothing is written), with 2 when
it cannot be used at all.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ecoformer.cli.arguments import Parser, given_path, in_order, out_checkpoint, script
from ecoformer.errors import InputError
from ecoformer.files import json_text

if TYPE_CHECKING:
    from ecoformer.config.schema import Config
    from ecoformer.models.official import ForeignWeights

IMAGENET_CLASSES = 1000
KINDS = ("msa", "ecoformer", "stock")


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("file", type=given_path, metavar="FILE")
    p.add_argument("--model", required=True, help="a timm name, with _msa or _ecoformer where the weights are such")
    p.add_argument(
        "--out", type=out_checkpoint, metavar="FILE.pt", help="checkpoint to write; without it, only the report"
    )
    p.add_argument(
        "--heads",
        type=in_order("whole numbers of at least 1, such as 1,2,5,8"),
        metavar="N,N,N,N",
        help="per stage (a plain ViT: one number), if the weights do not show them",
    )
    p.add_argument(
        "--classes", type=given_path, metavar="TXT", help="class names, one a line; 1000 classes: ImageNet's"
    )
    p.add_argument("--plain", action="store_true", help="as init.use_ema=false: of averaged and plain weights, these")
    p.add_argument("--format", choices=("table", "json"), default="table")


def run(args: argparse.Namespace) -> int:
    from ecoformer.models.official import read_foreign
    from ecoformer.run.saved import save_weights
    from ecoformer.run.start import foreign_run, model_of_run

    weights = read_foreign(args.file, use_ema=not args.plain)
    config, notes = settings(args, weights)
    try:
        run = foreign_run(weights, config, class_names(args, weights, config))
    except InputError:
        if weights.report.complete:
            raise
        show(args.format, weights, notes, config.model.kwargs)
        print(f"error: {args.file} does not fill {args.model}: nothing was written", file=sys.stderr)
        return 1
    model_of_run(run)  # refuses tensors that have the right names and other shapes
    if args.out is not None:
        save_weights(args.out, run)
        notes.append(f"written to {args.out}")
    show(args.format, weights, notes, config.model.kwargs)
    return 0


def settings(args: argparse.Namespace, weights: ForeignWeights) -> tuple[Any, list[str]]:
    """The config of the run that the weights stand for, and notes on what had to be assumed."""
    import timm
    import torch

    from ecoformer.config.schema import Config, DataConfig, ModelConfig
    from ecoformer.models.dims import arguments, num_classes_of
    from ecoformer.models.official import same_family

    stem, _, suffix = args.model.rpartition("_")
    backbone, kind = (stem, suffix) if suffix in KINDS else (args.model, None)
    found = weights.attention["name"]
    if kind is not None and kind != found:
        raise InputError(
            f"{args.file} holds {found} attention, --model {args.model} asks for {kind}: import it as "
            f"--model {backbone if found == 'stock' else f'{backbone}_{found}'} and convert it with init.checkpoint"
        )
    if not timm.is_model(backbone):
        raise InputError(f"--model {args.model} does not exist: see timm.list_models() for names")
    num_heads = args.heads or weights.meta.get("num_heads")
    with torch.device("meta"):
        stock = timm.create_model(backbone)  # its shapes alone are of interest
    if not same_family(weights, stock.state_dict()):
        raise InputError(
            f"{args.file} holds weights in the layout of {weights.layout}, --model {args.model} has another: name the "
            "model that they are of"
        )
    kwargs, notes = arguments(weights.tensors, stock, num_heads)
    num_classes = num_classes_of(weights.tensors, backbone)
    if num_classes == 0:
        notes.append("the weights have no classifier: nothing to evaluate, init.reset_head=true adds one in training")
    name = "imagenet" if num_classes == IMAGENET_CLASSES else "folder"
    data = DataConfig(name=name, img_size=weights.img_size, crop_pct=0.875, in_memory=False)
    own = timm.get_pretrained_cfg(backbone)
    if own is not None and weights.layout.startswith("timm"):
        # timm's own weights are evaluated as they were trained, the published ones at 224 of 256 pixels.
        data.crop_pct, data.interpolation = own.crop_pct, own.interpolation
        data.mean, data.std = list(own.mean), list(own.std)
    config = Config(name=args.model, model=ModelConfig(name=backbone, kwargs=kwargs), data=data)
    return config, notes


def class_names(args: argparse.Namespace, weights: ForeignWeights, config: Config) -> list[str] | None:
    """One name per output, or None where nobody says what they are."""
    from timm.data import ImageNetInfo

    from ecoformer.data.archives import read_names
    from ecoformer.models.dims import num_classes_of

    count = num_classes_of(weights.tensors, config.model.name)
    if args.classes is None:
        return list(ImageNetInfo().label_names()) if count == IMAGENET_CLASSES else None
    names = read_names(args.classes, f"--classes {args.classes}")
    if len(names) != count:
        raise InputError(f"--classes {args.classes} lists {len(names)} names, {args.file} has {count} classes")
    return names


def show(kind: str, weights: ForeignWeights, notes: list[str], kwargs: dict[str, Any]) -> None:
    report = weights.report
    if kind == "json":
        found: dict[str, Any] = {"file": str(weights.path), "layout": weights.layout, "attention": weights.attention}
        found |= {"model_kwargs": kwargs, "keys": asdict(report), "complete": report.complete}
        found["notes"] = [*weights.notes, *notes]
        print(json_text(found, indent=2))
        return
    print("\n".join(report.lines()))
    print(f"{weights.path}: {weights.layout} weights, attention {weights.attention}, differing dimensions {kwargs}")
    print(report.summary())
    for note in (*weights.notes, *notes):
        print(note)
