"""A data set looked through before a job: counts per split and class, and everything that is wrong, image by image."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from ecoformer.config.schema import SEQUENCES, DataConfig
from ecoformer.data.decode import CorruptImage, EvalTransform, is_constant, read_image
from ecoformer.data.folders import IMAGE_SUFFIXES, VAL_NAMES, class_folders
from ecoformer.data.hf_disk import is_saved
from ecoformer.data.layouts import Audit, DataFault, look_at_folders, look_at_rows, look_at_sequences, look_at_shards
from ecoformer.data.splits import LabelledSource
from ecoformer.errors import InputError
from ecoformer.files import user_path

Progress = Callable[[int, int], None]  # images done, of how many
CHUNK = 64
_EVALUATED = EvalTransform(DataConfig.img_size, 0.875, DataConfig.interpolation)  # a shape that it refuses is a fault


def audit(data: DataConfig, *, with_train: bool = True, workers: int = 1, progress: Progress | None = None) -> Audit:
    """Look through a data set; `data.name` may be "auto" to tell the layout by what lies under `data.root`.

    Args:
        with_train: whether a training split must be there.
        workers: processes that decode images.
    Raises:
        InputError: the root is missing, or it is no data set of a known layout.
    """
    if data.name in SEQUENCES:
        found = Audit(data.root or "generated", data.name)
        look_at_sequences(data, found)
        return found
    root = user_path(data.root or "")
    if not data.root or not root.is_dir():
        raise InputError(
            f"{data.root or 'an empty name'} is not a folder: give the folder that holds train/ and val/, shards, or a "
            "dataset"
        )
    layout = _layout(root) if data.name == "auto" else data.name
    found = Audit(str(root), layout)
    look = {"folder": look_at_folders, "webdataset": look_at_shards, "hfds": look_at_rows}[layout]
    sources = look(data, root, found, with_train)
    total = sum(map(len, sources))
    done = 0
    for source in sources:
        for faults, count in _decode_all(source, workers):
            found.faults += faults
            done += count
            if progress is not None:
                progress(done, total)
    return found


def _layout(root: Path) -> str:
    if is_saved(root):
        return "hfds"
    splits = [root / name for name in ("train", *VAL_NAMES) if (root / name).is_dir()]
    classes = [split / name for split in splits for name in class_folders(split).values()]
    if any(path.suffix.lower() in IMAGE_SUFFIXES for folder in classes for path in folder.rglob("*")):
        return "folder"  # whatever archives lie beside them
    if next(root.glob("**/*.tar"), None) is not None:
        return "webdataset"
    if next(root.glob("**/*.parquet"), None) is not None or next(root.glob("**/*.arrow"), None) is not None:
        return "hfds"
    if splits:
        return "folder"
    raise InputError(
        f"{root} holds no data set: it has no train/, val/ or test/ folder, no shards (*.tar), no parquet files and "
        "nothing that save_to_disk wrote"
    )


def _decode_all(source: LabelledSource, workers: int) -> Iterator[tuple[list[DataFault], int]]:
    """Faults of each chunk of images, in order, and its length."""
    starts = range(0, len(source), CHUNK)
    if workers <= 1:
        for start in starts:
            yield _decode_chunk(source, start)
        return
    pool = ProcessPoolExecutor(workers, initializer=_take, initargs=(source,))
    try:
        yield from pool.map(_decode_taken, starts)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C not all images first


_SOURCE: list[LabelledSource] = []  # of this worker process, sent to it once


def _take(source: LabelledSource) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the first process answers for them
    _SOURCE[:] = [source]


def _decode_taken(start: int) -> tuple[list[DataFault], int]:
    return _decode_chunk(_SOURCE[0], start)


def _decode_chunk(source: LabelledSource, start: int) -> tuple[list[DataFault], int]:
    faults = []
    stop = min(start + CHUNK, len(source))
    for index in range(start, stop):
        try:
            if read_image(source, index, _looked_at):
                faults.append(DataFault("constant image", source.name(index), "all of its pixels are the same"))
        except CorruptImage as fault:
            empty = os.path.isfile(fault.name) and os.path.getsize(fault.name) == 0
            faults.append(
                DataFault("empty file" if empty else "corrupt image", fault.name, "" if empty else fault.reason)
            )
    return faults, stop - start


def _looked_at(image: Image.Image) -> bool:
    """Whether an image is constant. Raises ValueError for a shape that evaluation would refuse."""
    _EVALUATED.resized(image.size)
    return is_constant(image)
