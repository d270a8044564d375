"""A converted backbone in segmentation: PVTv2-B0 under a feature pyramid; docs/segmentation.md.

    python examples/segmentation.py run --data DIR --out OUT [--init RUN/best.pt] [--device cuda]
    python examples/segmentation.py time --out OUT                   # adds milliseconds to OUT's table

DIR is CamVid as SegNet lays it out (train/, trainannot/, test/, testannot/, masks as PNG of class numbers, 11 = void);
or another folder laid out so, with the names of its K classes in classes.txt (void: K or 255); or photographs in
train/CLASS/ and val/CLASS/, of which mosaics are made. `generated` draws scenes instead; what a patch of ground is
depends on whether a thing of its hue stands anywhere.

Stock attention and MSA are trained for --steps each from the same start: the backbone of a run with --init, else
random. Each setting, SOURCE/KIND:key=value,..., is a source with its attention converted and codes fitted to training
images; mIoU is that of the test images, void left out, then and after --tune-steps of training. OUT gets table.json
and table.md, row by row, and predictions.png.
"""

import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from segmentation_data import VOID, read
from timm.models._features import FeatureGetterNet
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from tuning import converted, tune

from ecoformer import InputError
from ecoformer.cli.arguments import not_negative, positive, script
from ecoformer.energy import count
from ecoformer.files import read_json, write_json, write_text
from ecoformer.files.table import Column, Table, render, saves, share
from ecoformer.lab.speed.throughput import forward_pass, interleaved_seconds
from ecoformer.model.create import create
from ecoformer.report.figures import panels, save_figure
from ecoformer.run.start import model_of_run, read_run

WIDTH, SHOWN, SIZES = 64, 4, (480, 720, 1024)
PALETTE = "70aed3 b07050 777777 8a4fa3 d4a8c7 3f8f3f e0b020 c02020 2f4fa0 f07850 20b0a0"
MEAN, DEVIATION = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None] * 255
SETTINGS = ["stock/stock", "stock/distilled:num_features=32", "msa/msa", "msa/ecoformer", "msa/ecoformer_tuned"]
SETTINGS += ["msa/distilled:num_features=32", "msa/uniform", "msa/none"]


class Segmenter(nn.Module):
    """Images (B, 3, Y, X) to scores (B, K, Y, X), by Panoptic FPN's semantic branch (Kirillov et al., CVPR 2019)."""

    def __init__(self, backbone, num_classes):
        super().__init__()
        channels = backbone.feature_info.channels()
        self.backbone, self.pyramid = backbone, FeaturePyramidNetwork(channels, WIDTH)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(16, WIDTH), nn.ReLU()) for _ in channels
        )
        self.head = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, x):
        maps = self.pyramid({str(number): found for number, found in enumerate(self.backbone(x))}).values()
        maps = [level(found) for level, found in zip(self.levels, maps, strict=True)]
        total = sum(F.interpolate(found, maps[0].shape[2:], mode="bilinear") for found in maps)
        return F.interpolate(self.head(total), x.shape[2:], mode="bilinear")


def backbone_of(init):
    """PVTv2-B0 with timm's attention, giving its four maps, with the weights of a run or new ones."""
    if init is None:
        return create("pvt_v2_b0", options={"features_only": True})
    run = read_run(init)
    name, kind = run.config.model.name, run.config.attention.get("name", "stock")
    if (name, kind) != ("pvt_v2_b0", "stock"):
        raise InputError(f"--init {init} is {name} with attention={kind}: give a run of pvt_v2_b0, attention=stock")
    return FeatureGetterNet(model_of_run(run), out_indices=4)


def ready(images, args):
    return ((images - MEAN) / DEVIATION).to(args.device)


def train(model, images, masks, steps, lr, args):
    """`tune` on batches of images, every other one mirrored."""

    def loss_of(step, generator):
        some = torch.randint(len(images), (args.batch,), generator=generator)
        x, target = ready(images[some], args), masks[some].long().to(args.device)
        if step % 2:
            x, target = x.flip(-1), target.flip(-1)
        loss = F.cross_entropy(model(x), target, ignore_index=VOID)
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
        return loss

    tune(model, loss_of, steps, lr, args.seed)


@torch.no_grad()
def predict(model, images, args):
    """The likeliest class of every pixel, (N, Y, X), as bytes."""
    return torch.cat([model.eval()(ready(some, args)).argmax(1).byte().cpu() for some in images.split(args.batch)])


def class_ious(found, masks, num_classes):
    """(K,): pixels of a class that are found over all that are its or are taken for it, of all images together.

    Void pixels are left out. NaN: no mask has the class.
    """
    kept = masks != VOID
    pairs = masks[kept].long() * num_classes + found[kept]
    confusion_KK = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).double()
    hits, pixels = confusion_KK.diagonal(), confusion_KK.sum(dim=1)
    return (hits / (pixels + confusion_KK.sum(dim=0) - hits)).masked_fill(pixels == 0, float("nan"))


def costs(model):
    """Modelled picojoules of one square image: of all, and of what runs inside of attention layers."""
    found = {}
    for convention in ("paper", "audited"):
        for size in SIZES:
            ledger = count(model, size, convention=convention)
            found[f"{convention}_{size}_pj"] = ledger.energy_pj("45nm_fp32")
            found[f"{convention}_{size}_attention_pj"] = ledger.attention(projections=True).energy_pj("45nm_fp32")
    return found


