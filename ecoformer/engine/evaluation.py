"""Accuracy, loss and throughput of a model on a validation set. Shape legend: B batch, K number of top guesses."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.engine import distributed
from ecoformer.engine.autocast import autocast
from ecoformer.engine.batches import top5
from ecoformer.engine.optim import amp_dtype
from ecoformer.errors import InputError
from ecoformer.fit.compare import eval_mode

Batches = Iterable[tuple[Tensor, Tensor]]


class NotFinite(InputError):
    """What the model gives is no number, so there is no accuracy to speak of."""


@dataclass(frozen=True)
class EvalResult:
    """Figures over `num_images` images of all ranks: top1 and top5 in percent, loss a mean in nats.

    With fewer than five classes top5 counts a hit among all of them. `images_per_second` is the throughput of all
    ranks together, loading included, without the first batch.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    images_per_second: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Batches,
    device: torch.device,
    amp: str = "off",
    *,
    channels_last: bool = False,
    on_batch: Callable[[], None] | None = None,
    on_logits: Callable[[Tensor, Tensor], None] | None = None,
) -> EvalResult:
    """Evaluate `model` in eval mode; its mode is restored.

    Args:
        loader: batches (images (B, 3, S, S) on `device`, labels (B,)); each rank its own share, no image twice.
        amp: off, bf16 or fp16.
        on_logits: gets every batch's logits (B, classes) and labels (B,), in the loader's order.
        on_batch: called after every batch; an exception from it ends the evaluation.
    Raises:
        NotFinite: logits are NaN or infinite, on any rank; says where that begins.
        InputError: the loader has no images.
    """
    dtype = amp_dtype(amp, device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    # Loss sum, top-1 hits, top-5 hits, images with bad logits. float64 counts exactly and sums losses without drift.
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    num_images = 0
    clock = _Clock(device)

    def forward(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            return model(images.contiguous(memory_format=memory_format)).float()

    with eval_mode(model):
        for images, labels in loader:
            logits = forward(images)
            totals += _batch_totals(logits, labels)
            if on_logits is not None:
                on_logits(logits, labels)
            num_images += len(labels)
            clock.batch_done(len(labels))
            if on_batch is not None:
                on_batch()
        if clock.num_batches == 1:  # nothing was timed yet: run the only batch once more
            forward(images)
            clock.batch_done(len(images))
    own = torch.tensor([clock.rate(), num_images], dtype=torch.float64, device=device)
    figures = distributed.all_reduce_sum(torch.cat([totals, own])).tolist()
    loss_sum, hits1, hits5, bad, rate, num_images = *figures[:5], int(figures[5])
    if num_images == 0:
        raise InputError("the validation set has no images: check data.root and data.max_val_samples")
    if bad:
        raise NotFinite(f"{bad:.0f} of {num_images} validation images get logits that are no numbers: {_cause(model)}")
    top1, top5 = (100 * hits / num_images for hits in (hits1, hits5))
    return EvalResult(top1, top5, loss_sum / num_images, num_images, rate)


def _batch_totals(logits: Tensor, labels: Tensor) -> Tensor:
    loss_sum = F.cross_entropy(logits.double(), labels, reduction="sum")
    hits_BK = top5(logits) == labels[:, None]
    bad = (~logits.isfinite()).any(dim=1).sum()
    return torch.stack([loss_sum, hits_BK[:, 0].sum().double(), hits_BK.sum().double(), bad.double()])


def _cause(model: nn.Module) -> str:
    """Where what is no number comes from: the weights, or what is computed from finite ones."""
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    faulty = [name for name, value in state.items() if not value.isfinite().all()]
    if faulty:
        return f"{len(faulty)} of the model's {len(state)} tensors hold NaN or infinity (first {faulty[0]})"
    largest = max(value.abs().max().item() for value in state.values()) if state else 0.0
    return f"the weights are finite (at most {largest:.3g}), what is computed from them is not"


class _Clock:
    """Images per second after the first batch, which pays for worker start, allocation and compilation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.num_batches = 0
        self.timed_images = 0
        self.started = 0.0

    def batch_done(self, num_images: int) -> None:
        self.num_batches += 1
        if self.num_batches == 1:
            self.started = distributed.clock(self.device)
        else:
            self.timed_images += num_images

    def rate(self) -> float:
        return self.timed_images / (distributed.clock(self.device) - self.started) if self.timed_images else 0.0
