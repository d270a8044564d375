"""What all loaders share: which samples make up a batch, and how a raw batch becomes a model's input.

Shapes: B samples, S side of an image in pixels, N tokens of a sequence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ecoformer.config.schema import AugmentConfig
from ecoformer.data.augment import BatchKey, Mix, crop_and_flip, derive_seed, erase, normalize


@dataclass(frozen=True)
class TrainPlan:
    """Order of a training loader, and random augmentation of its images."""

    seed: int
    hflip: float = 0.0
    vflip: float = 0.0
    crop_padding: int = 0
    random_erase: float = 0.0
    mix: Mix | None = None
    repeats: int = 1

    @classmethod
    def of(cls, augment: AugmentConfig, smoothing: float, seed: int, num_classes: int, in_memory: bool) -> "TrainPlan":
        """What the config asks for, less what is done to files as they are read."""
        mix = None
        if augment.mixup > 0 or augment.cutmix > 0:
            how = (augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch_prob)
            mix = Mix(*how, num_classes, smoothing, augment.mixup_off_epoch)
        return cls(
            seed=seed,
            hflip=augment.hflip if in_memory else 0.0,  # files are flipped before RandAugment, by timm's transform
            vflip=augment.vflip if in_memory else 0.0,
            crop_padding=augment.crop_padding,
            random_erase=augment.random_erase,
            mix=mix,
            repeats=max(1, augment.repeats),
        )


Finish = Callable[[torch.Tensor, torch.Tensor, BatchKey | None], tuple[torch.Tensor, torch.Tensor]]


def per_channel(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Means or deviations for so many channels: where there are others, their mean in each, as timm does."""
    return tuple(values) if len(values) == in_chans else (sum(values) / len(values),) * in_chans


class FinishImages:
    """uint8 images (B, C, S, S) to float32, normalised, and in training (given a plan) augmented as a whole."""

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device, plan: TrainPlan | None = None
    ) -> None:
        self.plan = plan
        self._mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(std, device=device).view(-1, 1, 1)

    def __call__(
        self, images: torch.Tensor, targets: torch.Tensor, key: BatchKey | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets are (B,) int64, or (B, classes) float32, smoothed already, when the plan mixes images."""
        plan = self.plan
        if plan is None or key is None:
            return normalize(images, self._mean, self._std), targets
        images = crop_and_flip(images, key, padding=plan.crop_padding, hflip=plan.hflip, vflip=plan.vflip)
        images = normalize(images, self._mean, self._std)
        if plan.random_erase > 0:
            images = erase(images, key, probability=plan.random_erase)
        if plan.mix is not None:
            images, targets = plan.mix(images, targets, key)
        return images, targets


def finish_ids(ids: torch.Tensor, targets: torch.Tensor, key: BatchKey | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, N) of any width of integer to int64."""
    return ids.long(), targets


@dataclass(kw_only=True, eq=False)  # two loaders are the same if they are one
class BatchLoader(ABC):
    """Batches of (samples as `finish` makes them, targets), on the device.

    With a `TrainPlan`, order and augmentation depend on (seed, epoch, number of processes) alone: global batch
    k is a slice of one permutation, of which process r takes every world_size-th sample from the r-th on, and
    samples that do not fill a global batch are dropped. Without one, samples come in order, each process takes
    every world_size-th, and nothing is dropped or repeated, so the processes' sums give exact totals.
    """

    targets: np.ndarray
    batch_size: int
    finish_batch: Finish
    device: torch.device
    plan: TrainPlan | None = None
    rank: int = 0
    world_size: int = 1
    epoch: int = field(default=0, init=False)
    first_batch: int = field(default=0, init=False)

    def __len__(self) -> int:
        """Batches of a whole epoch on this process."""
        if self.plan is not None:
            return len(self.targets) // (self.batch_size * self.world_size)
        return -(-len(range(self.rank, len(self.targets), self.world_size)) // self.batch_size)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch; `first_batch` skips batches of the next pass only, as if they had been consumed."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        first, self.first_batch = self.first_batch, 0
        epoch = self.epoch
        for batch, (samples, targets) in enumerate(self._raw_batches(epoch, first), start=first):
            yield self.finish(samples, targets, epoch, batch)

    @abstractmethod
    def _raw_batches(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Samples as they are kept and int64 targets (B,), on the CPU or already on the device."""

    def _positions(self, epoch: int, first: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per batch from `first` on: indices of samples, and their places in the epoch over all processes."""
        num_samples = len(self.targets)
        if self.plan is None:
            order = np.arange(num_samples)
            own = order[self.rank :: self.world_size]
            chunks = [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]
        else:
            order = np.random.default_rng(derive_seed(self.plan.seed, "order", epoch)).permutation(num_samples)
            order = np.repeat(order, self.plan.repeats)[:num_samples]
            size = self.batch_size * self.world_size
            chunks = [
                np.arange(batch * size + self.rank, (batch + 1) * size, self.world_size) for batch in range(len(self))
            ]
        return [(order[places], places) for places in chunks[first:]]

    def finish(
        self, samples: torch.Tensor, targets: torch.Tensor, epoch: int, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A raw batch as the model takes it, on the device."""
        plan = self.plan
        key = None if plan is None else BatchKey(plan.seed, epoch, batch, self.rank, self.world_size)
        samples = samples.to(self.device, non_blocking=True)
        return self.finish_batch(samples, targets.to(self.device, non_blocking=True), key)


@dataclass(kw_only=True, eq=False)
class MemoryLoader(BatchLoader):
    """Batches from one tensor of samples (uint8 images, or ids of few bytes) that stays on the device."""

    samples: torch.Tensor

    def __post_init__(self) -> None:
        self.samples = self.samples.to(self.device)
        self._targets = torch.from_numpy(self.targets).to(self.device)

    def _raw_batches(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices, _ in self._positions(epoch, first):
            chosen = torch.from_numpy(indices).to(self.device)
            yield self.samples[chosen], self._targets[chosen]
