"""Scenes of cut-outs pasted into photographs, as a folder that segmentation.py reads; docs/segmentation.md.

    python examples/segmentation_paste.py --cutouts DIR --classes animals/birds food/fruit --photographs DIR --out OUT

A cut-out is an image with an alpha channel: what a person cut out is the mask (Dwibedi et al., Cut, Paste and Learn,
ICCV 2017). A class is a folder of --cutouts with all below it, but for what --skip names; class 0 is the
photograph. Photographs are those of train/CLASS/ and val/CLASS/, but for classes named by --leave-out: those that show
what is pasted. Every fourth cut-out of a class, and the photographs of val/, are in test scenes alone.
"""

from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from segmentation_data import VOID

from ecoformer import InputError
from ecoformer.cli.arguments import positive, script
from ecoformer.data.decode import read_image
from ecoformer.data.folders import read_folders
from ecoformer.files import write_text

LARGEST = 512  # pixels of a cut-out's longer side that are kept


def cut_outs(folder, skipped):
    """RGBA images of a folder and those below it, cropped to what is not transparent, in the order of their paths."""
    found = []
    for path in sorted(folder.rglob("*.png")):
        if any(fnmatch(part, pattern) for part in path.relative_to(folder).parts for pattern in skipped):
            continue
        try:
            image = Image.open(path).convert("RGBA")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        if (box := image.getchannel("A").getbbox()) is None or image.getchannel("A").getextrema()[0] > 0:
            continue  # nothing of it was cut away, or all
        image = image.crop(box)
        image.thumbnail((LARGEST, LARGEST))
        found.append(image)
    if len(found) < 4:
        raise InputError(f"{folder} has {len(found)} cut-outs, PNG with an alpha channel: give a class at least 4")
    return found


def scene(rng, photograph, classes):
    """A photograph with one to four cut-outs in it, and its mask (Y, X): the number of a class, 0 or void."""
    image, mask = photograph.copy(), np.zeros(photograph.size[::-1], np.uint8)
    for _ in range(rng.integers(1, 5)):
        number = rng.integers(len(classes))
        thing = classes[number][rng.integers(len(classes[number]))]
        scale = rng.uniform(0.3, 0.8) * min(image.size) / max(thing.size)
        thing = thing.resize([max(1, round(scale * side)) for side in thing.size])
        thing = ImageOps.mirror(thing) if rng.random() < 0.5 else thing
        corner = [round(rng.uniform(0, whole) - side / 2) for whole, side in zip(image.size, thing.size, strict=True)]
        image.paste(thing, tuple(corner), thing)
        alpha = Image.new("L", image.size)
        alpha.paste(thing.getchannel("A"), tuple(corner))
        mask[np.asarray(alpha) > 16] = VOID  # a border belongs to both
        mask[np.asarray(alpha) > 239] = number + 1
    return image, mask


def write_scenes(out, split, source, kept, classes, number, size, seed):
    """`number` scenes as OUT/SPLIT/ (JPEG) and OUT/SPLITannot/ (PNG), of the images of a source that are kept."""
    rng = np.random.default_rng(seed)
    images, masks = out / split, out / f"{split}annot"
    for folder in (images, masks):
        folder.mkdir(parents=True)
    for index in range(number):
        photograph = read_image(source, rng.choice(kept), partial(ImageOps.fit, size=size[::-1]))
        image, mask = scene(rng, photograph, classes)
        image.save(images / f"{index:05d}.jpg", quality=95)
        Image.fromarray(mask).save(masks / f"{index:05d}.png")


def run(args):
    if (args.out / "train").exists() or (args.out / "test").exists():
        raise InputError(f"--out {args.out} has scenes already: give a new folder")
    things = {Path(name).name: cut_outs(args.cutouts / name, args.skip) for name in args.classes}
    found = read_folders(args.photographs, with_train=True)
    left = {*found.class_names} - {*args.leave_out}
    if not left or len(left) + len({*args.leave_out}) > len(found.class_names):
        raise InputError(f"--leave-out {' '.join(args.leave_out)} must be some of the classes {found.class_names}")
    for split, source, number, seed in (("train", found.train, args.scenes, 1), ("test", found.val, args.tests, 2)):
        kept = [index for index, target in enumerate(source.targets) if found.class_names[target] not in args.leave_out]
        mine = [[t for i, t in enumerate(each) if (i % 4 == 3) == (split == "test")] for each in things.values()]
        write_scenes(args.out, split, source, kept, mine, number, args.size, seed)
        print(f"{split}: {number} scenes of {sum(map(len, mine))} cut-outs and {len(kept)} photographs")
    write_text(args.out / "classes.txt", "\n".join(["photograph", *things]) + "\n")
    return 0


@script(run, __doc__)
def main(p):
    p.add_argument("--cutouts", type=Path, required=True, help="folder with a folder for each class")
    p.add_argument("--classes", nargs="+", required=True, metavar="FOLDER", help="of --cutouts")
    p.add_argument(
        "--skip", nargs="*", default=[], metavar="NAME", help="of folders and files, as cartoon or *_mirror.png"
    )
    p.add_argument("--photographs", type=Path, required=True, help="folder with train/CLASS/ and val/CLASS/")
    p.add_argument("--leave-out", nargs="*", default=[], metavar="CLASS", help="of photographs")
    p.add_argument("--out", type=Path, required=True, help="folder for the scenes")
    p.add_argument("--size", type=positive, nargs=2, default=(160, 160), metavar=("HEIGHT", "WIDTH"), help="(160 160)")
    p.add_argument("--scenes", type=positive, default=3000, help="to train on (3000)")
    p.add_argument("--tests", type=positive, default=600, help="scenes to test on (600)")


if __name__ == "__main__":
    raise SystemExit(main())
