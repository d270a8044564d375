"""A converted backbone in semantic segmentation: PVTv2-B0 under a feature pyramid, on CamVid: docs/segmentation.md.

    python examples/segmentation.py run --data DIR --out OUT [--init RUN/best.pt] [--device cuda]
    python examples/segmentation.py run --data generated --size 96 96 --out OUT
    python examples/segmentation.py time --out OUT                   # adds milliseconds to OUT's table

DIR is CamVid as SegNet publishes it: train/, trainannot/, val/, ..., testannot/, PNG, masks of class numbers, 11 = void.
`generated` draws scenes instead: what a patch of ground is depends on whether something of its hue stands elsewhere.

Stock attention and MSA are trained for --steps each from the same start (of a run on images with --init, else random).
Each SETTING, "SOURCE/KIND:key=value,...", is the source's model with its attention converted and its codes fitted to
training images: mIoU (all images of --split together, void left out) without training and after --tune-steps. OUT
gets table.json, kept row by row, table.md and predictions.png.
"""

import argparse
import copy
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models._features import FeatureGetterNet
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from ecoformer import InputError, attention_layers, convert, fit_hashes
from ecoformer.cli.arguments import Parser, positive, script
from ecoformer.energy import count
from ecoformer.energy.profile_files import load_profile
from ecoformer.files import read_json, write_json, write_text
from ecoformer.files.table import Column, Table, render, saves, share
from ecoformer.fit.hashes import has_hashes
from ecoformer.lab.speed.throughput import forward_pass, interleaved_seconds
from ecoformer.model.create import create
from ecoformer.nn.specs import make_spec, split_setting
from ecoformer.report.figures import panels, save_figure
from ecoformer.run.start import model_of_run, read_run

CAMVID = "sky building pole road pavement tree sign fence car pedestrian cyclist".split()
SCENE = "sky wall ground disc box triangle pole twin single".split()
VOID, WIDTH, SHOWN = 11, 64, 4
SIZES = (480, 720, 1024)
SETTINGS = (
    *("stock/stock", "msa/msa", "msa/ecoformer", "msa/ecoformer_tuned", "msa/distilled:num_features=32"),
    *("stock/distilled:num_features=32", "msa/uniform", "msa/none"),
)
MEAN, DEVIATION = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None] * 255


class Segmenter(nn.Module):
    """The semantic branch of Panoptic FPN (Kirillov et al., CVPR 2019): levels of a pyramid, brought to the finest, added.

    Images (B, 3, Y, X) of any size to class scores (B, K, Y, X).
    """

    def __init__(self, backbone, num_classes):
        super().__init__()
        channels = backbone.feature_info.channels()
        self.backbone, self.pyramid = backbone, FeaturePyramidNetwork(channels, WIDTH)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.GroupNorm(16, WIDTH), nn.ReLU())
            for _ in channels
        )
        self.head = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, x):
        maps = self.pyramid({str(number): found for number, found in enumerate(self.backbone(x))}).values()
        maps = [level(found) for level, found in zip(self.levels, maps, strict=True)]
        finest = maps[0].shape[2:]
        total = sum(F.interpolate(found, finest, mode="bilinear", align_corners=False) for found in maps)
        return F.interpolate(self.head(total), x.shape[2:], mode="bilinear", align_corners=False)


def backbone_of(init):
    """PVTv2-B0 with timm's attention, giving its four maps, with the weights of a run or new ones."""
    if init is None:
        return create("pvt_v2_b0", features_only=True)
    run = read_run(init)
    kind, name = run.config.attention.get("name", "stock"), run.config.model.name
    if (name, kind) != ("pvt_v2_b0", "stock"):
        raise InputError(f"--init {init} is of {name} with attention={kind}: give a run of pvt_v2_b0 with stock attention")
    return FeatureGetterNet(model_of_run(run), out_indices=4)


def camvid(folder, split, size):
    """Images (N, 3, Y, X) and masks (N, Y, X) of a split, as bytes; `size` resizes them, None keeps them."""
    places = folder / split, folder / f"{split}annot"
    for place in places:
        if not place.is_dir():
            raise InputError(f"--data {folder} has no {place.name}/: give CamVid as SegNet lays it out, or `generated`")
    names = sorted(path.name for path in places[0].glob("*.png"))
    if not names:
        raise InputError(f"--data {folder}: {split}/ holds no PNG")
    found = []
    for name in names:
        if not (places[1] / name).is_file():
            raise InputError(f"--data {folder}: {split}/{name} has no mask {places[1].name}/{name}")
        image, mask = Image.open(places[0] / name).convert("RGB"), Image.open(places[1] / name)
        if mask.mode not in ("L", "P") or image.size != mask.size or np.asarray(mask).max() > VOID:
            raise InputError(
                f"--data {folder}: {places[1].name}/{name} is no mask of class numbers 0 to {VOID} of its image's size"
            )
        if size is not None:
            image, mask = image.resize(size[::-1], Image.Resampling.BILINEAR), mask.resize(size[::-1], 0)
        found.append((torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(np.array(mask))))
    if len({image.shape for image, _ in found}) > 1:
        raise InputError(f"--data {folder}: images of {split}/ have several sizes: give --size HEIGHT WIDTH")
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def scenes(number, size, seed):
    """Generated images and masks as `camvid` gives them: sky, wall and ground, things before them, patches of ground.

    Things and patches have a hue. A patch is a `twin` where a thing of its hue is anywhere in the image, else `single`.
    """
    rng, (height, width) = np.random.default_rng(seed), size
    y, x = np.mgrid[:height, :width] / min(size)
    images, masks = np.empty((2, number), dtype=object)
    for n in range(number):
        waves = [h + 0.04 * np.sin(rng.uniform(5, 12) * x + rng.uniform(0, 6)) for h in rng.uniform((0.2, 0.5), (0.35, 0.6))]
        mask = (y > waves[0]).astype(int) + (y > waves[1])
        image = rng.uniform(0.3, 0.7, (3, 3))[mask] + 0.1 * np.sin(40 * y)[..., None] * (mask == 1)[..., None]
        hues = (rng.uniform() + np.arange(6) / 6) % 1
        order = rng.permutation(6)
        for thing in range(6):  # three things with hues of their own, three patches with a hue of those or of others
            hue = hues[order[thing]] if thing < 3 else hues[order[rng.integers(3) + 3 * rng.integers(2)]]
            colour = 0.5 + 0.45 * np.cos(2 * np.pi * (hue + np.arange(3) / 3))
            radius, shape = rng.uniform(0.07, 0.12), rng.integers(4)
            across, down = x - rng.uniform(0.1, width / min(size) - 0.1), y - rng.uniform(*((0.1, 0.5) if thing < 3 else (0.7, 0.95)))
            inside = (
                np.hypot(across, down) < radius,
                np.maximum(abs(across), abs(down)) < 0.85 * radius,
                (down < radius) & (2 * abs(across) < down + radius),
                (abs(across) < 0.025) & (abs(down) < 2.5 * radius),
            )[shape if thing < 3 else 0]
            twin = any(hue == hues[order[other]] for other in range(3))
            image[inside], mask[inside] = colour, 3 + shape if thing < 3 else 7 if twin else 8
        edge = (mask != np.roll(mask, 1, 0)) | (mask != np.roll(mask, 1, 1))
        edge[0], edge[:, 0] = False, False
        images[n] = (255 * (image + rng.normal(0, 0.04, image.shape))).clip(0, 255).astype(np.uint8)
        masks[n] = np.where(edge, VOID, mask).astype(np.uint8)
    return torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2), torch.from_numpy(np.stack(list(masks)))
