"""From config to loaders: which data, in memory or from files, and what of it cannot work."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ecoformer.config.schema import SEQUENCES, AugmentConfig, DataConfig, TrainConfig
from ecoformer.data import archives, imagenet, inks, listops, pixels, texts  # noqa: F401  they register their sources
from ecoformer.data.augment import derive_seed
from ecoformer.data.checks import check_augment, check_batch, check_data, held_in_memory, require_seq_len
from ecoformer.data.decode import CorruptImages, EvalTransform, decode_images
from ecoformer.data.files import FileLoader, train_transform
from ecoformer.data.identity import KnownClasses, counted_as
from ecoformer.data.loader import BatchLoader, FinishImages, MemoryLoader, TrainPlan, finish_ids, per_channel
from ecoformer.data.sequences import SequenceSource, grey_ids
from ecoformer.data.sources import SOURCES
from ecoformer.data.splits import Source, Splits, split_off, take
from ecoformer.errors import InputError


@dataclass(frozen=True)
class Reader:
    """Reads uint8 images (B, C, S, S); with a `vocab_size` ids (B, N), N = `seq_len`, of images in grey N = S * S."""

    transform: EvalTransform
    corrupt: CorruptImages
    vocab_size: int | None = None
    seq_len: int | None = None

    def __call__(
        self,
        source: Source,
        indices: Sequence[int] | np.ndarray,
        *,
        training: bool = False,
        progress: str | None = None,
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The chosen samples, and which of `indices` they are: broken images are counted and left out."""
        if isinstance(source, SequenceSource):
            assert self.seq_len is not None and self.vocab_size is not None, "sequences have both"
            return source.ids(indices, self.seq_len, self.vocab_size), np.asarray(indices)
        # Training keeps the whole of the shorter side; crop_pct is an evaluation setting.
        transform = replace(self.transform, crop_pct=1.0) if training else self.transform
        read = decode_images if self.vocab_size is None else grey_ids
        return read(
            source, indices, transform, threads=torch.get_num_threads(), progress=progress, corrupt=self.corrupt
        )


@dataclass
class DataModule:
    """A data set ready for training; its samples are on the device.

    Images are float32 (B, C, S, S), normalised by C means and deviations; sequences are ids (B, N) int64, 0 for padding
    at their end. `train_loader` is None when built with `with_train=False`; `in_memory` says which path the data take;
    `reader` counts the broken images that this process has met; `notes` say what was passed over, mapped or cut.
    """

    name: str
    num_classes: int
    class_names: list[str]
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int
    num_val: int
    in_memory: bool
    train_loader: BatchLoader | None
    val_loader: BatchLoader
    train_source: Source | None
    val_source: Source
    reader: Reader
    notes: list[str]
    vocab_size: int | None = None  # of sequences, whose ids are 0 (padding) to vocab_size - 1; None for images
    seq_len: int | None = None  # tokens of every sequence, padding included; None for images

    @property
    def samples(self) -> str:
        """What a message calls them."""
        return "images" if self.vocab_size is None else "samples"

    def calibration_images(
        self, num_images: int, seed: int, key: str = "callbacks.hash_update.num_images"
    ) -> torch.Tensor:
        """`num_images` training samples as evaluation sees them, e.g. to fit hash functions on.

        Which samples depends on `seed` alone; a larger number extends a smaller one's choice. Raises InputError,
        which says to lower `key`, if the training split has fewer.
        """
        assert self.train_source is not None, "calibration images come from the training split: with_train=True"
        self.require_calibration_images(num_images, key)
        order = np.random.default_rng(derive_seed(seed, "calibration")).permutation(len(self.train_source))
        parts: list[torch.Tensor] = []
        missing = num_images
        while missing and len(order):  # broken images are passed over
            chosen, order = order[:missing], order[missing:]
            part, _ = self.reader(self.train_source, chosen)
            parts.append(part)
            missing -= len(part)
        if missing:
            raise self._too_few(num_images, key, f"{num_images - missing} readable training")
        return self.val_loader.finish(torch.cat(parts), torch.empty(0), epoch=0, batch=0)[0]

    def require_calibration_images(self, num_images: int, key: str = "callbacks.hash_update.num_images") -> None:
        """Raise InputError, which says to lower `key`, if the training split has fewer."""
        if num_images > self.num_train:
            raise self._too_few(num_images, key, f"{self.num_train} training")

    def _too_few(self, number: int, key: str, there: str) -> InputError:
        return InputError(f"{number} calibration {self.samples} > {there} {self.samples} of {self.name}: lower {key}")


