"""Seconds per pass of several models in turn, so that a slow moment of the machine hits all of them alike."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.engine.autocast import autocast
from ecoformer.engine.distributed import clock

Pass = Callable[[], object]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def interleaved_seconds(
    passes: Mapping[str, Pass], device: torch.device, rounds: int = 5, min_seconds: float = 0.3
) -> dict[str, list[float]]:
    """Seconds of one pass, for every name one figure a round: one pass after the other, after one each to warm up.

    A round repeats a pass until at least `min_seconds` have passed.
    """
    for run in passes.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            started, count = clock(device), 0
            while (elapsed := clock(device) - started) < min_seconds or not count:
                run()
                count += 1
            seconds[name].append(elapsed / count)
    return seconds


def forward_pass(model: Callable[[Tensor], object], images: Tensor, precision: str = "fp32") -> Pass:
    """What a deployed model does with one batch: eval mode, no autograd graph."""
    if isinstance(model, nn.Module):
        model.eval()

    @torch.inference_mode()
    def run() -> object:
        with autocast(images.device, PRECISIONS[precision]):
            return model(images)

    return run


def training_step(model: nn.Module, images: Tensor, num_classes: int, precision: str = "fp32") -> Pass:
    """Forward, cross-entropy, backward and an AdamW step on one batch, in training mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    targets = torch.arange(len(images), device=images.device) % num_classes

    def run() -> object:
        optimizer.zero_grad()
        with autocast(images.device, PRECISIONS[precision]):
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        return loss

    return run