def segment(args):
    kind, classes, (images, masks), test = read(args.data, args.size, args.scenes)
    size = tuple(images.shape[2:])
    settings = [setting.partition("/")[::2] for setting in args.settings]
    torch.manual_seed(args.seed)
    start = Segmenter(backbone_of(args.init), len(classes))
    for source, setting in settings:  # what does not fit is said before the training
        if source not in ("stock", "msa"):
            raise InputError(f"--settings: {source}/{setting} must begin with stock/ or msa/")
        converted(start, setting, size)
    used = {key: getattr(args, key) for key in ("steps", "tune_steps", "batch", "fit", "lr", "seed")}
    used |= {"data": kind, "init": args.init is not None, "size": size}
    few = ready(images[:: -(-len(images) // args.fit)], args)  # from all of it: neighbours are frames of one film
    sources, rows, shown = {}, [], []
    for source, setting in settings:
        if source not in sources:
            sources[source] = converted(start, source, size).to(args.device)
            train(sources[source], images, masks, args.steps, args.lr, args)
        model = converted(sources[source], setting, size, few)
        rows.append({"setting": f"{source}/{setting}", "attention": setting, **costs(model)})
        for suffix, steps in (("", 0), *([("_tuned", args.tune_steps)] if args.tune_steps else [])):
            train(model, images, masks, steps, args.lr / 5, args)
            found = predict(model, test[0], args)
            ious = class_ious(found, test[1], len(classes))
            rows[-1][f"miou{suffix}"] = float(ious.nanmean())
            rows[-1][f"ious{suffix}"] = dict(zip(classes, ious.tolist(), strict=True))
            print(f"{source}/{setting}: mIoU{suffix} {rows[-1][f'miou{suffix}']:.3f}", flush=True)
        shown.append(found[:SHOWN])
        keep(args.out, {"run": {**used, "train": len(images), "test": len(test[0])}, "rows": rows})
        picture(args.out / "predictions.png", *test, shown, rows)


def picture(out, images, masks, shown, rows):
    """The first test images, their masks, and what each row's model makes of them in the end."""
    colours = np.resize([list(bytes.fromhex(colour)) for colour in PALETTE.split()], (256, 3)).astype(np.uint8)
    colours[VOID] = 255
    heads = ["image", "mask", *(row["setting"].partition(":")[0] for row in rows)]
    figure, axes = panels(len(shown[0]), len(heads), (1.5 * len(heads), 1.4 * len(shown[0])))
    for number, axis in enumerate(axes):
        line, column = divmod(number, len(heads))
        parts = [images[line].permute(1, 2, 0), *(colours[found[line]] for found in (masks, *shown))]
        axis.imshow(parts[column])
        axis.set_axis_off()
        axis.set_title(heads[column] if line == 0 else "", fontsize=7)
    save_figure(figure, out)


def time(args):
    """Median milliseconds of one square image, the models of OUT's table, with new weights, in turns."""
    kept = read_json(args.out / "table.json", "table of this example")
    start, few = Segmenter(backbone_of(None), len(kept["rows"][0]["ious"])), torch.randn(2, 3, 96, 96)
    models = [converted(start, row["attention"], 96, few, most_steps=2).to(args.device) for row in kept["rows"]]
    for size in SIZES:
        image = torch.randn(1, 3, size, size, device=args.device)
        passes = {str(number): forward_pass(model, image) for number, model in enumerate(models)}
        for row, seconds in zip(kept["rows"], interleaved_seconds(passes, image.device).values(), strict=True):
            row[f"ms_{size}"] = statistics.median(seconds) * 1e3
    keep(args.out, kept)


def keep(out, content):
    rows, largest = content["rows"], SIZES[-1]
    columns = [Column("from/attention", "setting", left=True), share("mIoU", "miou")]
    columns += [share("mIoU, trained on", "miou_tuned")] if "miou_tuned" in rows[0] else []
    for convention in ("paper", "audited"):
        columns += [Column(f"mJ {convention}, {size} px", f"{convention}_{size}_pj", "{:.1f}", 1e9) for size in SIZES]
    for kind in ("stock", "msa"):
        columns.append(saves(f"audited, {largest} px, saves vs {kind}", rows, kind, f"audited_{largest}_pj"))
    columns += [Column(f"ms, {size} px", f"ms_{size}", "{:.0f}") for size in SIZES if f"ms_{size}" in rows[0]]
    write_json(out / "table.json", content)
    write_text(out / "table.md", render(Table(columns, rows), "md") + "\n")


NUMBERS = {
    "steps": (positive, 2000, "of the two sources"),
    "tune-steps": (int, 400, "of every row afterwards; 0: none"),
    "batch": (positive, 8, "images a step"),
    "fit": (positive, 32, "training images, at most, that codes are fitted to"),
    "scenes": (positive, 1000, "or mosaics to train on; a fifth of that to test on"),
    "seed": (int, 0, "of weights and batches"),
}


def run(args):
    {"run": segment, "time": time}[args.part](args)
    return 0


@script(__name__, __doc__)
def main(p):
    p.add_argument("part", choices=("run", "time"))
    p.add_argument("--out", type=Path, required=True, help="folder for what it leaves")
    p.add_argument("--data", default="generated", help="folder as above, or `generated` (default)")
    p.add_argument(
        "--size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of images; 96 96 where there are no masks"
    )
    p.add_argument("--init", type=Path, metavar="RUN", help="best.pt of a stock pvt_v2_b0: its backbone's weights")
    p.add_argument("--settings", nargs="+", default=SETTINGS, help=f"default: {' '.join(SETTINGS)}")
    p.add_argument("--lr", type=not_negative, default=1e-3, help="of the sources, five times that of the rows (1e-3)")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    for name, (kind, default, meaning) in NUMBERS.items():
        p.add_argument(f"--{name}", type=kind, default=default, help=f"{meaning} ({default})")


if __name__ == "__main__":
    raise SystemExit(main())