def build_data(
    data: DataConfig,
    augment: AugmentConfig,
    train: TrainConfig,
    *,
    seed: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
    with_train: bool = True,
    calibration_only: bool = False,
    in_chans: int = 3,
    known: KnownClasses | None = None,
) -> DataModule:
    """Find, check and open a data set.

    Args:
        seed: order and augmentation of the training images; splits, subsets and validation do not depend on it.
        with_train: False opens the validation split only (evaluation of a finished model).
        calibration_only: the training split is there for `calibration_images`, without a loader.
        in_chans: 3 reads images in RGB, 1 in grey, with the mean of the channels' means and deviations, as timm.
        known: the classes of weights that meet the data, which then count their classes as the weights do.

    Raises:
        InputError: whatever the user can mend: a missing or unsuitable data set, a setting that does not fit it.
    """
    check_data(data, train)
    with_loader = with_train and not calibration_only
    if data.name in SEQUENCES and with_loader:  # before they are generated or read
        check_augment(augment, in_memory=True, splits=train.aug_splits, sequences=f"data={data.name}")
    splits, train_source = _find(data, world_size, with_train, known)
    sources = [train_source, splits.val] if with_loader and train_source is not None else [splits.val]
    in_memory = held_in_memory(data, sum(map(len, sources)), splits.vocab_size)
    mean, std = per_channel(data.mean or splits.mean, in_chans), per_channel(data.std or splits.std, in_chans)
    transform = EvalTransform(data.img_size, data.crop_pct or splits.crop_pct, data.interpolation, in_chans)
    reader = Reader(transform, CorruptImages(data.max_corrupt), splits.vocab_size, data.seq_len)
    device, sequences = torch.device(device), splits.vocab_size is not None

    def loader(label: str, source: Source, plan: TrainPlan | None, batch_size: int) -> BatchLoader:
        finish = finish_ids if sequences else FinishImages(mean, std, device, plan)
        options: dict[str, Any] = {"batch_size": batch_size, "finish_batch": finish, "device": device, "plan": plan}
        options |= {"rank": rank, "world_size": world_size}
        if in_memory:
            progress = f"{data.name} {label}" if train.progress and rank == 0 else None
            samples, readable = reader(source, range(len(source)), training=plan is not None, progress=progress)
            if len(readable) == 0:
                raise InputError(f"{data.name}: none of the {len(source)} {label} images can be decoded")
            return MemoryLoader(samples=samples, targets=source.targets[readable], **options)
        assert not isinstance(source, SequenceSource), "they are held in memory"
        of_files = transform if plan is None else train_transform(data, augment, mean, train.aug_splits)
        of_source: dict[str, Any] = {"source": source, "targets": source.targets, "transform": of_files}
        return FileLoader(**of_source, num_workers=data.num_workers, corrupt=reader.corrupt, **options)

    train_loader, num_train = None, 0 if train_source is None else len(train_source)
    if train_source is not None and with_loader:
        if data.name not in SEQUENCES:
            of = f"data={data.name}" if sequences else None
            check_augment(augment, in_memory=in_memory, splits=train.aug_splits, sequences=of)
        noun = "samples" if sequences else "images"
        check_batch(train.batch_size, world_size, num_train, noun)
        plan = TrainPlan.of(augment, train.smoothing, seed, len(splits.class_names), in_memory)
        train_loader = loader("train", train_source, plan, train.batch_size)
        num_train = len(train_loader.targets)  # broken ones are left out of memory
        check_batch(train.batch_size, world_size, num_train, noun)
    val_loader = loader("val", splits.val, None, train.eval_batch_size or train.batch_size)
    return DataModule(
        name=data.name,
        num_classes=len(splits.class_names),
        class_names=splits.class_names,
        img_size=data.img_size,
        mean=mean,
        std=std,
        num_train=num_train,
        num_val=len(val_loader.targets),
        in_memory=in_memory,
        train_loader=train_loader,
        val_loader=val_loader,
        train_source=train_source,
        val_source=splits.val,
        reader=reader,
        notes=splits.notes + _cut_notes(data, {"training": train_source, "validation": splits.val}),
        vocab_size=splits.vocab_size,
        seq_len=data.seq_len,
    )


def _find(
    data: DataConfig, world_size: int, with_train: bool, known: KnownClasses | None
) -> tuple[Splits, Source | None]:
    """The splits, and the training samples that are used of them; of both as many as the config says."""
    num_known = None if known is None else len(known.names)
    with_train_split = with_train or data.dev_samples > 0
    splits = SOURCES[data.name](data, world_size=world_size, with_train=with_train_split, num_classes=num_known)
    if splits.vocab_size is not None:
        require_seq_len(data)
    elif data.seq_len is not None:
        raise InputError(f"data.seq_len={data.seq_len} is for sequences, data={data.name} are images: leave it out")
    if len(splits.class_names) < 2:
        raise InputError(f"{where_of(data)} has one class ({splits.class_names[0]}): a classifier needs at least two")
    if with_train and splits.train is None:
        raise InputError(f"{where_of(data)} has no training split: add one")
    if data.dev_samples > 0 and data.name not in SEQUENCES:  # of these, they are the validation split already
        assert splits.train is not None, "it was asked for"
        left, dev = split_off(splits.train, data.dev_samples)
        splits = replace(splits, train=left, val=dev)
    train = take(splits.train, data.max_train_samples) if with_train and splits.train is not None else None
    splits = replace(splits, val=take(splits.val, data.max_val_samples))
    if known is not None:
        splits = counted_as(known, splits, where_of(data), [s for s in (train, splits.val) if s is not None])
    return splits, train


def _cut_notes(data: DataConfig, sources: dict[str, Source | None]) -> list[str]:
    """What data.seq_len leaves out of sequences."""
    notes = []
    for split, source in sources.items():
        if isinstance(source, SequenceSource) and (cut := int((source.lengths > data.seq_len).sum())):
            notes.append(f"data.seq_len={data.seq_len} cuts {cut} of {len(source)} {split} samples")
    return notes


def where_of(data: DataConfig) -> str:
    """What a message calls the data."""
    return f"data={data.name}" if data.root is None else f"data.root={data.root}"
