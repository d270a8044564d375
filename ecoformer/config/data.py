"""Keys of the data and of their augmentation; see schema.py."""

from dataclasses import dataclass

from omegaconf import MISSING

from ecoformer.config.keys import FRACTION, Limit, at_least, between, key

BUNDLED = ("digits", "inks")  # images that come with scikit-learn, or are made of them
ARCHIVES = ("webdataset", "hfds")
SEQUENCES = ("listops", "text_bytes", "pixels")
IMAGENET_TESTS = ("imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_real")  # for evaluation alone
DATA_NAMES = [*BUNDLED, "cifar10", "cifar100", "imagenet", "folder", *ARCHIVES, *SEQUENCES]  # and those of plugins
DATA_NAMES += IMAGENET_TESTS
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
PROPER_SHARE = Limit(lambda value: 0 < value < 1, "above 0 and below 1")
RANGE = Limit(lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1], "a list of two numbers, 0 < low <= high")
CHANNELS = Limit(lambda values: len(values) == 3, "a list of three numbers, one per RGB channel")
POSITIVE_CHANNELS = Limit(
    lambda values: len(values) == 3 and min(values) > 0, "a list of three numbers above 0, one per RGB channel"
)


@dataclass
class DataConfig:
    """A data set; docs/data.md has the layouts. A "split" is a pattern of shards, or the name of a split."""

    name: str = key(MISSING, "docs/data.md has the layouts", choices=DATA_NAMES)
    root: str | None = key(None, "folder of the data")
    img_size: int = key(224, "in pixels", limit=at_least(1))
    seq_len: int | None = key(None, "tokens of a sequence, cut or padded to them; null: images", limit=at_least(1))
    in_memory: bool | None = key(None, "null: in memory where images are small and fit")
    download: bool = key(False, "CIFAR: fetch it if it is not under root")
    num_workers: int = key(2, "processes that decode; 0: in the main process", limit=at_least(0))
    crop_pct: float | None = key(None, "null: the data set's own (digits, inks, CIFAR 1.0; else 0.875)", limit=FRACTION)
    interpolation: str = key("bicubic", "of resized images", choices=INTERPOLATIONS)
    mean: list[float] | None = key(
        None, "null: the data set's own, else ImageNet's; grey images take the mean of the three", limit=CHANNELS
    )
    std: list[float] | None = key(None, "null: as mean", limit=POSITIVE_CHANNELS)
    max_train_samples: int | None = key(None, "for trials: use n; generated listops: null is 96,000", limit=at_least(1))
    max_val_samples: int | None = key(None, "the same of the validation split; null: 2,000", limit=at_least(1))
    dev_samples: int = key(0, "of the training split, evaluated on instead of the test data; 0: no", limit=at_least(0))
    max_corrupt: int = key(0, "broken images to pass over and report; 0: the first ends the run", limit=at_least(0))
    train_split: str | None = key(None, "webdataset, hfds, as the keys below; null: train, else validation, val, test")
    val_split: str | None = key(
        None, "null: val, validation or test; of sequences val, else cut off the training split; test: the test data"
    )
    image_key: str | None = key(None, 'null: .jpg, .jpeg, .png or .webp of a sample; the column "image"')
    label_key: str | None = key(None, 'null: .cls of a sample ("json:FIELD" reads its .json); the column "label"')
    num_classes: int | None = key(None, "without names: the classes are called by their numbers", limit=at_least(1))
    class_names: str | None = key(None, "file under root with a class name a line; null: classes.txt, if there")
    val_share: float = key(0.1, "sequences with no validation split: cut off the training split", limit=PROPER_SHARE)
    text_key: str | None = key(None, 'text_bytes: the column of the text; null: "text"')
    pixels_of: str | None = key(None, "pixels: the images, named as in data.name")
    max_depth: int | None = key(None, "generated listops: levels, digits among them; null: 10", limit=at_least(2))
    max_args: int | None = key(None, "generated listops: greatest number of arguments; null: 10", limit=at_least(2))
    min_tokens: int | None = key(None, "generated listops: of the shortest; null: 4", limit=at_least(4))


@dataclass
class AugmentConfig:
    """Augmentation. Keys marked "file loader" work on single images and are refused for data held in memory."""

    hflip: float = key(0.5, "probability of a horizontal flip", limit=between(0, 1))
    vflip: float = key(0.0, "probability of a vertical flip", limit=between(0, 1))
    crop_padding: int = key(0, "in memory: pad by this many pixels, then crop at random", limit=at_least(0))
    scale: list[float] | None = key(None, "file loader: random resized crop, area range", limit=RANGE)
    ratio: list[float] | None = key(None, "file loader: its aspect ratios", limit=RANGE)
    color_jitter: float = key(0.0, "file loader", limit=at_least(0))
    color_jitter_prob: float | None = key(None, "file loader: share of images with it; null: all", limit=between(0, 1))
    grayscale_prob: float = key(0.0, "file loader: share of images turned grey", limit=between(0, 1))
    gaussian_blur_prob: float = key(0.0, "file loader: share of images blurred", limit=between(0, 1))
    auto_augment: str | None = key(None, "file loader: timm policy string: rand-..., augmix-..., 3a, original, v0")
    random_erase: float = key(0.0, "probability", limit=between(0, 1))
    mixup: float = key(0.0, "alpha; 0: off", limit=at_least(0))
    cutmix: float = key(0.0, "alpha; 0: off", limit=at_least(0))
    mix_prob: float = key(1.0, "share of batches that are mixed", limit=between(0, 1))
    mix_switch_prob: float = key(0.5, "of these, share with cutmix where both are on", limit=between(0, 1))
    mixup_off_epoch: int = key(0, "from this epoch on batches are not mixed; 0: always", limit=at_least(0))
    repeats: int = key(0, "repeated augmentation (file loader); 0 or 1: off", limit=at_least(0))


@dataclass
class EvalDataConfig:
    """What evaluation may change about the checkpoint's data, or timm's; None: as in training, or as timm evaluates."""

    name: str | None = key(
        None, "another layout of the same classes, or imagenet_v2, _a, _r, _real", choices=DATA_NAMES
    )
    root: str | None = key(None, "null, here and below: as in training, or as timm evaluates")
    img_size: int | None = key(None, limit=at_least(1))
    crop_pct: float | None = key(None, limit=FRACTION)
    interpolation: str | None = key(None, choices=INTERPOLATIONS)
    mean: list[float] | None = key(None, limit=CHANNELS)
    std: list[float] | None = key(None, limit=POSITIVE_CHANNELS)
    num_workers: int | None = key(None, limit=at_least(0))
    max_val_samples: int | None = key(None, limit=at_least(1))
    max_corrupt: int | None = key(None, limit=at_least(0))
    val_split: str | None = key(None)
    image_key: str | None = key(None)
    label_key: str | None = key(None)
    text_key: str | None = key(None)
    num_classes: int | None = key(None, limit=at_least(1))
    class_names: str | None = key(None)
