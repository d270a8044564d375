"""CamVid from a folder, and generated scenes in its place: images (N, 3, Y, X) and masks (N, Y, X), as bytes.

Classes are numbers in the order of CAMVID or SCENE; 11 is void, pixels that people left out.
"""

import numpy as np
import torch
from PIL import Image

from ecoformer import InputError

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist"]
SCENE = ["sky", "wall", "ground", "disc", "box", "triangle", "pole", "twin", "single"]
VOID = 11


def camvid(folder, split, size):
    """Images (N, 3, Y, X) and masks (N, Y, X) of a split, as bytes, resized to `size` if it is given."""
    found = []
    for path in sorted((folder / split).glob("*.png")):
        place = folder / f"{split}annot" / path.name
        if not place.is_file():
            raise InputError(f"--data {folder}: {split}/{path.name} has no mask {place.parent.name}/{path.name}")
        try:
            image, mask = Image.open(path).convert("RGB"), Image.open(place)
            mask.load()
        except OSError as error:
            raise InputError(f"--data {folder}: {split}/{path.name} or its mask cannot be read: {error}") from error
        if mask.mode not in ("L", "P") or image.size != mask.size or np.max(mask) > VOID:
            raise InputError(f"{place} is no mask of class numbers 0 to {VOID} of its image's size")
        if size is not None:
            image, mask = image.resize(size[::-1], Image.Resampling.BILINEAR), mask.resize(size[::-1], 0)
        found.append((torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(np.array(mask))))
    if not found:
        raise InputError(f"--data {folder}: no PNG in {split}/; give CamVid as SegNet lays it out, or `generated`")
    if len({image.shape for image, _ in found}) > 1:
        raise InputError(f"--data {folder}: images of {split}/ have several sizes; give --size HEIGHT WIDTH")
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def scenes(number, size, seed):
    """Images and masks as `camvid` gives them: sky, wall and ground, two things, and three patches of ground.

    A patch is a `twin` if a thing of its hue is anywhere in the image, else `single`: neither looks like its class.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / min(size)
    found = []
    for _ in range(number):
        lines = [
            low + 0.04 * np.sin(rng.uniform(5, 12) * x + rng.uniform(0, 6)) for low in rng.uniform((0.2, 0.5), 0.6)
        ]
        mask = (y > lines[0]).astype(int) + (y > lines[1])
        image = rng.uniform(0.3, 0.7, (3, 3))[mask]
        hues = rng.permutation(4) / 4  # the first two are those of the things
        for thing in range(5):
            kind, is_patch = rng.integers(4), thing > 1
            hue = rng.integers(4) if is_patch else thing
            radius, right = rng.uniform(0.07, 0.12), x - rng.uniform(0.1, x.max() - 0.1)
            down = y - (rng.uniform(0.72, 0.92) if is_patch else rng.uniform(0.12, 0.5))
            inside = (
                np.hypot(right, down) < radius,
                np.maximum(abs(right), abs(down)) < 0.85 * radius,
                (down < radius) & (2 * abs(right) < down + radius),
                (abs(right) < 0.03) & (abs(down) < 1.5 * radius),
            )[0 if is_patch else kind]
            image[inside] = 0.5 + 0.45 * np.cos(2 * np.pi * (hues[hue] + np.arange(3) / 3))
            mask[inside] = (7 if hue < 2 else 8) if is_patch else 3 + kind
        mask[1:][mask[1:] != mask[:-1]] = VOID  # borders, as people leave them out
        image = (255 * (image + rng.normal(0, 0.04, image.shape))).clip(0, 255).astype(np.uint8)
        found.append((torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask.astype(np.uint8))))
    return tuple(torch.stack(part) for part in zip(*found, strict=True))
