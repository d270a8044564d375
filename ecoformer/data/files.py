"""Batches decoded from files by worker processes, with timm's transforms for single images."""

import logging
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info
from torchvision.transforms import Compose, InterpolationMode

from ecoformer.config.schema import AugmentConfig, DataConfig
from ecoformer.data.augment import derive_seed
from ecoformer.data.decode import CorruptImage, CorruptImages, decoded, decoded_pixels, grey, jpeg_decoder, read_opened
from ecoformer.data.loader import BatchLoader, per_channel
from ecoformer.data.splits import LabelledSource
from ecoformer.errors import InputError

log = logging.getLogger(__name__)
STOP_GRACE_S = 30  # seconds
TORCH_RESIZES = ("bilinear", "bicubic")  # with antialiasing, on uint8
Batch = tuple[np.ndarray, np.ndarray, int]  # indices of its samples, their places in the epoch, the epoch
Transform = Callable[[Image.Image], torch.Tensor]  # decodes what was opened: uint8 (3, S, S), or (1, S, S) in grey


@dataclass(frozen=True)
class Sample:
    """An image, or None, and the (name, message) of every broken one that was met on the way to it.

    Faults travel as values: DataLoader would wrap an exception's message in a traceback of many lines.
    """

    image: torch.Tensor | None
    target: int
    faults: tuple[tuple[str, str], ...] = ()


def seed_globals(seed: int) -> None:
    """Seed the global generators that timm's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reach for CUDA


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put the global generators back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


class RandomCrop(RandomResizedCropAndInterpolation):
    """timm's random crop, resized by torch's antialiased uint8 kernel: Pillow's pixels to 2/255, in less time."""

    def __call__(self, pixels_3HW: torch.Tensor) -> torch.Tensor:
        """uint8 tensor (3, H, W) -> (3, S, S)."""
        assert isinstance(self.interpolation, InterpolationMode)
        top, left, height, width = self.get_params(pixels_3HW, self.scale, self.ratio)
        box_13HW = pixels_3HW[None, :, top : top + height, left : left + width]
        return F.interpolate(box_13HW, self.size, mode=self.interpolation.value, antialias=True).squeeze(0)


def as_image(pixels_3SS: torch.Tensor) -> Image.Image:
    """A uint8 tensor (3, S, S) as an RGB image; channel by channel, since interleaving them elsewhere takes longer."""
    return Image.merge("RGB", [Image.fromarray(channel) for channel in pixels_3SS.numpy()])


class SplitTransform:
    """The image as it is cropped, then under the policy, anew each time: uint8 (splits, 3, S, S), as for AugMix."""

    def __init__(self, crop: Compose, plain: Compose, policy: Compose, splits: int) -> None:
        self.crop, self.ways = crop, [plain, *[policy] * (splits - 1)]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        cropped = self.crop(image)
        return torch.stack([way(cropped) for way in self.ways])


def train_transform(data: DataConfig, augment: AugmentConfig, mean: Sequence[float], splits: int = 0) -> Transform:
    """timm's training transform from an opened image to a uint8 tensor; erasing and mixing follow per batch.

    `mean`: of as many channels as the tensor is to have. Grey comes last, since not every policy of timm's can do it.
    """
    if augment.color_jitter > 0 and augment.auto_augment and "3a" not in augment.auto_augment:
        log.warning(
            "augment.color_jitter=%s has no effect: timm turns it off beside augment.auto_augment=%s",
            augment.color_jitter,
            augment.auto_augment,
        )
    try:
        parts = create_transform(
            data.img_size,
            is_training=True,
            use_prefetcher=True,  # leaves normalisation to the batch
            scale=augment.scale,  # type: ignore[arg-type]  # timm makes tuples of lists
            ratio=augment.ratio,  # type: ignore[arg-type]
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]  # None: no such step
            color_jitter_prob=augment.color_jitter_prob,
            grayscale_prob=augment.grayscale_prob,
            gaussian_blur_prob=augment.gaussian_blur_prob,
            auto_augment=augment.auto_augment,
            interpolation=data.interpolation,
            mean=per_channel(mean, 3),
            separate=True,
        )
    except (AssertionError, KeyError, ValueError) as fault:
        reason = " ".join(str(fault).split()) or "not a policy that timm knows"
        raise InputError(
            f"augment.auto_augment={augment.auto_augment!r} cannot be used ({reason}): "
            "use a timm policy such as rand-m9-mstd0.5-inc1"
        ) from fault
    (crop, *flip), policy, to_tensor = (part.transforms for part in parts)
    decode: Callable[..., torch.Tensor | Image.Image] = decoded
    if data.interpolation in TORCH_RESIZES:
        jpeg_decoder()  # here, so that workers, which are forked, need not load it
        decode, crop = decoded_pixels, RandomCrop(crop.size, crop.scale, crop.ratio, data.interpolation)
        policy, to_tensor = ([as_image, *policy], to_tensor) if policy else ([], [])
    if len(mean) == 1:
        to_tensor = [*to_tensor, torch.as_tensor, grey]
    place = [decode, crop, *flip]
    if splits:
        return SplitTransform(Compose(place), Compose(to_tensor), Compose([*policy, *to_tensor]), splits)
    return Compose([*place, *policy, *to_tensor])


