"""What a checkpoint says about the run that wrote it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ecoformer.config.data import DataConfig
from ecoformer.config.loading import load_config
from ecoformer.config.schema import ARCHIVES, BUNDLED, SEQUENCES, Config
from ecoformer.data.listops import require_apart
from ecoformer.data.loader import per_channel
from ecoformer.data.sources import CIFAR, SOURCES
from ecoformer.errors import InputError
from ecoformer.files import user_path
from ecoformer.files.run_names import BEST, LAST
from ecoformer.model.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from ecoformer.models.weight_files import format_of
from ecoformer.nn.specs import without_removed

SHIPPED = (*BUNDLED, *CIFAR, "imagenet", "folder", *ARCHIVES, *SEQUENCES)


@dataclass
class SavedRun:
    """What a checkpoint says about its run: config, classes, weights; `vocab_size` and `seq_len` of sequences."""

    path: Path
    content: dict[str, Any]
    config: Config
    class_names: list[str]
    sequences: dict[str, int] = field(default_factory=dict)


def read_run(path: Path | str) -> SavedRun:
    """Read a run's last.pt or best.pt; of a run's folder its best.pt, or last.pt before there is one.

    Raises InputError if it is none, is damaged, or has an unknown config.
    """
    path = checkpoint_in(user_path(path))
    content = load_checkpoint(path)
    saved = content.get("config") or {}
    if not {"settings", "class_names"} <= saved.keys():
        raise InputError(f"checkpoint {path} does not say what it was trained with: give one that train.py wrote")
    try:
        # The modules that a checkpoint names are not imported: a file must not choose what runs.
        config = load_config(Config, {**saved["settings"], "plugins": []})
    except InputError as error:
        raise InputError(f"checkpoint {path} was written by another version of this program: {error}") from error
    config.attention = without_removed(config.attention.get("name", "stock"), config.attention)
    return SavedRun(path, content, config, saved["class_names"], saved.get("sequences", {}))


def statistics_of(run: SavedRun) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, by channel, that the run normalised its images with.

    Raises InputError where a source from a package of others chose them.
    """
    mean, std = _statistics(run)
    return per_channel(mean, run.config.model.in_chans), per_channel(std, run.config.model.in_chans)


def _statistics(run: SavedRun) -> tuple[Sequence[float], Sequence[float]]:
    """As `statistics_of`, of RGB."""
    data = run.config.data
    if data.name not in SHIPPED and (data.mean is None or data.std is None):
        raise InputError(
            f"checkpoint {run.path} does not say how data.name={data.name} was normalised: give data.mean and "
            "data.std where it is evaluated, or a checkpoint that was trained with them"
        )
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if data.name in CIFAR:
        mean, std = CIFAR[data.name].mean, CIFAR[data.name].std
    elif data.name in BUNDLED:
        splits = SOURCES[data.name](data)
        mean, std = splits.mean, splits.std
    return data.mean or mean, data.std or std


def crop_of(run: SavedRun) -> float:
    """The share of an image's shorter side that the run evaluated."""
    data = run.config.data
    return data.crop_pct or (1.0 if data.name in (*BUNDLED, *CIFAR) else 0.875)


def data_of(run: SavedRun, asked: dict[str, Any]) -> DataConfig:
    """The run's data settings, or those `asked` for; images of another source are normalised and cropped as the run's.

    Raises InputError as `statistics_of` and `require_apart`.
    """
    trained = run.config.data
    data = replace(trained, **asked)
    require_apart(data, trained)
    if data.name != trained.name and not run.sequences:
        if data.mean is None or data.std is None:
            mean, std = _statistics(run)
            data.mean, data.std = data.mean or list(mean), data.std or list(std)
        data.crop_pct = data.crop_pct or crop_of(run)
    return data


def save_weights(path: Path, run: SavedRun) -> None:
    """Write a model without the state of its training, as a checkpoint for eval and for init.checkpoint."""
    config = {"settings": asdict(run.config), "class_names": run.class_names, "sequences": run.sequences}
    save_checkpoint(path, {"step": 0, "metrics": {}, **run.content, "kind": "weights", "config": config})


def checkpoint_in(path: Path) -> Path:
    """`path` itself, or of a folder its best.pt, else its last.pt. Raises InputError for a folder without either."""
    if not path.is_dir():
        return path
    held = next((path / name for name in (BEST, LAST) if (path / name).is_file()), None)
    if held is None:
        raise InputError(
            f"checkpoint {path} is a folder without {BEST} and {LAST}: give the folder of a run, or a file"
        )
    return held


def is_own(path: Path) -> bool:
    """Whether a checkpoint is one of our runs', not a file that others published."""
    # What cannot be read and is called .pt is taken for one of ours: `read_run` says what is wrong with it.
    if not path.is_file():
        return True
    stated = format_of(path)
    return path.suffix == ".pt" if stated is None else stated == FORMAT
