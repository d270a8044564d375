"""What both loaders share: which images make up a batch, and how a uint8 batch becomes a model's input.

Shape suffixes: B images, S side in pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ecoformer.data.augment import BatchKey, Mix, crop_and_flip, derive_seed, erase, normalize


@dataclass(frozen=True)
class TrainPlan:
    """Order and random augmentation of a training loader."""

    seed: int
    hflip: float = 0.0
    crop_padding: int = 0
    random_erase: float = 0.0
    mix: Mix | None = None
    repeats: int = 1


class BatchLoader:
    """Batches of (images (B, 3, S, S) float32 normalised on the device, targets).

    With a `TrainPlan`, order and augmentation depend on (seed, epoch, number of processes) alone: global batch
    k is a slice of one permutation, of which process r takes every world_size-th image from the r-th on, and
    images that do not fill a global batch are dropped. Without one, images come in order, each process takes
    every world_size-th, and nothing is dropped or repeated, so the processes' sums give exact totals.

    Targets are (B,) int64, or (B, classes) float32, smoothed already, when the plan mixes images.
    """

    def __init__(
        self,
        targets: np.ndarray,
        *,
        batch_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device,
        plan: TrainPlan | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.targets = targets
        self.batch_size = batch_size
        self.device = device
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)

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
        for batch, (images, targets) in enumerate(self._raw_batches(epoch, first), start=first):
            yield self.finish(images, targets, epoch, batch)

    def _raw_batches(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """uint8 images (B, 3, S, S) and int64 targets (B,), on the CPU or already on the device."""
        raise NotImplementedError

    def _positions(self, epoch: int, first: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per batch from `first` on: image indices, and their places in the epoch over all processes."""
        num_images = len(self.targets)
        if self.plan is None:
            order = np.arange(num_images)
            own = order[self.rank :: self.world_size]
            chunks = [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]
        else:
            order = np.random.default_rng(derive_seed(self.plan.seed, "order", epoch)).permutation(num_images)
            order = np.repeat(order, self.plan.repeats)[:num_images]
            size = self.batch_size * self.world_size
            chunks = [
                np.arange(batch * size + self.rank, (batch + 1) * size, self.world_size) for batch in range(len(self))
            ]
        return [(order[places], places) for places in chunks[first:]]

    def finish(
        self, images: torch.Tensor, targets: torch.Tensor, epoch: int, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A raw batch on the device, normalised, and in training augmented as a whole."""
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        plan = self.plan
        if plan is None:
            return normalize(images, self._mean, self._std), targets
        key = BatchKey(plan.seed, epoch, batch, self.rank, self.world_size)
        images = crop_and_flip(images, key, padding=plan.crop_padding, hflip=plan.hflip)
        images = normalize(images, self._mean, self._std)
        if plan.random_erase > 0:
            images = erase(images, key, probability=plan.random_erase)
        if plan.mix is not None:
            images, targets = plan.mix(images, targets, key)
        return images, targets


class MemoryLoader(BatchLoader):
    """Batches from one uint8 tensor (N, 3, S, S) that stays on the device."""

    def __init__(self, images_N3SS: torch.Tensor, targets: np.ndarray, **kwargs: object) -> None:
        super().__init__(targets, **kwargs)  # type: ignore[arg-type]
        self.images = images_N3SS.to(self.device)
        self._targets = torch.from_numpy(targets).to(self.device)

    def _raw_batches(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices, _ in self._positions(epoch, first):
            chosen = torch.from_numpy(indices).to(self.device)
            yield self.images[chosen], self._targets[chosen]
