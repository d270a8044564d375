"""Augmentation of whole batches. Every draw comes from a generator keyed by (seed, epoch, batch), never a global one.

Shape suffixes: B images of this process's batch, G images of the batch over all processes, S side in pixels.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

ERASE_AREA = (0.02, 1 / 3)  # share of the image
ERASE_ASPECT = (0.3, 1 / 0.3)


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as (seed, "augment", epoch, batch): equal keys, equal seeds, on any machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class BatchKey:
    """Which training batch this is. Geometry is drawn for all G images and sliced, so it does not depend on how
    many processes share the batch; mixing and noise are drawn per process."""

    seed: int
    epoch: int
    batch: int
    rank: int = 0
    world_size: int = 1

    def shared(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, purpose, self.epoch, self.batch))

    def own_seed(self, purpose: str) -> int:
        return derive_seed(self.seed, purpose, self.epoch, self.batch, self.rank)

    def uniform(self, purpose: str, batch_size: int, draws: int) -> np.ndarray:
        """(B, draws) numbers in [0, 1): this process's rows of (G, draws)."""
        numbers = self.shared(purpose).random((batch_size * self.world_size, draws))
        return numbers[self.rank :: self.world_size]


def crop_and_flip(
    images_B3SS: torch.Tensor, key: BatchKey, *, padding: int, hflip: float, vflip: float = 0.0
) -> torch.Tensor:
    """Pad with black, crop S x S at random, mirror with probability `hflip`, turn over with `vflip`; one gather."""
    if padding == hflip == vflip == 0:
        return images_B3SS
    batch, channels, _, side = images_B3SS.shape
    draws = torch.from_numpy(key.uniform("crop", batch, 3))
    offsets = (draws[:, :2] * (2 * padding + 1)).long()
    steps = torch.arange(side)
    columns_BS = torch.where(draws[:, 2:] < hflip, side - 1 - steps, steps) + offsets[:, 1:]
    rows_BS = steps + offsets[:, :1]
    if vflip > 0:
        turned = torch.from_numpy(key.uniform("vflip", batch, 1)) < vflip
        rows_BS = torch.where(turned, side - 1 - steps, steps) + offsets[:, :1]
    width = side + 2 * padding
    places = (rows_BS[:, :, None] * width + columns_BS[:, None, :]).view(batch, 1, -1).to(images_B3SS.device)
    padded = F.pad(images_B3SS, [padding] * 4).flatten(2)
    return padded.gather(2, places.expand(-1, channels, -1)).view_as(images_B3SS)


def normalize(images_u8_B3SS: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 ((x / 255 - mean) / std); mean and std are (C, 1, 1) on the images' device."""
    return images_u8_B3SS.float().sub_(mean * 255).div_(std * 255)


def erase(images_B3SS: torch.Tensor, key: BatchKey, *, probability: float) -> torch.Tensor:
    """Random erasing (Zhong et al., 2020), in place, after normalisation: one rectangle per chosen image.

    Area, aspect and per-pixel normal noise are timm's "pixel" mode; a side longer than the image is cut to
    S - 1 instead of being drawn again.
    """
    batch, _, _, side = images_B3SS.shape
    draws = torch.from_numpy(key.uniform("erase", batch, 5)).to(torch.float64)
    chosen = torch.nonzero(draws[:, 0] < probability).flatten()
    if len(chosen) == 0 or side < 2:
        return images_B3SS
    _, area, log_aspect, top, left = draws[chosen].unbind(1)
    area = (ERASE_AREA[0] + area * (ERASE_AREA[1] - ERASE_AREA[0])) * side * side
    low, high = (math.log(aspect) for aspect in ERASE_ASPECT)
    aspect = (low + log_aspect * (high - low)).exp()
    height = (area * aspect).sqrt().round().clamp(1, side - 1)
    width = (area / aspect).sqrt().round().clamp(1, side - 1)
    top = (top * (side - height + 1)).floor()
    left = (left * (side - width + 1)).floor()
    device = images_B3SS.device
    generator = torch.Generator(device).manual_seed(key.own_seed("noise"))
    boxes = torch.stack([chosen, top, top + height, left, left + width], 1).long().tolist()
    for index, north, south, west, east in boxes:
        box = images_B3SS[index, :, north:south, west:east]
        box.copy_(torch.randn(box.shape, device=device, generator=generator))
    return images_B3SS


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) with one lambda per batch, as timm's batch mode.

    Image i is mixed with image B - 1 - i. With `probability` a batch is mixed at all; where both are on, it is
    CutMix with `switch_probability`. Targets carry the label smoothing, so the loss must not smooth them again. From
    `off_epoch` on no batch is mixed (0: always).
    """

    mixup: float
    cutmix: float
    probability: float
    switch_probability: float
    num_classes: int
    smoothing: float = 0.0
    off_epoch: int = 0

    def __call__(
        self, images_B3SS: torch.Tensor, targets_B: torch.Tensor, key: BatchKey
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In-place mixed images, and targets (B, classes) float32 that sum to one."""
        rng = np.random.default_rng(key.own_seed("mix"))
        targets = F.one_hot(targets_B, self.num_classes) * (1 - self.smoothing) + self.smoothing / self.num_classes
        if rng.random() >= self.probability or 0 < self.off_epoch <= key.epoch:
            return images_B3SS, targets
        cut = self.cutmix > 0 and (self.mixup == 0 or rng.random() < self.switch_probability)
        alpha = self.cutmix if cut else self.mixup
        lam = float(rng.beta(alpha, alpha))
        if cut:
            lam = _cut(images_B3SS, lam, rng)
        else:
            images_B3SS.lerp_(images_B3SS.flip(0), 1 - lam)
        return images_B3SS, targets.lerp(targets.flip(0), 1 - lam)


def _cut(images_B3SS: torch.Tensor, lam: float, rng: np.random.Generator) -> float:
    """Paste a box of area share 1 - lam around a random centre; returns lambda for the box after clipping."""
    side = images_B3SS.shape[-1]
    cut = int(side * math.sqrt(1 - lam))
    bounds = []
    for start in rng.integers(side, size=2) - cut // 2:
        bounds += [max(0, int(start)), min(side, int(start) + cut)]
    top, bottom, left, right = bounds
    box = images_B3SS[:, :, top:bottom, left:right]
    box.copy_(box.flip(0))
    return 1 - (bottom - top) * (right - left) / (side * side)
