"""Small stand-ins: a model with one hashed layer, random data, and a trainer of both, made the same every time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.config.schema import CheckpointConfig, HashUpdateConfig, OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.engine.hash_update import HashUpdate
from ecoformer.engine.trainer import Trainer
from ecoformer.errors import InputError
from ecoformer.fit.contract import FittableAttention
from ecoformer.fit.hashes import HashFitReport

NUM_CLASSES = 3
IMG_SIZE = 8


class FakeHash(FittableAttention):
    """Random projection signs, drawn in `fit_hash`, that scale the tokens: shape (B, N, D) in and out."""

    projection: Tensor
    fitted: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.zeros(dim))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit_hash(self, x_BND: Tensor, generator: torch.Generator) -> HashFitReport:
        drawn = torch.randn(self.projection.shape, generator=generator).to(x_BND.device)
        self.projection.copy_(drawn + x_BND.mean(dim=(0, 1)))
        self.fitted.fill_(True)
        objectives = {"objective_before": -1.0, "objective_after": -2.0, "accepted_bits": 3, "num_bits": 4}
        return HashFitReport(**objectives, bit_balance=0.5, bit_correlation=0.1, flipped_bits=0.25)

    def forward(self, x_BND: Tensor) -> Tensor:
        if not self.fitted:
            raise InputError("the hash functions were never fitted: enable callbacks.hash_update")
        return x_BND * self.projection.sign()


class FakeModel(nn.Module):
    """Convolution, optional batch norm, a hashed layer, dropout (draws random numbers), a head."""

    def __init__(self, dropout: float = 0.2, batch_norm: bool = True, hashed: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.attn = FakeHash(8) if hashed else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, NUM_CLASSES)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": "^stem", "blocks": [("^norm|^attn", (0,))]}

    def forward(self, images: Tensor) -> Tensor:
        x_BND = self.norm(self.stem(images)).flatten(2).transpose(1, 2)
        return self.head(self.drop(self.attn(x_BND)).relu().mean(dim=1))


def make_model(**options: Any) -> FakeModel:
    """The same weights at every call."""
    torch.manual_seed(11)
    return FakeModel(**options)


class FakeLoader:
    """Batches of fixed images in an order that depends on (seed, epoch); a rank takes every n-th image."""

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        device: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
        noise = torch.randn(num_images, 3, IMG_SIZE, IMG_SIZE, generator=generator)
        self.images = (noise + self.labels[:, None, None, None]).to(device)
        self.labels = self.labels.to(device)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return -(-len(self.labels) // (self.batch_size * self.world_size))

    def __iter__(self):
        order = torch.arange(len(self.labels))
        if self.shuffle:
            generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
            order = torch.randperm(len(self.labels), generator=generator)
        first, self.first_batch = self.first_batch, 0
        for chunk in order[self.rank :: self.world_size].split(self.batch_size)[first:]:
            yield self.images[chunk], self.labels[chunk]


class FakeData:
    img_size = IMG_SIZE
    samples = "images"

    def __init__(
        self,
        num_train: int = 44,
        batch_size: int = 8,
        rank: int = 0,
        world_size: int = 1,
        device: Any = "cpu",
        num_val: int = 20,
    ) -> None:
        self.num_train = num_train
        ranks = {"rank": rank, "world_size": world_size, "device": device}
        self.train_loader = FakeLoader(num_train, batch_size, seed=1, shuffle=True, **ranks)
        self.val_loader = FakeLoader(num_val, 8, seed=2, shuffle=False, **ranks)

    def calibration_images(self, num_images: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.train_loader.labels), generator=generator)[:num_images]
        return self.train_loader.images[chosen]


class SignalData(FakeData):
    """Sends this process a signal right before the given training batch."""

    def __init__(self, signum: int, epoch: int, batch: int) -> None:
        super().__init__()

        class SignalLoader(FakeLoader):
            def __iter__(self):
                for number, item in enumerate(super().__iter__(), start=self.first_batch):
                    if (self.epoch, number) == (epoch, batch):
                        os.kill(os.getpid(), signum)
                    yield item

        self.train_loader.__class__ = SignalLoader


def make_trainer(run_dir: Path, data: Any = None, model: nn.Module | None = None, **changes: Any) -> Trainer:
    """A trainer on the fakes; `changes` go to TrainConfig, and optim, schedule, hash_update replace the configs.

    `checkpoint` is a dict of CheckpointConfig's fields.
    """
    model = model or make_model()
    hash_update = changes.pop("hash_update", HashUpdateConfig(at_epochs=[0, 1], num_images=8))
    optim = changes.pop("optim", OptimConfig(lr=1e-2, clip_grad=1.0))
    schedule = changes.pop("schedule", ScheduleConfig(warmup_epochs=1))
    checkpoint = CheckpointConfig(**changes.pop("checkpoint", {}))
    device = changes.pop("device", torch.device("cpu"))
    callbacks = [HashUpdate(hash_update), *changes.pop("callbacks", [])]
    loggers = changes.pop("loggers", [])
    settings = {"epochs": 2, "batch_size": 8, "ema_decay": 0.9, "log_every": 2, "progress": False, **changes}
    return Trainer(
        model,
        data or FakeData(device=device),
        train=TrainConfig(**settings),
        optim=optim,
        schedule=schedule,
        checkpoint=checkpoint,
        run_dir=run_dir,
        device=device,
        seed=5,
        callbacks=callbacks,
        loggers=loggers,
        config={"name": "fake"},
    )
