"""What segmentation.py learns: a folder of images and masks, mosaics of photographs, or generated scenes.

Images (N, 3, Y, X) and masks (N, Y, X) are bytes in memory. Classes are numbers in the order of CAMVID, of a folder's
classes.txt, of folders of photographs or of SCENE; 255 is void, pixels that people left out.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ecoformer import InputError
from ecoformer.data.decode import read_image
from ecoformer.data.folders import IMAGE_SUFFIXES, read_folders

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist"]
SCENE = ["sky", "wall", "ground", "disc", "box", "triangle", "pole", "twin", "single"]
VOID = 255


def read(data, size, number):
    """What the data are, the names of their classes, and images and masks to train on and to test on.

    Args:
        data: "generated", a folder of photographs as train/CLASS/ and val/CLASS/, or one of images and masks.
        size: (Y, X), or None for 96 x 96, of images with masks that of their files.
        number: how many scenes or mosaics to train on; a fifth of them are to test on.
    """
    if size is not None and min(size) < 32:
        raise InputError(f"--size {size[0]} {size[1]} is too small: give at least 32 32, the backbone's largest stride")
    folder, new_size, fewer = Path(data), size or (96, 96), max(number // 5, 4)
    if data == "generated":
        return data, SCENE, scenes(number, new_size, 1), scenes(fewer, new_size, 2)
    if not any(folder.glob("train/*/")):
        kind, classes = classes_of(folder)
        return kind, classes, *(annotated(folder, split, size, len(classes)) for split in ("train", "test"))
    found = read_folders(folder, with_train=True)
    if (classes := len(found.class_names)) > VOID:
        raise InputError(f"--data {folder} has {classes} classes: give photographs of at most {VOID}")
    training, test = mosaics(found.train, number, new_size, 1), mosaics(found.val, fewer, new_size, 2)
    return "mosaics", found.class_names, training, test


def classes_of(folder):
    """What a folder of images and masks is called, and its classes: lines of classes.txt, without it CamVid's."""
    place = folder / "classes.txt"
    if not place.exists():
        return "CamVid", CAMVID
    try:
        classes = place.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place} cannot be read: {error}") from error
    classes = [line.strip() for line in classes if line.strip()]
    if not 1 < len(classes) <= VOID or len(set(classes)) < len(classes):
        raise InputError(f"{place} has {len(classes)} lines: give 2 to {VOID} classes, one a line, each once")
    return folder.name, classes


def annotated(folder, split, size, num_classes):
    """Images (N, 3, Y, X) and masks (N, Y, X) of SPLIT/ and SPLITannot/, as bytes, resized to `size` if it is given.

    Masks are PNG of class numbers; `num_classes` (CamVid's 11) and 255 are void.
    """
    found = []
    for path in sorted(each for each in (folder / split).glob("*.*") if each.suffix.lower() in IMAGE_SUFFIXES):
        place = folder / f"{split}annot" / f"{path.stem}.png"
        if not place.is_file():
            raise InputError(f"--data {folder}: {split}/{path.name} has no mask {place.parent.name}/{place.name}")
        try:
            image, mask = Image.open(path).convert("RGB"), Image.open(place)
            mask.load()
        except OSError as error:
            raise InputError(f"--data {folder}: {split}/{path.name} or its mask cannot be read: {error}") from error
        numbers = np.array(mask)
        if mask.mode not in ("L", "P") or image.size != mask.size or ((numbers > num_classes) & (numbers < VOID)).any():
            raise InputError(f"{place} is no mask of class numbers 0 to {num_classes} and {VOID} of its image's size")
        numbers[numbers == num_classes] = VOID
        mask = Image.fromarray(numbers)
        if size is not None:
            image, mask = image.resize(size[::-1], Image.Resampling.BILINEAR), mask.resize(size[::-1], 0)
        found.append((torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(np.array(mask))))
    if not found:
        raise InputError(f"--data {folder}: no image in {split}/; give CamVid as SegNet lays it out, or `generated`")
    if len({image.shape for image, _ in found}) > 1:
        raise InputError(f"--data {folder}: images of {split}/ have several sizes; give --size HEIGHT WIDTH")
    return stacked(found)


def mosaics(photographs, number, size, seed):
    """Images and masks as `annotated` gives them, of photographs in classes (an ecoformer.data.FolderSource).

    Every quarter of an image has a point, a pixel belongs to the nearest, and a photograph fills the box around what
    belongs to a point. So a region shows most of a photograph, and its class is that of the photograph.
    """
    rng = np.random.default_rng(seed)
    pixels = np.stack(np.mgrid[: size[0], : size[1]], axis=-1)
    corners = np.stack(np.mgrid[:2, :2], axis=-1).reshape(4, 2)
    found = []
    for _ in range(number):
        points = (corners + rng.uniform(0.2, 0.8, (4, 2))) * size / 2
        nearest = ((pixels[:, :, None] - points) ** 2).sum(axis=-1).argmin(axis=-1)
        image, mask = np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)
        for cell in range(4):
            inside = nearest == cell
            (top, left), (bottom, right) = pixels[inside].min(axis=0), pixels[inside].max(axis=0) + 1
            box, chosen = (slice(top, bottom), slice(left, right)), rng.integers(len(photographs))
            photograph = read_image(photographs, chosen, partial(ImageOps.fit, size=(right - left, bottom - top)))
            image[box][inside[box]] = np.asarray(photograph)[inside[box]]
            mask[inside] = photographs.targets[chosen]
        mask[1:][nearest[1:] != nearest[:-1]] = mask[:, 1:][nearest[:, 1:] != nearest[:, :-1]] = VOID
        found.append((torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)))
    return stacked(found)


def scenes(number, size, seed):
    """Images and masks as `annotated` gives them: sky, wall and ground, two things, and three patches of ground.

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
    return stacked(found)


def stacked(found):
    return tuple(torch.stack(part) for part in zip(*found, strict=True))