@dataclass(eq=False)
class ImageFiles(Dataset):
    """Decoded and transformed images by (index, place in the epoch, epoch); faults are returned, not raised.

    In training (`seed` is given) the next readable image stands in for a broken one, so that batches stay full and
    processes in step; at most `max_corrupt` are passed over. In evaluation a broken image is left out.
    """

    source: LabelledSource
    transform: Transform
    seed: int | None
    max_corrupt: int = 0

    def __getitems__(self, batch: Batch) -> list[Sample]:
        """A batch by its indices, places and epoch, as DataLoader asks for it."""
        indices, places, epoch = batch
        return [self[index, place, epoch] for index, place in zip(indices.tolist(), places.tolist(), strict=True)]

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:
        index, place, epoch = key
        faults: list[tuple[str, str]] = []
        # A worker's generators serve nothing else, and evaluation draws nothing.
        own = self.seed is None or get_worker_info() is not None
        with nullcontext() if own else kept_generators():
            while True:
                if self.seed is not None:
                    seed_globals(derive_seed(self.seed, "augment", epoch, place))
                try:
                    image = read_opened(self.source, index, self.transform)
                    return Sample(image, int(self.source.targets[index]), tuple(faults))
                except CorruptImage as fault:
                    faults.append((fault.name, str(fault)))
                if self.seed is None or len(faults) > self.max_corrupt or len(faults) == len(self.source):
                    return Sample(None, -1, tuple(faults))
                index = (index + 1) % len(self.source)


def collate(samples: list[Sample]) -> tuple[torch.Tensor | None, torch.Tensor, list[tuple[str, str]]]:
    """The images that there are (None: not one), their targets, and all faults; a worker's lie in shared memory."""
    images = [sample.image for sample in samples if sample.image is not None]
    targets = torch.tensor([sample.target for sample in samples if sample.image is not None], dtype=torch.int64)
    faults = [fault for sample in samples for fault in sample.faults]
    if images and images[0].dim() == 4:  # splits, one after the other
        return torch.stack(images, 1).flatten(0, 1), targets.repeat(len(images[0])), faults
    return default_collate(images).contiguous() if images else None, targets, faults


@dataclass(kw_only=True, eq=False)
class FileLoader(BatchLoader):
    """Batches decoded by `num_workers` processes, which live as long as the loader.

    Each image's transforms are seeded by (seed, epoch, place in the epoch), so neither the number of workers
    nor an interrupted epoch changes what an image looks like, and no global generator moves. A pass that begins
    ends the one before.
    """

    source: LabelledSource
    transform: Transform
    num_workers: int
    corrupt: CorruptImages

    def __post_init__(self) -> None:
        self._batches: list[Batch] = []  # of the pass, which DataLoader reads as it begins
        self._decoded = DataLoader(
            ImageFiles(self.source, self.transform, None if self.plan is None else self.plan.seed, self.corrupt.limit),
            batch_sampler=self._batches,  # type: ignore[arg-type]  # for `__getitems__`
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_outlive_signals,
            generator=torch.Generator().manual_seed(0),  # else each pass would draw from the global one
        )

    def _raw_batches(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._batches[:] = [(*batch, epoch) for batch in self._positions(epoch, first)]
        try:
            for images, targets, faults in self._decoded:
                for name, message in faults:
                    self.corrupt.add(name, message)
                if images is None and self.plan is not None:
                    raise InputError(f"a whole training batch cannot be decoded, the last image is {faults[-1][0]}")
                if images is not None:
                    yield images, targets
        except InputError:
            # The workers end now. Garbage collection of a traceback's cycle would wait for them in vain: it ends the
            # threads that speak to them first.
            self._decoded._iterator = None
            raise


def _outlive_signals(worker: int) -> None:
    """A request to stop is the main process's to handle, and its step needs the workers; it ends them itself.

    SIGTERM goes to all processes of a job, and is also the last means by which the main process ends a worker that
    hangs: it takes effect after STOP_GRACE_S.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(STOP_GRACE_S))
