"""Every wrong input gets one line that names the value, the limit and the remedy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torchvision.datasets.cifar

from ecoformer.errors import InputError


def refusal(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    del caught  # whose traceback would hold loaders until they are collected as garbage
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"name": "cifar11"},
            "data.name=cifar11 does not exist; did you mean cifar10? "
            "Options: digits, inks, cifar10, cifar100, imagenet, folder, webdataset, hfds, listops, text_bytes, "
            "pixels, imagenet_v2, imagenet_a, imagenet_r, imagenet_real",
        ),
        (
            {"name": "voc"},
            "data.name=voc does not exist; choose one of digits, inks, cifar10, cifar100, imagenet, folder, "
            "webdataset, hfds, listops, text_bytes, pixels, imagenet_v2, imagenet_a, imagenet_r, imagenet_real",
        ),
        (
            {"name": "folder", "root": "x", "num_classes": 3},
            "data.num_classes=3 belongs to data=webdataset and data=hfds, not to data=folder: leave it out",
        ),
        (
            {"name": "hfds", "root": "x", "download": True},
            "data.download=true works for cifar10 and cifar100, not for hfds: unset it",
        ),
        (
            {"name": "digits", "max_corrupt": -1},
            "data.max_corrupt=-1 must be at least 0",
        ),
        ({"name": "folder"}, "data=folder needs data.root: set it to the folder that holds train/ and val/"),
        (
            {"name": "imagenet", "root": "x", "download": True},
            "data.download=true works for cifar10 and cifar100, not for imagenet: "
            "unset it, and put the images under data.root/train/CLASS and data.root/val/CLASS",
        ),
        ({"name": "digits", "img_size": 0}, "data.img_size=0 must be at least 1"),
        ({"name": "digits", "max_train_samples": 0}, "data.max_train_samples=0 must be at least 1, or null"),
        ({"name": "digits", "train": {"batch_size": -1}}, "train.batch_size=-1 must be at least 1"),
        ({"name": "digits", "train": {"eval_batch_size": 0}}, "train.eval_batch_size=0 must be at least 1, or null"),
        (
            {"name": "digits", "num_workers": -1},
            "data.num_workers=-1 must be at least 0",
        ),
        ({"name": "digits", "crop_pct": 1.5}, "data.crop_pct=1.5 must be above 0 and at most 1, or null"),
        (
            {"name": "digits", "interpolation": "cubic"},
            "data.interpolation=cubic does not exist; did you mean bicubic? "
            "Options: nearest, bilinear, bicubic, box, hamming, lanczos",
        ),
        (
            {"name": "digits", "mean": [0.5]},
            "data.mean=[0.5] must be a list of three numbers, one per RGB channel, or null",
        ),
        (
            {"name": "digits", "std": [1.0, 1.0, 0.0]},
            "data.std=[1.0, 1.0, 0.0] must be a list of three numbers above 0, one per RGB channel, or null",
        ),
        (
            {"name": "digits", "mean": [123.7, 116.3, 103.5]},
            "data.mean=[123.7, 116.3, 103.5] must lie in [0, 1], as pixels do here: if meant for pixels in 0..255, "
            "divide it by 255: data.mean=[0.485,0.456,0.406]",
        ),
        (
            {"name": "digits", "train": {"batch_size": 2000}},
            "train.batch_size=2000 is more than 1437 training images: lower train.batch_size to at most 1437",
        ),
        (
            {"name": "digits", "train": {"batch_size": 800}, "world_size": 2},
            "train.batch_size=800 x 2 processes is more than 1437 training images: "
            "lower train.batch_size to at most 718",
        ),
        (
            {"name": "digits", "img_size": 1024, "in_memory": True},
            "data.in_memory=true needs 5.3 GiB for 1797 images of 1024 px, the limit is 2 GiB: "
            "set data.in_memory=false or lower data.img_size",
        ),
        ({"name": "digits", "augment": {"hflip": 1.5}}, "augment.hflip=1.5 must be between 0 and 1"),
        ({"name": "digits", "augment": {"mixup": -0.1}}, "augment.mixup=-0.1 must be at least 0"),
        (
            {"name": "digits", "in_memory": False, "augment": {"scale": [1.0, 0.5]}},
            "augment.scale=[1.0, 0.5] must be a list of two numbers, 0 < low <= high, or null",
        ),
        (
            {"name": "digits", "in_memory": False, "augment": {"crop_padding": 4}},
            "augment.crop_padding=4 works on data held in memory: use augment.scale for image files, "
            "or set data.in_memory=true",
        ),
    ],
)
def test_settings(open_data, keys, message):
    assert refusal(lambda: open_data(**keys)) == message


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale", [0.2, 1.0]), ("ratio", [0.9, 1.1]), ("color_jitter", 0.4), ("auto_augment", "rand-m9"), ("repeats", 3)],
)
def test_settings_for_files_are_refused_for_data_in_memory(open_data, key, value):
    message = refusal(lambda: open_data(name="digits", augment={key: value}))
    assert message == (
        f"augment.{key}={value} works on image files, but the data are held in memory: "
        "unset it, or set data.in_memory=false"
    )


@pytest.mark.parametrize("policy", ["nonsense", "rand-q9"])
def test_unknown_augmentation_policies(open_data, policy):
    message = refusal(lambda: open_data(name="digits", in_memory=False, augment={"auto_augment": policy}))
    assert re.fullmatch(
        f"augment.auto_augment='{policy}' cannot be used \\(.+\\): use a timm policy such as rand-m9-mstd0.5-inc1",
        message,
    )


def test_repeats_of_one_mean_off(open_data):
    assert open_data(name="digits", augment={"repeats": 1}).in_memory


def test_color_jitter_beside_auto_augment_is_announced_as_idle(open_data, caplog):
    open_data(name="digits", in_memory=False, augment={"color_jitter": 0.4, "auto_augment": "rand-m9"})
    assert "augment.color_jitter=0.4 has no effect" in caplog.text


def test_too_many_calibration_images(open_data, image_folder):
    data = open_data(root=image_folder)
    assert refusal(lambda: data.calibration_images(13, seed=0)) == (
        "13 calibration images > 12 training images of folder: lower callbacks.hash_update.num_images"
    )


def test_missing_roots_and_splits(open_data, image_folder: Path):
    missing = image_folder / "nowhere"
    assert refusal(lambda: open_data(root=missing)) == (
        f"data.root={missing} is not a folder: set data.root to the folder that holds train/ and val/"
    )
    shutil.rmtree(image_folder / "val")
    assert refusal(lambda: open_data(root=image_folder)) == (
        f"data.root={image_folder} has no val or test folder: put validation images under {image_folder}/val/CLASS"
    )
    (image_folder / "train").rename(image_folder / "val")
    assert refusal(lambda: open_data(root=image_folder)) == (
        f"data.root={image_folder} has no train folder: put training images under {image_folder}/train/CLASS"
    )


def test_a_test_set_on_its_own_is_for_evaluation(open_data, image_folder: Path):
    root = (image_folder / "val").rename(image_folder.parent / "sketch")
    data = open_data(root=root, with_train=False)
    assert (data.class_names, data.num_val) == (["ant", "bee"], 6)
    assert refusal(lambda: open_data(root=root)) == (
        f"data.root={root} has no val or test folder: put validation images under {root}/val/CLASS"
    )


def test_unusable_folders(open_data, write_image, image_folder: Path):
    train = image_folder / "train"
    (train / "bee").rename(image_folder / "bee")
    assert "/train holds one class (ant): a classifier needs at least two" in refusal(
        lambda: open_data(root=image_folder)
    )
    write_image(train / "cat" / "0.png", seed=0)
    assert refusal(lambda: open_data(root=image_folder)) == (
        f"{train} and {image_folder / 'val'} hold different classes (only in train: cat; only in val: bee): "
        "both need the same class folders"
    )
    for name in ("dog", "eel", "fox"):
        (train / name).mkdir()
    with_more = refusal(lambda: open_data(root=image_folder, with_train=False))
    assert "(only in train: cat, dog, eel and 1 more; only in val: bee)" in with_more
    shutil.rmtree(train)
    (train / "bee").mkdir(parents=True)
    (train / "ant").mkdir()
    assert refusal(lambda: open_data(root=image_folder)).startswith(f"{train} holds no images (.bmp .jpeg")
    write_image(train / "bee" / "0.png", seed=0)
    assert refusal(lambda: open_data(root=image_folder)) == (
        f"{train} has class folders without images (ant): add images, or remove the class from every split"
    )
    shutil.rmtree(train)
    train.mkdir()
    assert refusal(lambda: open_data(root=image_folder)) == (
        f"{train} holds no class folders: put the images under {train}/CLASS"
    )


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("in_memory", "num_workers"), [(True, 0), (False, 0), (False, 2)])
def test_a_corrupt_image_is_named(open_data, image_folder: Path, split: str, in_memory: bool, num_workers: int):
    path = image_folder / split / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:60])

    def run() -> None:
        data = open_data(root=image_folder, in_memory=in_memory, num_workers=num_workers, train={"batch_size": 12})
        for loader in (data.train_loader, data.val_loader):
            list(loader)

    assert re.fullmatch(rf"{re.escape(str(path))} cannot be decoded \(.+\): repair or remove the file", refusal(run))


def test_cifar_roots(open_data, tmp_path: Path, image_folder: Path, monkeypatch):
    assert refusal(lambda: open_data(name="cifar10")).startswith("data=cifar10 needs data.root: set it to a folder")
    missing = tmp_path / "nowhere"
    assert refusal(lambda: open_data(name="cifar100", root=missing)) == (
        f"data.root={missing} does not exist: correct data.root, or set data.download=true"
    )
    assert refusal(lambda: open_data(name="cifar100", root=tmp_path)) == (
        f"data.root={tmp_path} holds neither cifar-100-python/ nor train/ and test/: "
        "correct data.root, or set data.download=true"
    )
    assert refusal(lambda: open_data(name="cifar10", root=image_folder)) == (
        f"data.root={image_folder} has 2 classes, cifar10 has 10: check data.root, or use data=folder"
    )
    assert refusal(lambda: open_data(name="cifar10", root=missing, download=True, world_size=2)) == (
        f"data.download=true would have 2 processes write {missing} at once: download with a single process first"
    )

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
    assert refusal(lambda: open_data(name="cifar10", root=missing, download=True)) == (
        f"cifar10 could not be downloaded to {missing} (<urlopen error no route to host>): "
        "check the connection, or unpack cifar-10-batches-py/ there yourself"
    )
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"something else")
    assert refusal(lambda: open_data(name="cifar10", root=tmp_path)) == (
        f"{tmp_path}/cifar-10-batches-py is damaged (Dataset not found or corrupted. You can use download=True "
        "to download it): remove it and set data.download=true"
    )
